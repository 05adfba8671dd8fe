"""The language of layer selections."""

import random
import time
from dataclasses import replace

import pytest
from pack.patches.layers import LONGEST, Layer, parse, print_layers, whole_layers
from pack.patches.texts import SHOWN, shown


def stack(name: str, *indices: int) -> list[Layer]:
    return [Layer(name, index) for index in indices]


def names(layers) -> str:
    return " ".join(map(str, layers))


UNET = [*stack("input", 1, 2, 4, 5, 7, 8), *stack("middle", 0), *stack("output", 3, 4, 5, 6, 7, 8, 9, 10, 11)]
ONE = stack("double", *range(24))
TWO = [*stack("double", *range(19)), *stack("single", *range(38))]
PARTS = [  # as SDXL: two transformers in each block of one level, ten in those of the next
    *(
        Layer("input", index, part, parts)
        for index, parts in ((4, 2), (5, 2), (7, 10), (8, 10))
        for part in range(parts)
    ),
    *(Layer("middle", 0, part, 10) for part in range(10)),
    *(Layer("output", index, part, parts) for index, parts in ((0, 10), (1, 10), (3, 2)) for part in range(parts)),
]
NETWORKS = {"parts": PARTS, "UNet": UNET, "one stack": ONE, "two stacks": TWO}


@pytest.mark.parametrize(
    ("network", "text", "expected"),
    [
        ("UNet", "auto", "input.4 output.5"),
        ("UNet", "middle", "middle"),
        ("UNet", "input.4", "input.4"),
        ("UNet", "output.3-5", "output.3 output.4 output.5"),
        ("UNet", "input.4, output.3-5", "input.4 output.3 output.4 output.5"),
        ("UNet", "d4", "input.4"),
        ("UNet", "i4", "input.4"),
        ("UNet", "m0", "middle"),
        ("UNet", "m", "middle"),
        ("UNet", "u3-5", "output.3 output.4 output.5"),
        ("UNet", "o3-5", "output.3 output.4 output.5"),
        ("UNet", "d4, m0, u3-5", "input.4 middle output.3 output.4 output.5"),
        ("UNet", "d2.4", None),  # another pack's "transformer 4 of block 2" is not ours
        ("UNet", "d4-d5", "input.4 input.5"),
        ("UNet", "output.3-output.5", "output.3 output.4 output.5"),
        ("UNet", "*", names(UNET)),
        ("UNet", "i4,m0,o4", "input.4 middle output.4"),
        ("parts", "input.4", "input.4.0 input.4.1"),
        ("parts", "input.4.1", "input.4.1"),
        ("parts", "d8.2-4,m0.9,u0.4", "input.8.2 input.8.3 input.8.4 middle.0.9 output.0.4"),
        ("parts", "middle.0.3", "middle.0.3"),
        ("parts", "input.5, input.4.0", "input.4.0 input.5.0 input.5.1"),
        ("one stack", "0.0-0.125", "double.0 double.1 double.2"),
        ("one stack", "0.5", "double.12"),
        ("one stack", ".5-.55", "double.12"),
        ("one stack", "0.0", "double.0"),
        ("one stack", "1.0", "double.23"),
        ("one stack", "0.9-1", "double.22 double.23"),
        ("two stacks", "0.3-0.35", "double.17 double.18 single.0"),
        ("UNet", "input", "input.1 input.2 input.4 input.5 input.7 input.8"),
        ("UNet", "auto, middle", "input.4 middle output.5"),
        ("one stack", "7, 8, 9", "double.7 double.8 double.9"),
        ("one stack", "7-9", "double.7 double.8 double.9"),
        ("one stack", "double.7-9", "double.7 double.8 double.9"),
        ("one stack", "auto", "double.4 double.5"),
        ("two stacks", "double.7-9", "double.7 double.8 double.9"),
        ("two stacks", "single.0, double.18", "double.18 single.0"),
        ("two stacks", "double7", "double.7"),
        ("two stacks", "single.3:h0,h5", "single.3:h0,h5"),
        ("two stacks", "single.3:h5, h0-2, double.1", "double.1 single.3:h0-2,h5"),
        ("two stacks", " Single . 3 : H 5 - H 7 ,h0", "single.3:h0,h5-7"),
        ("two stacks", "single.3-4:h1", "single.3:h1 single.4:h1"),
        ("two stacks", "double.1:h1, single.3:h0, double.1:h2", "double.1:h1-2 single.3:h0"),
        ("two stacks", "double.1:h1, double.1", "double.1"),
        ("two stacks", "double.1, double.1:h1", "double.1"),
        ("UNet", "middle:h3, auto", "input.4 middle:h3 output.5"),
        ("UNet", "auto:h3", "input.4:h3 output.5:h3"),
        ("parts", "input.4.1:h2, m0.9:h0", "input.4.1:h2 middle.0.9:h0"),
        ("one stack", "0.0:h1,h3", "double.0:h1,h3"),
    ],
)
def test_every_form_that_is_documented_selects_what_it_says(network, text, expected):
    layers = NETWORKS[network]
    if expected is None:
        with pytest.raises(ValueError):
            parse(text, layers, layers[:0])
        return
    auto = [layer for layer in layers if str(layer) in ("input.4", "output.5", "double.4", "double.5")]
    assert names(parse(text, layers, auto)) == expected


@pytest.mark.parametrize("network", NETWORKS)
def test_all_is_every_layer(network):
    layers = NETWORKS[network]
    assert parse("all", layers, ()) == tuple(layers)


@pytest.mark.parametrize("text", ["OUTPUT.3-5", " output.3-5 ", "output . 3 - 5", "\toutput\n.3 -5", "Output 3-5"])
def test_whitespace_and_case_do_not_matter(text):
    assert names(parse(text, UNET, ())) == "output.3 output.4 output.5"
    assert parse(f"  ALL ,{text}", UNET, ()) == tuple(UNET)


def test_the_networks_order_counts_and_each_layer_once():
    assert names(parse("output.5, middle, output.4-5, d4, middle", UNET, ())) == "input.4 middle output.4 output.5"


def test_a_range_may_span_blocks_that_have_no_attention_if_its_ends_have_one():
    assert names(parse("input.2-7", UNET, ())) == "input.2 input.4 input.5 input.7"


@pytest.mark.parametrize(
    ("network", "text", "part", "what"),
    [
        ("UNet", "input.2, input.3", "input.3", "there is no"),
        ("UNet", "input.1-3", "input.1-3", "there is no"),  # an end without attention
        ("UNet", "input.3-4", "input.3-4", "there is no"),
        ("UNet", "input.5-4", "input.5-4", "there is no"),  # reversed
        ("UNet", "middle.1", "middle.1", "there is no"),
        ("UNet", "double.1", "double.1", "there is no"),
        ("UNet", "blocks", "blocks", "there is no"),
        ("UNet", "input.1-99999999999999999999", "input.1-99999999999999999999", "there is no"),
        ("UNet", "input.99999999999999999999", "input.99999999999999999999", "there is no"),
        ("UNet", "7", "7", "could be in input or middle or output"),
        ("UNet", "4-5", "4-5", "could be in input or middle or output"),
        ("two stacks", "middle, 7", "middle", "there is no"),
        ("two stacks", "double.1, 7", "7", "could be in double or single"),
        ("two stacks", "double.19", "double.19", "there is no"),
        ("two stacks", "m0", "m0", "there is no"),
        ("one stack", "24", "24", "there is no"),
        ("one stack", "9-7", "9-7", "there is no"),
        ("one stack", "single.3", "single.3", "there is no"),
        ("one stack", "", "", "cannot read"),
        ("one stack", "   ", "", "cannot read"),
        ("one stack", "7,", "", "cannot read"),
        ("one stack", "7,,8", "", "cannot read"),
        ("one stack", "7 8", "7 8", "cannot read"),
        ("one stack", "7;8", "7;8", "cannot read"),
        ("one stack", "-3", "-3", "cannot read"),
        ("one stack", "7-", "7-", "cannot read"),
        ("one stack", "7-8-9", "7-8-9", "cannot read"),
        ("one stack", "7.5", "7.5", "cannot read"),
        ("one stack", "1.5", "1.5", "cannot read"),
        ("one stack", "0.5-0.4-0.3", "0.5-0.4-0.3", "cannot read"),
        ("one stack", "0.6-0.4", "0.6-0.4", "there is no"),
        ("one stack", "double.7.0-1", "double.7.0-1", "there is no"),
        ("parts", "input.4.2", "input.4.2", "there is no"),
        ("parts", "input.4-5.1", "input.4-5.1", "there is no"),
        ("parts", "d4-u5", "d4-u5", "there is no"),
        ("one stack", "double.7.attn1", "double.7.attn1", "cannot read"),
        ("one stack", "double..7", "double..7", "cannot read"),
        ("one stack", ".", ".", "cannot read"),
        ("two stacks", "auto; double.3", "auto; double.3", "cannot read"),
        ("two stacks", "double.3:", "double.3:", "cannot read"),
        ("two stacks", "double.3:5", "double.3:5", "cannot read"),
        ("two stacks", "double.3:h1:h2", "double.3:h1:h2", "cannot read"),
        ("two stacks", "double.3:h1000", "double.3:h1000", "cannot read"),
        ("two stacks", "double.3:h1, hx", "hx", "there is no"),
        ("two stacks", "double.3:h5-2", "double.3:h5-2", "there is no"),
        ("two stacks", "double.3:h1,h5-2", "h5-2", "there is no"),
        ("two stacks", "double.19:h1", "double.19", "there is no"),
        ("two stacks", ":h1", "", "cannot read"),
        ("two stacks", "double.3, h1", "h1", "there is no"),
    ],
)
def test_an_error_names_the_text_the_part_that_is_wrong_and_the_layers_that_there_are(network, text, part, what):
    layers = NETWORKS[network]
    with pytest.raises(ValueError) as error:
        parse(text, layers, ())
    message = str(error.value)
    assert message.startswith(f'layers "{text}": ')
    assert f'"{part}"' in message.removeprefix(f'layers "{text}"') and what in message
    assert message.endswith(f"This model has {print_layers(layers)}.")


@pytest.mark.parametrize("network", NETWORKS)
def test_an_error_that_cannot_read_shows_what_can_be_written(network):
    layers = NETWORKS[network]
    with pytest.raises(ValueError, match="Write auto, all, or a comma-separated list such as ") as error:
        parse("?", layers, ())
    example = str(error.value).partition("such as ")[2].partition(". This")[0]
    assert {layer.block for layer in parse(example, layers, ())} == {layers[0].block, layers[-1].block}


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([], ""),
        (UNET, "input.1-2, input.4-5, input.7-8, middle, output.3-11"),
        (ONE, "double.0-23"),
        (TWO, "double.0-18, single.0-37"),
        (stack("input", 1, 2, 4) + stack("middle", 0), "input.1-2, input.4, middle"),
    ],
)
def test_runs_of_layers_are_printed_joined(layers, text):
    assert print_layers(layers) == text


@pytest.mark.parametrize("network", NETWORKS)
def test_parse_reads_what_print_layers_prints(network):
    layers, draw = NETWORKS[network], random.Random(network)
    for _ in range(300):
        share = draw.random()
        some = tuple(layer for layer in layers if draw.random() < share) or (draw.choice(layers),)
        assert parse(print_layers(some), layers, ()) == some
        assert parse(", ".join(map(str, draw.sample(some, len(some)))), layers, ()) == some


@pytest.mark.parametrize("network", NETWORKS)
def test_parse_reads_what_print_layers_prints_of_heads(network):
    layers, draw = NETWORKS[network], random.Random(network)
    for _ in range(300):
        share = draw.random()
        some = tuple(layer for layer in layers if draw.random() < share) or (draw.choice(layers),)
        some = tuple(
            replace(layer, heads=tuple(sorted(draw.sample(range(30), draw.randint(0, 6))))) for layer in some[:40]
        )
        assert parse(print_layers(some), layers, ()) == some
        assert parse(", ".join(map(str, draw.sample(some, len(some)))), layers, ()) == some
        assert tuple(layer.whole for layer in some) == tuple(layer for layer in layers if layer in {*map(whole, some)})


def whole(layer: Layer) -> Layer:
    return layer.whole


def test_any_text_is_read_or_refused_with_a_sentence():
    draw, pieces = random.Random(0), ["single", ".", "3", "-", ":", "h", "5", ",", " ", "auto", "all", "0.5", "d", "*"]
    for _ in range(3000):
        text = "".join(draw.choice(pieces) for _ in range(draw.randint(0, 12)))
        found, message = (), ""
        try:
            found = parse(text, TWO, TWO[:2])
        except ValueError as error:
            message = str(error)
        assert message.startswith(f'layers "{text}": ') or parse(print_layers(found), TWO, ()) == found
        assert {*map(whole, found)} <= {*TWO} and bool(found) != bool(message)


def test_a_stack_of_the_name_h_is_no_head_where_its_dot_is_written():
    layers = [*stack("h", 0, 1, 2), *stack("single", 0)]
    assert names(parse("single.0:h1, h.2", layers, ())) == "h.2 single.0:h1"
    assert names(parse("h1, single.0:h1", layers, ())) == "h.1 single.0:h1"
    assert parse(print_layers(parse("h.2, single.0:h1", layers, ())), layers, ()) == parse(
        "h2, single.0:h1", layers, ()
    )


def test_where_blocks_are_taken_whole_heads_are_refused():
    some = parse("double.1, single.3:h0,h5", TWO, ())
    assert whole_layers("double.1", some[:1]) == some[:1]
    with pytest.raises(ValueError) as error:
        whole_layers("double.1, single.3:h0,h5", some)
    assert str(error.value) == (
        'layers "double.1, single.3:h0,h5": single.3:h0,h5 is a part of an attention, and here blocks are taken whole. '
        "Leave the heads out."
    )


@pytest.mark.parametrize(
    "part",
    [
        "h1,",
        "h1-999,",
        "single.3:h1,",
        ":h1",
        " ",
        "a",
        "1",
        "1 ",
        "a ",
        ".",
        "-",
        ",",
        "1-",
        "0.",
        "auto,",
        "0.1-0.9,",
        "input.1,",
        "input.99,",
        "é",
        "1 - a . ",
    ],
)
@pytest.mark.parametrize("around", ["{}", "a{}b", "1{}", "input.{}1", "1-{}?", "0.{}-"])
def test_any_text_is_read_in_a_time_that_does_not_grow_with_the_ways_to_divide_it(part, around):
    text = around.format(part * (LONGEST // len(part)))[:LONGEST]
    began, message = time.process_time(), ""
    try:
        parse(text, PARTS, ())
    except ValueError as error:
        message = str(error)
    assert time.process_time() - began < 0.5
    assert len(message) < 4 * SHOWN + 500


@pytest.mark.parametrize("length", [LONGEST + 1, 200_000])
def test_a_text_that_is_too_long_is_refused_by_its_beginning_and_its_length(length):
    with pytest.raises(ValueError) as error:
        parse("a" * length, UNET, ())
    message = (
        f'layers "{"a" * SHOWN}… ({length:,} characters)": it is too long; at most {LONGEST:,} characters are read'
    )
    assert str(error.value) == message


def test_every_layer_of_a_large_network_by_itself_is_no_text_that_is_too_long():
    for layers in (PARTS, [*stack("double", *range(60)), *stack("single", *range(60))]):
        assert parse(", ".join(map(str, layers)), layers, ()) == tuple(layers)


def test_what_is_shown_of_a_text_is_all_of_it_where_it_is_short():
    assert shown("a" * SHOWN) == "a" * SHOWN and shown("") == ""
    assert shown("abc", 2) == "ab… (3 characters)"
