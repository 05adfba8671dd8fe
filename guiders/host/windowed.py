"""Windows of a picture as the host's own areas: which conditionings can be cut into them, and what is refused.

An entry of a branch with windows becomes one entry for each window, with an area and a mask. The host does the rest, in
one call: it cuts x and all that lies over the picture (CONDNoiseShape, such as an inpainting model's), puts windows into
one batch as far as memory goes, and averages what comes back where areas overlap. The mask of ones keeps it from fading an
area out at its edges. A mask of the entry's own, a LoRA hook and a range of timesteps stay as they are.

What describes the picture as a whole, such as SDXL's sizes, stays as it is: the window is not another picture, but less of
the same. What lies over the picture in a way that the host does not cut is refused. The network gives a window the
positions of a picture of that size.
"""

from __future__ import annotations

from collections.abc import Iterator

import comfy.conds
import torch

from ...patches import architectures
from ..base import Latent
from ..windows import Window, Windows

# What the host gives its networks that has nothing to do with where in the picture something is: texts, encodings of whole
# pictures, and numbers. All else is refused, also what a later host or another pack adds.
NOWHERE = {"attention_mask", "c_ar", "c_crossattn", "c_size", "clip", "clip_fea", "clip_img", "clip_text", "crp"}
NOWHERE |= {"clip_text_pooled", "disable_time_r", "encoder_hidden_states_llama3", "encoder_hidden_states_t5", "fps"}
NOWHERE |= {"frame_rate", "guidance", "guiding_frame_index", "image_meta_size", "num_tokens", "num_video_frames", "ofs"}
NOWHERE |= {"sca", "t5xxl_ids", "t5xxl_weights", "text_embedding_mask", "text_embedding_mask_t5", "time_context"}
NOWHERE |= {"txt_byt5", "y"}
REFERENCES = {
    "ref_latents": "reference latents",
    "reference_latent": "a reference latent",
    "ref_latent": "a reference latent",
}
HAVE_A_PLACE = {
    "area": "an area, of its own or for one of the negative's",
    "control": "a ControlNet",
    "gligen": "GLIGEN boxes",
    "default": "a default conditioning, which fills what others leave",
}  # keys of an entry


def windowed(entries: list[dict], windows: Windows, x: Latent) -> Iterator[tuple[dict, Window]]:
    """Each entry in each window of x, [batch, channels, *frames, height, width]."""
    frames, (height, width) = tuple(x.shape[2:-2]), x.shape[-2:]
    everywhere = torch.ones(1, *x.shape[2:], dtype=x.dtype, device=x.device)
    for entry in entries:
        mask = entry["mask"].expand(-1, *x.shape[2:]) if "mask" in entry else everywhere
        for window in windows.of(height, width):
            area = (*frames, window.height, window.width, *(0 for _ in frames), window.top, window.left)
            yield {**entry, "area": area, "mask": mask}, window


def why_not_windowed(entries: list[dict], windows: Windows, x: Latent, shapes: tuple, options: dict, network) -> str:
    """Why these entries cannot be cut into windows, as a sentence with what to choose; "" where they can.
    `shapes`: the latents that x packs into one. `options`: the host's model_options."""
    if len(shapes) > 1:
        return "this latent packs several, such as video and sound, which have no windows in common. Use PAG or SEG"
    if x.ndim not in (4, 5):
        return f"this latent has no height and width, but {list(x.shape[2:])}, so it has no windows. Use PAG or TSG"
    if options.get("context_handler") is not None:
        return "context windows cut the frames already, and the host would cut again. Take one of the two nodes out"
    if architectures.refused(network):
        return f"{type(network).__name__} cannot be shown windows: {architectures.refused(network)}. Take the node out"
    height, width = x.shape[-2:]
    if len(windows.of(height, width)) == 1:
        return (
            f"window is {windows.size:g}, and no part of this picture of {height} x {width} cells of the latent is smaller "
            f"than all of it. Choose a larger picture"
        )
    for entry in entries:
        if found := _what_has_a_place(entry, x):
            return (
                f"the positive has {found}, and no window can have its part of that. Use PAG or SEG, or take that out"
            )
    return ""


def _what_has_a_place(entry: dict, x: Latent) -> str:
    """What of an entry belongs to places of the picture and cannot be cut with it; "" where nothing does."""
    for key, what in HAVE_A_PLACE.items():
        if key in entry:
            return what
    mask = tuple(entry["mask"].shape[1:]) if "mask" in entry else tuple(x.shape[2:])
    if len(mask) != x.ndim - 2 or any(have not in (1, size) for have, size in zip(mask, x.shape[2:], strict=True)):
        return f"a mask of another shape than the latent's, {list(mask)}"
    for name, cond in entry["model_conds"].items():
        if isinstance(cond, comfy.conds.CONDNoiseShape):
            if cond.cond.shape[2:] != x.shape[2:]:
                return f"{name} of another size than the latent's, {list(cond.cond.shape)}"
        elif name not in NOWHERE:
            return REFERENCES.get(name, f"{name}, which may lie over the picture")
    return ""
