"""Video and sound."""

from unittest import mock

from comfy.ldm.audio.embedders import NumberConditioner
from pack.tests.host import networks

from .specimen import Specimen, model, paths, repeated


def wan(kind: str, config: str, **settings):
    size = {"in_dim": 16, "out_dim": 16, "dim": 64, "ffn_dim": 128, "num_heads": 2, "num_layers": 2, "text_dim": 32}
    settings = {"image_model": "wan2.1", "model_type": "t2v", "freq_dim": 64, **size, **settings}
    return lambda: model(kind, config, settings)


def ltx(kind: str = "LTXV", **settings):
    size = {"attention_head_dim": 16, "num_attention_heads": 4, "cross_attention_dim": 64, "num_layers": 2}
    settings = {"image_model": kind.lower(), "in_channels": 16, "caption_channels": 32, **size, **settings}
    return model(kind, kind, settings)


def ltx_av(**settings):
    sound = {"audio_attention_head_dim": 8, "audio_num_attention_heads": 4, "audio_cross_attention_dim": 32}
    connectors = {"connector_attention_head_dim": 8, "connector_num_attention_heads": 4, "connector_num_layers": 1}
    return ltx("LTXAV", **sound, **connectors, **settings)


def guided(rows):
    """A denoise mask of three frames of the video and two guides, some of whose tokens are left out."""
    mask = networks.torch.tensor([1.0, 0.5, 1.0, 0.0, 0.25]).reshape(1, 1, 5, 1, 1).repeat(rows, 1, 1, 3, 5)
    mask[:, :, 3:, ::2] = -1.0
    return mask


def guides(strength: float) -> list[dict]:
    return [
        {"pre_filter_count": 15, "strength": s, "pixel_mask": None, "latent_shape": [1, 3, 5]} for s in (1, strength)
    ]


def cosmos(kind: str, config: str, **settings):
    size = {"model_channels": 64, "num_blocks": 2, "num_heads": 4, "crossattn_emb_channels": 32, "adaln_lora_dim": 16}
    inputs = {
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "concat_padding_mask": True,
    }
    places = {"max_img_h": 32, "max_img_w": 32, "max_frames": 8, "pos_emb_cls": "rope3d", "use_adaln_lora": True}
    of_a_frame = (
        {"image_to_video": True} if settings.get("in_channels") == 17 else {}
    )  # one channel says which are given
    return model(kind, config, {**size, **inputs, **places, **settings}, **of_a_frame)


def cosmos1(in_channels: int):
    settings = {"block_x_format": "THWBD", "affline_emb_norm": True, "in_channels": in_channels}
    made = cosmos(
        "CosmosVideo", "CosmosT2V", **settings, extra_per_block_abs_pos_emb=True,
        extra_per_block_abs_pos_emb_type="learnable",
    )  # fmt: skip
    for place in made.model.diffusion_model.extra_pos_embedder.parameters():
        place.data.zero_()  # it is added again between blocks, and what a block gives would not be what the next is given
    return made


def anima():
    with mock.patch("comfy.ldm.anima.model.LLMAdapter", return_value=networks.torch.nn.Identity()):
        return cosmos("Anima", "Anima", image_model="anima")


def mochi():
    size = {"hidden_size_x": 64, "hidden_size_y": 32, "depth": 3, "num_heads": 4, "mlp_ratio_x": 192.0}
    text = {"use_t5": True, "t5_feat_dim": 32, "t5_token_length": 45}
    other = {"in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True, "learn_sigma": False}
    return model("GenmoMochi", "GenmoMochi", {"image_model": "mochi_preview", **size, **text, **other})


def kandinsky(kind: str, **settings):
    size = {"model_dim": 64, "ff_dim": 128, "time_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2}
    inputs = {"in_text_dim": 32, "in_text_dim2": 24, "axes_dims": (4, 6, 6)}
    return lambda: model(kind, kind, {"image_model": "kandinsky5", **size, **inputs, **settings})


def cogvideo(config: str, **settings):
    size = {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 2, "time_embed_dim": 48}
    inputs = {
        "text_embed_dim": 32,
        "sample_width": 16,
        "sample_height": 16,
        "sample_frames": 9,
        "max_text_seq_length": 45,
    }
    return lambda: model("CogVideoX", config, {"image_model": "cogvideox", **size, **inputs, **settings})


def stable_audio(kind: str, config: str, embedders: tuple[str, ...], **settings):
    size = {
        "embed_dim": 64,
        "num_heads": 2,
        "depth": 2,
        "io_channels": 8,
        "cond_token_dim": 768,
        "global_cond_dim": 768,
    }
    settings = {"audio_model": "dit1.0", "project_cond_tokens": True, **size, **settings}
    fourier = {"fourier_features_type": "expo"} if settings.get("timestep_features_type") else {}
    seconds = NumberConditioner(768, **fourier)
    networks.fill(seconds, 0)
    return model(kind, config, settings, **dict.fromkeys(embedders, seconds.state_dict()))


def stable_audio_1():
    embedders = ("seconds_start_embedder_weights", "seconds_total_embedder_weights")
    return stable_audio("StableAudio1", "StableAudio", embedders, global_cond_dim=2 * 768)


def stable_audio_3():
    adaptive = {"global_cond_shared_embed": True, "global_cond_type": "adaLN", "num_memory_tokens": 4}
    attention = {"attn_kwargs": {"qk_norm": "rms", "differential": True}, "norm_type": "rms_norm"}
    return stable_audio(
        "StableAudio3", "StableAudio3", ("seconds_total_embedder_weights",), **adaptive, **attention,
        timestep_features_type="expo", local_add_cond_dim=9,
    )  # fmt: skip


def hunyuan(kind: str, config: str | None = None, **settings):
    size = {"hidden_size": 64, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12]}
    inputs = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 24, "context_in_dim": 32, "patch_size": [1, 2, 2]}
    other = {"mlp_ratio": 2.0, "theta": 256, "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False}
    version = {"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}
    settings = {"image_model": "hunyuan_video", **size, **inputs, **other, **version, **settings}
    return lambda: model(kind, config or kind, settings)


CLIP = {"clip_fea": (7, 1280)}
TEXT = {"c_crossattn": (45, 32)}  # as much text as picture
I2V = repeated(2, "block.{}", "", "")
T2V = repeated(2, "block.{}", "")
BLOCKS = paths(2, "block", "blocks")
GUIDANCE = {"guidance": lambda rows: networks.torch.full((rows,), 6.0)}
HUNYUAN = {**TEXT, "y": (24,), **GUIDANCE}
HUNYUAN_CALLS = ["", "", *repeated(2, "double.{}"), *repeated(2, "single.{}")]
HUNYUAN_BLOCKS = {**paths(2, "double", "double_blocks"), **paths(2, "single", "single_blocks")}

LTX = {**TEXT, "attention_mask": lambda rows: (networks.torch.arange(45) < 40).long().repeat(rows, 1)}
LTX_GUIDES = {"denoise_mask": guided, "keyframe_idxs": (3, 30, 2)}
LTX_BLOCKS = paths(2, "block", "transformer_blocks")
AV = {"c_crossattn": (45, 64), "latent_shapes": lambda rows: [[rows, 16, 3, 3, 5], [rows, 8, 6, 16]]}
AV_GUIDES = {**AV, **LTX_GUIDES, "latent_shapes": lambda rows: [[rows, 16, 5, 3, 5], [rows, 8, 6, 16]]}
FRAME_TIMES = {"denoise_mask": (1, 3, 6, 10)}
SOUND = {"c_crossattn": (20, 768), "global_embed": (768,)}

SPECIMENS = [
    Specimen(
        "Wan 2.1 I2V", "Wan", wan("WAN21", "WAN21_I2V", model_type="i2v", in_dim=36), (16, 3, 6, 10),
        {**TEXT, **CLIP, "c_concat": (20, 3, 6, 10)}, I2V, slice(0, 45), (3, 3, 5), blocks=BLOCKS,
    ),
    Specimen(
        "Wan Fun", "Wan", wan("WAN21", "WAN21_FunControl2V", in_dim_ref_conv=16), (16, 3, 6, 10),
        {**TEXT, "reference_latent": (16, 6, 10), "time_dim_concat": (16, 1, 6, 10)}, T2V, slice(15, 60), (3, 3, 5),
        blocks=BLOCKS,
    ),
    Specimen(
        "Wan Bernini", "Wan", wan("WAN21", "WAN21_T2V"), (16, 3, 6, 10),
        {**TEXT, "context_latents": [(16, 1, 6, 6), (16, 2, 4, 5)]}, T2V, slice(0, 45), (3, 3, 5), blocks=BLOCKS,
        since="ldm.wan.model_wandancer.WanDancerModel",
    ),
    Specimen(
        "Wan VACE", "Wan", wan("WAN21_Vace", "WAN21_Vace", num_layers=4, vace_layers=2, vace_in_dim=96),
        (16, 3, 6, 10), {**TEXT, "vace_context": (2, 96, 3, 6, 10), "vace_strength": lambda rows: [1.0, 0.5]},
        ["block.0", "", *[""] * 4, "block.1", "", "block.2", "", *[""] * 4, "block.3", ""], slice(0, 45), (3, 3, 5),
        blocks={"block.1": "blocks.1", "block.2": "blocks.2"},
    ),
    Specimen(
        "Wan Camera", "Wan",
        wan("WAN21_Camera", "WAN21_Camera", model_type="camera", in_dim=32, in_dim_control_adapter=2),
        (16, 3, 6, 10), {**TEXT, **CLIP, "c_concat": (16, 3, 6, 10), "camera_conditions": (2, 3, 48, 80)}, I2V,
        slice(0, 45), (3, 3, 5), blocks=BLOCKS,
    ),
    Specimen(
        "Wan HuMo", "Wan", wan("WAN21_HuMo", "WAN21_HuMo"), (16, 3, 6, 10),
        {**TEXT, "reference_latent": (16, 1, 6, 10), "audio_embed": (3, 8, 5, 1280)}, I2V, slice(0, 45), (3, 3, 5),
        blocks=BLOCKS,
    ),
    Specimen(
        "Wan Animate", "Wan", wan("WAN22_Animate", "WAN22_Animate", num_layers=2), (16, 3, 6, 10),
        {**TEXT, **CLIP, "pose_latents": (16, 2, 6, 10)}, I2V, slice(0, 45), (3, 3, 5), blocks=BLOCKS,
    ),
    Specimen(
        "Wan 2.2 5B", "Wan", wan("WAN22", "WAN22_T2V", in_dim=48, out_dim=48), (48, 3, 6, 10),
        {**TEXT, "denoise_mask": (1, 3, 6, 10)}, T2V, slice(0, 45), (3, 3, 5), blocks=BLOCKS,
    ),
    Specimen(
        "Wan SCAIL", "Wan", wan("WAN21_SCAIL", "WAN21_SCAIL", in_dim=20), (16, 3, 6, 10),
        {
            **TEXT, **CLIP, "c_concat": (4, 3, 6, 10), "reference_latent": (20, 2, 6, 10),
            "pose_latents": (20, 3, 4, 5),
        },
        I2V, slice(30, 75), (3, 3, 5), blocks=BLOCKS, since="model_base.WAN21_SCAIL",
    ),
    Specimen(
        "Wan SCAIL-2", "Wan", wan("WAN21_SCAIL2", "WAN21_SCAIL2", in_dim=20), (16, 3, 6, 10),
        {
            **TEXT, **CLIP, "c_concat": (4, 3, 6, 10), "reference_latent": (20, 1, 6, 10),
            "pose_latents": (20, 3, 4, 4), "ref_mask_latents": (28, 4, 6, 10), "sam_latents": (28, 3, 4, 4),
            "ref_mask_flag": lambda rows: False,
        },
        I2V, slice(15, 60), (3, 3, 5), blocks=BLOCKS, since="model_base.WAN21_SCAIL2",
    ),
    Specimen(
        "WanDancer", "Wan", wan("WAN22_WanDancer", "WAN22_WanDancer", audio_inject_layers=[1], music_feature_dim=5),
        (16, 3, 8, 16), {"c_crossattn": (96, 32), **CLIP, "audio_embed": (24, 5)}, ["", "", *I2V, ""], slice(0, 96),
        (3, 4, 8), blocks=BLOCKS, since="model_base.WAN22_WanDancer",
    ),
    Specimen(
        "Wan S2V", "Wan S2V", wan("WAN22_S2V", "WAN22_S2V", audio_dim=8, audio_inject_layers=[1]), (16, 3, 8, 16),
        {
            "c_crossattn": (96, 32), "audio_embed": (25, 8, 12), "reference_latent": (16, 1, 8, 16),
            "reference_motion": (16, 2, 8, 16), "control_video": (16, 3, 8, 16),
        },
        [*T2V, ""], slice(0, 96), (3, 4, 8), blocks=BLOCKS, time=False,
    ),
    Specimen(
        "LTX-Video", "LTX-Video", ltx, (16, 3, 3, 5), LTX, T2V, slice(0, 45), (3, 3, 5), blocks=LTX_BLOCKS,
    ),
    Specimen(
        "LTX-Video with keyframes", "LTX-Video", ltx, (16, 5, 3, 5), {**LTX, **LTX_GUIDES}, T2V, slice(0, 45),
        (3, 3, 5), blocks=LTX_BLOCKS,
    ),
    Specimen(
        "LTX-Video with weaker keyframes", "LTX-Video", ltx, (16, 5, 3, 5),
        {**LTX, **LTX_GUIDES, "guide_attention_entries": lambda rows: guides(0.5)}, repeated(2, "block.{}", "", ""),
        slice(0, 45), (3, 3, 5), blocks=LTX_BLOCKS, since="ldm.lightricks.model.GuideAttentionMask",
    ),
    Specimen(
        "LTX-2", "LTX-2", ltx_av, (1, 16 * 45 + 8 * 6 * 16), AV, repeated(2, "block.{}", *[""] * 5), slice(0, 45),
        (3, 3, 5), blocks=LTX_BLOCKS, since="model_base.LTXAV",
    ),
    Specimen(
        "LTX-2.3 with weaker keyframes", "LTX-2",
        lambda: ltx_av(cross_attention_adaln=True, apply_gated_attention=True), (1, 16 * 75 + 8 * 6 * 16),
        {**AV_GUIDES, "guide_attention_entries": lambda rows: guides(0.5)}, repeated(2, "block.{}", *[""] * 6),
        slice(0, 45), (3, 3, 5), blocks=LTX_BLOCKS, since="ldm.lightricks.model.GuideAttentionMask",
    ),
    Specimen(
        "LTX-2 without sound", "LTX-2", ltx_av, (16, 3, 3, 5),
        {**AV, "latent_shapes": lambda rows: [[rows, 16, 3, 3, 5]]}, T2V, slice(0, 45), (3, 3, 5), blocks=LTX_BLOCKS,
        since="model_base.LTXAV",
    ),
    Specimen(
        "Cosmos 1", "Cosmos 1", lambda: cosmos1(16), (16, 3, 6, 10), TEXT, T2V, slice(0, 45), (3, 3, 5),
        blocks={"block.0": "blocks.block0", "block.1": "blocks.block1"},
    ),
    Specimen(
        "Cosmos 1 I2V", "Cosmos 1", lambda: cosmos1(17), (16, 3, 6, 10), {**TEXT, "c_concat": (1, 3, 6, 10)}, T2V,
        slice(0, 45), (3, 3, 5), blocks={"block.0": "blocks.block0", "block.1": "blocks.block1"},
    ),
    Specimen(
        "Cosmos-Predict2", "Cosmos-Predict2, Anima", lambda: cosmos("CosmosPredict2", "CosmosT2IPredict2"),
        (16, 3, 6, 9), TEXT, T2V, slice(0, 45), (3, 3, 5), blocks=BLOCKS,
    ),
    Specimen(
        "Cosmos-Predict2 I2V", "Cosmos-Predict2, Anima",
        lambda: cosmos("CosmosPredict2", "CosmosI2VPredict2", in_channels=17), (16, 3, 6, 10),
        {**TEXT, **FRAME_TIMES, "c_concat": (1, 3, 6, 10)}, T2V, slice(0, 45), (3, 3, 5), blocks=BLOCKS,
    ),
    Specimen(
        "Anima", "Cosmos-Predict2, Anima", anima, (16, 1, 6, 10), {"c_crossattn": (15, 32)}, T2V, slice(0, 15),
        (1, 3, 5), blocks=BLOCKS, since="model_base.Anima",
    ),
    Specimen(
        "Mochi", "Mochi", mochi, (12, 3, 6, 10),
        {**TEXT, "attention_mask": lambda rows: networks.torch.ones(rows, 45).long(), "num_tokens": 40},
        repeated(3, "block.{}"), slice(0, 45), (3, 3, 5), blocks=paths(3, "block", "blocks"),
    ),
    Specimen(
        "Kandinsky 5", "Kandinsky 5", kandinsky("Kandinsky5", visual_embed_dim=132), (16, 3, 6, 10),
        {**TEXT, "y": (24,), "c_concat": (17, 3, 6, 10), "time_dim_replace": (16, 1, 6, 10)}, ["", *T2V], slice(0, 45),
        (3, 3, 5), blocks=paths(2, "block", "visual_transformer_blocks"), since="model_base.Kandinsky5",
    ),
    Specimen(
        "Kandinsky 5 Image", "Kandinsky 5", kandinsky("Kandinsky5Image", visual_embed_dim=64), (16, 6, 10),
        {"c_crossattn": (15, 32), "y": (24,)}, ["", *T2V], slice(0, 15), (3, 5),
        blocks=paths(2, "block", "visual_transformer_blocks"), since="model_base.Kandinsky5Image",
    ),
    Specimen(
        "CogVideoX", "CogVideoX", cogvideo("CogVideoX_T2V"), (16, 3, 6, 10), TEXT, repeated(2, "block.{}"),
        slice(45, 90), (3, 3, 5), blocks=BLOCKS, since="model_base.CogVideoX",
    ),
    Specimen(
        "CogVideoX 1.5 I2V", "CogVideoX",
        cogvideo("CogVideoX_I2V", in_channels=32, patch_size_t=2, ofs_embed_dim=48, use_rotary_positional_embeddings=True),
        (16, 5, 6, 9), {**TEXT, "c_concat": (16, 5, 6, 9), "ofs": lambda rows: networks.torch.full((rows,), 2.0)},
        repeated(2, "block.{}"), slice(45, 90), (3, 3, 5), blocks=BLOCKS, since="model_base.CogVideoX",
    ),
    Specimen(
        "Stable Audio 1", "Stable Audio", stable_audio_1, (8, 20), {**SOUND, "global_embed": (2 * 768,)}, T2V,
        slice(1, 21), (20,), blocks=paths(2, "block", "transformer.layers"),
    ),
    Specimen(
        "Stable Audio 3", "Stable Audio", stable_audio_3, (8, 20), {**SOUND, "local_add_cond": (9, 20)},
        repeated(2, "block.{0}", "block.{0}", "", ""), slice(4, 24), (20,),
        blocks=paths(2, "block", "transformer.layers"), since="model_base.StableAudio3",
    ),
    Specimen(
        "HunyuanVideo", "HunyuanVideo", hunyuan("HunyuanVideo"), (16, 3, 6, 10), HUNYUAN, HUNYUAN_CALLS,
        slice(45, 90), (3, 3, 5), blocks=HUNYUAN_BLOCKS,
    ),
    Specimen(
        "HunyuanVideo I2V", "HunyuanVideo", hunyuan("HunyuanVideoI2V", in_channels=33, guidance_embed=False),
        (16, 3, 6, 10),
        {
            **HUNYUAN, "c_concat": (17, 3, 6, 10), "guiding_frame_index": lambda rows: networks.torch.zeros(rows),
        },
        HUNYUAN_CALLS, slice(45, 90), (3, 3, 5), blocks=HUNYUAN_BLOCKS,
        since="model_base.CogVideoX",  # older hosts take a guiding frame for one row only
    ),
    Specimen(
        "SkyReels", "HunyuanVideo", hunyuan("HunyuanVideoSkyreelsI2V", in_channels=32), (16, 3, 6, 10),
        {**HUNYUAN, "c_concat": (16, 3, 6, 10)}, HUNYUAN_CALLS, slice(45, 90), (3, 3, 5), blocks=HUNYUAN_BLOCKS,
    ),
    Specimen(
        "HunyuanVideo 1.5", "HunyuanVideo",
        hunyuan(
            "HunyuanVideo15", in_channels=65, out_channels=32, vec_in_dim=None, patch_size=[1, 1, 1], byt5=True,
            guidance_embed=False, use_cond_type_embedding=True, vision_in_dim=12,
        ),
        (32, 3, 3, 5), {**TEXT, "c_concat": (33, 3, 3, 5), "txt_byt5": (3, 1472), "clip_fea": (4, 12)},
        HUNYUAN_CALLS, slice(52, 97), (3, 3, 5), blocks=HUNYUAN_BLOCKS,
        since="model_base.HunyuanVideo15",
    ),
]  # fmt: skip
