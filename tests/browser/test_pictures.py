"""Nodes that show a picture show it in the node, in both ways that the page draws nodes."""

import pytest

NODES = pytest.mark.parametrize("drawn_by_vue", [False, True], ids=["classic", "nodes 2.0"])

pytestmark = pytest.mark.browser


@NODES
def test_guidance_report_shows_what_the_run_did(nodes, graph):
    graph.load({
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
        "2": ("BeyondCFGPAG", {"model": ["1", 0]}),
        "3": ("BeyondCFGTSG", {"model": ["2", 0]}),
        "4": ("BeyondCFGRecorder", {"model": ["3", 0]}),
        "5": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a lake"}),
        "6": ("EmptyLatentImage", {"width": 64, "height": 64}),
        "7": ("KSampler", {"model": ["4", 0], "positive": ["5", 0], "negative": ["5", 0], "latent_image": ["6", 0],
                           "steps": 4, "cfg": 4}),
        "8": ("BeyondCFGReport", {"report": ["4", 1], "samples": ["7", 0], "filename_prefix": ""}),
    })  # fmt: skip
    graph.look_at("BeyondCFGReport", (800, 520))
    graph.run_to_the_picture_in("BeyondCFGReport")
    graph.photograph(f"node_report{nodes}")
