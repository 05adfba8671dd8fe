"""Values that were measured for a checkpoint: kept in a file, read back by Guidance (easy), and never trusted."""

import json

import folder_paths
import pytest
import torch
from pack.guiders.host.measured import all_measured, folder, keep, measured_for
from pack.guiders.presets import PROBLEMS
from pack.nodes.kept_values import BY_NODE, KeepValues
from pack.nodes.presets import EasyGuidance
from pack.nodes.routes import offered
from pack.patches.host import KEY, log
from pack.patches.host.fingerprint import fingerprint
from pack.tests.host import networks
from pack.tests.host.harness import network, sample, shared_network

SHAPES = PROBLEMS[0]  # for which Guidance chooses PAG on Flux and on UNets


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "LISTENERS", [found.append])
    return found


def kept(model, node="PAG", values='{"layers": "single.2", "scale": 1.5}', source="tried by me"):
    return KeepValues.execute(model=model, node=node, values=values, source=source).result[0]


def easy(model, strength=0.5, problem=SHAPES):
    return EasyGuidance.execute(model=model, problem=problem, strength=strength)


def refusal(model, **values) -> str:
    with pytest.raises(ValueError) as error:
        kept(model, **values)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------- which checkpoint


def test_one_checkpoint_has_one_fingerprint_in_every_precision_and_with_patches():
    model = networks.flux()
    found = fingerprint(model)
    assert found == fingerprint(networks.flux()) and len(found) == 32
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        cast = networks.flux()
        for parameter in cast.model.diffusion_model.parameters():
            parameter.data = parameter.data.to(dtype)
        assert fingerprint(cast) == found, dtype
    patched = model.clone()
    name = "diffusion_model.single_blocks.0.linear1.weight"
    patched.add_patches({name: (-3.0 * model.model.state_dict()[name],)})
    assert fingerprint(patched) == found
    patched.patch_model()  # in place, as the host does it to sample
    try:
        assert fingerprint(patched) == fingerprint(model) == found
    finally:
        patched.unpatch_model()


def test_another_training_or_another_network_has_another():
    found = [fingerprint(one) for one in (networks.flux(), networks.flux(seed=1), networks.sd3(), networks.unet())]
    assert len({*found}) == len(found)
    trained = networks.flux()
    for parameter in trained.model.diffusion_model.parameters():  # a hundredth of its size further
        parameter.data += 0.01 * parameter.data.std() * torch.randn(parameter.shape, generator=torch.manual_seed(1))
    assert fingerprint(trained) != found[0]


# ------------------------------------------------------------------------------------------------------ kept and read back


def test_what_is_kept_is_what_guidance_puts_on_this_model_and_says():
    model = shared_network("flux")
    published = easy(model)
    assert "measured" not in published.result[1]
    path = kept(model)
    assert json.loads(folder().joinpath(path).read_text("utf-8"))["fingerprint"] == fingerprint(model)
    output = easy(model)
    (term,) = output.result[0].model_options[KEY]
    assert term.rule.scale == 1.5 and [str(layer) for layer in term.rule.perturbation.layers] == ["single.2"]
    assert "Source: measured for this very checkpoint: tried by me" in output.result[1]
    assert output.ui["nodes"] == [{"type": "BeyondCFGPAG", "values": {"scale": 1.5, "layers": "single.2"}}]
    assert torch.equal(
        sample(output.result[0], "flux", 1.0),
        sample(BY_NODE["PAG"].add("PAG", model=model, scale=1.5, layers="single.2", blend=1.0, start_percent=0.0,
                                  end_percent=1.0), "flux", 1.0),
    )  # fmt: skip
    assert easy(model, strength=0.0).result[0].model_options.get(KEY, ()) == ()
    assert easy(model, strength=1.0).ui["nodes"][0]["values"]["scale"] == 3.0


def test_values_that_are_not_kept_stay_published_and_another_checkpoint_has_its_own():
    model, other = shared_network("flux"), networks.flux(seed=1)
    kept(model, values='{"layers": "double.1"}')
    words = easy(model).result[1]
    assert "scale 3, layers double.1" in words and "and for the rest default of Fluxtapoz" in words
    assert "measured" not in easy(other).result[1]


def test_the_newest_values_of_a_node_come_first_and_older_ones_stay():
    model = shared_network("flux")
    for scale in (1.0, 2.0, 1.0):
        kept(model, values=f'{{"scale": {scale}}}')
    kept(model, "SEG", '{"scale": 4}')
    settings = measured_for(model).settings
    assert [(one.node, one.values["scale"]) for one in settings] == [("SEG", 4), ("PAG", 1.0), ("PAG", 2.0)]
    assert easy(model).ui["nodes"][0]["values"]["scale"] == 1.0


def test_the_page_is_offered_them_before_those_that_are_published():
    model = shared_network("flux")
    before = offered()["BeyondCFGPAG"]
    kept(model)
    first, *others = offered()["BeyondCFGPAG"]
    assert first["values"] == {"layers": "single.2", "scale": 1.5} and first["source"] == "tried by me"
    assert first["family"] == "measured for Flux" and others == before


def test_guidance_runs_again_when_the_files_change():
    before = EasyGuidance.fingerprint_inputs()
    kept(shared_network("flux"))
    assert EasyGuidance.fingerprint_inputs() != before


# ------------------------------------------------------------------------------------------------------------- not trusted


BAD = {
    "no JSON": "{",
    "a list": "[]",
    "nothing in it": "{}",
    "settings that are none": '{"fingerprint": "x", "model": "x", "settings": [1]}',
    "deep": "[" * 5000 + "]" * 5000,
    "another node": '{"fingerprint": "x", "model": "x", "settings": [{"node": "X", "values": {"a": 1}, "source": ""}]}',
    "another input": '{"fingerprint": "x", "model": "x", "settings": [{"node": "PAG", "values": {"a": 1}, "source": ""}]}',
    "too much": '{"fingerprint": "x", "model": "x", "settings": [{"node": "PAG", "values": {"scale": 1e9}, "source": ""}]}',
    "a layer that there is not": '{"fingerprint": "x", "model": "x", "settings": '
    '[{"node": "PAG", "values": {"layers": "single.99"}, "source": ""}]}',
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_file_that_says_nothing_good_is_ignored_with_one_warning_that_names_it(content, warned):
    model = shared_network("flux")
    path = folder() / f"{fingerprint(model)}.json"
    path.parent.mkdir(parents=True)
    path.write_text(content, "utf-8")
    output = easy(model)
    assert len(warned) == 1 and str(path) in warned[0]
    assert "default of Fluxtapoz" in output.result[1] and "measured" not in output.result[1]
    assert isinstance(offered(), dict)


def test_a_broken_file_is_put_aside_when_new_values_come(warned):
    model = shared_network("flux")
    path = folder() / f"{fingerprint(model)}.json"
    path.parent.mkdir(parents=True)
    path.write_text("mine", "utf-8")
    kept(model)
    assert path.with_suffix(".unread").read_text("utf-8") == "mine" and len(warned) == 1
    assert len(all_measured()) == 1


def test_a_file_of_another_kind_of_place_is_refused_in_a_sentence(user):
    (user / "beyond_cfg").write_text("a file, where a folder should be")
    assert "the values cannot be written to" in refusal(shared_network("flux"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"values": "layers: middle"}, 'values is "layers: middle"; it must be names with values as JSON'),
        ({"values": "[1]"}, 'values is "[1]"; it must be names with values as JSON, such as "scale": 2.5'),
        ({"values": "{}"}, "there are no values; PAG has scale, layers"),
        ({"values": '{"strength": 1}'}, 'PAG has no value "strength"; it has scale'),
        ({"values": '{"scale": "much"}'}, 'scale is "much"; it must be a number from 0 to 100'),
        ({"values": '{"scale": NaN}'}, "scale is nan; it must be a number from 0 to 100"),
        ({"values": '{"scale": null}'}, "scale is of the type NoneType; it must be a number or a text"),
        ({"values": '{"layers": "single.99"}'}, 'layers "single.99": there is no "single.99".'),
        ({"node": "KSampler"}, 'node is "KSampler"; it must be one of Interval, '),
        ({"node": "NAG", "values": '{"scale": 1e9}'}, "scale is 1000000000.0; it must be a number"),
    ],
)
def test_values_that_the_node_cannot_have_are_refused(values, message):
    assert refusal(shared_network("flux"), **values).startswith(f"Keep Values: {message}")
    assert all_measured() == []


def test_a_node_that_wants_another_model_keeps_what_can_be_told():
    kept(network("unet"), "Autoguidance", '{"weight": 1.5}')
    assert measured_for(network("unet")).settings[0].values == {"weight": 1.5}


def test_what_is_kept_besides_is_read_by_nobody():
    model = shared_network("flux")
    keep(model, "PAG", {"scale": 2.0}, "a test", table=[{"layer": "single.0", "moved": 0.1}])
    assert easy(model).ui["nodes"][0]["values"]["scale"] == 2.0
