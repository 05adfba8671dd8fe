"""The nodes as the host and its users see them: their schemas, and what they say when something cannot work."""

import asyncio
import dataclasses
import inspect
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from pack.guiders import RULES, host
from pack.nodes import classifier, stand_ins, terms
from pack.nodes.extension import all_nodes, nodes
from pack.nodes.schema import ADVANCED
from pack.patches import PERTURBATIONS, PROMPT_GUIDANCES, IdentityAttention
from pack.tests.host import networks
from pack.tests.host.harness import SKIPPING, pag, prompts, sample, shared_network

import nodes as host_nodes

ROOT = Path(__file__).resolve().parent.parent.parent
NODES = all_nodes()
BY_ID = {node.define_schema().node_id: node for node in NODES}
EVERY = pytest.mark.parametrize("node", NODES, ids=list(BY_ID))
FOUND = pytest.mark.parametrize("node", nodes(), ids=[node.about.node_id for node in nodes()])  # in a search
NAN, INF = math.nan, math.inf
WANTS_MORE = ("BeyondCFGPostHocEMA", "BeyondCFGClassifier", "BeyondCFGNoisyClassifier")  # files; a VAE and a CLIP
WANTS_MORE += ("BeyondCFGReport", "BeyondCFGGrid", "BeyondCFGDistil")  # what was recorded; pictures; a sampler
WANTS_MORE += ("BeyondCFGLayerProbe", "BeyondCFGKeepValues")  # a sampler; a folder to write to
WANTS_MORE += ("BeyondCFGSweep",)  # a graph that runs
NO_PAPER = {
    f"BeyondCFG{name}" for name in ("LayerMap", "Recorder", "Report", "Grid", "Sweep", "Options", "Guidance")
}  # tools
NO_PAPER |= {"BeyondCFGLayerProbe", "BeyondCFGKeepValues"}
NO_PAPER |= {"BeyondCFGGuidance"}  # of many papers
NO_PAPER |= {"BeyondCFGMahiro", "BeyondCFGTonemap"}  # their sources are nodes of the host


def execute(node_id: str, **changes):
    """The node's output on a small network, with its widgets' defaults but for `changes`; a change to None leaves an
    optional input unconnected."""
    node = BY_ID[node_id]
    schema = node.define_schema()
    positive, negative = prompts("unet")
    weak = {name: shared_network("unet", seed=5) for name in ("weak_model", "auxiliary_model", "negative_model")}
    given = {"positive": positive, "negative": negative, "empty_conditioning": negative, **weak}
    if "model" not in changes:
        given["model"] = shared_network("sd3" if node_id in SKIPPING else "unet")
    given |= {given.id: given.default for given in schema.inputs if hasattr(given, "default")} | changes
    wanted = {given.id for given in schema.inputs}
    return node.execute(**{key: value for key, value in given.items() if key in wanted and value is not None}).result[0]


def refusal(node_id: str, **changes) -> str:
    """What the node says; it begins with the node's name."""
    with pytest.raises(ValueError) as error:
        execute(node_id, **changes)
    name, _, message = str(error.value).partition(": ")
    assert name == BY_ID[node_id].about.name
    return message


def having(*names: str) -> list[str]:
    """Nodes with these inputs, but for those that want more (tests/host/test_classifier.py, test_ema.py)."""
    return [
        key
        for key, node in BY_ID.items()
        if key not in WANTS_MORE and {*names} <= {given.id for given in node.define_schema().inputs}
    ]


# ----------------------------------------------------------------------------------------------------------- schemas


def test_the_ids_are_distinct_and_the_packs_own_and_none_is_the_hosts():
    assert len(BY_ID) == len(NODES) >= 2 + len(PERTURBATIONS)
    assert all(key.startswith("BeyondCFG") for key in BY_ID)
    assert not set(BY_ID) & set(host_nodes.NODE_CLASS_MAPPINGS)
    assert len({node.define_schema().display_name for node in NODES}) == len(NODES)


@FOUND
def test_a_node_opens_with_few_settings_and_its_strength_and_layers_are_among_them(node):
    settings = [given for given in node.define_schema().inputs if hasattr(given, "default")]
    shown = {given.id for given in settings if not given.advanced}
    assert 1 <= len(shown) <= 5 or node.about.node_id == "BeyondCFGSchedule"  # which hides what it does not use
    assert {"layers", "scale", "weight", "amount", "cfg"} & {given.id for given in settings} <= shown
    assert settings[0].id in shown


def test_the_page_keeps_two_decimals_of_every_strength():
    """It keeps as many as the step has, whatever `round` says."""
    steps = {
        f"{node.about.node_id} {given.id}": given.step
        for node in NODES
        if node not in stand_ins.NODES  # which declare what the other pack does
        for given in node.define_schema().inputs
        if given.id in {"cfg", getattr(node.about, "strength", "")} and hasattr(given, "step") and given.max <= 100
    }
    assert len(steps) > 30 and not [name for name, step in steps.items() if math.ceil(-math.log10(step)) < 2]


def test_every_name_of_an_advanced_input_is_one_that_a_node_has():
    hidden = {given.id for node in NODES for given in node.define_schema().inputs if given.advanced}
    assert hidden == ADVANCED


def described(given) -> dict:
    kept = ("default", "min", "max", "step", "round", "options", "multiline", "advanced")
    values = {key: getattr(given, key) for key in kept if getattr(given, key, None) is not None}
    return {"id": given.id, "type": given.get_io_type(), "optional": bool(given.optional), **values}


def test_the_schemas_are_those_that_saved_workflows_rely_on(golden):
    golden(
        "schemas.json",
        {
            key: {
                "inputs": [described(given) for given in node.define_schema().inputs],
                "outputs": [output.get_io_type() for output in node.define_schema().outputs],
            }
            for key, node in BY_ID.items()
        },
    )


@EVERY
def test_the_host_accepts_the_schema(node):
    node.GET_SCHEMA()  # the host's own validation
    assert set(node.INPUT_TYPES()) <= {"required", "optional", "hidden"}


@FOUND
def test_every_node_is_described_can_be_found_and_explains_each_input(node):
    schema = node.define_schema()
    assert schema.category == f"Beyond CFG/{node.about.group}" and node.about.name in schema.display_name
    assert len(schema.description) > 40
    assert ("arXiv:" in schema.description) != (schema.node_id in NO_PAPER)
    assert schema.search_aliases and len(set(schema.search_aliases)) == len(schema.search_aliases)
    for given in (*schema.inputs, *schema.outputs):
        assert given.tooltip and given.tooltip.strip().endswith("."), given.id


@EVERY
def test_what_a_node_builds_takes_exactly_its_inputs(node):
    build = inspect.signature(node.build).parameters.values()
    named = {p.name for p in build if p.kind is not p.VAR_KEYWORD}
    ids = [given.id for given in node.define_schema().inputs]
    assert len(set(ids)) == len(ids)
    assert named <= set(ids)
    assert named == set(ids) or any(p.kind is p.VAR_KEYWORD for p in build)


GUIDANCES = [*terms.GUIDANCES, *classifier.GUIDANCES]


def test_an_input_that_came_later_is_optional_stands_last_and_has_its_default_where_a_saved_workflow_lacks_it():
    shown = {field.name: field for field in dataclasses.fields(IdentityAttention) if field.metadata.get("added")}
    for node_id in ("BeyondCFGPAG", "BeyondCFGPAGGuider"):
        *_, blend, target, schedule, region = BY_ID[node_id].define_schema().inputs
        assert [blend.id, target.id, schedule.id, region.id] == [*shown, "schedule", "region"]
        assert all(given.optional and given.default == shown[given.id].default for given in (blend, target))
    for changes in ({}, {"blend": None, "target": None}):
        (term,) = execute("BeyondCFGPAG", **changes).model_options[host.KEY]
        assert term.rule.perturbation == IdentityAttention(term.rule.perturbation.layers)
    values = {"model": shared_network("unet"), "scale": 3.0, "layers": "auto", "start_percent": 0.0, "end_percent": 1.0}
    out = BY_ID["BeyondCFGPAG"].execute(**values, blend=None, target="uniform").result[0]  # a link that gives nothing
    (term,) = out.model_options[host.KEY]
    assert (term.rule.perturbation.blend, term.rule.perturbation.target) == (1.0, "uniform")


@pytest.mark.parametrize("guidance", GUIDANCES, ids=lambda guidance: guidance.about.node_id)
def test_what_makes_a_guidance_takes_exactly_the_inputs_that_are_its_own(guidance):
    parameters = inspect.signature(guidance.make).parameters
    named = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    ids = {given.id for given in guidance.own_inputs} | {"model"}
    # The methods of registries take any.
    assert named == ids or (named < ids and any(p.kind is p.VAR_KEYWORD for p in parameters.values()))


ADDED = {  # (node, its method): the names of fields that were added after the first release
    (method.about.node_id, method): [name for name, field in fields.items() if field.metadata.get("added")]
    for method in (*RULES, *PERTURBATIONS, *PROMPT_GUIDANCES)
    if method.about and (fields := {field.name: field for field in dataclasses.fields(method)})
}


@pytest.mark.parametrize(("node_id", "added"), [(key, names) for (key, _), names in ADDED.items() if names])
def test_an_input_that_was_added_later_stands_last_and_a_workflow_that_lacks_it_has_its_default(node_id, added):
    inputs = BY_ID[node_id].define_schema().inputs
    widgets = [given.id for given in inputs if hasattr(given, "default")]
    assert widgets[-len(added) :] == added
    assert [given.id for given in inputs if given.optional and given.id in widgets] == added
    model = shared_network("sd3" if node_id == "BeyondCFGSkipLayer" else "unet")
    (lacking,) = execute(node_id, model=model, **dict.fromkeys(added)).model_options[host.KEY]
    (shown,) = execute(node_id, model=model).model_options[host.KEY]
    assert lacking == shown


def test_every_registered_perturbation_and_rule_has_a_node_or_a_reason_to_have_none():
    titles = {guidance.about.name for guidance in GUIDANCES}
    assert not [method.__name__ for method in PERTURBATIONS if method.about.name not in titles]
    shown = {guidance.rule for guidance in GUIDANCES}
    without = [rule.__name__ for rule in RULES if rule not in shown and rule not in terms.WITHOUT_NODE]
    assert not without, f"{', '.join(without)}: give it an about, or a line in nodes/terms.py"
    assert {*terms.WITHOUT_NODE} <= {*RULES} - shown and all(terms.WITHOUT_NODE.values())


def test_every_guidance_that_says_so_has_a_guider():
    for guidance in GUIDANCES:
        assert (f"{guidance.about.node_id}Guider" in BY_ID) == guidance.about.guider, guidance.about.node_id


def test_a_methods_guider_has_the_inputs_of_its_term_and_the_prompts_before_them():
    for method in (method for method in PERTURBATIONS if method.about.guider):
        term, guider = (
            [described(given) for given in BY_ID[f"{method.about.node_id}{end}"].define_schema().inputs]
            for end in ("", "Guider")
        )
        assert [given["id"] for given in guider[:4]] == ["model", "positive", "negative", "cfg"]
        assert term == [guider[0], *guider[4:]]


@pytest.mark.parametrize("node", [node for key, node in BY_ID.items() if key not in WANTS_MORE])
def test_a_node_acts_with_the_defaults_of_its_widgets(node):
    result = execute(node.define_schema().node_id)
    assert type(result).__name__ in ("ModelPatcher", "CFGGuider", "Curve", "Tensor")


# ------------------------------------------------------------------------------------------------------ as a guidance


def test_a_term_node_gives_a_model_with_the_term_and_does_not_change_the_model_it_was_given():
    model = shared_network("unet")
    options, wrappers = dict(model.model_options), {kind: dict(w) for kind, w in model.wrappers.items()}
    plain = sample(model)
    out = execute("BeyondCFGPAG", model=model, scale=2.0, layers="input.4", start_percent=0.1, end_percent=0.9)
    (term,) = out.model_options[host.KEY]
    assert (term.rule.scale, [str(layer) for layer in term.rule.perturbation.layers]) == (2.0, ["input.4"])
    assert (term.schedule.start_percent, term.schedule.end_percent, term.node) == (0.1, 0.9, "PAG")
    assert model.model_options == options and model.wrappers == wrappers
    assert torch.equal(sample(model), plain) and not torch.equal(sample(out), plain)


def test_a_chain_of_term_nodes_keeps_each_in_order():
    out = execute("BeyondCFGPAG", model=execute("BeyondCFGInterval", model=pag(shared_network("unet"), 1.0)), scale=2.0)
    assert [term.node for term in out.model_options[host.KEY]] == ["PAG", "CFG Interval", "PAG"]
    assert [term.rule.scale for term in out.model_options[host.KEY][::2]] == [1.0, 2.0]


def test_a_guider_node_has_the_terms_that_its_model_has_and_its_own():
    guider = execute("BeyondCFGPAGGuider", model=pag(shared_network("unet"), 1.0), scale=2.0, cfg=5.0)
    assert [term.rule.scale for term in guider.model_options[host.KEY]] == [1.0, 2.0] and guider.cfg == 5.0
    assert set(guider.original_conds) == {"positive", "negative"}


def test_the_cfg_guider_over_the_whole_of_sampling_puts_nothing_on_its_model():
    model = shared_network("unet")
    assert execute("BeyondCFGGuider", model=model).model_patcher is model
    interval = execute("BeyondCFGGuider", model=model, end_percent=0.5)
    assert len(interval.model_options[host.KEY]) == 1 and host.KEY not in model.model_options


@pytest.mark.parametrize("node_id", having("negative", "cfg"))
def test_a_guider_needs_no_negative_where_cfg_is_one(node_id):
    guider = execute(node_id, negative=None, cfg=1.0)
    assert set(guider.original_conds) == {"positive"}


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.5)])
@pytest.mark.parametrize("node_id", having("start_percent", "end_percent"))
def test_a_window_that_is_empty_or_out_of_order_is_refused_with_both_ends(node_id, start, end):
    message = refusal(node_id, start_percent=start, end_percent=end)
    assert f"start_percent is {start:g} and end_percent is {end:g}" in message


@pytest.mark.parametrize(("end", "value"), [("start", NAN), ("start", -0.5), ("end", NAN), ("end", 1.5)])
@pytest.mark.parametrize("node_id", having("start_percent", "end_percent"))
def test_an_end_of_a_window_that_is_no_fraction_is_refused(node_id, end, value):
    message = refusal(node_id, **{f"{end}_percent": value})
    assert message == f"{end}_percent is {value}; it must be a number from 0 to 1"


@pytest.mark.parametrize("value", [NAN, INF, -INF, -1.0, 1e6])
@pytest.mark.parametrize("node_id", having("scale"))
def test_a_scale_that_is_not_finite_or_out_of_range_is_refused(node_id, value):
    assert f"scale is {value}" in refusal(node_id, scale=value)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("negative", [True, False], ids=["with a negative", "without"])
@pytest.mark.parametrize("node_id", having("cfg"))
def test_a_cfg_that_is_not_finite_is_refused(node_id, negative, value):
    changes = {} if negative else {"negative": None}
    assert f"cfg is {value}" in refusal(node_id, cfg=value, **changes)


@pytest.mark.parametrize("cfg", [0.0, 1.5, 7.0])
@pytest.mark.parametrize("node_id", having("cfg", "negative"))
def test_a_guider_with_cfg_and_no_negative_says_what_to_do(node_id, cfg):
    message = refusal(node_id, negative=None, cfg=cfg)
    assert f"cfg is {cfg:g}" in message and "no negative is connected" in message and "set cfg to 1" in message


HAS = "This model has input.1-2, input.4-5, middle, output.0-5."


@pytest.mark.parametrize(
    ("layers", "part"),
    [
        ("", "cannot read"),
        ("7;8", '"7;8"'),
        ("middle, double.3", '"double.3"'),
        ("output.6", '"output.6"'),
        ("3", '"3"'),
    ],
)
@pytest.mark.parametrize("node_id", [key for key in having("layers") if key not in SKIPPING])
def test_layers_that_cannot_be_read_or_found_are_refused_with_those_that_the_model_has(node_id, layers, part):
    message = refusal(node_id, layers=layers)
    assert message.startswith(f'layers "{layers}": ') and part in message and message.endswith(HAS)


@pytest.mark.parametrize("node_id", SKIPPING)
def test_skipping_a_layer_of_a_unet_is_refused_and_an_unknown_layer_of_a_transformer_too(node_id):
    assert "no layer of Stable Diffusion 1, 2, XL, SVD" in refusal(node_id, model=shared_network("unet"))
    assert refusal(node_id, layers="7").endswith('there is no "7". This model has double.0-2.')


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"curve_type": "points", "points": "0: 1, 0.5"}, 'points "0: 1, 0.5": write pairs'),
        ({"curve_type": "points", "points": "0.5: 1, 0.2: 0, 0.5: 0"}, "points has two at 0.5"),
        ({"curve_type": "points", "points": "0: nan"}, "must be finite"),
        ({"curve_type": "points", "points": "14: 0, 15: 1, 14: 1", "over": "sigma"}, "points has two at 14"),
        ({"curve": "drawn"}, 'curve is "drawn"; it must be what the host\'s Curve Editor gives'),
        ({"curve": {0.0: 1.0}}, "curve is of the type dict; it must be what the host's Curve Editor gives"),
        ({"curve": [(0.0, NAN)]}, "point 0: nan is out of range"),
        ({"curve_type": "power", "power": NAN}, "power is nan"),
    ],
)
def test_a_schedule_that_cannot_be_read_says_which_point(changes, part):
    assert part in refusal("BeyondCFGSchedule", **changes)


@pytest.mark.parametrize("node_id", having("layers"))
def test_a_network_without_a_row_is_refused_by_name_with_those_that_are_supported(node_id):
    message = refusal(node_id, model=networks.unknown())
    assert "(Linear) is not supported" in message
    for name in ("Stable Diffusion 1, 2, XL, SVD", "SD3", "Flux"):
        assert name in message


# ---------------------------------------------------------------------------------------------------- the host's loader


def test_the_host_loads_the_pack_from_a_folder_of_any_name(tmp_path, monkeypatch):
    folder = tmp_path / "My x-Pack.1 (copy)"
    for part in ("guiders", "patches", "nodes"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / part, folder)
    monkeypatch.setattr(host_nodes, "NODE_CLASS_MAPPINGS", {"before": None})
    monkeypatch.setattr(host_nodes, "NODE_DISPLAY_NAME_MAPPINGS", {})
    for name in ("LOADED_MODULE_DIRS", "EXTENSION_WEB_DIRS"):
        monkeypatch.setattr(host_nodes, name, {})
    known = set(sys.modules)
    try:
        assert asyncio.run(host_nodes.load_custom_node(str(folder)))
        files = {getattr(sys.modules[name], "__file__", None) for name in set(sys.modules) - known}
        assert str(folder / "guiders" / "compose.py") in files  # the copy itself, not the pack under test
    finally:
        for name in [name for name in set(sys.modules) - known if "My x-Pack" in name]:
            del sys.modules[name]
    del host_nodes.NODE_CLASS_MAPPINGS["before"]
    assert set(host_nodes.NODE_CLASS_MAPPINGS) == set(BY_ID)
    titles = {key: node.define_schema().display_name for key, node in BY_ID.items()}
    assert titles == host_nodes.NODE_DISPLAY_NAME_MAPPINGS
