"""The node Guidance: for every family of the table it does what the single nodes do, and says what it chose."""

import asyncio

import pytest
import torch
from pack.guiders.presets import OTHERS, OUR_RULE, PRESETS, PROBLEMS, Ramp, preset, values_of
from pack.nodes.extension import BeyondCFG
from pack.nodes.presets import EasyGuidance
from pack.patches.architectures import ARCHITECTURES
from pack.patches.host import KEY
from pack.patches.host.families import family_of
from pack.tests.host import full_size, networks
from pack.tests.host.harness import network, sample, shared_network
from pack.tests.host.zoo import SPECIMENS
from pack.tests.host.zoo.specimen import has, model

NODES = {node.about.node_id: node for node in asyncio.run(BeyondCFG().get_node_list())}
FAMILIES = {"SD 1.5", "SD 2", "SDXL", *(row.name for row in ARCHITECTURES)}


def easy(given, problem: str, strength: float = 0.5):
    return EasyGuidance.execute(model=given, problem=problem, strength=strength)


def apart(given, output):
    """The single nodes that it says it chose, in a chain, on the same model."""
    for entry in output.ui["nodes"]:
        node = NODES[entry["type"]]
        values = {one.id: one.default for one in node.inputs if hasattr(one, "default")} | entry["values"]
        given = node.execute(model=given, **values).result[0]
    return given


def terms_of(given) -> tuple:
    return tuple(given.model_options.get(KEY, ()))


@pytest.mark.parametrize("specimen", SPECIMENS, ids=str)
def test_what_it_chooses_for_a_network_is_what_the_single_nodes_put_on_the_model(specimen):
    if specimen.since and not has(specimen.since):
        pytest.skip(f"this host has no {specimen.since}")
    plain = specimen.build()
    for problem in PROBLEMS:
        for strength in (0.3, 0.5, 1.0):
            output = easy(plain, problem, strength)
            assert output.ui["nodes"] and terms_of(output.result[0]) == terms_of(apart(plain, output))
        assert all(NODES[entry["type"]].about.title in output.result[1] for entry in output.ui["nodes"])
    assert terms_of(easy(plain, PROBLEMS[0], 0.0).result[0]) == ()


@pytest.mark.parametrize("kind", ["unet", "sdxl", "sd3", "flux", "wan"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_its_picture_is_that_of_the_single_nodes_bit_for_bit(kind, problem):
    plain = shared_network(kind)
    output = easy(plain, problem)
    guided = sample(output.result[0], kind, steps=12)
    assert torch.equal(guided, sample(apart(plain, output), kind, steps=12))
    assert not torch.equal(guided, sample(plain, kind, steps=12))


def test_strength_0_is_the_picture_without_it():
    plain = network("unet")
    assert torch.equal(sample(easy(plain, PROBLEMS[0], 0.0).result[0]), sample(plain))


@pytest.mark.parametrize(("kind", "name"), [("SD15", "SD 1.5"), ("SDXL", "SDXL")])
def test_unets_of_the_depth_of_the_real_ones_are_told_apart(kind, name):
    narrow = {"model_channels": 32, "num_head_channels": -1, "num_heads": 4, "context_dim": networks.CONTEXT}
    narrow |= {"adm_in_channels": networks.POOLED + 6 * 256} if kind == "SDXL" else {}
    given = model("SDXL" if kind == "SDXL" else "BaseModel", kind, full_size.UNET | getattr(full_size, kind) | narrow)
    assert family_of(given) == name
    for problem in PROBLEMS:
        output = easy(given, problem)
        assert f"For {name}:" in output.result[1] and terms_of(output.result[0]) == terms_of(apart(given, output))


def test_every_line_is_of_a_family_that_there_is_and_of_inputs_that_the_node_has():
    assert tuple(PRESETS) == PROBLEMS
    for problem, families in PRESETS.items():
        assert families.keys() <= FAMILIES | {OTHERS} and OTHERS in families, problem
        for settings in families.values():
            for setting in settings:
                inputs = {given.id: given for given in NODES[f"BeyondCFG{setting.node}"].inputs}
                assert setting.values.keys() <= inputs.keys() and setting.source
                for name, value in setting.values.items():
                    if isinstance(value, Ramp):
                        assert (
                            inputs[name].min <= min(value.off, value.full)
                            and max(value.off, value.full) <= inputs[name].max
                        )


def test_a_ramp_goes_through_its_three_values():
    ramp = Ramp(1.0, 0.93, 0.8)
    assert [ramp.at(strength) for strength in (0, 0.5, 1)] == [1.0, 0.93, 0.8]
    assert ramp.at(0.25) == pytest.approx(0.965) and ramp.at(0.75) == pytest.approx(0.865)


def test_another_problem_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match='problem is "ugly"; it must be one of shapes and anatomy'):
        preset("ugly", "SDXL")


def test_published_values_are_found_by_node_and_family():
    found = values_of("PAG")
    assert found["SDXL"].at(0.5) == {"scale": 3.0} and OTHERS not in found
    assert all(setting.source != OUR_RULE for setting in found.values())
