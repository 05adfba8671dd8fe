"""A prompt with a node of another pack that is missing, as people send it: POST /prompt on a running host."""

import io

import numpy as np
import pytest
from pack.nodes.replacements import ALWAYS, REPLACEMENTS
from pack.nodes.stand_ins import PEERS
from pack.tools.console import Failure
from PIL import Image

OLD = "EpsilonScalingPPM", {"scaling_factor": 1.2}
META = {"_meta": {"title": "as the page saves it"}}


def prompt(*nodes, **more) -> dict:
    """A picture of the tiny model, through `nodes`: (class_type, its settings)."""
    plain = {
        "load": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
        "positive": ("CLIPTextEncode", {"clip": ["load", 1], "text": "a fox"}),
        "negative": ("CLIPTextEncode", {"clip": ["load", 1], "text": "blurry"}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
    }
    model = ["load", 0]
    for number, (kind, settings) in enumerate(nodes):
        plain[str(number)], model = (kind, {"model": model, **settings}), [str(number), 0]
    sampled = {"seed": 5, "steps": 5, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": model, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    plain["sample"] = "KSampler", {**sampled, **links}
    plain["picture"] = "VAEDecode", {"samples": ["sample", 0], "vae": ["load", 2]}
    plain["save"] = "SaveImage", {"images": ["picture", 0], "filename_prefix": "over"}
    return {name: {"class_type": kind, "inputs": inputs, **more} for name, (kind, inputs) in plain.items()}


@pytest.fixture
def picture(server):
    def run(*nodes, **more) -> np.ndarray:
        ((_, content),) = server.run(prompt(*nodes, **more))
        return np.asarray(Image.open(io.BytesIO(content)), int)

    return run


def test_the_host_knows_the_table_and_has_no_old_node_itself(server):
    told, nodes = server.ask("/node_replacements"), server.ask("/object_info")
    for replacement in REPLACEMENTS:
        assert replacement.old not in nodes
        (entry,) = told[replacement.old]
        given = nodes[entry["new_node_id"]]["input"]
        taken = {mapped["new_id"] for mapped in entry["input_mapping"]}
        assert given["required"].keys() <= taken <= given["required"].keys() | given.get("optional", {}).keys()


def test_an_old_node_is_swapped_and_gives_the_picture_of_ours_and_of_its_own_formula(picture):
    ours = picture(("BeyondCFGEpsilonScaling", {**OLD[1], **ALWAYS}))
    swapped = picture(OLD, **META)
    assert np.array_equal(swapped, ours)
    formula = picture(("Epsilon Scaling", OLD[1]))  # the host's own node, which has it too
    assert abs(swapped - formula).max() <= 1
    assert abs(swapped - picture()).max() > 5


def test_its_value_and_its_neighbours_stay(picture):
    after = "BeyondCFGRescale", {"amount": 1.0, **ALWAYS}
    swapped = picture(("EpsilonScalingPPM", {"scaling_factor": 1.1}), after, **META)
    ours = picture(("BeyondCFGEpsilonScaling", {"scaling_factor": 1.1, **ALWAYS}), after)
    assert np.array_equal(swapped, ours) and not np.array_equal(swapped, picture(OLD, **META))


def test_a_prompt_that_was_written_by_hand_needs_no_meta(picture):
    assert np.array_equal(picture(OLD), picture(OLD, **META))


def test_another_packs_pag_is_swapped_for_the_node_that_stands_in_for_it(picture):
    values = {"scale": 2.0, "adaptive_scale": 0.0, "unet_block": "middle", "unet_block_id": 0, "sigma_start": -1.0}
    values |= {"sigma_end": -1.0, "rescale": 0.0, "rescale_mode": "full"}  # and no unet_block_list, as it once was
    swapped = picture(("PerturbedAttention", values))
    assert np.array_equal(swapped, picture(("BeyondCFGPAG", {"scale": 2.0, "layers": "middle", **ALWAYS})))
    assert abs(swapped - picture(("PerturbedAttentionGuidance", {"scale": 2.0}))).max() <= 1  # the host's own node
    assert abs(swapped - picture()).max() > 5


def test_a_value_of_another_packs_node_that_cannot_be_had_is_refused_by_its_name(server):
    values = {given.id: given.default for given in PEERS[0].inputs} | {"rescale_mode": "snf"}
    with pytest.raises(Failure, match="PerturbedAttention: rescale_mode is snf; here it must be full or partial"):
        server.run(prompt((PEERS[0].node, values)))


def test_a_value_that_no_such_node_could_have_is_refused_by_the_name_of_ours(server):
    with pytest.raises(Failure, match=r"(?s)BeyondCFGEpsilonScaling.*2\.5|2\.5.*scaling_factor"):
        server.run(prompt(("EpsilonScalingPPM", {"scaling_factor": 2.5}), **META))


def test_a_missing_node_that_nothing_replaces_is_still_named(server):
    with pytest.raises(Failure, match=r"not found\. The custom node may not be installed"):
        server.run(prompt(("NobodysNode", {}), **META))
