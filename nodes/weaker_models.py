"""MODELs to move away from, or towards: other averages of a network's training."""

from __future__ import annotations

from comfy_api.latest import io

from ..guiders.base import About
from ..guiders.host import ema as host
from . import schema


class PostHocEMA(schema.Node):
    about = About(
        node_id="BeyondCFGPostHocEMA",
        title="Post-hoc EMA",
        summary=(
            "A model averaged over snapshots of its training, with a length of the average that is chosen now. Both "
            "models of Autoguidance gain from a length of their own."
        ),
        paper="arXiv:2312.02696",
        aliases=("EMA", "EDM2", "power function EMA", "average checkpoints", "merge snapshots", "weaker model"),
    )
    inputs = [
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
    ]
    output = io.Model.Output(tooltip="The averaged model, at the time of the last snapshot.")

    @classmethod
    def build(cls, snapshots, snapshot_ema, ema):
        return host.average(host.find_snapshots(snapshots, snapshot_ema), ema)


NODES = [PostHocEMA]
