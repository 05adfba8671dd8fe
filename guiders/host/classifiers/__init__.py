"""Classifiers on the host: of clean pictures, made of VAE decoder, CLIP vision and a head; and of noisy latents."""

from .files import FOLDER, load_head, load_network
from .heads import MOST_LABELS, zero_shot
from .latents import LatentClassifier, PictureClassifier

__all__ = ["FOLDER", "MOST_LABELS", "LatentClassifier", "PictureClassifier", "load_head", "load_network"]
__all__ += ["picture_classifier", "zero_shot"]


def picture_classifier(model, vae, clip_vision, label: str, other_labels: str, head: str = "", clip=None):
    """Of a head's file where one is named, else of words."""
    if head.strip():
        return PictureClassifier(model, vae, clip_vision, load_head(clip_vision, head.strip(), label))
    if clip is None:
        raise ValueError("needs a clip, to understand the labels, or the name of a head")
    return PictureClassifier(model, vae, clip_vision, zero_shot(clip_vision, clip, label, other_labels))
