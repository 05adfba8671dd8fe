"""Move the nodes of a workflow apart where they overlap. `sizes`: node id → (width, height without the title) as the page
draws it at most."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

TITLE = 30  # pixels, above a node's position
GAP = 40  # between two that overlapped

Sizes = Mapping[int, tuple[float, float]]


def overlap(one: dict, other: dict, sizes: Sizes) -> tuple[float, float]:
    """By how much two nodes overlap, in width and in height; both are above 0 where they do."""
    (x, y), (left, top) = one["pos"], other["pos"]
    (width, height), (wide, high) = sizes[one["id"]], sizes[other["id"]]
    across = min(x + width, left + wide) - max(x, left)
    down = min(y + height, top + high) - max(y, top) + TITLE
    return across, down


def move_apart(workflow: dict, sizes: Sizes) -> None:
    """Move nodes to the right, with all that is as far to the right, or down, with those below them; whichever is less."""
    nodes = workflow["nodes"]
    members = {group["id"]: [node for node in nodes if _is_in(node, group)] for group in workflow["groups"]}
    margins = {group["id"]: _margin(group, members[group["id"]]) for group in workflow["groups"]}
    while pair := next((pair for pair in combinations(nodes, 2) if min(overlap(*pair, sizes)) > 0), None):
        across, down = overlap(*pair, sizes)
        axis = int(down < across)
        last = max(pair, key=lambda node: node["pos"][axis])
        by = round(min(across, down)) + GAP
        behind = [node for node in nodes if node["pos"][axis] >= last["pos"][axis] and node not in (pair[0], pair[1])]
        if axis:
            behind = [node for node in behind if overlap(node, last, sizes)[0] > 0]
        for node in (*behind, last):
            node["pos"][axis] += by
    for group in workflow["groups"]:
        _surround(group, members[group["id"]], margins[group["id"]], sizes)


def _is_in(node: dict, group: dict) -> bool:
    left, top, width, height = group["bounding"]
    return left <= node["pos"][0] < left + width and top <= node["pos"][1] < top + height


def _margin(group: dict, members: list[dict]) -> tuple[float, float]:
    left, top = group["bounding"][:2]
    return min(node["pos"][0] for node in members) - left, min(node["pos"][1] for node in members) - top


def _surround(group: dict, members: list[dict], margin: tuple[float, float], sizes: Sizes) -> None:
    """Give a group its nodes again, in a frame that is as wide as it was on the left."""
    left, top = (min(node["pos"][axis] for node in members) - margin[axis] for axis in (0, 1))
    ends = [max(node["pos"][axis] + sizes[node["id"]][axis] for node in members) for axis in (0, 1)]
    group["bounding"] = [left, top, round(ends[0] + margin[0] - left), round(ends[1] + margin[0] - top)]
