"""The table of networks, on networks of plain torch that look like the host's."""

import math

import pytest
import torch
from pack.patches import architectures
from pack.patches.architectures import ARCHITECTURES, REFUSED, RULE, find, patched, why_not
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


def levels(*counts: int) -> dict[str, torch.nn.ModuleList]:
    """Blocks down and up that hold so many attentions each, among others."""

    def block(has: bool) -> torch.nn.Module:
        made = torch.nn.Identity()
        if has:
            made.attention = torch.nn.Identity()
        return made

    def level(count: int) -> torch.nn.ModuleList:
        return torch.nn.ModuleList(block(has) for _ in range(count or 1) for has in (False, count > 0))

    return {
        "down_blocks": torch.nn.ModuleList(map(level, counts)),
        "up_blocks": torch.nn.ModuleList(map(level, counts)),
    }


NETWORKS = {
    "openaimodel.UNetModel": lambda: unet(False, True, True, False, True, middle=with_middle()),
    "mmdit.OpenAISignatureMMDITWrapper": lambda: network(
        "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper", joint_blocks=blocks(24), patch_size=2
    ),
    "flux.model.Flux": lambda: network(
        "comfy.ldm.flux.model.Flux", double_blocks=blocks(19), single_blocks=blocks(38), patch_size=2
    ),
    "qwen_image.model.QwenImageTransformer2DModel": lambda: network(
        "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel", transformer_blocks=blocks(60), patch_size=2
    ),
    "wan.model.WanModel": lambda: network("comfy.ldm.wan.model.WanModel", blocks=blocks(40), patch_size=(1, 2, 2)),
    "wan.model.WanModel_S2V": lambda: network("comfy.ldm.wan.model.WanModel_S2V", blocks=blocks(40)),
    "lightricks.model.LTXVModel": lambda: network(
        "comfy.ldm.lightricks.model.LTXVModel", transformer_blocks=blocks(28)
    ),
    "lightricks.av_model.LTXAVModel": lambda: network(
        "comfy.ldm.lightricks.av_model.LTXAVModel", transformer_blocks=blocks(48)
    ),
    "cosmos.model.GeneralDIT": lambda: network(
        "comfy.ldm.cosmos.model.GeneralDIT", blocks=torch.nn.ModuleDict({f"block{at}": blocks(1) for at in range(28)})
    ),
    "cosmos.predict2.MiniTrainDIT": lambda: network("comfy.ldm.cosmos.predict2.MiniTrainDIT", blocks=blocks(28)),
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": lambda: network(
        "comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint", blocks=blocks(48)
    ),
    "kandinsky5.model.Kandinsky5": lambda: network(
        "comfy.ldm.kandinsky5.model.Kandinsky5", visual_transformer_blocks=blocks(32)
    ),
    "cogvideo.model.CogVideoXTransformer3DModel": lambda: network(
        "comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel", blocks=blocks(30)
    ),
    "audio.dit.AudioDiffusionTransformer": lambda: network(
        "comfy.ldm.audio.dit.AudioDiffusionTransformer", transformer=network("a.B", layers=blocks(24))
    ),
    "hunyuan_video.model.HunyuanVideo": lambda: network(
        "comfy.ldm.hunyuan_video.model.HunyuanVideo", double_blocks=blocks(20), single_blocks=blocks(40)
    ),
    "lumina.model.NextDiT": lambda: network("comfy.ldm.lumina.model.NextDiT", layers=blocks(26), patch_size=2),
    "chroma.model.Chroma": lambda: network(
        "comfy.ldm.chroma.model.Chroma", double_blocks=blocks(19), single_blocks=blocks(38), patch_size=2
    ),
    "mage_flow.model.MageFlowTransformer2DModel": lambda: network(
        "comfy.ldm.mage_flow.model.MageFlowTransformer2DModel", transformer_blocks=blocks(12), patch_size=1
    ),
    "krea2.model.SingleStreamDiT": lambda: network("comfy.ldm.krea2.model.SingleStreamDiT", blocks=blocks(28), patch=2),
    "lens.model.LensTransformer2DModel": lambda: network(
        "comfy.ldm.lens.model.LensTransformer2DModel", transformer_blocks=blocks(48), patch_size=2
    ),
    "hidream.model.HiDreamImageTransformer2DModel": lambda: network(
        "comfy.ldm.hidream.model.HiDreamImageTransformer2DModel",
        double_stream_blocks=blocks(16),
        single_stream_blocks=blocks(32),
        patch_size=2,
    ),
    "hidream_o1.model.HiDreamO1Transformer": lambda: network(
        "comfy.ldm.hidream_o1.model.HiDreamO1Transformer",
        language_model=network("comfy.text_encoders.llama.Llama2_", layers=blocks(36)),
        patch_size=32,
    ),
    "cascade.stage_c.StageC": lambda: network("comfy.ldm.cascade.stage_c.StageC", **levels(8, 24)),
    "cascade.stage_b.StageB": lambda: network("comfy.ldm.cascade.stage_b.StageB", **levels(0, 28, 6)),
    "aura.mmdit.MMDiT": lambda: network(
        "comfy.ldm.aura.mmdit.MMDiT", double_layers=blocks(4), single_layers=blocks(32), patch_size=2
    ),
    "omnigen.omnigen2.OmniGen2Transformer2DModel": lambda: network(
        "comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel", layers=blocks(32), patch_size=2
    ),
    "pixart.pixartms.PixArtMS": lambda: network("comfy.ldm.pixart.pixartms.PixArtMS", blocks=blocks(28), patch_size=2),
    "hydit.models.HunYuanDiT": lambda: network("comfy.ldm.hydit.models.HunYuanDiT", blocks=blocks(40), patch_size=2),
    "ernie.model.ErnieImageModel": lambda: network("comfy.ldm.ernie.model.ErnieImageModel", layers=blocks(36)),
    "ideogram4.model.Ideogram4Transformer2DModel": lambda: network(
        "comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel", layers=blocks(34), patch_size=2
    ),
    "pixeldit.model.PixDiT_T2I": lambda: network(
        "comfy.ldm.pixeldit.model.PixDiT_T2I", patch_blocks=blocks(14), pixel_blocks=blocks(2), patch_size=16
    ),
    "joyimage.model.JoyImageTransformer3DModel": lambda: network(
        "comfy.ldm.joyimage.model.JoyImageTransformer3DModel", double_blocks=blocks(20), patch_size=[1, 2, 2]
    ),
    "hunyuan3d.model.Hunyuan3Dv2": lambda: network(
        "comfy.ldm.hunyuan3d.model.Hunyuan3Dv2", double_blocks=blocks(16), single_blocks=blocks(32)
    ),
    "triposplat.model.LatentSeqMMFlowModel": lambda: network(
        "comfy.ldm.triposplat.model.LatentSeqMMFlowModel", blocks=blocks(24)
    ),
    "boogu.model.BooguTransformer2DModel": lambda: network(
        "comfy.ldm.boogu.model.BooguTransformer2DModel",
        double_stream_layers=blocks(8),
        single_stream_layers=blocks(32),
        patch_size=2,
    ),
}
LAYERS = {
    "openaimodel.UNetModel": "input.1-2, input.4, middle, output.0, output.2-3",
    "mmdit.OpenAISignatureMMDITWrapper": "double.0-23",
    "flux.model.Flux": "double.0-18, single.0-37",
    "qwen_image.model.QwenImageTransformer2DModel": "block.0-59",
    "wan.model.WanModel": "block.0-39",
    "wan.model.WanModel_S2V": "block.0-39",
    "lightricks.model.LTXVModel": "block.0-27",
    "lightricks.av_model.LTXAVModel": "block.0-47",
    "cosmos.model.GeneralDIT": "block.0-27",
    "cosmos.predict2.MiniTrainDIT": "block.0-27",
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": "block.0-47",
    "kandinsky5.model.Kandinsky5": "block.0-31",
    "cogvideo.model.CogVideoXTransformer3DModel": "block.0-29",
    "audio.dit.AudioDiffusionTransformer": "block.0-23",
    "hunyuan_video.model.HunyuanVideo": "double.0-19, single.0-39",
    "lumina.model.NextDiT": "block.0-25",
    "chroma.model.Chroma": "double.0-18, single.0-37",
    "mage_flow.model.MageFlowTransformer2DModel": "block.0-11",
    "krea2.model.SingleStreamDiT": "block.0-27",
    "lens.model.LensTransformer2DModel": "block.0-47",
    "hidream.model.HiDreamImageTransformer2DModel": "double.0-15, single.0-31",
    "hidream_o1.model.HiDreamO1Transformer": "block.0-35",
    "cascade.stage_c.StageC": "input.0-31, output.0-31",
    "cascade.stage_b.StageB": "input.0-33, output.0-33",
    "aura.mmdit.MMDiT": "double.0-3, single.0-31",
    "omnigen.omnigen2.OmniGen2Transformer2DModel": "block.0-31",
    "pixart.pixartms.PixArtMS": "block.0-27",
    "hydit.models.HunYuanDiT": "block.0-39",
    "ernie.model.ErnieImageModel": "block.0-35",
    "ideogram4.model.Ideogram4Transformer2DModel": "block.0-33",
    "pixeldit.model.PixDiT_T2I": "patch.0-13, pixel.0-1",
    "joyimage.model.JoyImageTransformer3DModel": "block.0-19",
    "hunyuan3d.model.Hunyuan3Dv2": "double.0-15, single.0-31",
    "triposplat.model.LatentSeqMMFlowModel": "block.0-23",
    "boogu.model.BooguTransformer2DModel": "double.0-7, single.0-31",
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
def test_a_row_says_where_its_default_comes_from(row):
    assert row.source


def test_the_blocks_that_the_sources_of_skip_layer_name_are_skipped_by_default():
    published = {"Wan": "block.8", "LTX-Video": "block.19", "Mochi": "block.34"}
    published |= {"HunyuanVideo": "double.2", "CogVideoX": "block.11"}
    rows = [row for row in ARCHITECTURES if row.name in published]
    found = {row.name: print_layers(row.select("auto", NETWORKS[row.network](), skip=True)) for row in rows}
    assert found == published and all(row.skip_source != RULE for row in rows)


@ROWS
def test_a_layer_that_the_network_does_not_have_is_refused_with_those_it_has(row):
    with pytest.raises(ValueError) as error:
        row.select("auto, elsewhere.3", NETWORKS[row.network]())
    assert '"elsewhere.3"' in str(error.value) and LAYERS[row.network] in str(error.value)


@ROWS
def test_a_subclass_of_a_network_has_the_row_only_where_the_row_names_it(row):
    base = type(NETWORKS[row.network]())
    assert find(type("Finetuned", (base,), {"__module__": "somebody.pack"})()) is None
    for path in row.also:
        module, _, name = f"comfy.ldm.{path}".rpartition(".")
        assert find(type(name, (base,), {"__module__": module})()) is row


@pytest.mark.parametrize(
    "path",
    ["comfy.ldm.wan.model.Wan", "comfy.ldm.flux.model.Flux2", "comfy.ldm.somewhere.model.Chroma", "flux.model.F"],
)
def test_a_network_without_a_row_is_not_found(path):
    assert find(network(path)) is None


@pytest.mark.parametrize("path", REFUSED)
def test_a_refused_network_is_refused_though_it_derives_from_one_with_a_row(path):
    refused = network(f"comfy.ldm.{path}")
    derived = type("Derived", (type(refused), type(NETWORKS["wan.model.WanModel"]())), {"__module__": "a"})()
    for net in (refused, derived):
        assert find(net) is None and why_not(net) == REFUSED[path]


@pytest.mark.parametrize("multiple", [None, 32])
@pytest.mark.parametrize("references", [[], [(4, 6)], [(5, 7), (8, 8)]], ids=str)
@pytest.mark.parametrize("spatial", [(6, 9), (1, 6, 9), (3, 6, 9)], ids=str)
def test_ming_images_picture_lies_before_its_references(spatial, references, multiple):
    net = network("comfy.ldm.lumina.model.NextDiT", layers=blocks(2), patch_size=2, pad_tokens_multiple=multiple)
    row, conds = find(net), {"ref_frames": [torch.zeros(1, 16, 1, *sides) for sides in references]}
    grid = row.tokens(net, (1, 16, *spatial), conds)
    size = math.prod(grid)
    of_references = sum(-(-height // 2) * -(-width // 2) for height, width in references)
    padding = -(size + of_references) % (multiple or 1)
    # as the host joins them
    tokens = "text " * 7 + "picture " * size + "reference " * of_references + "padding " * padding
    (stack,), kinds = row.stacks, tokens.split()
    start = stack.image(len(kinds), size, 7) + row.shift(net, conds, grid)
    assert set(kinds[start : start + size]) == {"picture"} and kinds.count("picture") == size


@ROWS
def test_a_network_is_told_by_its_module_too(row):
    assert find(network(f"elsewhere.{row.network.rpartition('.')[2]}")) is None


def test_a_unets_temporal_transformers_and_blocks_without_any_are_no_layers_of_their_own():
    video = torch.nn.Sequential(spatial_transformer(time_stack=blocks(1)))
    row = find(unet(False))
    assert row.layers(unet(True, middle=video)) == (Layer("input", 0), Layer("middle", 0), Layer("output", 0))
    assert row.layers(unet(True, middle=None)) == (Layer("input", 0), Layer("output", 0))


def test_a_unet_without_attention_is_refused_by_name():
    row = find(unet(False))
    with pytest.raises(ValueError, match="no self-attention that can be perturbed") as error:
        row.select("auto", unet(False, False))
    assert row.name in str(error.value)


@pytest.mark.parametrize(
    ("spatial", "tokens"),
    [((64, 64), (32, 32)), ((64, 65), (32, 33)), ((1, 1), (1, 1)), ((3, 8, 7), (3, 4, 4)), ((5, 9, 2), (5, 5, 1))],
)
def test_a_side_that_patches_do_not_divide_is_padded_and_frames_are_not_cut(spatial, tokens):
    assert patched(2, spatial) == patched((1, 2, 2), spatial) == tokens
    assert patched(1, spatial) == spatial


def test_the_table_is_read_without_the_host():
    assert not any(name.startswith("comfy") for name in vars(architectures))
