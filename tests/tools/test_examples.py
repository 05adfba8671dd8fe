"""What the files of the examples say, without a page."""

import json
import re

import pytest
from pack.tools import examples


def named(pattern: str, titles: list[str]) -> list[str]:
    """What the pattern finds in those titles that it fits."""
    found = [re.match(pattern, title) for title in titles]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("name", examples.names())
def test_a_group_without_a_guidance_names_the_one_that_its_sampler_goes_without(name):
    workflow = json.loads(examples.page_of(name).read_text(encoding="utf-8"))
    groups = [group["title"] for group in workflow["groups"]]
    nodes = [node.get("title") or "" for node in workflow["nodes"]]
    assert named("Without (.+), same seed", groups) == named("K?Sampler: without (.+)", nodes)
