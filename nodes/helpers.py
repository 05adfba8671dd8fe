"""Settings that several nodes share."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..guiders.base import About
from ..guiders.host import with_options
from ..guiders.schedule import Curve
from ..patches.host import layer_map
from . import schema
from .pictures.drawing import draw_layers
from .values import said


def points_of(curve) -> tuple[tuple[float, float], ...]:
    """The points (place, strength) of a curve of the host's. An older host gives them as they are. Raises ValueError for
    anything else."""
    try:
        if hasattr(curve, "interp"):
            curve = [(x / 64, curve.interp(x / 64)) for x in range(65)]
        points = tuple((float(at), float(strength)) for at, strength in curve)
    except Exception:  # of another pack's type, which may raise anything
        points = ()
    if not points:
        raise ValueError(f"curve is {said(curve)}; it must be what the host's Curve Editor gives")
    return points


class GuidanceSchedule(schema.Node):
    """The points and form of a curve → the Curve, for the `schedule` of guidance nodes."""

    about = About(
        node_id="BeyondCFGSchedule",
        name="Guidance Schedule",
        title="Strength Curve (Guidance Schedule)",
        group="Tools",
        summary=(
            "Makes a guidance stronger or weaker along sampling: its strength is multiplied by this curve. One "
            "schedule can serve several nodes. Where the curve is 0, the guidance takes no time."
        ),
        paper="arXiv:2404.07724",
        aliases=(
            "guidance curve",
            "weight schedule",
            "cfg schedule",
            "dynamic cfg",
            "ramp",
            "noise-dependent weight",
        ),
    )
    inputs = (
        io.Combo.Input(
            "curve_type",
            options=["linear", "cosine", "power", "points"],
            default="linear",
            tooltip="How the strength goes from start to end. linear: a straight line. cosine: smoothly. power: with a "
            "bend, which you set in power. points: your own points, from the text in points.",
        ),
        io.Float.Input(
            "start", default=1.0, min=-10.0, max=10.0, step=0.05, round=0.001,
            tooltip="Factor on the strength at the first step. 1 is the strength itself, 0 is off. Not used by points.",
        ),
        io.Float.Input(
            "end", default=0.0, min=-10.0, max=10.0, step=0.05, round=0.001,
            tooltip="Factor on the strength at the last step. 1 is the strength itself, 0 is off. Not used by points.",
        ),
        io.Float.Input(
            "power", default=2.0, min=0.01, max=20.0, step=0.05, round=0.001,
            tooltip="For power only. 1 is a straight line. Above 1 the strength changes late, below 1 early.",
        ),
        io.String.Input(
            "points", default="0: 1, 1: 0",
            tooltip="For points only: place and factor, joined by straight lines. 0: 0, 0.3: 1, 0.6: 0 rises to full "
            "strength at 0.3 and is off again at 0.6. The order does not matter.",
        ),
        io.Combo.Input(
            "over", options=["percent", "sigma"],
            default="percent",
            tooltip="For points only: what the places are. percent: fractions of sampling, 0 to 1. sigma: noise levels.",
        ),
        io.Custom("CURVE").Input(
            "curve", optional=True,
            extra_dict={"forceInput": True},  # else the page gives it a widget, whose curve always overrides
            tooltip="A curve drawn in the host's Curve Editor, from left (first step) to right (last step). Overrides the "
            "settings above.",
        ),
    )  # fmt: skip
    basics = frozenset(["power"])  # the page hides what the chosen form does not use
    output = schema.SCHEDULE.Output(display_name="schedule", tooltip="For the schedule input of guidance nodes.")

    @classmethod
    def build(cls, curve_type, start, end, power, points, over, curve=None):
        if curve is not None:
            return Curve(points_of(curve))
        if curve_type == "points":
            return Curve.parse(points, over)
        return Curve(((0.0, start), (1.0, end)), curve_type, power)

    @classmethod
    def foresee(cls, written):
        if written.has(given.id for given in cls.inputs if not given.optional) and "curve" not in written.given:
            cls.build(**written.values)


class GuidanceOptions(schema.Node):
    """MODEL → MODEL, with how its guidances are computed."""

    about = About(
        node_id="BeyondCFGOptions",
        name="Guidance Options",
        title="Options (Guidance Options)",
        group="Tools",
        summary="Sets how the guidance nodes on a model are computed. The pictures stay the same.",
        aliases=(
            "sharing",
            "shared prefix",
            "speed",
            "faster pag",
            "debug",
            "check",
            "probe",
        ),
    )
    inputs = (
        io.Model.Input("model", tooltip="The model, before or after its guidance nodes."),
        io.Combo.Input(
            "sharing",
            options=["auto", "off"],
            default="auto",
            tooltip=(
                "auto: work that a guidance has in common with the main prediction is done once, so sampling is "
                "faster. The log says what is shared. off: everything is computed separately."
            ),
        ),
        io.Combo.Input(
            "check",
            options=["auto", "off"],
            default="auto",
            optional=True,
            tooltip=(
                "auto: in the first run of a model, one short extra call checks that the pack knows where the "
                "picture is in this network. off: no such check. A network that the pack does not know is always "
                "checked."
            ),
        ),
    )
    output = io.Model.Output(tooltip="The model with these options.")

    @classmethod
    def build(cls, model, sharing, check="auto"):
        return with_options(model, sharing, check)


class LayerMap(schema.Node):
    """MODEL and a choice of layers → a picture of the network and a text."""

    about = About(
        node_id="BeyondCFGLayerMap",
        name="Layer Map",
        group="Tools",
        summary=(
            "Shows the layers of a model, and which of them a text in layers means. Use it to choose layers for PAG, "
            "SEG, Skip Layer Guidance and others, and to see what auto is for this model."
        ),
        aliases=(
            "layers",
            "blocks",
            "which layers",
            "architecture",
            "model structure",
            "unet blocks",
            "pag layers",
        ),
    )
    inputs = (
        io.Model.Input("model", tooltip="The model to look into. Nothing is changed, and nothing is loaded."),
        schema.MAPPED_LAYERS,
        io.Combo.Input(
            "layers_of",
            options=["attention", "skip layer"],
            default="attention",
            tooltip="What the layers are chosen for, since auto differs: the attention that PAG, SEG and others perturb, "
            "or the blocks that Skip Layer leaves out.",
        ),
        *(
            io.Int.Input(
                name, default=1024, min=16, max=16384, step=8,
                tooltip=f"{name.capitalize()} of the picture in pixels, for the numbers of tokens.",
            )
            for name in ("width", "height")
        ),
    )  # fmt: skip
    output = io.Image.Output("IMAGE", tooltip="The network. A UNet as its U, a transformer as its stacks of blocks.")
    further = (io.String.Output("LIST", tooltip="The layers, with what they attend over, and which are chosen."),)
    shows = True

    @classmethod
    def build(cls, model, layers, layers_of, width, height):
        found = layer_map(model, layers, width, height, skip=layers_of == "skip layer")
        picture = draw_layers(found)
        drawn = found.drawing() | {"text": layers}  # for the page
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | {"beyond_cfg_layers": [drawn]}
        return io.NodeOutput(picture, found.text(), ui=shown)


NODES = [GuidanceSchedule, GuidanceOptions, LayerMap]
