"""MODEL and what is wrong with its pictures → MODEL with the guidance that the table of presets has for that."""

from __future__ import annotations

from comfy_api.latest import io

from ..guiders.base import About
from ..guiders.host.measured import state
from ..guiders.presets import PROBLEMS, Setting, preset
from ..patches.host.families import family_of
from . import schema
from .kept_values import BY_NODE, full_values, measured_in_place


class EasyGuidance(schema.Node):
    """MODEL, what is wrong and how strongly to act → MODEL, and what was chosen in words."""

    about = About(
        node_id="BeyondCFGGuidance",
        name="Guidance",
        title="Guidance (easy)",
        summary=(
            "Makes pictures better: say what is wrong, and it chooses the guidance and its values for your model. It "
            "writes on itself what it chose, and can be taken apart into the single nodes. Values that were measured for "
            "this very checkpoint come first."
        ),
        aliases=(
            "better quality", "easy guidance", "preset", "detail", "anatomy", "hands", "sharp", "flat", "flat colours",
            "burnt", "variety", "auto guidance settings", "quality", "improve", "better pictures", "fix hands", "faces",
            "broken anatomy", "boring", "fried",
        ),
    )  # fmt: skip
    inputs = (
        io.Model.Input("model", tooltip="The model to make better. Guidance nodes that are on it already stay on it."),
        io.Combo.Input(
            "problem",
            options=list(PROBLEMS),
            default=PROBLEMS[0],
            tooltip='What is wrong with the pictures. With "burnt colours", put this node after all other guidance nodes. '
            '"no negative prompt possible" is for models that run at cfg 1: set cfg to 1 in the sampler.',
        ),
        io.Float.Input(
            "strength",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.001,
            tooltip="How strongly to act. 0 is off. 0.5 is the value that is recommended for your model. 1 is about twice "
            "as strong, and may be too much.",
        ),
    )
    output = schema.MODEL_OUT
    further = (
        io.String.Output(display_name="chosen", tooltip="Which guidance was chosen, with its values and their source."),
    )

    @classmethod
    def build(cls, model, problem, strength):
        family = family_of(model)
        chosen = measured_in_place(model, preset(problem, family) if strength else ())
        for setting in chosen:
            guidance = BY_NODE[setting.node]
            model = guidance.add(guidance.about.name, model=model, **full_values(guidance, setting.at(strength)))
        lines = [said(setting, strength) for setting in chosen] or ["strength is 0, so nothing is changed."]
        words = "\n".join([f"For {family or 'a network that the pack does not know'}:", *lines])
        nodes = [{"type": f"BeyondCFG{setting.node}", "values": setting.at(strength)} for setting in chosen]
        return io.NodeOutput(model, words, ui={"text": (words,), "nodes": nodes})

    @classmethod
    def fingerprint_inputs(cls, **_):
        """Another value whenever the files of measured values change, so that the host runs it again."""
        return state()


def said(setting: Setting, strength: float) -> str:
    """One chosen node in words: its title, its values, and where they are from."""
    values = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in setting.at(strength).items()
    )
    source = setting.source if strength == 0.5 else f"{setting.source}, which is for strength 0.5"
    return f"{BY_NODE[setting.node].about.title}: {values}. Source: {source}."


NODES = [EasyGuidance]
