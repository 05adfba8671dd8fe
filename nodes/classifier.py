"""MODEL → MODEL: guided by a classifier, of pictures or of noisy latents."""

from __future__ import annotations

from comfy_api.latest import io

from ..guiders.classifier import CLASSIFIER, CleanClassifierGuidance, NoisyClassifierGuidance
from ..guiders.host import classifiers as host
from ..guiders.noisy_network import ABOUT as NOISY
from . import schema
from .guidance import Guidance, term_node

PICTURE_INPUTS = [
    io.Vae.Input(
        "vae",
        tooltip="Turns what the model predicts into a picture. A TAESD is small enough to go back through; a whole VAE "
        "works too and needs several times the memory of decoding.",
    ),
    io.ClipVision.Input(
        "clip_vision", tooltip="Sees the picture. Must be one of CLIP, such as ViT-L/14, ViT-H/14 or ViT-bigG/14."
    ),
    io.String.Input(
        "label",
        default="",
        placeholder="a photo of a cat",
        tooltip="What the picture should be taken for, in words. With a head: one of its labels, or a class's number "
        "from 0.",
    ),
    io.String.Input(
        "other_labels",
        multiline=True,
        default="a photo\na painting\nnoise",
        tooltip="What it should not be taken for, one per line: label is told apart from these. Not used with a head.",
    ),
    io.String.Input(
        "head",
        default="",
        placeholder="none",
        tooltip="A .safetensors of the model folder classifiers, to use in place of words: weight [classes, features] "
        "and bias [classes], a linear layer on the CLIP vision embedding, with a JSON list of labels in its metadata "
        "if they have names. Empty: words.",
    ),
    *schema.inputs(CleanClassifierGuidance),
    io.Clip.Input(
        "clip",
        optional=True,
        tooltip="Reads the labels; needed without a head. The other half of clip_vision's CLIP, projection included: "
        "those of SD 1.5 checkpoints and the usual clip_l.safetensors have none.",
    ),
]


def by_pictures(
    model, vae, clip_vision, label, other_labels, head, scale, clip=None, adam=None, beta1=None, beta2=None
):
    """Towards what a classifier of pictures takes for a label."""
    classifier = host.picture_classifier(model, vae, clip_vision, label, other_labels, head, clip)
    values = {"scale": scale, "adam": adam, "beta1": beta1, "beta2": beta2}
    return model, CleanClassifierGuidance(classifier, **schema.settings(CleanClassifierGuidance, values))


WORDS = ("label", "other_labels", "head")


def foresee_words(written):
    """Raise ValueError where the labels or their files are missing."""
    if written.has(WORDS):
        host.check_words(*(written.values[name] for name in WORDS), has_clip="clip" in written.given)


LATENT_INPUTS = [
    io.String.Input(
        "classifier",
        default="",
        placeholder="classifier.safetensors",
        tooltip="A .safetensors of the model folder classifiers: a small network that was trained on this model's "
        "latents at every noise level, in the format that guiders/noisy_network.py describes.",
    ),
    io.String.Input(
        "label",
        default="",
        placeholder="0",
        tooltip="What the latent should be taken for: one of the classifier's labels, or a class's number from 0.",
    ),
    *schema.inputs(NoisyClassifierGuidance),
]


def by_latents(model, classifier, label, scale, adam=None, beta1=None, beta2=None):
    """Towards what a classifier of noisy latents takes for a label."""
    network = host.LatentClassifier(model, classifier.strip(), label)
    values = {"scale": scale, "adam": adam, "beta1": beta1, "beta2": beta2}
    return model, NoisyClassifierGuidance(network, **schema.settings(NoisyClassifierGuidance, values))


def foresee_file(written):
    """Raise ValueError where the file is not there."""
    if written.has(["classifier"]):
        host.path_of(written.values["classifier"].strip())


GUIDANCES = [
    Guidance(CLASSIFIER, CleanClassifierGuidance, PICTURE_INPUTS, by_pictures, foresee_words),
    Guidance(NOISY, NoisyClassifierGuidance, LATENT_INPUTS, by_latents, foresee_file),
]
NODES = [term_node(guidance) for guidance in GUIDANCES]
