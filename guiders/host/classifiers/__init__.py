"""Classifiers on the host: of clean pictures, made of VAE decoder, CLIP vision and a head; and of noisy latents."""

from .files import FOLDER, load_head, load_network, path_of
from .heads import MOST_LABELS, labels_of, zero_shot
from .latents import LatentClassifier, PictureClassifier

__all__ = ["FOLDER", "MOST_LABELS", "LatentClassifier", "PictureClassifier", "check_words", "load_head", "load_network"]
__all__ += ["path_of", "picture_classifier", "zero_shot"]


def check_words(label: str, other_labels: str, head: str, has_clip: bool) -> None:
    """Raise ValueError where labels, or a clip to understand them, are missing, or the file of a head."""
    if head.strip():
        path_of(head.strip())
        return
    if not has_clip:
        raise ValueError("needs a clip, to understand the labels, or the name of a head")
    labels_of(label, other_labels)


def picture_classifier(model, vae, clip_vision, label: str, other_labels: str, head: str = "", clip=None):
    """Of a head's file where one is named, else of words."""
    check_words(label, other_labels, head, clip is not None)
    if head.strip():
        return PictureClassifier(model, vae, clip_vision, load_head(clip_vision, head.strip(), label))
    return PictureClassifier(model, vae, clip_vision, zero_shot(clip_vision, clip, label, other_labels))
