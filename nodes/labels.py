"""Labels for pictures, from the graph that made them: which guidances acted, with which values, and what else differed.

A label says only what is not the same in all pictures. Where that would leave one without a label, all of them say
everything that guides them: "CFG 4" and "CFG 4 + PAG 3".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from .graph import VALUES, Graph, Link
from .schema import Node

Key = tuple  # parts of two pictures with the same key are compared
JOINING = ("BatchImagesNode", "ImageBatch")  # the host's, which put pictures one after the other
BATCHES = ("batch_size", "length", "amount", "batch_index")  # inputs that say how many pictures come
NOT_FOLLOWED = (*VALUES, "LORA_MODEL", "LOSS_MAP", "BEYOND_CFG_REPORT")  # what these carry guides no picture
WEAK = ("weak_model", "auxiliary_model", "negative_model")  # inputs for models on which guidance does not act
SILENT = tuple(f"BeyondCFG{name}" for name in ("Recorder", "Options", "Report", "Grid"))  # change no picture
OFF = {"scale": 0, "weight": 1, "amount": 0, "cfg": 1}  # names of strengths, and where they do nothing
LINKED = {"schedule": "with a schedule", "region": "in a region"}
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".gguf", ".sft", ".bin")
LONGEST, MOST = 40, 2  # characters of a value; settings that are told though all pictures have them


@dataclass
class Part:
    """What one node has to do with a picture."""

    name: str
    guides: bool = False  # whether it is worth naming where nothing differs
    modifies: bool = False  # whether it is worth naming where another picture has no such node
    changes_model: bool = False  # whether it may guide in a way that nobody knows here
    strength: tuple[str, Any] | None = None  # its name and value, shown before all settings
    settings: dict[str, Any] = field(default_factory=dict)
    usual: dict[str, Any] = field(default_factory=dict)  # the defaults of these settings

    @property
    def is_off(self) -> bool:
        """Whether it does nothing."""
        return self.strength is not None and self.strength[1] == OFF.get(self.strength[0], math.nan)


def sources(graph: Graph, link: Link) -> list[Link]:
    """The outputs that the pictures of a batch come from, in their order, as far as the nodes before it show that."""
    images = {name: other for name, other in graph.links(link.node).items() if graph.gives(other) == "IMAGE"}
    if graph.kind(link.node) in JOINING:
        ordered = sorted(images, key=lambda name: (len(name), name))  # image2 before image10
        return [source for name in ordered for source in sources(graph, images[name])]
    found = sources(graph, *images.values()) if len(images) == 1 else []
    return found if len(found) > 1 else [link]


def label_of(graph: Graph, node: str, name: str, value: Any) -> str:
    """The label for one value of an input of a node."""
    ours = graph.ours(node)
    if ours is None or name == "cfg":
        return f"CFG {_text(value)}" if name == "cfg" else _setting(name, value)
    if name in OFF:
        return _strength(Part(ours.about.name, strength=(name, value)))
    return f"{ours.about.name}, {_setting(name, value)}"


def arrange(
    count: int, columns: list[str], rows: list[str], fill: str, pictures: Pictures | None
) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """(the labels of the columns, the label and the numbers of the pictures of each row) for so many pictures. Labels that
    are not given come from what is known of the pictures. Raises ValueError where the number of rows does not fit."""
    each = 0 if pictures is None else count // pictures.outputs
    if pictures is None or each * pictures.outputs != count or (each > 1 and not pictures.same_number()):
        pictures = None  # whose is which is not known
    across = len(columns) or (-(-count // len(rows)) if rows else count)
    if pictures is not None and pictures.outputs > 1 and each > 1 and not columns and not rows:
        across, fill = pictures.outputs, "columns"
    down = -(-count // across)
    if rows and len(rows) != down:
        raise ValueError(f"rows has {len(rows)} lines, and {count} pictures in {across} columns make {down} rows")
    first, next_one = (1, down) if fill == "columns" else (across, 1)
    places = [[row * first + column * next_one for column in range(across)] for row in range(down)]
    places = [[at for at in row if at < count] for row in places]
    if pictures is not None:
        of = [[at // each for at in row] for row in places]
        columns = columns or pictures.labels([[row[at] for row in of if at < len(row)] for at in range(across)])
        rows = rows or (pictures.labels(of) if down > 1 else [])
    return columns, [(rows[at] if rows else "", row) for at, row in enumerate(places)]


class Pictures:
    """What is known of the pictures that come from these outputs."""

    def __init__(self, graph: Graph, links: Sequence[Link]):
        self.outputs = len(links)
        nodes = [graph.before(link, lambda node, name, link: graph.gives(link) not in NOT_FOLLOWED) for link in links]
        shared = set(nodes[0]).intersection(*nodes)
        self._parts = [_parts(graph, link, each, shared) for link, each in zip(links, nodes, strict=True)]
        self._texts = [self._said(parts) for parts in self._parts]

    def same_number(self) -> bool:
        """Whether each of the outputs surely gives as many pictures as any other."""
        settings = [[pair for part in parts.values() for pair in part.settings.items()] for parts in self._parts]
        counts = [Counter((name, _text(value)) for name, value in each if name in BATCHES) for each in settings]
        return all(each == counts[0] for each in counts)

    def labels(self, groups: Sequence[Sequence[int]]) -> list[str]:
        """A label for each group of the outputs, such as those of a column, from what all of the group have in common. None
        where the groups do not differ."""
        own = [_common([self._texts[at] for at in group]) for group in groups]
        everywhere = _common(own)
        apart = [{key: text for key, text in each.items() if key not in everywhere} for each in own]
        if not any(apart):
            return []
        if not all(apart):
            apart = own
        return [self._joined(each, self._parts[group[0]]) for each, group in zip(apart, groups, strict=True)]

    def _joined(self, texts: dict[Key, str], parts: dict[Key, Part]) -> str:
        guidance = [text for key, text in texts.items() if text and parts[key].guides]
        others = [text for key, text in texts.items() if text and not parts[key].guides]
        nothing = "as it is" if any(part.changes_model for part in parts.values()) else "no guidance"
        words = " + ".join(dict.fromkeys(guidance)) or ("" if others else nothing)
        return ", ".join(filter(None, [words, *dict.fromkeys(others)]))

    def _said(self, parts: dict[Key, Part]) -> dict[Key, str]:
        """Key → what is said of each part, guidance first and CFG at its head. Parts of which nothing is said have none."""
        ordered = sorted(parts, key=lambda key: (not parts[key].guides, parts[key].name != "CFG"))
        texts = ((key, self._text_of(key, parts[key])) for key in ordered)
        return {key: text for key, text in texts if text is not None}

    def _text_of(self, key: Key, part: Part) -> str | None:
        present = [parts[key] for parts in self._parts if key in parts]
        everywhere = len(present) == len(self._parts)
        differing = {
            name: value
            for name, value in part.settings.items()
            if any(_text(other.settings.get(name)) != _text(value) for other in present)
        }
        if not part.guides and (everywhere or not part.modifies):
            return ", ".join(_setting(name, value) for name, value in differing.items()) or None
        if part.is_off and part.name == "CFG":
            return ""
        unusual = {name: value for name, value in part.settings.items() if _text(value) != _text(part.usual.get(name))}
        told = differing if everywhere and differing else {**dict([*unusual.items()][:MOST]), **differing}
        words = [part.name if part.strength is None else _strength(part)]
        return ", ".join(words + [_setting(name, value) for name, value in told.items() if not part.is_off])


def _common(texts: Sequence[dict[Key, str]]) -> dict[Key, str]:
    first, *others = texts
    return {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}


def _parts(graph: Graph, picture: Link, nodes: Sequence[str], shared: set[str]) -> dict[Key, Part]:
    """The parts of a picture that depends on these nodes. Parts of two pictures are compared where their nodes are shared
    by all, or of one kind and in one place among those of their kind."""
    main = {*graph.before(picture, lambda node, name, link: graph.gives(link) not in NOT_FOLLOWED and name not in WEAK)}
    numbers: Counter[tuple] = Counter()
    found: dict[Key, Part] = {}
    for node in nodes:
        kind = graph.kind(node), node in main
        if node not in shared:
            numbers[kind] += 1
        for part in _of_node(graph, node, acts=node in main):
            found[(node if node in shared else (*kind, numbers[kind])), part.name == "CFG"] = part
    return found


def _of_node(graph: Graph, node: str, acts: bool) -> list[Part]:
    """What a node is: the sampler's CFG, a guidance, both, or anything else."""
    if graph.kind(node) in SILENT:
        return []
    values, ours, links = graph.values(node), graph.ours(node), graph.links(node)
    found = []
    if acts and "cfg" in values:
        found.append(Part("CFG", guides=True, strength=("cfg", values.pop("cfg"))))
    gives = graph.type_of(node).RETURN_TYPES
    if ours is not None and acts and {*gives} & {"MODEL", "GUIDER"} and ours.about.group != "Weaker models":
        part = _guidance(ours, values, links)
        if ours.about.node_id != "BeyondCFGGuider":
            return [*found, part]
        found[0].settings, found[0].usual = part.settings, {"interval": "0 to 1"}  # its one guidance is CFG
        return found
    changes = {graph.gives(link) for link in links.values()} & {*gives} & {"MODEL", "CONDITIONING", "LATENT", "CLIP"}
    modifies = acts and bool(values) and bool(changes) and "latent_image" not in links  # which only samplers have
    usual = {name: options.get("default") for name, (_, options) in graph.takes(node).items()}
    of_model = acts and bool(values) and any(graph.gives(link) == "MODEL" for link in links.values())
    changes_model = of_model and bool({*gives} & {"MODEL", "GUIDER"})
    return [*found, Part(graph.title(node), False, modifies, changes_model, settings=values, usual=usual)]


def _guidance(ours: type[Node], values: dict[str, Any], links: dict[str, Link]) -> Part:
    usual = {given.id: given.default for given in ours.inputs if hasattr(given, "default")}
    settings = {name: value for name, value in values.items() if name in usual}
    name = next((name for name in ("scale", "weight", "amount") if name in settings), None)
    strength = None if name is None else (name, settings.pop(name))
    settings, usual = _with_interval(settings), _with_interval(usual)
    settings |= {name: True for name in LINKED if name in links}
    if strength is None and settings:  # then another setting is always told
        usual.pop(next((name for name in settings if name != "interval"), "interval"), None)
    return Part(ours.about.name.removesuffix(" Guider"), True, strength=strength, settings=settings, usual=usual)


def _with_interval(settings: dict[str, Any]) -> dict[str, Any]:
    """The same with start and end in one, at the head."""
    if not {"start_percent", "end_percent"} <= {*settings}:
        return settings
    interval = f"{_text(settings['start_percent'])} to {_text(settings['end_percent'])}"
    others = {name: value for name, value in settings.items() if name not in ("start_percent", "end_percent")}
    return {"interval": interval, **others}


def _strength(part: Part) -> str:
    _, value = part.strength or ("", "")
    return f"{part.name} {_text(value)}{' (off)' if part.is_off else ''}"


def _setting(name: str, value: Any) -> str:
    """A setting as a label names it."""
    if name in LINKED:
        return LINKED[name]
    if name in ("text", "prompt"):
        return f"“{_text(value)}”"
    if name == "interval" or name.endswith("_name"):
        return _text(value)
    return f"{'seed' if name == 'noise_seed' else name.replace('_', ' ')} {_text(value)}"


def _text(value: Any) -> str:
    """A value as a label shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and value.endswith(FILES):
        value = PurePath(value.replace("\\", "/")).stem
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"
