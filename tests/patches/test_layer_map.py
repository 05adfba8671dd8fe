"""The list of a network's layers."""

import json

from pack.patches.layer_map import LayerMap
from pack.patches.layers import Layer, parse

UNET = LayerMap(
    "a UNet",
    (64, 48),
    {("input", 0): (6, 8), ("input", 1): (6, 8), ("middle", 0): (3, 4), ("output", 0): (6, 8), ("output", 1): (6, 8)},
    (
        Layer("input", 1),
        *(Layer("middle", 0, part, 3) for part in range(3)),
        Layer("output", 0),
        Layer("output", 1),
    ),
    (Layer("middle", 0, 1, 3), Layer("output", 0), Layer("output", 1)),
    (Layer("input", 1),),
    "nowhere",
)


def test_the_list_says_what_is_chosen_and_what_each_layer_attends_over():
    assert UNET.text().splitlines() == [
        "a UNet, 64 x 48",
        "chosen: middle.0.1, output.0-1",
        "auto: input.1 (nowhere)",
        "",
        "input.1: 6 x 8 = 48 tokens",
        "middle: 3 x 4 = 12 tokens, 3 transformers < chosen: 1 of them",
        "output.0-1: 6 x 8 = 48 tokens < chosen",
    ]


def test_a_block_without_attention_has_no_layers():
    assert UNET.parts(("input", 0)) == [] and len(UNET.parts(("middle", 0))) == 3


def test_what_a_page_draws_is_texts_and_numbers_and_has_each_layer_as_it_can_be_written():
    drawn = json.loads(json.dumps(UNET.drawing()))
    assert drawn["chosen"] == ["middle.0.1", "output.0", "output.1"] and drawn["auto"] == ["input.1"]
    assert [(line["stack"], line["grid"]) for line in drawn["lines"]] == [
        ("input", [6, 8]),
        ("middle", [3, 4]),
        ("output", [6, 8]),
    ]
    written = [layer for line in drawn["lines"] for block in line["blocks"] for layer in block["layers"]]
    assert parse(", ".join(written), UNET.layers, ()) == UNET.layers
    names = [block["name"] for line in drawn["lines"] for block in line["blocks"]]
    assert names == ["input.1", "middle", "output.0", "output.1"]
