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
            "training. Autoguidance gets better when its two models are averages of different lengths."
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
                "The files, one per line, from early to late, in the folders checkpoints or diffusion_models. After "
                "each you may write its training time, in any unit: model.safetensors @ 5000. Without times they "
                "count as 1, 2, 3. If a file has another snapshot_ema than below, write that last: model @ 5000 @ 0.05."
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
                "What the files hold. 0: plain weights, as most trainers save them. Above 0: files that are averages "
                "already. EDM2 saves two at each training time, 0.05 and 0.1; with both you need far fewer training times. "
                "The log says if there are too few."
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
                "How much of the training is averaged, as a fraction of the training time. 0.1 is a good start. "
                "Higher averages over more of the training. Far below snapshot_ema the result is mostly noise."
            ),
        ),
    )
    output = io.Model.Output(tooltip="The averaged model, as at the time of the last snapshot.")

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
        io.Model.Input("model", tooltip="The model to make a worse copy of. The model itself stays as it is."),
        io.Combo.Input(
            "degradation",
            options=["dropout", "input noise", "fewer layers", "quantised weights"],
            default="dropout",
            tooltip=(
                "How it is made worse. dropout: parts of its layers are lost at random. input noise: it sees more "
                "noise. fewer layers: blocks are left out, in transformers only. quantised weights: the weights are "
                "rounded, which takes a second copy in memory. The paper found that noise and dropout only undo the "
                "same damage in the main model."
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
                "How much worse it is made. 0 is off. For dropout: the part that is lost. For input noise: 0.1 is 10 "
                "% more noise. The paper tried 0.05 to 0.2. The other two are fully on above 0."
            ),
        ),
        io.String.Input(
            "layers",
            default="auto",
            tooltip=(
                "For dropout and fewer layers only. auto: all layers for dropout, and those of Skip Layer for fewer "
                "layers. Or a list such as double.7-9, or input.4, middle. If the model has no such layer, an error "
                "lists those it has."
            ),
        ),
        io.Int.Input(
            "bits",
            default=4,
            min=2,
            max=8,
            tooltip=(
                "For quantised weights only: how many bits are left of each weight. 8 is hardly worse; 2 breaks the "
                "picture."
            ),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            tooltip=(
                "For input noise and dropout only: which random numbers are used. The sampler's seed does not change "
                "them."
            ),
        ),
    )
    output = io.Model.Output(
        tooltip="The worse model. Connect it to weak_model of Autoguidance, or sample it to see how much worse it is."
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
