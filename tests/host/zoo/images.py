"""Architectures of pictures."""

import torch
from comfy.ldm.chroma_radiance.model import ChromaRadianceParams

from .specimen import Specimen, model, paths, repeated


def constant(value: float):
    return lambda rows: torch.full((rows,), value)


def flux2(guided: bool = True):
    sizes = {"in_channels": 16, "out_channels": 16, "hidden_size": 64, "num_heads": 2, "axes_dim": [8, 8, 8, 8]}
    depth = {"depth": 2, "depth_single_blocks": 3, "patch_size": 1, "context_in_dim": 32, "vec_in_dim": None}
    kind = {"qkv_bias": False, "ops_bias": False, "global_modulation": True, "mlp_silu_act": True, "txt_ids_dims": [3]}
    more = {"mlp_ratio": 3.0, "theta": 2000, "guidance_embed": guided, "default_ref_method": "index"}
    return model("Flux2", "Flux2", {"image_model": "flux2", "ref_index_scale": 10.0, **sizes, **depth, **kind, **more})


def klein():
    return flux2(guided=False)


CHROMA = {
    "context_in_dim": 32, "hidden_size": 64, "num_heads": 2, "axes_dim": [8, 12, 12], "depth": 2,
    "depth_single_blocks": 3, "mlp_ratio": 2.0, "theta": 10000, "qkv_bias": True, "txt_ids_dims": [], "vec_in_dim": None,
    "in_dim": 64, "out_dim": 64, "hidden_dim": 32, "n_layers": 2,
}  # fmt: skip


def chroma():
    sizes = {"in_channels": 64, "out_channels": 64, "patch_size": 2}
    return model("Chroma", "Chroma", {"image_model": "chroma", **sizes, **CHROMA})


def radiance():
    nerf = {"nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 512}
    head = {"nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False}
    sizes = {"in_channels": 3, "out_channels": 3, "patch_size": 4}
    if "use_sequential_txt_ids" in ChromaRadianceParams.__dataclass_fields__:  # older hosts do not know it
        sizes["use_sequential_txt_ids"] = True
    return model(
        "ChromaRadiance", "ChromaRadiance", {"image_model": "chroma_radiance", **sizes, **nerf, **head, **CHROMA}
    )


def aura():
    sizes = {"dim": 64, "n_layers": 5, "n_double_layers": 2, "n_heads": 4, "global_conddim": 64, "cond_seq_dim": 32}
    return model("AuraFlow", "AuraFlow", {**sizes, "max_seq": 16 * 16})


def hidream():
    sizes = {
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "axes_dims_rope": [8, 4, 4],
        "max_resolution": [64, 64],
    }
    experts = {"num_routed_experts": 3, "num_activated_experts": 2, "llama_layers": [0] * 5}
    depth = {"num_layers": 2, "num_single_layers": 3, "patch_size": 2, "in_channels": 16, "out_channels": 16}
    text = {"caption_channels": [32, 24], "text_emb_dim": 24}
    made = model("HiDream", "HiDream", {"image_model": "hidream", **sizes, **experts, **depth, **text})
    projections = made.model.diffusion_model.caption_projection
    for projection in projections[1:-1]:  # every block has Llama's tokens in its own projection: here the same
        projection.load_state_dict(projections[0].state_dict())
    return made


def hidream_o1():
    text = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_dims": [4, 2, 2]}
    eyes = {"hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "depth": 1, "num_position_embeddings": 16}
    settings = {"text_config_overrides": {**text, **heads}, "vision_config_overrides": eyes}
    made = model("HiDreamO1", "HiDreamO1", {"image_model": "hidream_o1", **settings})
    made.model.diffusion_model.tms_token_id = 63
    return made


def o1_conds(text: int, references: int, height: int = 3, width: int = 5):
    """As the host makes them of a prompt: the last token of the text is the time's, and attends to all as the picture
    does, whose tokens follow."""
    ids = torch.tensor([*range(1, text), 63])
    at = torch.cat(
        [torch.arange(text).expand(3, text), text + torch.arange(height * width + references).expand(3, -1)], 1
    )
    made = {"input_ids": lambda rows: ids.expand(rows, -1), "position_ids": lambda rows: at.expand(rows, 3, -1)}
    shown = torch.arange(at.shape[1]) >= text
    made |= {"vinput_mask": lambda rows: shown.expand(rows, -1), "ar_len": text - 1}
    return made | ({"ref_patches": (references, 3 * 32 * 32)} if references else {})


def krea2():
    sizes = {"features": 128, "heads": 4, "kvheads": 2, "tdim": 32, "layers": 3, "patch": 2, "channels": 16}
    text = {"txtdim": 16, "txtlayers": 2, "txtheads": 2, "txtkvheads": 1, "multiplier": 2}
    return model("Krea2", "Krea2", {"image_model": "krea2", **sizes, **text})


def lens():
    sizes = {"in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4}
    text = {"enc_hidden_dim": 32, "selected_layer_index": (0, 1), "axes_dims_rope": (4, 6, 6)}
    return model("Lens", "Lens", {"image_model": "lens", **sizes, **text})


def mage_flow():
    sizes = {"in_channels": 16, "out_channels": 16, "num_layers": 3, "attention_head_dim": 16}
    text = {"num_attention_heads": 4, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6)}
    return model("MageFlow", "MageFlow", {"image_model": "mage_flow", **sizes, **text})


GQA = {
    "hidden_size": 96, "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 32, "num_layers": 3,
    "num_refiner_layers": 1, "axes_dim_rope": [8, 8, 8], "axes_lens": [64, 64, 64], "timestep_scale": 1000.0,
}  # fmt: skip


def hunyuan_image():
    sizes = {"in_channels": 16, "out_channels": 16, "hidden_size": 64, "num_heads": 2, "axes_dim": [16, 16]}
    depth = {"depth": 2, "depth_single_blocks": 3, "patch_size": [1, 1], "context_in_dim": 32, "vec_in_dim": None}
    kind = {"mlp_ratio": 2.0, "theta": 256, "qkv_bias": True, "guidance_embed": True, "byt5": True, "meanflow": False}
    other = {"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}
    return model(
        "HunyuanImage21", "HunyuanImage21", {"image_model": "hunyuan_video", **sizes, **depth, **kind, **other}
    )


def cascade_c():
    text = {"c_cond": 32, "c_clip_text": 32, "c_clip_text_pooled": 24, "c_clip_img": 24, "c_clip_seq": 2}
    sizes = {"c_hidden": [64, 64], "nhead": [4, 4], "blocks": [[1, 2], [2, 1]], "block_repeat": [[1, 1], [2, 1]]}
    return model("StableCascade_C", "Stable_Cascade_C", {**text, **sizes, "c_r": 32, "switch_level": [True]})


def cascade_b():
    sizes = {"c_hidden": [16, 32, 64, 64], "nhead": [-1, -1, 4, 4], "c_cond": 32, "c_clip": 24, "c_r": 32}
    depth = {"blocks": [[1, 1, 1, 1], [1, 1, 1, 1]], "block_repeat": [[1, 1, 1, 1], [1, 1, 1, 1]]}
    return model("StableCascade_B", "Stable_Cascade_B", {**sizes, **depth})


def omnigen2():
    return model("Omnigen2", "Omnigen2", {"image_model": "omnigen2", "text_feat_dim": 32, **GQA})


def boogu():
    sizes = {"instruction_feat_dim": 32, "num_double_stream_layers": 2}
    return model("Boogu", "Boogu", {"image_model": "boogu", **sizes, **GQA})


CHROMA_CONDS = {"c_crossattn": (40, 32), "guidance": constant(0.0)}
TWO_STACKS = [*repeated(2, "double.{}"), *repeated(3, "single.{}")]
FLUX_BLOCKS = {**paths(2, "double", "double_blocks"), **paths(3, "single", "single_blocks")}
FLUX2 = {"c_crossattn": (40, 32), "guidance": constant(3.5)}
HIDREAM = {"c_crossattn": (15, 32), "y": (24,), "encoder_hidden_states_llama3": (1, 5, 24)}
HIDREAM_BLOCKS = {**paths(2, "double", "double_stream_blocks"), **paths(3, "single", "single_stream_blocks")}
BLOCKS = paths(3, "block", "transformer_blocks")
OMNIGEN = {"c_crossattn": (15, 32), "num_tokens": 15}
REFINED = ["", "", *repeated(3, "block.{}")]
BOOGU_CALLS = [*repeated(2, "double.{0}", "double.{0}"), *repeated(3, "single.{}")]  # joint, and the picture's alone
BOOGU_BLOCKS = {**paths(2, "double", "double_stream_layers"), **paths(3, "single", "single_stream_layers")}
KREA = {"c_crossattn": (40, 32)}
KREA_CALLS = ["", "", "", "", *repeated(3, "block.{}")]

SPECIMENS = [
    Specimen(
        "Flux 2", "Flux", flux2, (16, 4, 10), FLUX2, TWO_STACKS, slice(40, 80), (4, 10), blocks=FLUX_BLOCKS,
        since="model_base.Flux2",
    ),
    Specimen(
        "Flux 2 Klein, references of time 0", "Flux", klein, (16, 4, 10),
        {**FLUX2, "ref_latents": [(16, 3, 5), (16, 2, 4)], "ref_latents_method": "index_timestep_zero"}, TWO_STACKS,
        slice(40, 80), (4, 10), blocks=FLUX_BLOCKS, since="ldm.flux.model.invert_slices",
    ),
    Specimen(
        "Chroma", "Chroma, Chroma Radiance", chroma, (16, 8, 19), CHROMA_CONDS, TWO_STACKS, slice(40, 80), (4, 10),
        blocks=FLUX_BLOCKS, time=False,
    ),
    Specimen(
        "Chroma Radiance", "Chroma, Chroma Radiance", radiance, (3, 16, 40), CHROMA_CONDS, TWO_STACKS, slice(40, 80),
        (4, 10), blocks=FLUX_BLOCKS, time=False, since="model_base.ChromaRadiance",
    ),
    Specimen(
        "HunyuanImage 2.1", "HunyuanVideo", hunyuan_image, (16, 3, 5),
        {"c_crossattn": (12, 32), "txt_byt5": (3, 1472), "guidance": constant(6.0)}, ["", "", *TWO_STACKS], slice(15, 30),
        (3, 5), blocks=FLUX_BLOCKS, since="model_base.HunyuanImage21",
    ),
    Specimen(
        "Stable Cascade C", "Stable Cascade C", cascade_c, (16, 6, 11),
        {"clip_text": (9, 32), "clip_text_pooled": (1, 24), "clip_img": (1, 24)},
        [*repeated(3, "input.{}"), "output.0", "output.1", "output.0", "output.1", "output.2"],  # two blocks, twice
        slice(0, 15), (3, 5), grids={"input.0": (6, 11), "output.2": (6, 11)}, time=False,
    ),
    Specimen(
        "Stable Cascade B", "Stable Cascade B", cascade_b, (4, 48, 82), {"effnet": (16, 5, 7), "clip": (1, 24)},
        ["input.0", "input.1", "output.0", "output.1"], slice(0, 15), (3, 5),
        grids={"input.0": (6, 10), "output.1": (6, 10)}, time=False,
    ),
    Specimen(
        "AuraFlow", "AuraFlow", aura, (4, 8, 19), {"c_crossattn": (32, 32)}, TWO_STACKS, slice(40, 80), (4, 10),
        blocks={**paths(2, "double", "double_layers"), **paths(3, "single", "single_layers")},
    ),
    Specimen(
        "HiDream I1", "HiDream I1, E1", hidream, (16, 6, 10), HIDREAM, TWO_STACKS, slice(0, 15), (3, 5),
        blocks=HIDREAM_BLOCKS,
    ),
    Specimen(
        "HiDream E1", "HiDream I1, E1", hidream, (16, 6, 10), {**HIDREAM, "image_cond": (16, 6, 8)}, TWO_STACKS,
        [9 * row + column for row in range(3) for column in range(5)], (3, 5), blocks=HIDREAM_BLOCKS,
    ),
    Specimen(
        "HiDream O1", "HiDream O1", hidream_o1, (3, 96, 160), o1_conds(15, 0), repeated(3, "block.{}"), slice(1, 16),
        (3, 5), prefix=True, since="model_base.HiDreamO1",
    ),
    Specimen(
        "HiDream O1, reference", "HiDream O1", hidream_o1, (3, 96, 160), o1_conds(15, 8), repeated(3, "block.{}"),
        slice(1, 16), (3, 5), prefix=True, since="model_base.HiDreamO1",
    ),
    Specimen(
        "Krea 2", "Krea 2", krea2, (16, 1, 8, 19), KREA, KREA_CALLS, slice(40, 80), (1, 4, 10),
        blocks=paths(3, "block", "blocks"), since="model_base.Krea2",
    ),
    Specimen(
        "Krea 2, reference of time 0", "Krea 2", krea2, (16, 1, 8, 20),
        {**KREA, "ref_latents": [(16, 1, 6, 6)], "ref_latents_method": "index_timestep_zero"}, KREA_CALLS,
        slice(40, 80), (1, 4, 10), blocks=paths(3, "block", "blocks"), since="model_base.Krea2",
    ),
    Specimen(
        "Lens", "Lens", lens, (16, 4, 10), {"c_crossattn": (40, 64)}, repeated(3, "block.{}"), slice(0, 40), (4, 10),
        blocks=BLOCKS, since="model_base.Lens",
    ),
    Specimen(
        "Lens, masked text", "Lens", lens, (16, 4, 10),
        {"c_crossattn": (40, 64), "attention_mask": lambda rows: (torch.arange(40) < 30).expand(rows, 40)},
        repeated(3, "block.{}"), slice(0, 40), (4, 10), blocks=BLOCKS, since="model_base.Lens",
    ),
    Specimen(
        "Mage-Flow", "Mage-Flow", mage_flow, (16, 3, 5), {"c_crossattn": (15, 32)}, repeated(3, "block.{}"),
        slice(15, 30), (3, 5), blocks=BLOCKS, since="model_base.MageFlow",
    ),
    Specimen(
        "Mage-Flow, reference", "Mage-Flow", mage_flow, (16, 3, 5), {"c_crossattn": (15, 32), "ref_latents": [(16, 4, 3)]},
        repeated(3, "block.{}"), slice(15, 30), (3, 5), blocks=BLOCKS, since="model_base.MageFlow",
    ),
    Specimen(
        "OmniGen 2", "OmniGen 2", omnigen2, (16, 6, 9), OMNIGEN, REFINED, slice(15, 30), (3, 5),
        blocks=paths(3, "block", "layers"),
    ),
    Specimen(
        "OmniGen 2, references", "OmniGen 2", omnigen2, (16, 6, 10), {**OMNIGEN, "ref_latents": [(16, 4, 6), (16, 6, 6)]},
        ["", *REFINED], slice(30, 45), (3, 5), blocks=paths(3, "block", "layers"),
    ),
    Specimen(
        "Boogu", "Boogu", boogu, (16, 6, 10), OMNIGEN, ["", "", *BOOGU_CALLS], slice(15, 30), (3, 5),
        images={3: slice(0, 15), 5: slice(0, 15)}, blocks=BOOGU_BLOCKS, since="model_base.Boogu",
    ),
    Specimen(
        "Boogu, reference", "Boogu", boogu, (16, 6, 10), {**OMNIGEN, "ref_latents": [(16, 4, 6)]},
        ["", "", "", *BOOGU_CALLS], slice(21, 36), (3, 5), images={4: slice(6, 21), 6: slice(6, 21)},
        blocks=BOOGU_BLOCKS, since="model_base.Boogu",
    ),
]  # fmt: skip
