"""What of a conditioning is the prompt's text, and what else the host knows of.

The host keeps both in one dictionary: what its text encoders give, and the sizes, pictures, sounds and places that nodes
add. Its models make conditions for the network of all of it.
"""

from __future__ import annotations

import torch

# Keys of a conditioning that a text encoder of the host fills.
TEXT = (
    "cross_attn",
    "pooled_output",
    "attention_mask",
    "conditioning_llama3",
    "conditioning_mt5xl",
    "attention_mask_mt5xl",
    "conditioning_byt5small",
    "conditioning_lyrics",
    "audio_codes",
    "text_input_ids",
    "t5xxl_ids",
    "t5xxl_weights",
    "minimax_token_tags",
    "unprocessed_ltxav_embeds",
    "cross_attn_controlnet",  # the text for a control, and for the frames' own attention, where they have another
    "time_conditioning",
    "cross_attn_pose",  # the text for a pose, where it has another
)
MASKS = {"cross_attn": "attention_mask", "conditioning_mt5xl": "attention_mask_mt5xl"}  # which tokens are no padding
# What goes to the network as numbers of tokens, and not as their encoding.
NUMBERS = ("input_ids", "t5xxl_ids", "lyric_token_idx", "audio_codes")

# All else that the host's models and its sampling read in a conditioning.
_ELSE = """
    width height crop_w crop_h target_width target_height aesthetic_score aspect_ratio guidance prompt_type
    unclip_conditioning unclip_noise_augment_merge noise_augmentation augmentation_level degrade_sigma ofs
    clip_vision_output clip_vision_output_ref clip_vision_outputs concat_image concat_latent_image concat_mask
    concat_mask_index noise_concat denoise_mask reference_latents reference_latents_method reference_latents_text_embeds
    ref_latent context_latents lq_latent condition stable_cascade_prior attention_mask_img_shape
    fps frame_rate motion_bucket_id elevation azimuth guiding_frame_index keyframe_idxs guide_attention_entries
    time_dim_concat time_dim_replace camera_conditions control_video pose_video_latent face_video_pixels
    clip_vision_output_pose pose_strength reference_strength generated_keyframes conditioning_scale
    reference_motion driving_mask_28ch ref_mask_28ch ref_mask_flag vace_frames vace_mask vace_strength
    audio_embed audio_inject_scale lyrics_strength reference_audio_timbre_latents ref_audio seconds_start seconds_total
    minimax_keyframes minimax_frame_count minimax_refs minimax_visual_cond_noise_aug minimax_audio_cond_noise_aug
    device noise seed latent_image latent_shapes
    area mask mask_strength set_area_to_bounds strength start_percent end_percent timestep_start timestep_end
    clip_start_percent clip_end_percent default control control_apply_to_uncond hooks gligen model_conds uuid
"""
ELSE = frozenset(_ELSE.split())


def text_of(condition: dict) -> dict:
    """The part of a conditioning entry that is the prompt's text."""
    return {key: condition[key] for key in TEXT if key in condition}


def unknown_of(condition: dict) -> list[str]:
    """Keys of tensors that this pack cannot tell to be text or not."""
    known = ELSE.union(TEXT)
    return [key for key, value in condition.items() if key not in known and _holds_tensors(value)]


def _holds_tensors(value) -> bool:
    return torch.is_tensor(value) or (isinstance(value, (list, tuple)) and any(map(torch.is_tensor, value)))


def other_text(text: dict, masked: bool) -> dict:
    """`text` with other numbers in all of its tokens that are not all zeros, which is padding. `masked`: also in those
    that a mask hides from the network."""
    generator = torch.Generator().manual_seed(0)
    return text | {
        key: value + torch.randn(value.shape, generator=generator).to(value) * _tokens(text, key, masked)
        for key, value in text.items()
        if torch.is_tensor(value) and value.is_floating_point() and key not in MASKS.values()
    }


def is_masked(text: dict) -> bool:
    """Whether a text has masks, which hide tokens from the network."""
    return any(text.get(mask) is not None for mask in MASKS.values())


def _tokens(text: dict, key: str, masked: bool) -> torch.Tensor:
    """Which tokens other_text changes, [batch, …, tokens, 1]."""
    value, mask = text[key], text.get(MASKS.get(key))
    tokens = (value != 0).any(-1, keepdim=True)
    if masked or mask is None or mask.ndim != 2 or mask.shape[1:] != value.shape[1:-1]:
        return tokens
    return tokens & (mask != 0).to(tokens.device)[..., None]
