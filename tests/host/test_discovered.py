"""Networks that nobody has written a row for: they are guided, as by a row."""

from __future__ import annotations

import pytest
import torch
from pack.patches.host import layer_map
from pack.patches.host.degraded import with_dropout
from pack.tests.host import invented
from pack.tests.host.discovering import PAG, ROWS, count_probes, guided, sample_of, with_row
from pack.tests.host.harness import TERM_NODES, close

# ---------------------------------------------------------------------------------------- networks that exist nowhere


NODES = [
    "BeyondCFGPAG",
    "BeyondCFGSEG",
    "BeyondCFGMaskedAttention",
    "BeyondCFGSAG",
    "BeyondCFGTSG",
    "BeyondCFGSkipLayer",
    "BeyondCFGS2",
    "BeyondCFGERG",
]


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("name", invented.NETWORKS)
def test_a_network_that_exists_nowhere_is_guided(name, node):
    plain = sample_of(invented.model(name), name)
    for layers in ("auto", "all"):
        assert close(guided(name, node, layers=layers), plain) > 1e-3


@pytest.mark.parametrize("node", ["BeyondCFGTPG", "BeyondCFGSSG"])
def test_what_enters_a_block_is_not_shown_by_probes_so_that_is_refused(node):
    title = TERM_NODES[node].about.name
    with pytest.raises(RuntimeError, match=f"{title}: what enters .* is not known"):
        guided("text last", node)


@pytest.mark.parametrize("layers", ["auto", "all", "0.4-0.8"])
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("name", ROWS)
def test_a_network_that_exists_nowhere_is_guided_as_by_a_row(name, node, layers, monkeypatch):
    discovered = guided(name, node, layers=layers)
    with_row(name, monkeypatch)
    assert torch.equal(guided(name, node, layers=layers), discovered)


def test_layers_are_named_by_the_networks_own_lists():
    written = guided("two stacks", "BeyondCFGPAG", layers="second_blocks.0-1, first_blocks.1")
    assert torch.equal(guided("two stacks", "BeyondCFGPAG", layers="0.2-0.7"), written)
    with pytest.raises(ValueError) as error:
        guided("two stacks", "BeyondCFGPAG", layers="second_blocks.3")
    assert str(error.value) == (
        'PAG: layers "second_blocks.3": there is no "second_blocks.3". '
        "This model has first_blocks.0-1, second_blocks.0-2."
    )


def test_layer_map_shows_what_was_found_after_the_first_run():
    model = invented.model("two stacks")
    with pytest.raises(ValueError, match="Its layers are found when it first runs with a guidance"):
        layer_map(model, "auto", 64, 64)
    sample_of(TERM_NODES["BeyondCFGPAG"].execute(model=model, **PAG)[0], "two stacks")
    assert layer_map(model, "first_blocks", 64, 64).text() == (
        "TwoStacks (discovered), 64 x 64\n"
        "chosen: first_blocks.0-1\n"
        "auto: second_blocks.1 (half way of the longest stack; layers and tokens as probes have found them with a latent "
        "of 3 x 8 x 12)\n\n"
        "first_blocks.0-1: 3 x 4 x 6 = 72 tokens < chosen\n"
        "second_blocks.0-2: 3 x 4 x 6 = 72 tokens"
    )


def test_the_log_says_once_what_was_found(caplog):
    caplog.set_level("INFO", "beyond_cfg")
    model = TERM_NODES["BeyondCFGPAG"].execute(model=invented.model("two stacks"), **PAG)[0]
    for _ in range(2):
        sample_of(model, "two stacks")
    said = [record.getMessage() for record in caplog.records if "Probes" in record.getMessage()]
    assert said == [
        "Beyond CFG: TwoStacks has no row in the table of networks. Probes have found the layers first_blocks.0-1, "
        "second_blocks.0-2, over 3 x 4 x 6 tokens of the picture"
    ]


def test_a_later_run_makes_no_probe(monkeypatch):
    made = count_probes(monkeypatch)
    model = TERM_NODES["BeyondCFGPAG"].execute(model=invented.model("text last"), **PAG)[0]
    first_run = sample_of(model, "text last")
    assert len(made) == 7  # as it is, alone, all cells, twice some cells, the time, the text
    assert torch.equal(sample_of(model, "text last"), first_run)
    assert len(made) == 7


def test_a_degraded_model_needs_a_row():
    with pytest.raises(
        ValueError, match=r"Model \(TextLast\) is not supported: nothing here knows where its self-attention"
    ):
        with_dropout(invented.model("text last"), 0.1, "auto", 0)
