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
        tooltip=(
            "Turns each step's prediction into a picture. Use a TAESD: it needs little memory. A whole VAE works "
            "too, but needs several times the memory of decoding."
        ),
    ),
    io.ClipVision.Input(
        "clip_vision",
        tooltip="Looks at the picture. It must be a CLIP vision model, such as ViT-L/14, ViT-H/14 or ViT-bigG/14.",
    ),
    io.String.Input(
        "label",
        default="",
        placeholder="a photo of a cat",
        tooltip=(
            "What the picture should look like to the classifier, in words. With a head: one of its labels, or "
            "the number of a class, counted from 0."
        ),
    ),
    io.String.Input(
        "other_labels",
        multiline=True,
        default="a photo\na painting\nnoise",
        tooltip=(
            "What the picture should not look like, one per line. Choose things that are like the label but "
            "wrong. Not used with a head."
        ),
    ),
    io.String.Input(
        "head",
        default="",
        placeholder="none",
        tooltip=(
            "Empty: the label is words. Or the name of a .safetensors file in the model folder classifiers, to "
            "use in place of words. It holds a linear layer for the CLIP vision embedding, as weight [classes, "
            "features] and bias [classes]. Its metadata may hold the labels, as a JSON list."
        ),
    ),
    *schema.inputs(CleanClassifierGuidance),
    io.Clip.Input(
        "clip",
        optional=True,
        tooltip=(
            "Reads the labels. Needed unless there is a head. It must be the text half of the same CLIP, with "
            "its projection. The CLIP of SD 1.5 checkpoints and the usual clip_l.safetensors have none."
        ),
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
        tooltip=(
            "The name of a .safetensors file in the model folder classifiers. It holds a small network that was "
            "trained on this model's latents at every noise level. guiders/noisy_network.py describes its format."
        ),
    ),
    io.String.Input(
        "label",
        default="",
        placeholder="0",
        tooltip=(
            "What the picture should show: one of the classifier's labels, or the number of a class, counted from 0."
        ),
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
