"""Every method of the study of quality, with the demo's models: a row does what it prints, and nothing where it is off."""

import itertools

import pytest
import torch
from pack.benchmarks import high_cfg, negatives
from pack.benchmarks.study import command as quality
from pack.benchmarks.study import methods
from pack.benchmarks.study.cells import Cell
from pack.benchmarks.study.methods import ALL, DEGRADATIONS, METHODS, NONE, Method
from pack.benchmarks.study.report import setting
from pack.benchmarks.study.rig import Rig
from pack.benchmarks.study.suites import Prompt
from pack.nodes import schema
from pack.tests.host.harness import CAN_COPY, needs_copy

PROMPTS = [Prompt("red seven blue two", (0, 7, 2, 2)), Prompt("green one red three", (1, 1, 0, 3))]
SEED = 0
DEGRADED = tuple(DEGRADATIONS)
UNITS = {"σ_rel": "ema"}  # what a row calls otherwise than the node's input
ADDING = [method for method in ALL if method.adds]


def pair_of(one: Method, other: Method) -> Method | None:
    """Both at the last strength that is tried, as the study pairs them; None where it never does."""
    return methods.best_pair({one: (one.strengths[-1], 0.0), other: (other.strengths[-1], 1.0)})


PAIRS = [both for chosen in itertools.combinations(ADDING, 2) if (both := pair_of(*chosen))]


# The weak model of SIMS is the main model with a LoRA.
COPIES = {"SIMS": needs_copy}


def by_name(method: Method) -> str:
    return method.name


@pytest.fixture(scope="module")
def rig():
    """The under-trained model with its files, and the snapshots of another setting; two steps."""
    folder = quality.ROOT / "benchmarks/models"
    better, files = (quality.demo_files(folder, quality.SETTINGS[name]) for name in ("better", "early"))
    files.others["snapshots"] = better.others["snapshots"]
    pool = tuple(prompt.text for prompt in PROMPTS)
    return Rig(files, 2, "euler", "simple", 128, 128, 2, pool_texts=pool, compute="bf16", layers=quality.LAYERS)


@pytest.fixture
def given(rig, monkeypatch):
    """What the pack's nodes, and the rules that have no node here, are given: a list of their inputs by name."""
    found, execute, with_rule = [], schema.Node.execute.__func__, rig.with_rule

    def noted(cls, **inputs):
        found.append(inputs)
        return execute(cls, **inputs)

    def noted_rule(model, rule, title):
        found.append(vars(rule))
        return with_rule(model, rule, title)

    monkeypatch.setattr(schema.Node, "execute", classmethod(noted))
    monkeypatch.setattr(rig, "with_rule", noted_rule)
    for cached in (Rig.degraded, Rig.average):
        cached.cache_clear()
    return found


def named(given: list[dict], word: str) -> list[float]:
    return [inputs[word] for inputs in given if word in inputs]


@pytest.fixture(scope="module")
def draw(rig):
    """draw(method, strength) → (latents [2, …], rows of the networks for them)"""

    def sample(method: Method, strength: float):
        model, cfg = method.build(rig, rig.model, strength)
        rig.counted.rows = 0
        latents, _ = rig._latent(model, cfg, PROMPTS, [0, 1], SEED)
        return latents, rig.counted.rows

    return sample


@pytest.fixture(scope="module")
def without(draw):
    """without(method) → what draw gives for what the method is made of, or for no guidance"""
    drawn = {method.name: draw(method, 0.0) for method in METHODS if method.name == NONE or method.name in DEGRADED}
    return lambda method: drawn[method.made_of[0] if method.name.startswith(DEGRADED) else NONE]


def test_the_rows_without_a_neutral_strength_are_those_of_another_network():
    assert [method.name for method in ALL if method.off is None] == ["Post-hoc EMA", *list(DEGRADATIONS)[::2]]


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=COPIES.get(m.name, ())) for m in ALL if m.off is not None and m.name != NONE],
    ids=by_name,
)
def test_at_its_neutral_strength_a_row_is_the_picture_without_it_and_costs_nothing(rig, draw, without, method):
    (off, rows), (expected, least) = draw(method, method.off), without(method)
    assert torch.equal(off, expected) and rows == least
    weakest, _ = draw(method, method.strengths[0])
    assert not torch.equal(weakest, expected)


@pytest.mark.parametrize("method", ALL, ids=by_name)
def test_what_a_row_prints_is_what_its_node_is_given(rig, given, method):
    for strength in dict.fromkeys((*method.strengths, *method.usual)):
        key = Cell("report", method, strength, SEED, 2).key({}, "", rig.layers)
        given.clear()
        _, cfg = method.build(rig, rig.model, strength)
        if not method.word:
            assert cfg == 1 and setting(key) == ""
            continue
        word, printed = setting(key).partition(",")[0].rsplit(" ", 1)
        assert named([*given, {"cfg": cfg}], UNITS.get(word, word)) == [float(printed)], (word, given)
        assert cfg == 1 or word == "cfg"


@pytest.mark.parametrize("method", high_cfg.ROWS, ids=high_cfg.said)
def test_what_a_row_of_the_high_cfg_prints_is_what_its_node_is_given(rig, given, method):
    _, cfg = method.build(rig, rig.model, method.strengths[0])
    inputs = {name: str(value) for name, value in given[0].items()} if given else {}
    printed = dict(part.rsplit(" ", 1) for part in high_cfg.said(method).split(", ") if " of " not in part)
    assert cfg == float(printed.pop("cfg"))
    assert printed == {name: inputs[name] for name in printed}


@pytest.mark.parametrize("method", negatives.ROWS, ids=lambda method: f"{method.name} {negatives.said(method)}")
def test_what_a_row_of_the_negatives_prints_is_what_its_node_is_given_beside_the_negative(
    rig, given, monkeypatch, method
):
    monkeypatch.setattr(rig, "negative", "blue the blue the")
    _, cfg = method.build(rig, rig.model, method.strengths[0])
    inputs = {**given[0], "negative": given[0]["negative"] is rig.encode(rig.negative)} if given else {"cfg": cfg}
    printed = dict(part.rsplit(" ", 1) for part in negatives.said(method).split(", ") if part)
    assert {name: float(value) for name, value in printed.items()} == {name: inputs[name] for name in printed}
    assert inputs.get("negative", True) and (cfg == 1 or method.name == "CFG")


@pytest.mark.parametrize("method", [m for m in METHODS if m.name.startswith(DEGRADED)], ids=by_name)
def test_the_name_of_a_row_says_how_its_networks_are_made_worse(rig, given, method):
    method.build(rig, rig.model, method.strengths[0])
    worse = [f"{one['degradation']} {100 * one['amount']:g} %" for one in given if "degradation" in one]
    assert " ← ".join(worse) == method.name


def test_every_two_guidances_but_two_kinds_of_one_are_a_pair():
    assert len(PAIRS) == len(ADDING) * (len(ADDING) - 1) // 2 - 4  # two of CFG, three of Autoguidance


@pytest.mark.parametrize("both", PAIRS, ids=by_name)
def test_at_share_1_each_node_of_a_pair_is_given_what_its_settings_print_and_at_share_0_what_does_nothing(
    rig, given, both
):
    of_name = {method.name: method for method in ADDING}
    parts = [of_name[name] for name in both.made_of]
    printed = both.settings.removeprefix("1 is ").split(" and ")
    for share in (1.0, 0.0):
        wanted: dict[str, list[float]] = {"cfg": [1.0]}
        for method, text in zip(parts, printed, strict=True):
            strength = float(text.removeprefix(f"{method.name} ").partition(" ")[0]) if share else method.off
            wanted[method.word] = [strength] if method.word == "cfg" else [*wanted.get(method.word, []), strength]
        given.clear()
        _, cfg = both.build(rig, rig.model, share)
        assert {word: named([*given, {"cfg": cfg}], word) for word in wanted} == wanted


@pytest.mark.parametrize(
    "at", [pytest.param(at, id=m.name, marks=COPIES.get(m.name, ())) for at, m in enumerate(ADDING)]
)
def test_at_share_0_a_pair_is_the_picture_without_guidance_and_costs_nothing(draw, without, at):
    others = (ADDING[(at + step) % len(ADDING)] for step in range(1, len(ADDING)))
    possible = (other for other in others if CAN_COPY or other.name not in COPIES)
    both = next(found for other in possible if (found := pair_of(ADDING[at], other)))
    (off, rows), (expected, least) = draw(both, 0.0), without(both)
    assert torch.equal(off, expected) and rows == least
    assert not torch.equal(draw(both, methods.SHARES[0])[0], expected)
