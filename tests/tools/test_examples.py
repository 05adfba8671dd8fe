"""What the files of the examples say, without a page."""

import json
import re

import pytest
from pack.tools import examples


@pytest.mark.parametrize("name", examples.names())
def test_a_group_without_a_guidance_names_the_one_that_its_sampler_goes_without(name):
    workflow = json.loads(examples.page_of(name).read_text(encoding="utf-8"))
    groups = [
        found[1] for group in workflow["groups"] if (found := re.match("Without (.+), same seed", group["title"]))
    ]
    titles = [node.get("title") or "" for node in workflow["nodes"]]
    assert groups == [found[1] for title in titles if (found := re.match(r"K?Sampler: without (.+)", title))]
