"""Every sampler of the host, and the step that each evaluation belongs to."""

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from pack.guiders import host
from pack.guiders.classifier_free import SamplerCFG
from pack.guiders.schedule import EVALUATIONS, FREE, Schedule, StepTracker
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, guider_of, pag, prompts, run, sample, shared_network, sigmas_of
from pack.tests.host.reference import with_reference_pag

SAMPLERS = comfy.samplers.SAMPLER_NAMES
# Their step sizes look at the samples, and so at rounding; ar_video wants a causal video model.
ADAPTIVE = {"dpm_adaptive"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pag_with_every_sampler_is_pag_evaluated_apart(sampler):
    model, small = shared_network("unet"), {"latent": networks.latent("unet", 1, 8, 8), "sampler": sampler}
    ours, plain = Counter(pag(model)), Counter(model)
    got = sample(ours.model, **small)
    expected = sample(with_reference_pag(model, "unet"), **small)
    assert got.isfinite().all() and close(got, expected) < (1e-3 if sampler in ADAPTIVE else 5e-6)
    if sampler not in ADAPTIVE:
        sample(plain.model, **small)
        assert ours.rows == [rows + 1 for rows in plain.rows]


def evaluations(sampler: str, sigmas):
    """(σ, true step) of every model call: a sampler calls back after the first evaluation of each step."""
    calls, starts = [], []
    guider = guider_of(shared_network("unet"), *prompts("unet"))

    def record(x, timestep, model_options, seed):
        calls.append(timestep[0].item())
        for post_cfg in model_options.get("sampler_post_cfg_function", []):  # CFG++ waits to be told the negative
            post_cfg({"denoised": x, "uncond_denoised": x})
        return x * 0.5

    guider.predict_noise = record
    run(
        guider,
        networks.latent("unet", 1, 8, 8),
        sampler=sampler,
        sigmas=sigmas,
        callback=lambda *_: starts.append(len(calls) - 1),
    )
    return [(sigma, sum(start <= i for start in starts) - 1) for i, sigma in enumerate(calls)]


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - FREE))
@pytest.mark.parametrize("scheduler", ["normal", "karras"])
@pytest.mark.parametrize("part", ["whole", "first half"])
def test_every_evaluation_is_taken_for_the_step_it_belongs_to(sampler, scheduler, part):
    sigmas = sigmas_of(shared_network("unet"), 7, scheduler)
    if part == "first half":  # SplitSigmas: the schedule does not end at 0
        sigmas = sigmas[:4]
    true = evaluations(sampler, sigmas)
    steps = StepTracker(sigmas.tolist(), sampler)
    got = [steps.of(sigma)[0] for sigma, _ in true]
    assert got == [step for _, step in true]


def test_the_table_of_look_ahead_samplers_names_samplers_of_the_host():
    assert set(EVALUATIONS) | FREE <= set(SAMPLERS)


def test_heun_keeps_its_decision_for_a_whole_step():
    """arXiv:2404.07724: the corrector of the last unguided step is not guided, that of the last guided step is."""
    model = shared_network("unet")
    model = host.add_term(model, host.Term(SamplerCFG(), Schedule(0.3, 0.7), "CFG Interval"))
    counter = Counter(model)
    sample(counter.model, sampler="heun", steps=8)
    pairs = [tuple(counter.rows[i : i + 2]) for i in range(0, len(counter.rows) - 1, 2)]
    assert set(pairs) == {(1, 1), (2, 2)} and counter.rows[-1] == 1


def test_an_inpainting_mask_holds():
    model, latent = shared_network("unet"), torch.ones(1, 4, 16, 16)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    got = sample(pag(model), latent=latent, mask=mask)
    assert close(got, sample(with_reference_pag(model, "unet"), latent=latent, mask=mask)) < 2e-6
    assert torch.equal(got[..., :4, :], latent[..., :4, :])
