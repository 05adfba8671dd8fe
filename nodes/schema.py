"""What the pack's nodes have in common: the inputs that many of them have, how the fields of a method become inputs and the
values of inputs become its fields, and the class of all nodes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from comfy_api.latest import io

from ..guiders.base import About, strength_of
from .values import Written, check

CATEGORY = "Beyond CFG"

MODEL_IN = io.Model.Input(
    "model", tooltip="The model to guide. Other guidance nodes on it keep acting, together with this one."
)
MODEL_OUT = io.Model.Output(tooltip="The model with this guidance on it. Connect it to any sampler or guider.")
GUIDER_OUT = io.Guider.Output(tooltip="Connect it to SamplerCustomAdvanced.")
POSITIVE = io.Conditioning.Input("positive", tooltip="Your prompt: what the picture should show.")
NEGATIVE = io.Conditioning.Input(
    "negative",
    optional=True,
    tooltip="Your negative prompt: what the picture should not show. Needed unless cfg is 1; at cfg 1 it is not used.",
)
NAMES_OF_LAYERS = (
    "Or write a list: all, middle, input.4, output.3-5 or input.8.2-9 for UNets; double.7-9, single.0-3 or block.12 for "
    "transformers."
)
NAMES_OF_BLOCKS = "Or write a list: all, double.7-9, single.0-3 or block.12."
NUMBERS = "Numbers alone, such as 7, 8, 9, work where a network has one list of blocks. 0.4-0.6 chooses by depth."
MORE = "Earlier layers, and more layers, change the picture more."
LACKED = "If the model has no such layer, an error lists those it has."
SHOWN = "The Layer Map node shows them."


def layers(
    what: str, *details: str, default: str = "auto", names: str = NAMES_OF_LAYERS, shown: str = SHOWN
) -> io.String.Input:
    """The input for a choice of layers. what: they are chosen for, and what auto is. details, shown: further sentences."""
    tooltip = " ".join(filter(None, (what, names, NUMBERS, *details, LACKED, shown)))
    return io.String.Input("layers", default=default, tooltip=tooltip)


WORSE = "Which layers of the network are made worse."
SUITED = "auto: those that suit your model."
HEADS = "single.3:h0,h5 chooses two heads of one layer."
LAYERS = layers(f"{WORSE} {SUITED}", HEADS, MORE)
WHOLE_LAYERS = layers(f"{WORSE} {SUITED}", MORE)
SKIPPED_BLOCKS = layers(f"Which blocks are left out. {SUITED}", MORE, names=NAMES_OF_BLOCKS)
MAPPED_LAYERS = layers(f"Which layers the picture marks. Write them as in the guidance node. {SUITED}", HEADS, shown="")
LAYERS_OF_ANY = layers(
    f"{WORSE} {SUITED}",
    "single.3:h0,h5 chooses two heads of one layer, for PAG and others that act in attention.",
    MORE,
)
READ_LAYERS = layers("Which layers show where the model looks. auto: those that suit your model.")
PROMPT_LAYERS = layers("In which layers the negative prompt acts. auto: in all that look at a prompt.")


# Of what is typed, the page keeps as many decimals as the step has: with steps of 0.1 a weight of 1.05 would become 1.1.
STEP = 0.05


def cfg(default: float) -> io.Float.Input:
    """The weight of the sampler's own CFG, which a guider node sets."""
    return io.Float.Input(
        "cfg",
        default=default,
        min=0.0,
        max=100.0,
        step=STEP,
        round=0.01,
        tooltip="How strongly the picture follows the prompt and avoids the negative prompt. 1 is off and takes half the "
        "time. 4 to 8 is usual. Distilled models, such as Flux dev and Turbo models, need 1.",
    )


def window(start: float = 0.0, end: float = 1.0) -> list[io.Float.Input]:
    """Where in sampling a guidance acts, as fractions of sampling, with these defaults."""
    common: dict[str, Any] = {"min": 0.0, "max": 1.0, "step": 0.001, "round": 0.0001}
    return [
        io.Float.Input(
            "start_percent",
            default=start,
            tooltip="When it begins to act, as a fraction of sampling. 0 is the first step, at full noise. Before this it "
            "takes no extra time.",
            **common,
        ),
        io.Float.Input(
            "end_percent",
            default=end,
            tooltip="When it stops acting, as a fraction of sampling. 1 is the end. It must be above start_percent. After "
            "this it takes no extra time.",
            **common,
        ),
    ]


# Inputs that few users ever change, by name. A page that can hide them does so, until it is asked for them.
ADVANCED = frozenset([
    "start_percent", "end_percent", "seed", "pool_size", "pool_seed",
    "blend", "target", "padding", "keep_diagonal", "offset", "power", "alpha", "mask",  # of what is done in attention
    "warm_up", "percentile", "bands", "cutoff", "gamma", "eta", "t_min", "t_max", "of", "masked", "overlap",  # of rules
    "adam", "beta1", "beta2", "tolerance", "between", "first", "last", "check", "bits", "width", "height",
    "batch_size", "learning_rate", "rank", "checkpointing", "existing_lora", "fill", "keep",
])  # fmt: skip
SCHEDULE = io.Custom("BEYOND_CFG_SCHEDULE")
SCHEDULE_IN = SCHEDULE.Input(
    "schedule",
    optional=True,
    tooltip="A curve from the Guidance Schedule node, to make it stronger or weaker during sampling. If nothing is "
    "connected, its strength stays the same from start_percent to end_percent.",
)


REGION_IN = io.Mask.Input(
    "region",
    optional=True,
    tooltip="A mask, to act in a part of the picture. It acts fully where the mask is white, and not at all where it "
    "is black. It must be as wide for its height as the picture, in any size. Give one mask for all pictures, one for "
    "each, or one for each frame of a video. If nothing is connected, it acts everywhere.",
)


COUNTED = {
    "scale": "A scale counts from 0. A weight, and cfg, count from 1.",
    "weight": "A weight counts from 1, as cfg does. A scale counts from 0.",
}


def strength(about: About) -> io.Float.Input:
    """The input for the strength of a guidance, as its paper counts it."""
    return io.Float.Input(
        about.strength,
        default=about.default,
        min=0.0,
        max=100.0,
        step=STEP,
        round=0.001,
        tooltip=f"How strongly it acts. {about.off:g} is off and takes no extra time; {about.default:g} is a good start. "
        f"Higher is stronger; too high burns colours. {COUNTED[about.strength]}",
    )


def scale(about: About, value: float) -> float:
    """The s of D + s (D₊ − D₋), from the value of the input `strength(about)`."""
    return value - about.off


def inputs(method: Any) -> list[io.Input]:
    """One input for each field of `method` that `param` declares with a tooltip. A rule's strength may have none: then the
    rule's `about` declares its input, which stands first."""
    shown = [_input(field) for field in _shown(method)]
    return [strength(method.about), *shown] if _strength_without_tooltip(method) else shown


def settings(method: Any, values: dict) -> dict:
    """The fields of `method` that `inputs` shows, by name, from the values of all inputs of a node. One that was added
    later has its default where a saved workflow lacks it."""
    found = {}
    for field in _shown(method):
        value = values.get(field.name) if field.metadata["added"] else values[field.name]
        found[field.name] = field.default if value is None else value
    if field := _strength_without_tooltip(method):
        found[field.name] = field.metadata["off"] + scale(method.about, values[method.about.strength])
    return found


def _shown(method: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(method) if field.metadata.get("help")]


def _strength_without_tooltip(method: Any) -> dataclasses.Field | None:
    """The strength of a rule whose `about` declares the input for it."""
    field = strength_of(method)
    return field if field is not None and method.about is not None and not field.metadata["help"] else None


def _input(field: dataclasses.Field) -> io.Input:
    common: dict[str, Any] = {
        "default": field.default,
        "tooltip": field.metadata["help"],
        "optional": field.metadata["added"],
    }
    limits: dict[str, Any] = {
        "min": field.metadata["low"],
        "max": field.metadata["high"],
        "step": field.metadata["step"],
    }
    if field.metadata["choices"]:
        return io.Combo.Input(field.name, options=list(field.metadata["choices"]), **common)
    if isinstance(field.default, bool):
        return io.Boolean.Input(field.name, **common)
    if isinstance(field.default, int):
        return io.Int.Input(field.name, **common, **limits)
    return io.Float.Input(field.name, round=0.0001, **common, **limits)


def _advanced(given: io.Input) -> io.Input:
    """An input, marked as one that a page may hide."""
    marked = copy.copy(given)
    marked.advanced = True
    return marked


def _only(name: str, values: list):
    """The one value of an input that takes no list."""
    if len(values) != 1:
        raise ValueError(f"{name} gets {len(values)} values; it takes one")
    return values[0]


class Node(io.ComfyNode):
    """A node that is declared by what it is `about`, its inputs and its outputs, and built from their values.

    Its errors begin with its name, so that a user with many nodes finds it wherever the host reports them.
    """

    about: About
    inputs: Sequence[Any]  # of io.Input
    output: io.Output
    build: Callable  # (**inputs) → the output's value or an io.NodeOutput; raises ValueError for what cannot work
    further: tuple[io.Output, ...] = ()  # outputs after the first
    shows: bool = False  # whether it is worth running for what it shows alone
    hears: tuple[io.Hidden, ...] = ()  # what it is told besides, in `hidden`
    hidden_in_page: bool = False  # whether no search and no menu shows it
    expands: bool = False  # whether it gives the host further nodes to run
    basics: frozenset[str] = frozenset()  # inputs that are not advanced here, though they are elsewhere
    lists: tuple[str, ...] = ()  # inputs of which it takes all values that a node before it gives, in one run

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the host asks every node for: its identity, its inputs and its outputs."""
        return io.Schema(
            node_id=cls.about.node_id,
            display_name=cls.about.title,
            category=f"{CATEGORY}/{cls.about.group}",
            description=cls.about.summary + (f" ({cls.about.paper})" if cls.about.paper else ""),
            search_aliases=list(cls.about.aliases),
            inputs=[_advanced(given) if given.id in ADVANCED - cls.basics else given for given in cls.inputs],
            outputs=[cls.output, *cls.further],
            hidden=[*cls.hears],
            is_output_node=cls.shows,
            enable_expand=cls.expands,
            is_deprecated=cls.hidden_in_page,
            is_input_list=bool(cls.lists),
        )

    @classmethod
    def built(cls, **inputs):
        """What `build` makes of these values. Raises ValueError for a value that its input may not have, and where `build`
        raises it."""
        for given in cls.inputs:
            if given.id in inputs:
                for value in inputs[given.id] if given.id in cls.lists else [inputs[given.id]]:
                    check(given, value)
        return cls.build(**inputs)

    @classmethod
    def foresee(cls, written: Written) -> None:
        """Raise ValueError where `build` would, as far as that can be told before anything runs."""

    @classmethod
    def validate_inputs(cls, **inputs) -> bool:
        """What the host asks before a run: each value as it is written, and None for what a link will give. Raises
        ValueError in the words of `execute`: an answer in words the host would repeat for every input."""
        if cls.lists:
            inputs = {name: value[0] for name, value in inputs.items()}
        if any(given.id not in inputs for given in cls.inputs if not given.optional):
            return True  # then the host says what is missing
        written = Written({name: value for name, value in inputs.items() if value is not None}, frozenset(inputs))
        try:
            for given in cls.inputs:
                if given.id in written.values:
                    check(given, written.values[given.id])
            cls.foresee(written)
        except ValueError as error:
            raise ValueError(f"{cls.about.name}: {error}") from None
        return True

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        """What the host calls to run the node. Raises ValueError as `built`, with the node's name in front."""
        try:
            if cls.lists:  # then the host gives each input as a list
                inputs = {name: value if name in cls.lists else _only(name, value) for name, value in inputs.items()}
            built = cls.built(**inputs)
            return built if isinstance(built, io.NodeOutput) else io.NodeOutput(built)
        except ValueError as error:
            raise ValueError(f"{cls.about.name}: {error}") from None
