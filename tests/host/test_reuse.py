"""Guidances that are computed in some steps alone, or end early, on the host: what is evaluated, and what comes out."""

import logging
import math

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from pack.guiders import ClassifierFreeGuidance, host
from pack.guiders.base import NEGATIVE
from pack.guiders.host import Recorder
from pack.guiders.reuse import Reuse, Stop
from pack.guiders.schedule import FREE, Schedule
from pack.nodes.pictures.report import draw_report
from pack.nodes.reuse import GuidanceReuse, GuidanceStop
from pack.nodes.verdict import moved, verdict
from pack.tests.host import networks
from pack.tests.host.harness import (
    TERM_NODES,
    Counter,
    close,
    guider_of,
    network,
    pag,
    prompts,
    rounding,
    run,
    sample,
    sigmas_of,
)
from pack.tests.host.test_samplers import SAMPLERS, evaluations
from pack.tests.host.test_terms import TERMS, chain, further_forwards
from pack.tests.host.test_with_others import GUIDERS, REGIONAL, regional, windowed


def reused(model, **settings):
    return host.with_reuse(model, Reuse(**settings))


class HeldGuider(comfy.samplers.CFGGuider):
    """CFG whose direction is computed in every second step and held between, by the host's own functions alone."""

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        conds = [self.conds["positive"], self.conds["negative"]]
        here = getattr(self, "now", -1) + 1
        self.now = here
        calc = comfy.samplers.calc_cond_batch
        if here % 2 == 0:
            positive, negative = calc(self.inner_model, conds, x, timestep, model_options)
            self.held = positive - negative
        else:
            positive = calc(self.inner_model, conds[:1], x, timestep, model_options)[0]
        return positive + (self.cfg - 1) * self.held


def held(model, conds, latent, **kwargs):
    guider = HeldGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(4.0)
    return run(guider, latent, **kwargs)


# --------------------------------------------------------------------------------------------- what is evaluated


def test_every_step_is_no_node_bit_for_bit():
    model = pag(network("unet"))
    expected = sample(model)
    for off in (reused(model, every=1), reused(model, every=1, mode="auto"), host.with_stop(model, Stop(1.0, 0.0))):
        assert torch.equal(sample(off), expected)


def test_what_a_step_does_not_need_is_not_evaluated():
    counter = Counter(reused(pag(network("unet")), every=3))
    sample(counter.model, steps=7)
    assert counter.rows == [3, 1, 1, 3, 1, 1, 3]


def test_the_samplers_own_cfg_goes_on_without_any_term():
    counter = Counter(reused(network("unet"), every=2))
    sample(counter.model, steps=5)
    assert counter.rows == [2, 1, 2, 1, 2]


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_second_forward_and_a_weak_models_forward_are_saved(cfg):
    rows = 1 + (cfg != 1)
    sag = TERM_NODES["BeyondCFGSAG"]
    model = network("unet")
    given = {one.id: one.default for one in sag.inputs if getattr(one, "default", None) is not None}
    counter = Counter(reused(sag.execute(**given | {"model": model}).result[0], every=3))
    sample(counter.model, cfg=cfg, steps=5)
    assert counter.rows == [rows, 1, 1, 1, rows, 1, 1]
    weak = Counter(network("unet", seed=5))
    counter = Counter(model)
    rule = {"weight": 2.0, "start_percent": 0.0, "end_percent": 1.0}
    guided = TERM_NODES["BeyondCFGAutoguidance"].execute(model=counter.model, weak_model=weak.model, **rule).result[0]
    sample(reused(guided, every=3), cfg=cfg, steps=5)
    assert counter.rows == [rows, 1, 1, rows, 1] and len(weak.rows) == 2


@pytest.mark.parametrize("key", TERMS)
def test_each_term_goes_on_where_it_has_something_to_save(key):
    kind = ("unet", "sd3", "flux", "wan")[TERMS.index(key) % 4]
    kind = "flux" if kind == "unet" and "Skip" in key else kind
    model, latent = network(kind), networks.latent(kind, 2, 8, 12)
    without, counter = (Counter(chain([key], kind, model)) for _ in range(2))
    sample(without.model, kind, latent=latent, steps=2)
    assert sample(reused(counter.model, every=2), kind, latent=latent, steps=2).isfinite().all()
    first = 1 + further_forwards(key)
    assert counter.rows[:first] == without.rows[:first]
    assert counter.rows[first:] == [1], "the second step evaluates the positive alone"


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - FREE - {"ar_video"}))
def test_with_every_sampler_each_evaluation_follows_the_step_that_it_belongs_to(sampler):
    model, latent = network("unet"), networks.latent("unet", 1, 8, 8)
    sigmas = sigmas_of(model, 5, "karras")
    counter = Counter(reused(pag(model), every=2))
    got = sample(counter.model, latent=latent, sampler=sampler, sigmas=sigmas)
    least = 2 if sampler.endswith("_cfg_pp") else 1  # which read the true negative
    steps = [step for _, step in evaluations(sampler, sigmas)]
    assert got.isfinite().all()
    assert counter.rows == [least if step % 2 else 3 for step in steps]


@pytest.mark.parametrize("sampler", sorted(FREE & set(SAMPLERS)))
def test_samplers_that_choose_their_own_noise_levels_run(sampler):
    counter = Counter(reused(pag(network("unet")), every=2))
    assert sample(counter.model, latent=networks.latent("unet", 1, 8, 8), sampler=sampler, steps=6).isfinite().all()
    assert set(counter.rows) == {1, 3}


def test_a_cfg_plus_plus_sampler_reads_the_true_negative_and_that_is_said_once(caplog):
    model, latent = network("unet"), networks.latent("unet", 1, 8, 8)
    expected = sample(model, sampler="euler_cfg_pp", latent=latent)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample(reused(model, every=3), sampler="euler_cfg_pp", latent=latent), expected)
    said = [record.getMessage() for record in caplog.records]
    assert sum("computed in every step" in line for line in said) <= 1
    assert any("Guidance Reuse had no effect: the sampler or another node reads" in line for line in said)


@pytest.mark.parametrize("name", [name for name in GUIDERS if name != "DualModel"])  # its negative is another model's
def test_the_predictions_of_another_guider_go_on_too(name):
    model, latent = network("unet"), networks.latent("unet", 1, 8, 8)
    conds = [networks.conditioning("unet", seed) for seed in (1, 2, 3)]
    counter, full = Counter(reused(model, every=2)), Counter(model)
    got = run(GUIDERS[name](counter.model, *conds), latent)
    expected = run(GUIDERS[name](full.model, *conds), latent)
    if name == "Basic":
        assert torch.equal(got, expected)
    else:
        assert sum(counter.rows) < sum(full.rows) and close(got, expected) > 1e-6


# ------------------------------------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("case", ["plain", *REGIONAL, "windows", "inpainting"])
def test_a_held_direction_is_the_one_of_the_step_before(case):
    model, latent = network("unet"), networks.latent("unet")
    conds = regional(case) if case in REGIONAL else prompts("unet")
    kwargs = {"steps": 4}
    if case == "windows":
        model = windowed(model)
    if case == "inpainting":
        kwargs["mask"] = torch.ones(1, 1, 16, 16).tril()
    expected = held(model, conds, latent, **kwargs)
    got = run(guider_of(reused(model, every=2, between="held"), *conds), latent, **kwargs)
    assert close(got, expected) < 2e-6
    assert close(run(guider_of(model, *conds), latent, **kwargs), expected) > 1e-4


@pytest.mark.parametrize("settings", [{"every": 2}, {"every": 4, "mode": "auto", "tolerance": 0.2}], ids=str)
def test_a_batch_is_its_samples_alone(settings):
    model = reused(host.with_stop(pag(network("unet")), Stop(cosine=1.0, length=0.1)), **settings)
    latent, noise = networks.latent("unet", 3), torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    noise[1] *= 3

    def result(chosen: slice) -> torch.Tensor:
        guider = guider_of(model, *prompts("unet"))
        sampler, sigmas = comfy.samplers.sampler_object("euler"), sigmas_of(model, 6)
        return guider.sample(noise[chosen], latent[chosen], sampler, sigmas, disable_pbar=True, seed=7)

    together, floor = result(slice(None)), rounding(pag(network("unet")), steps=6)
    for at in range(3):
        assert close(result(slice(at, at + 1)), together[at : at + 1]) < 1e-6 + 10 * floor


def test_two_runs_are_equal_and_one_that_was_interrupted_leaves_nothing_to_the_next():
    model = reused(pag(network("unet")), every=3)
    expected = sample(model, steps=5)

    def interrupt(step, *_):
        if step == 3:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, steps=5, callback=interrupt)
    assert torch.equal(sample(model, steps=5), expected)
    later = sigmas_of(model, 5)[2:]  # a second pass
    assert torch.equal(sample(model, sigmas=later), sample(reused(pag(network("unet")), every=3), sigmas=later))


@pytest.mark.parametrize("cache", [EasyCacheNode, LazyCacheNode])
def test_the_hosts_caches_stand_beside_it(cache):
    model = cache.execute(reused(pag(network("unet")), every=3), 0.6, 0.1, 0.95, False)[0]
    counter = Counter(model)
    got = sample(counter.model, steps=12)
    assert got.isfinite().all() and max(counter.rows) == 3 and min(counter.rows) == 1
    assert close(got, sample(model, steps=12)) == 0


def test_intervals_and_schedules_stand_beside_it():
    model = network("unet")
    counter = Counter(reused(pag(model, start=0.4, end=0.8), every=2))
    sample(counter.model, steps=10, cfg=1.0)
    inside = [rows == 2 for rows in counter.rows]
    assert sum(inside) == 2 and inside.index(True) > 2  # begins with a computed step, wherever that is


# ------------------------------------------------------------------------------------------------------ the end


def test_a_guidance_that_is_over_is_not_evaluated_again_and_adds_nothing():
    model, conds = network("unet"), prompts("unet")
    same = (conds[0], conds[0])  # the cosine of both is 1 from the first step on
    counter = Counter(host.with_stop(model, Stop(cosine=0.9999)))
    got = sample(counter.model, conds=same, steps=4)
    assert counter.rows == [2, 1, 1, 1]
    assert close(got, sample(model, conds=same, cfg=1.0, steps=4)) < 1e-6


def test_each_guidance_ends_by_itself():
    model = network("unet")
    counter = Counter(host.with_stop(pag(model), Stop(cosine=0.0)))
    sample(counter.model, steps=3)
    assert counter.rows[0] == 3 and counter.rows[-1] == 1


# ------------------------------------------------------------------------------------------ what is measured and said


def test_a_recorder_hears_what_was_computed_and_how_wrong_the_rest_was():
    recorder = Recorder()
    sample(host.with_recorder(reused(pag(network("unet")), every=2), recorder), steps=5)
    lines = recorder.table()
    assert [line["PAG"] for line in lines] == ["computed", "continued", "computed", "continued", "computed"]
    assert [line["CFG"] for line in lines] == [line["PAG"] for line in lines]
    assert [line["rows saved"] for line in lines] == [0, 2, 0, 2, 0]
    assert [line["rows"] for line in lines] == [3, 1, 3, 1, 3]
    errors = [line.get("error of PAG") for line in lines]
    assert errors[0] is errors[1] is errors[3] is None and errors[2] > 0 and errors[4] > 0


def test_a_report_has_a_panel_more_where_directions_may_go_on():
    heights = []
    for model in (pag(network("unet")), host.with_stop(reused(pag(network("unet")), every=2), Stop(cosine=0.0))):
        recorder = Recorder()
        sample(host.with_recorder(model, recorder), steps=4)
        heights.append(draw_report(recorder, verdict(recorder), moved(recorder))[0].shape[1])
    assert recorder.table()[-1]["PAG"] == "stopped"
    assert heights[1] > heights[0]


def test_a_recorder_changes_no_bit():
    model = reused(pag(network("unet")), every=3, mode="auto")
    assert torch.equal(sample(host.with_recorder(model, Recorder()), steps=5), sample(model, steps=5))


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("few steps", "in a run of 1 step no guidance"),
        ("nothing to save", "no guidance of this run needs"),
        ("tight", "tolerance"),
    ],
)
def test_without_effect_it_says_so(case, why, caplog):
    model = network("unet")
    with caplog.at_level(logging.WARNING):
        if case == "few steps":
            sample(reused(model, every=3), steps=1)
        elif case == "nothing to save":
            sample(reused(model, every=3), cfg=1.0)
        else:
            sample(reused(model, every=3, mode="auto", tolerance=0.001))
    assert any(
        "Guidance Reuse had no effect" in record.getMessage() and why in record.getMessage()
        for record in caplog.records
    )


READS = ("item", "tolist", "__float__", "__bool__", "__int__", "cpu", "numpy")


def reads(model, monkeypatch, **kwargs) -> int:
    """How often a run of it reads a tensor."""
    count = 0

    def counting(name):
        true = getattr(torch.Tensor, name)

        def read(self, *args, **more):
            nonlocal count
            count += 1
            return true(self, *args, **more)

        return read

    with monkeypatch.context() as patched:
        for name in READS:
            patched.setattr(torch.Tensor, name, counting(name))
        sample(model, **kwargs)
    return count


def test_regular_reuse_reads_nothing_from_the_device_and_auto_once_in_a_step_after_one_that_computed(monkeypatch):
    model = pag(network("unet"))
    for settings, more in (({"every": 3}, 0), ({"every": 3, "mode": "auto", "tolerance": 0.001}, 5)):
        guided = reused(model, **settings)
        sample(guided, steps=6)  # what is made once
        plain = reads(model, monkeypatch, steps=6)
        assert reads(guided, monkeypatch, steps=6) - plain == more


# ----------------------------------------------------------------------------------------------------------- the nodes


def test_the_nodes_put_their_settings_on_a_copy_of_the_model_and_refuse_others_by_name():
    model = network("unet")
    given = {one.id: one.default for one in GuidanceReuse.inputs if getattr(one, "default", None) is not None}
    guided = GuidanceReuse.execute(model=model, **given).result[0]
    assert guided is not model and "beyond_cfg_reuse" not in model.model_options
    counter = Counter(guided)
    sample(counter.model, steps=4)
    assert counter.rows == [2, 1, 1, 2]
    with pytest.raises(ValueError, match="Guidance Reuse: every is 0"):
        GuidanceReuse.execute(model=model, **given | {"every": 0})
    with pytest.raises(ValueError, match="Guidance Stop: cosine is 2"):
        GuidanceStop.execute(model=model, cosine=2.0, length=0.0)


def test_a_term_of_the_negative_shares_its_direction_with_the_samplers_cfg():
    rule = ClassifierFreeGuidance(2.0)
    model = host.add_term(network("unet"), host.Term(rule, Schedule(), "CFG as a term"))
    assert rule.branches() == (NEGATIVE,)
    counter = Counter(reused(model, every=2))
    assert math.isfinite(sample(counter.model, steps=4).sum())
    assert counter.rows == [2, 1, 2, 1]
