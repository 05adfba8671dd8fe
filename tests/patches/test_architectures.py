"""The table of networks, on networks of plain torch that look like the host's."""

import pytest
import torch
from pack.patches import architectures
from pack.patches.architectures import ARCHITECTURES, find, grid
from pack.patches.layers import Layer, print_layers


def network(path: str, **attributes) -> torch.nn.Module:
    """A network whose class lies where `path` says."""
    module, _, name = path.rpartition(".")
    made = type(name, (torch.nn.Module,), {"__module__": module})()
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def blocks(count: int) -> torch.nn.ModuleList:
    return torch.nn.ModuleList(torch.nn.Identity() for _ in range(count))


def unet(*transformers: bool, middle: torch.nn.Module | None = None, **attributes) -> torch.nn.Module:
    """Input blocks with or without a transformer, the middle block, and the output blocks in reverse."""

    def block(has: bool) -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Identity(), *([spatial_transformer()] if has else []))

    return network(
        "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel",
        input_blocks=torch.nn.ModuleList(map(block, transformers)),
        middle_block=middle,
        output_blocks=torch.nn.ModuleList(map(block, reversed(transformers))),
        **attributes,
    )


def spatial_transformer(**attributes) -> torch.nn.Module:
    made = torch.nn.Identity()
    made.transformer_blocks = blocks(1)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def with_middle() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Identity(), spatial_transformer())


NETWORKS = {
    "openaimodel.UNetModel": lambda: unet(False, True, True, False, True, middle=with_middle()),
    "mmdit.OpenAISignatureMMDITWrapper": lambda: network(
        "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper", joint_blocks=blocks(24), patch_size=2
    ),
    "flux.model.Flux": lambda: network(
        "comfy.ldm.flux.model.Flux", double_blocks=blocks(19), single_blocks=blocks(38), patch_size=2
    ),
}
LAYERS = {
    "openaimodel.UNetModel": "input.1-2, input.4, middle, output.0, output.2-3",
    "mmdit.OpenAISignatureMMDITWrapper": "double.0-23",
    "flux.model.Flux": "double.0-18, single.0-37",
}
ROWS = pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.name)


def test_every_row_has_a_network_here_and_rows_are_told_apart():
    assert set(NETWORKS) == {row.network for row in ARCHITECTURES}
    assert len({row.name for row in ARCHITECTURES}) == len({row.network for row in ARCHITECTURES}) == len(ARCHITECTURES)


@ROWS
def test_a_row_finds_its_network_and_lists_its_layers_in_the_networks_order(row):
    net = NETWORKS[row.network]()
    assert find(net) is row
    layers = row.layers(net)
    assert print_layers(layers) == LAYERS[row.network]
    assert len(set(layers)) == len(layers)


@ROWS
def test_auto_selects_layers_that_there_are_and_not_all_of_them(row):
    net = NETWORKS[row.network]()
    auto = row.select("auto", net)
    assert auto and set(auto) < set(row.layers(net))
    assert auto == row.select(row.auto, net) and row.select("all", net) == row.layers(net)


@ROWS
def test_a_row_says_where_it_is_caught_and_where_its_default_comes_from(row):
    assert row.site in ("attn1", "block") and row.source


@ROWS
def test_a_layer_that_the_network_does_not_have_is_refused_with_those_it_has(row):
    with pytest.raises(ValueError) as error:
        row.select("auto, elsewhere.3", NETWORKS[row.network]())
    assert '"elsewhere.3"' in str(error.value) and LAYERS[row.network] in str(error.value)


@ROWS
def test_a_subclass_of_a_network_is_that_network(row):
    base = type(NETWORKS[row.network]())
    assert find(type("Finetuned", (base,), {"__module__": "somebody.pack"})()) is row


@pytest.mark.parametrize(
    "path",
    ["comfy.ldm.wan.model.WanModel", "comfy.ldm.flux.model.Flux2", "comfy.ldm.chroma.model.Chroma", "flux.model.F"],
)
def test_a_network_without_a_row_is_not_found(path):
    assert find(network(path)) is None


@ROWS
def test_a_network_is_told_by_its_module_too(row):
    assert find(network(f"elsewhere.{row.network.rpartition('.')[2]}")) is None


def test_a_unets_temporal_transformers_and_blocks_without_any_are_not_layers():
    video = torch.nn.Sequential(spatial_transformer(time_stack=blocks(1)))
    row = find(unet(False))
    assert row.layers(unet(True, middle=video)) == (Layer("input", 0), Layer("output", 0))
    assert row.layers(unet(True, middle=None)) == (Layer("input", 0), Layer("output", 0))


def test_a_unet_without_attention_is_refused_by_name():
    row = find(unet(False))
    with pytest.raises(ValueError, match="no self-attention that can be perturbed") as error:
        row.select("auto", unet(False, False))
    assert row.name in str(error.value)


@pytest.mark.parametrize(
    "spatial, tokens",
    [((64, 64), (32, 32)), ((64, 65), (32, 33)), ((1, 1), (1, 1)), ((3, 8, 7), (3, 4, 4)), ((5, 9, 2), (5, 5, 1))],
)
def test_a_side_that_patches_do_not_divide_is_padded_and_frames_are_not_cut(spatial, tokens):
    assert grid(network("a.B", patch_size=2), spatial) == tokens
    assert grid(network("a.B", patch_size=1), spatial) == spatial


def test_the_table_is_read_without_the_host():
    assert not any(name.startswith("comfy") for name in vars(architectures))
