"""MODELs to move away from, or towards: other averages of a network's training, and networks made worse on purpose."""

from __future__ import annotations

from comfy_api.latest import io

from ..guiders.base import About
from ..patches.host import degraded
from ..patches.host import ema as host
from ..patches.texts import shown
from . import schema


class PostHocEMA(schema.Node):
    """Files of snapshots → MODEL, averaged over them."""

    about = About(
        node_id="BeyondCFGPostHocEMA",
        name="Post-hoc EMA",
        group="Weaker models",
        summary=(
            "Makes a model from snapshots of its training. It is their average, and you choose over how much of the "
            "training. Autoguidance gets better when each of its two models has an average of its own length."
        ),
        paper="arXiv:2312.02696",
        aliases=(
            "EMA",
            "EDM2",
            "power function EMA",
            "average checkpoints",
            "merge snapshots",
            "weaker model",
        ),
    )
    inputs = (
        io.String.Input(
            "snapshots",
            multiline=True,
            default="",
            placeholder="epoch_10.safetensors\nepoch_20.safetensors\nepoch_30.safetensors",
            tooltip=(
                "The files, one per line, from early to late: of the folders checkpoints or diffusion_models. Each may "
                "have the training time it was saved at, in any unit from the beginning of training, as in "
                "model.safetensors @ 5000; else they are 1, 2, 3 … And a snapshot_ema of its own: model @ 5000 @ 0.05."
            ),
        ),
        io.Float.Input(
            "snapshot_ema",
            default=0.0,
            min=0.0,
            max=0.25,
            step=0.005,
            round=0.0001,
            tooltip=(
                "What the snapshots hold. 0: the weights of that moment, as most trainers save them. Else power "
                "function averages of this relative length, as EDM2 saves them: of two lengths, 0.05 and 0.1, at each "
                "time. Two need far fewer times than one; the log says if these are too few."
            ),
        ),
        io.Float.Input(
            "ema",
            default=0.1,
            min=0.01,
            max=0.25,
            step=0.005,
            round=0.0001,
            tooltip=(
                "Length of the average, relative to the training time until the last snapshot. More averages over "
                "more of the training. Much below snapshot_ema what comes out is mostly noise."
            ),
        ),
    )
    output = io.Model.Output(tooltip="The averaged model, at the time of the last snapshot.")

    @classmethod
    def build(cls, snapshots, snapshot_ema, ema):
        return host.average(host.find_snapshots(snapshots, snapshot_ema), ema)

    @classmethod
    def foresee(cls, written):
        if written.has(["snapshots"]):
            host.find_snapshots(written.values["snapshots"], 0.0)


class DegradedModel(schema.Node):
    """MODEL → MODEL that predicts worse."""

    about = About(
        node_id="BeyondCFGDegradedModel",
        name="Degraded Model",
        group="Weaker models",
        summary=(
            "Makes a weak model for Autoguidance from the same file, without a second one. This is an experiment: "
            "the paper found that noise, dropout and rounded weights do not guide real models well. A smaller or "
            "less trained model does."
        ),
        paper="arXiv:2406.02507",
        aliases=(
            "weak model",
            "bad version",
            "input noise",
            "dropout",
            "quantise",
            "fewer layers",
            "skip layers",
        ),
    )
    inputs = (
        io.Model.Input(
            "model", tooltip="The model to make worse. It stays as it is; what comes out is a version of it."
        ),
        io.Combo.Input(
            "degradation",
            options=["dropout", "input noise", "fewer layers", "quantised weights"],
            default="dropout",
            tooltip=(
                "dropout: parts of what its layers add are lost at random. input noise: it sees the picture with more "
                "noise. fewer layers: blocks are left out, transformers only. quantised weights: they are rounded; "
                "with the same model as main this takes a second copy in memory. In the paper noise and dropout "
                "only undid the same damage, done to the main model too."
            ),
        ),
        io.Float.Input(
            "amount",
            default=0.1,
            min=0.0,
            max=0.95,
            step=0.01,
            round=0.0001,
            tooltip=(
                "0 is off. dropout: the share that is lost. input noise: 0.1 is a noise level raised by 10 %. The paper "
                "tried 0.05 to 0.2. fewer layers and quantised weights are fully on at any amount above 0."
            ),
        ),
        io.String.Input(
            "layers",
            default="auto",
            tooltip=(
                "For dropout and fewer layers. auto: all for dropout, those of Skip Layer for fewer layers. Else a list "
                "such as double.7-9 or input.4, middle. A layer that the model lacks is an error that lists those it has."
            ),
        ),
        io.Int.Input(
            "bits",
            default=4,
            min=2,
            max=8,
            tooltip="For quantised weights: how many bits each has left. 8 is hardly worse, 2 is ruined.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            tooltip="For input noise and dropout: what is drawn in each step. The sampler's seed has no part in it.",
        ),
    )
    output = io.Model.Output(
        tooltip="The worse model, for the weak_model of Autoguidance, or to look at what it makes."
    )

    @classmethod
    def build(cls, model, degradation, amount, layers, bits, seed):
        check_use_of_layers(degradation, layers)
        if degradation == "input noise":
            return degraded.with_input_noise(model, amount, seed)
        if degradation == "dropout":
            return degraded.with_dropout(model, amount, layers, seed)
        if degradation == "fewer layers":
            return degraded.with_fewer_layers(model, amount, layers)
        return degraded.with_rounded_weights(model, amount, bits)

    @classmethod
    def foresee(cls, written):
        if written.has(["degradation", "layers"]):
            check_use_of_layers(written.values["degradation"], written.values["layers"])


def check_use_of_layers(degradation: str, layers: str) -> None:
    """Raise ValueError where layers are chosen for a degradation of the whole network."""
    if layers.strip().lower() != "auto" and degradation not in ("dropout", "fewer layers"):
        raise ValueError(f'layers is "{shown(layers)}", which {degradation} has no use for; set layers to auto')


NODES = [PostHocEMA, DegradedModel]
