"""What a negative prompt in the attention costs, counted in floating-point operations of full-size networks without weights
(meta tensors), against a step without guidance. CFG costs 2, and so does the host's own NAG at cfg 1."""

import pytest
from pack.patches import PROMPT_GUIDANCES, FlippedValues
from pack.tests.host.full_size import Step, without_values


@pytest.fixture(scope="module")
def ratios():
    """Of each network, each method's operations over those of a plain step."""
    made = {}

    def of(name: str) -> dict:
        if name not in made:
            step = Step(name)
            plain = step.forward((None,))
            made[name] = {method: step.negative(method) / plain for method in PROMPT_GUIDANCES}
        return made[name]

    with without_values():
        yield of


@pytest.mark.some_cases(8)
@pytest.mark.parametrize("method", PROMPT_GUIDANCES, ids=lambda method: method.__name__)
@pytest.mark.parametrize(
    ("name", "most"), [("SD 1.5", 1.05), ("SDXL", 1.05), ("Wan 2.1 1.3B", 1.05), ("Flux", 1.6), ("Lumina 2", 1.6)]
)
def test_it_costs_a_part_of_a_row(ratios, name, most, method):
    ratio = ratios(name)[method]
    print(name, method.__name__, ratio)
    assert 1 < ratio <= most


def test_vsf_costs_less_than_those_that_attend_to_the_picture_twice(ratios):
    of = ratios("Flux")
    assert all(of[FlippedValues] < cost for method, cost in of.items() if method is not FlippedValues)
