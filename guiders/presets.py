"""Presets: for what is wrong with a picture, and for a family of models, which guidance with which values.

Layers stay at auto, which is what the same source says for that family, but where a line names them.

One table, with a source for every line. Where nobody has published a value for a family, the line of OTHERS stands: our
own rule. The node Guidance, "values for a model" on the nodes, and the blueprints in subgraphs/ are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OTHERS = "others"
OUR_RULE = "our rule; not tried on real weights"
PROBLEMS = (
    "shapes and anatomy",
    "too little detail",
    "burnt colours",
    "flat",
    "no negative prompt possible",
    "too little variety",
)


@dataclass(frozen=True)
class Ramp:
    """A value that follows the one strength of the node Guidance. Between the three it goes in straight lines."""

    off: float  # at strength 0
    middle: float  # at strength 0.5: what the source says
    full: float  # at strength 1

    def at(self, strength: float) -> float:
        """The value at a strength from 0 to 1."""
        low, high, share = (self.off, self.middle, 2 * strength)
        if strength > 0.5:
            low, high, share = (self.middle, self.full, 2 * strength - 1)
        return low + share * (high - low)


def scale(middle: float, full: float | None = None) -> Ramp:
    """A scale, which is off at 0. Without `full` it is twice as strong at strength 1."""
    return Ramp(0.0, middle, 2 * middle if full is None else full)


@dataclass(frozen=True)
class Setting:
    """One node with its values; the others stay at the node's defaults."""

    node: str  # the end of its id, after BeyondCFG
    values: Mapping[str, Ramp | float | str]
    source: str = OUR_RULE

    def at(self, strength: float) -> dict[str, float | str]:
        """The values at a strength from 0 to 1, as a user would write them."""
        return {
            name: round(value.at(strength), 4) if isinstance(value, Ramp) else value
            for name, value in self.values.items()
        }


def _pag(middle: float, source: str, full: float | None = None) -> Setting:
    return Setting("PAG", {"scale": scale(middle, full)}, source)


def _skip(middle: float, source: str, start: float = 0.0, end: float = 1.0) -> Setting:
    return Setting("SkipLayer", {"scale": scale(middle), "start_percent": start, "end_percent": end}, source)


def _self_guidance(middle: float, source: str) -> Setting:
    return Setting("SelfGuidance", {"scale": scale(middle), "shift": 0.01}, source)


STG = "example of diffusers' STG pipeline"
PAG_PIXART = Setting(
    "PAG",
    {"scale": scale(4.0), "layers": "0.5"},
    "example of diffusers' PAG pipeline for it, with cfg 1 and layer 14 of 28",
)
WITH_RESCALE = Setting("Rescale", {"amount": scale(0.7, 1.0)}, "default of Lightricks' STG nodes")
SEG_SDXL = Setting("SEG", {"scale": scale(3.0), "blur_sigma": -1.0}, "the authors' code")
SELF_GUIDANCE = "the authors' code and its settings"
SCORE = Setting(
    "TemporalScore", {"k": Ramp(1.0, 0.93, 0.86), "sigma": 3.0}, "the paper, as a public note on it quotes it"
)

# problem → family → the nodes in their order. Families are the rows of patches/architectures.py, and of UNets the models.
PRESETS: dict[str, dict[str, tuple[Setting, ...]]] = {
    "shapes and anatomy": {
        "SD 1.5": (_pag(3.0, "the authors' README: 3 with cfg 4, and 5 with cfg 1", 5.0),),
        "SDXL": (_pag(3.0, "the authors' README: 3 with cfg 4, and 5 with cfg 1", 5.0),),
        "SD3, SD3.5": (_skip(2.5, "Stability AI's own code, for SD3.5 medium with cfg 4", 0.01, 0.2),),
        "Flux": (_pag(3.0, "default of Fluxtapoz"),),
        "PixArt": (PAG_PIXART,),
        "Wan": (_skip(1.0, f"{STG}, for Wan 2.1 14B with cfg 5"),),
        "HunyuanVideo": (_skip(1.0, STG),),
        "Mochi": (_skip(1.0, STG),),
        "CogVideoX": (_skip(1.0, "the STG authors' own example, for CogVideoX 2B with cfg 6"),),
        "LTX-Video": (_pag(1.0, "default of Lightricks' STG nodes, which break the attention"), WITH_RESCALE),
        "LTX-2": (_pag(1.0, "Lightricks' README, with cfg 3", 1.5), WITH_RESCALE),
        OTHERS: (_pag(3.0, OUR_RULE),),
    },
    "too little detail": {
        "SD 1.5": (Setting("SAG", {"scale": scale(0.75), "blur_sigma": 1.0}, "default of diffusers' SAG pipeline"),),
        "SDXL": (Setting("TPG", {"scale": scale(3.0), "layers": "input.7.2-9, input.8"}, "the authors' code"),),
        "SD3, SD3.5": (_self_guidance(3.0, SELF_GUIDANCE),),
        "Flux": (_self_guidance(1.0, f"{SELF_GUIDANCE} for Flux"),),
        "CogVideoX": (_self_guidance(3.0, SELF_GUIDANCE),),
        OTHERS: (Setting("SEG", {"scale": scale(3.0), "blur_sigma": -1.0}),),
    },
    "burnt colours": {
        "LTX-Video": (WITH_RESCALE,),
        "LTX-2": (Setting("Rescale", {"amount": scale(0.7, 1.0)}, "Lightricks' README"),),
        OTHERS: (
            Setting("Rescale", {"amount": scale(0.7, 1.0)}, "default of ComfyUI's own RescaleCFG, for any model"),
        ),
    },
    "flat": {
        "SDXL": (SEG_SDXL,),
        "SD 2": (SCORE,),
        "SD3, SD3.5": (SCORE,),
        "Flux": (SCORE,),
        OTHERS: (Setting("SEG", {"scale": scale(3.0), "blur_sigma": -1.0}),),
    },
    "no negative prompt possible": {
        "SD 1.5": (_pag(5.0, "the authors' README, with cfg 1"),),
        "SDXL": (_pag(5.0, "the authors' README, for a pipeline by multimodalart, with cfg 1"),),
        "SD3, SD3.5": (_pag(3.0, "default of diffusers' PAG pipeline for SD3"),),
        "Flux": (_pag(3.0, "default of Fluxtapoz"),),
        "PixArt": (PAG_PIXART,),
        OTHERS: (_pag(3.0, OUR_RULE),),
    },
    "too little variety": {
        "SDXL": (
            Setting(
                "Interval",
                {"start_percent": Ramp(0.0, 0.19, 0.38), "end_percent": Ramp(1.0, 0.93, 0.86)},
                "the paper, for SDXL: σ from 5.42 down to 0.28",
            ),
        ),
        OTHERS: (Setting("Interval", {"start_percent": Ramp(0.0, 0.2, 0.4), "end_percent": Ramp(1.0, 0.9, 0.8)}),),
    },
}


def preset(problem: str, family: str) -> tuple[Setting, ...]:
    """The nodes for a problem with a family of models. Raises ValueError for another problem."""
    if problem not in PRESETS:
        raise ValueError(f'problem is "{problem}"; it must be one of {", ".join(PROBLEMS)}')
    families = PRESETS[problem]
    return families.get(family, families[OTHERS])


def with_measured(setting: Setting, found: Setting, strength: str, off: float) -> Setting:
    """`setting` with the values of `found`, which were measured for the very checkpoint, in place of its own. strength: the
    name of the node's strength, which is nothing at `off`; a measured one is what strength 0.5 means."""
    values = {**setting.values, **found.values}
    middle = found.values.get(strength)
    if isinstance(middle, int | float):
        values[strength] = Ramp(off, middle, 2 * middle - off)
    rest = "" if found.values.keys() >= setting.values.keys() else f", and for the rest {setting.source}"
    return Setting(setting.node, values, f"measured for this very checkpoint: {found.source}{rest}")


def values_of(node: str) -> dict[str, Setting]:
    """Family → the values that are published for the node of which `node` ends the id, each family once."""
    found: dict[str, Setting] = {}
    for families in PRESETS.values():
        for family, settings in families.items():
            for setting in settings:
                if setting.node == node and setting.source != OUR_RULE and family != OTHERS:
                    found.setdefault(family, setting)
    return found
