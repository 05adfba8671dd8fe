"""Self-Guidance: which time the network is told."""

import pytest
import torch
from pack.patches import ShiftedTime


def told(time, shift=0.01, least=0.0, largest=1000.0, dtype=torch.float64):
    time, least, largest = (torch.tensor(value, dtype=dtype) for value in (time, least, largest))
    return ShiftedTime(shift=shift).told(time, least, largest).tolist()


def test_it_is_the_authors_ten_of_a_thousand_and_never_more_than_the_largest():
    authors = [min(max(t + 10, 0), 1000) for t in (0.0, 3.5, 500.0, 995.0, 1000.0)]
    assert told([0.0, 3.5, 500.0, 995.0, 1000.0]) == authors


def test_it_means_the_same_in_the_units_of_every_network():
    share = [0.0, 0.3, 0.95, 1.0]
    expected = [0.2, 0.5, 1.0, 1.0]
    for least, largest in ((0.0, 1.0), (0.0, 999.0), (-1.55, 1.2)):  # the last: a quarter of log σ
        span = largest - least
        found = told([least + part * span for part in share], 0.2, least, largest)
        assert found == pytest.approx([least + part * span for part in expected], abs=1e-12)


def test_each_row_has_its_own_and_the_given_ones_stay_as_they_are():
    time = torch.tensor([100.0, 300.0, 998.0])
    new = ShiftedTime(shift=0.1).told(time, torch.tensor(0.0), torch.tensor(1000.0))
    assert new.tolist() == [200.0, 400.0, 1000.0] and time.tolist() == [100.0, 300.0, 998.0]


def test_no_shift_is_neutral_and_a_negative_one_is_refused():
    assert ShiftedTime(shift=0.0).neutral and not ShiftedTime().neutral
    for wrong in (-0.01, 1.5, float("nan")):
        with pytest.raises(ValueError, match="shift"):
            ShiftedTime(shift=wrong)
