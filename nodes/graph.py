"""The graph that runs, as a node that looks at it sees it: which nodes stand before a picture, with which values.

It is the host's own, of this very run: the same from the page and through the API.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from . import schema
from .values import is_link

VALUES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")  # types of what a widget holds
LONGEST_LIST = 30  # of a Combo's choices in a message


class Link(NamedTuple):
    """An output of a node."""

    node: str  # its id
    slot: int


class Unknown(NamedTuple):
    """A value that another node computes while the graph runs."""

    source: str  # the title of that node

    def __str__(self) -> str:
        return f"from {self.source}"


class Graph:
    """get_node: id → the node in the API format."""

    def __init__(self, get_node: Callable[[str], dict]):
        self._get_node = get_node
        host: Any = importlib.import_module("nodes")  # the host's own
        self._kinds: Mapping[str, type] = host.NODE_CLASS_MAPPINGS
        self._names: Mapping[str, str] = host.NODE_DISPLAY_NAME_MAPPINGS

    def kind(self, node: str) -> str:
        """The class_type of a node."""
        return self._get_node(node)["class_type"]

    def type_of(self, node: str) -> Any:
        """The class of a node."""
        return self._kinds[self.kind(node)]

    def ours(self, node: str) -> type[schema.Node] | None:
        """The class of a node if that is the pack's."""
        found = self.type_of(node)
        return found if issubclass(found, schema.Node) else None

    def title(self, node: str) -> str:
        """What stands on a node in the page."""
        given = self._get_node(node).get("_meta", {}).get("title")
        return given or self._names.get(self.kind(node)) or self.kind(node)

    def name(self, node: str) -> str:
        """What a user calls a node: the pack's own by their short names, others by their titles."""
        ours = self.ours(node)
        return self.title(node) if ours is None else ours.about.name

    def written(self, node: str) -> str:
        """The title that a user gave it, else its name."""
        ours, title = self.ours(node), self.title(node)
        return self.name(node) if ours is not None and title == ours.about.title else title

    def inputs(self, node: str) -> dict[str, Any]:
        """Name → value or Link."""
        found = self._get_node(node)["inputs"]
        return {name: Link(*value) if is_link(value) else value for name, value in found.items()}

    def links(self, node: str) -> dict[str, Link]:
        """Name → where it comes from, of the inputs that are no values."""
        found = self.inputs(node).items()
        return {name: link for name, link in found if isinstance(link, Link) and self.gives(link) not in VALUES}

    def gives(self, link: Link) -> str:
        """The type of an output."""
        types = self.type_of(link.node).RETURN_TYPES
        found = types[link.slot] if link.slot < len(types) else "*"
        return found if isinstance(found, str) else "COMBO"

    def takes(self, node: str) -> dict[str, tuple[str, dict]]:
        """Name → (type, options) of the inputs of a node that take values."""
        try:
            declared = self.type_of(node).INPUT_TYPES()
        except Exception:  # of another pack, which may raise anything
            declared = {}
        found = {}
        for given in (*declared.get("required", {}).items(), *declared.get("optional", {}).items()):
            name, (kind, *more) = given
            options = dict(more[0]) if more else {}
            if not isinstance(kind, str):
                kind, options = "COMBO", {"options": [*kind], **options}
            if kind in VALUES:
                found[name] = kind, options
        return found

    def values(self, node: str) -> dict[str, Any]:
        """Name → value, of the inputs that take values, in the order in which the node has them. One that comes by a link
        is followed to a node that holds nothing else, such as Int; it is Unknown behind any other."""
        inputs = self.inputs(node)
        return {name: self.resolved(inputs[name]) for name in self.takes(node) if name in inputs}

    def resolved(self, value: Any) -> Any:
        """A value, also where it is a Link to a node that only holds it; Unknown where it is not."""
        while isinstance(value, Link):
            held = self._get_node(value.node)["inputs"]
            if not self.kind(value.node).startswith("Primitive") or [*held] != ["value"]:
                return Unknown(self.written(value.node))
            value = self.inputs(value.node)["value"]
        return value

    def before(self, link: Link, follow: Callable[[str, str, Link], bool] | None = None) -> list[str]:
        """The nodes that an output depends on, its own too, each after those that it depends on itself. follow(node, input,
        link) says which inputs to go along; all, values too, where it is not given."""
        found: dict[str, None] = {}
        ahead = [(link.node, iter(self._ahead(link.node, follow)))]
        entered = {link.node}
        while ahead:
            node, inputs = ahead[-1]
            for other in inputs:
                if other not in entered:
                    entered.add(other)
                    ahead.append((other, iter(self._ahead(other, follow))))
                    break
            else:
                found[node] = None
                ahead.pop()
        return [*found]

    def _ahead(self, node: str, follow: Callable[[str, str, Link], bool] | None) -> Iterator[str]:
        for name, value in self.inputs(node).items():
            if isinstance(value, Link) and (follow is None or follow(node, name, value)):
                yield value.node
