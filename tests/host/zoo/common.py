"""The architectures that are used most."""

from pack.tests.host import networks

from .specimen import Specimen, model, paths, repeated


def qwen():
    return model(
        "QwenImage",
        "QwenImage",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "axes_dims_rope": (4, 6, 6),
        },
    )


def lumina(**settings):
    dims = {"axes_dims": [4, 6, 6], "axes_lens": [64, 64, 64], "cap_feat_dim": 32, "multiple_of": 32, "qk_norm": True}
    size = {"dim": 64, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 2}
    settings = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, **dims, **size, **settings}
    return model("Lumina2", "Lumina2", settings)


def z_image():
    return lumina(dim=256, z_image_modulation=True, pad_tokens_multiple=32, time_scale=1000.0, axes_dims=[16, 24, 24])


QWEN = {"c_crossattn": (15, 32)}  # as much text as picture
SD3 = {"c_crossattn": (40, 32), "y": (24,)}
FLUX = {"c_crossattn": (40, 32), "y": (24,), "guidance": lambda rows: networks.torch.full((rows,), 3.5)}
LUMINA = {"c_crossattn": (15, 32), "num_tokens": 15}
FLUX_CALLS = [*repeated(2, "double.{}"), *repeated(3, "single.{}")]
FLUX_BLOCKS = {**paths(2, "double", "double_blocks"), **paths(3, "single", "single_blocks")}

SPECIMENS = [
    Specimen(
        "SD3", "SD3, SD3.5", networks.sd3, (16, 8, 20), SD3, repeated(3, "double.{}"), slice(40, 80), (4, 10),
        blocks=paths(3, "double", "joint_blocks"),
    ),
    Specimen(
        "Flux", "Flux", networks.flux, (16, 8, 20), FLUX, FLUX_CALLS, slice(40, 80), (4, 10), blocks=FLUX_BLOCKS,
    ),
    Specimen(
        "Flux Kontext", "Flux", networks.flux, (16, 8, 20), {**FLUX, "ref_latents": [(16, 6, 6)]}, FLUX_CALLS,
        slice(40, 80), (4, 10), blocks=FLUX_BLOCKS,
    ),
    Specimen(
        "Qwen-Image", "Qwen-Image", qwen, (16, 1, 6, 10), QWEN, repeated(3, "block.{}"), slice(15, 30), (1, 3, 5),
        blocks=paths(3, "block", "transformer_blocks"), since="model_base.QwenImage",
    ),
    Specimen(
        "Qwen-Image-Edit", "Qwen-Image", qwen, (16, 1, 6, 10), {**QWEN, "ref_latents": [(16, 1, 6, 6)]},
        repeated(3, "block.{}"), slice(15, 30), (1, 3, 5), blocks=paths(3, "block", "transformer_blocks"),
        since="model_base.QwenImage",
    ),
    Specimen(
        "Wan 2.1", "Wan", networks.wan, (16, 3, 6, 10), {"c_crossattn": (45, 32)}, repeated(2, "block.{}", ""),
        slice(0, 45), (3, 3, 5), blocks=paths(2, "block", "blocks"),
    ),
    Specimen(
        "Lumina 2", "Lumina 2, Z-Image", lumina, (16, 6, 10), LUMINA, ["", "", *repeated(3, "block.{}")],
        slice(15, 30), (3, 5), blocks=paths(3, "block", "layers"),
    ),
    Specimen(
        "Z-Image", "Lumina 2, Z-Image", z_image,
        (16, 6, 10), LUMINA, ["", "", *repeated(3, "block.{}")], slice(32, 47), (3, 5), blocks=paths(3, "block", "layers"),
    ),
]  # fmt: skip
