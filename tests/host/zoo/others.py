"""Pictures by other transformers, and three-dimensional shapes."""

import comfy.supported_models
import torch
from pack.tests.host import networks

from .common import lumina
from .specimen import Specimen, paths, repeated


def small(kind: str, config: str, **settings):
    """() → a model whose size is `settings`, also where the host's config fixes it."""

    def build():
        made = getattr(comfy.supported_models, config)(settings)
        made.unet_config.update(settings)
        return networks.patcher(getattr(networks.comfy.model_base, kind), made, 0)

    return build


def pixart(config: str, **settings):
    size = {"in_channels": 4, "hidden_size": 96, "depth": 3, "num_heads": 4, "caption_channels": 32}
    return small("PixArt", config, pe_interpolation=1, **size, **settings)


def newbie():
    return lumina(clip_text_dim=24)


Z_IMAGE = {"dim": 256, "z_image_modulation": True, "pad_tokens_multiple": 32, "axes_dims": [16, 24, 24]}


def omni():
    return lumina(siglip_feat_dim=24, time_scale=1000.0, **Z_IMAGE)


def pixel_z_image():
    size = {"patch_size": 4, "in_channels": 3, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4}
    more = {"axes_lens": [64, 64, 64], "cap_feat_dim": 32, "multiple_of": 32, "qk_norm": True, "time_scale": 1000.0}
    head = {"decoder_hidden_size": 32, "decoder_num_res_blocks": 1, "decoder_in_channels": 48}
    return small("ZImagePixelSpace", "ZImagePixelSpace", **size, **more, **head, **Z_IMAGE)()


def hunyuan_dit(config: str, **settings):
    text = {"text_states_dim": 32, "text_states_dim_t5": 32, "text_len": 30, "text_len_t5": 10}
    size = {"in_channels": 4, "hidden_size": 64, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0}
    return small("HunyuanDiT", config, **text, **size, **settings)


ernie = small(
    "ErnieImage", "ErnieImage", hidden_size=64, num_attention_heads=4, num_layers=3, ffn_hidden_size=128, in_channels=16,
    out_channels=16, text_in_dim=32, rope_axes_dim=(4, 6, 6),
)  # fmt: skip
ideogram = small(
    "Ideogram4", "Ideogram4", in_channels=16, num_layers=3, num_attention_heads=4, attention_head_dim=16,
    intermediate_size=64, adaln_dim=24, llm_features_dim=32, mrope_section=[4, 2, 2],
)  # fmt: skip
joy = small(
    "JoyImage", "JoyImage", hidden_size=64, num_attention_heads=4, text_dim=32, num_layers=3, rope_dim_list=[4, 6, 6],
)  # fmt: skip
PIXEL_DIT = {
    "num_groups": 4, "hidden_size": 64, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 32, "pixel_num_groups": 2,
    "patch_depth": 3, "pixel_depth": 2, "patch_size": 4, "txt_embed_dim": 32, "txt_max_length": 40,
}  # fmt: skip
pixel_dit = small("PixelDiTT2I", "PixelDiTT2I", **PIXEL_DIT)
pid = small("PiD", "PiD", lq_latent_channels=4, lq_hidden_dim=16, lq_num_res_blocks=1, pit_lq_inject=True, **PIXEL_DIT)
hunyuan_3d = small(
    "Hunyuan3Dv2", "Hunyuan3Dv2", in_channels=16, context_in_dim=32, hidden_size=64, num_heads=4, depth=2,
    depth_single_blocks=3, guidance_embed=True,
)  # fmt: skip
tripo_splat = small(
    "TripoSplat", "TripoSplat", q_token_length=24, model_channels=64, cond_channels=32, num_blocks=3,
    num_refiner_blocks=1, num_head_channels=16, cond2_channels=12,
)  # fmt: skip


def floats(*values: float):
    return lambda rows: torch.tensor([values]).repeat(rows, 1)


CROSS = repeated(3, "block.{}", "")
LUMINA = {"c_crossattn": (15, 32), "num_tokens": 15}
REFINED = ["", "", *repeated(3, "block.{}")]
LAYERS = paths(3, "block", "layers")
HUNYUAN_DIT = {
    "c_crossattn": (30, 32), "text_embedding_mask": floats(*[1.0] * 20, *[0.0] * 10), "encoder_hidden_states_t5": (10, 32),
    "text_embedding_mask_t5": floats(*[1.0] * 6, *[0.0] * 4), "image_meta_size": floats(512, 768, 512, 768, 0, 0),
}  # fmt: skip
HUNYUAN_DIT_CALLS = ["", *repeated(6, "block.{}", "")]  # the text's pool
WITHOUT_BRIDGE = paths(4, "block", "blocks")  # further blocks are given the output of an earlier one, too
PIXEL_DIT_CALLS = [*repeated(3, "patch.{}"), *repeated(2, "pixel.{}")]
PIXEL_DIT_BLOCKS = {**paths(3, "patch", "patch_blocks"), **paths(2, "pixel", "pixel_blocks")}
TEXT = {"c_crossattn": (40, 32)}  # as much as picture
BLOCKS = repeated(3, "block.{}")

SPECIMENS = [
    Specimen(
        "NewBie", "Lumina 2, Z-Image", newbie, (16, 6, 9), {**LUMINA, "clip_text_pooled": (24,)}, REFINED,
        slice(15, 30), (3, 5), blocks=LAYERS, since="model_base.ZImagePixelSpace",
    ),
    Specimen(
        "Z-Image in pixels", "Lumina 2, Z-Image", pixel_z_image, (3, 12, 20), LUMINA, REFINED, slice(32, 47), (3, 5),
        blocks=LAYERS, since="model_base.ZImagePixelSpace",
    ),
    Specimen(  # text of the references and of the picture, what vision saw of the first, both references, the picture
        "Z-Image Omni", "Lumina 2, Z-Image", omni, (16, 6, 10),
        {
            **LUMINA, "ref_latents": [(16, 4, 6), (16, 6, 12)], "ref_contexts": [(7, 32)], "siglip_feats": [(2, 3, 24)],
        },
        ["", *REFINED], slice(96 + 96 + 64, 96 + 96 + 64 + 15), (3, 5), blocks=LAYERS,
        since="model_base.ZImagePixelSpace", time_0_first=True,
    ),
    Specimen(
        "Z-Image, reference", "Lumina 2, Z-Image", lambda: lumina(time_scale=1000.0, **Z_IMAGE), (16, 6, 10),
        {**LUMINA, "ref_latents": [(16, 4, 6)]}, REFINED, slice(96, 111), (3, 5), blocks=LAYERS,
        since="model_base.ZImagePixelSpace", time_0_first=True,
    ),
    Specimen(
        "PixArt alpha", "PixArt", pixart("PixArtAlpha", micro_condition=True), (4, 8, 60),
        {"c_crossattn": (120, 32), "c_size": floats(512.0, 768.0), "c_ar": floats(0.67)}, CROSS, slice(0, 120), (4, 30),
        blocks=paths(3, "block", "blocks"),
    ),
    Specimen(
        "HunyuanDiT 1.2", "HunyuanDiT", hunyuan_dit("HunyuanDiT"), (4, 8, 19), HUNYUAN_DIT, HUNYUAN_DIT_CALLS,
        slice(0, 40), (4, 10), blocks=WITHOUT_BRIDGE,
    ),
    Specimen(
        "HunyuanDiT 1.0, 1.1", "HunyuanDiT", hunyuan_dit("HunyuanDiT1", size_cond=True, use_style_cond=True), (4, 8, 20),
        HUNYUAN_DIT, HUNYUAN_DIT_CALLS, slice(0, 40), (4, 10), blocks=WITHOUT_BRIDGE,
    ),
    Specimen(
        "Ernie-Image", "Ernie-Image", ernie, (16, 4, 10), TEXT, BLOCKS, slice(0, 40), (4, 10), blocks=LAYERS,
        since="model_base.ErnieImage",
    ),
    Specimen(
        "Ideogram 4", "Ideogram 4", ideogram, (16, 4, 10), TEXT, BLOCKS, slice(40, 80), (4, 10), blocks=LAYERS,
        since="model_base.Ideogram4",
    ),
    Specimen(
        "Ideogram 4, masked text", "Ideogram 4", ideogram, (16, 4, 10),
        {**TEXT, "attention_mask": floats(*[1.0] * 30, *[0.0] * 10)}, BLOCKS, slice(40, 80), (4, 10), blocks=LAYERS,
        since="model_base.Ideogram4",
    ),
    Specimen(
        "Ideogram 4 without text", "Ideogram 4", ideogram, (16, 4, 10), {}, BLOCKS, slice(0, 40), (4, 10), blocks=LAYERS,
        since="model_base.Ideogram4",
    ),
    Specimen(
        "PixelDiT", "PixelDiT, PiD", pixel_dit, (3, 16, 39), TEXT, PIXEL_DIT_CALLS, slice(40, 80), (4, 10),
        grids={"pixel.0": (4, 10), "pixel.1": (4, 10)}, blocks=PIXEL_DIT_BLOCKS, since="model_base.PixelDiTT2I",
    ),
    Specimen(
        "PiD", "PixelDiT, PiD", pid, (3, 16, 39), {**TEXT, "lq_latent": (4, 2, 5), "degrade_sigma": floats(0.3)},
        PIXEL_DIT_CALLS, slice(40, 80), (4, 10), grids={"pixel.0": (4, 10), "pixel.1": (4, 10)},
        blocks={"patch.0": "patch_blocks.0", "patch.1": "patch_blocks.1"},  # the latent is added before the third
        since="ldm.pixeldit.pid.SigmaAwareGate",
    ),
    Specimen(
        "JoyImage", "JoyImage", joy, (16, 1, 6, 9), {"c_crossattn": (15, 32)}, BLOCKS, slice(0, 15), (1, 3, 5),
        blocks=paths(3, "block", "double_blocks"), since="model_base.JoyImage",
    ),
    Specimen(
        "JoyImage, references", "JoyImage", joy, (16, 1, 6, 10),
        {"c_crossattn": (15, 32), "ref_latents": [(16, 1, 6, 10), (16, 1, 4, 6)]}, BLOCKS, slice(0, 15), (1, 3, 5),
        blocks=paths(3, "block", "double_blocks"), since="model_base.JoyImage",
    ),
    Specimen(
        "Hunyuan3D 2", "Hunyuan3D 2", hunyuan_3d, (16, 24),
        {"c_crossattn": (24, 32), "guidance": lambda rows: torch.full((rows,), 5.0)},
        [*repeated(2, "double.{}"), *repeated(3, "single.{}")], slice(24, 48), None,
        blocks={**paths(2, "double", "double_blocks"), **paths(3, "single", "single_blocks")},
    ),
    Specimen(
        "TripoSplat", "TripoSplat", tripo_splat, (1, 24 * 16 + 5),
        {
            "c_crossattn": (24, 32), "ref_latents": [(12, 2, 3)],
            "latent_shapes": lambda rows: [(rows, 24, 16), (rows, 1, 5)],
        },
        ["", "", *BLOCKS], slice(0, 24), None, blocks=paths(3, "block", "blocks"), since="model_base.TripoSplat",
    ),
    Specimen(
        "PixArt sigma", "PixArt", pixart("PixArtSigma", micro_condition=False, qk_norm=True), (4, 8, 60),
        {"c_crossattn": (30, 32)}, CROSS, slice(0, 120), (4, 30), blocks=paths(3, "block", "blocks"),
    ),
]  # fmt: skip
