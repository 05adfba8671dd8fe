"""Degraded models: each is what its equation says, on its own and as the weak model of the one that it is a version of."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from pack.nodes.weaker_models import DegradedModel
from pack.patches.base import Moment
from pack.patches.host import degraded as host_degraded
from pack.patches.host.degraded import InputNoise, WorseLayers, noisier, rounded
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, needs_copy, network, noise_like, pag, prompts, sample
from pack.tests.host.test_autoguidance import autoguided
from pack.tests.host.test_ema import PREFIX, save
from pack.tests.host.test_ema import sample as sample_checkpoint

CASES = [
    (kind, degradation)
    for kind in ("unet", "sd3", "flux")
    for degradation in ("input noise", "dropout", "fewer layers", "quantised weights")
    if (kind, degradation) != ("unet", "fewer layers")
]
EVERY = pytest.mark.parametrize(("kind", "degradation"), CASES)
SHARING = pytest.mark.parametrize(("kind", "degradation"), [case for case in CASES if case[1] != "quantised weights"])
TOLERANCE = {"unet": 1e-6, "sd3": 1e-6, "flux": 1e-5}  # Flux's kernels compute in float32


def degraded(model, degradation, amount=0.3, layers="auto", bits=3, seed=0):
    settings = {"degradation": degradation, "amount": amount, "layers": layers, "bits": bits, "seed": seed}
    return DegradedModel.execute(model=model, **settings).result[0]


def refusal(model, degradation, **settings) -> str:
    with pytest.raises(ValueError) as error:
        degraded(model, degradation, **settings)
    title, _, message = str(error.value).partition(": ")
    assert title == "Degraded Model"
    return message


# ------------------------------------------------------------------------------------------------------- each on its own


@EVERY
def test_it_acts_at_0_it_is_the_model_itself_and_the_model_it_was_given_stays_as_it_is(kind, degradation):
    model = network(kind)
    options, plain = str(model.model_options), sample(model, kind)
    assert close(sample(degraded(model, degradation), kind), plain) > 1e-3
    assert torch.equal(sample(degraded(model, degradation, 0.0), kind), plain)
    assert torch.equal(sample(model, kind), plain) and str(model.model_options) == options and not model.patches


@SHARING
def test_two_runs_are_equal_and_the_global_generator_is_left_alone(kind, degradation):
    model = network(kind)
    state = torch.random.get_rng_state()
    results = [sample(degraded(model, degradation, seed=seed), kind) for seed in (3, 3, 4)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(results[0], results[1])
    assert (close(results[0], results[2]) > 1e-3) == (degradation != "fewer layers")


@SHARING
def test_a_sample_does_not_depend_on_the_others_of_its_batch(kind, degradation):
    worse = degraded(network(kind), degradation)
    alone, both = (sample(worse, kind, latent=networks.latent(kind, batch)) for batch in (1, 2))
    assert torch.equal(noise_like(networks.latent(kind, 2))[:1], noise_like(networks.latent(kind)))
    assert close(both[:1], alone) < TOLERANCE[kind]


@SHARING
def test_the_prompts_of_a_sample_share_what_is_drawn_whether_or_not_they_share_a_call(kind, degradation, monkeypatch):
    worse = Counter(degraded(network(kind), degradation))
    settings = {"latent": networks.latent(kind, 2), "steps": 2}
    together = sample(worse.model, kind, **settings)
    free = comfy.model_management.get_free_memory
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args: free(*args) if len(args) > 1 else 0)
    apart = sample(worse.model, kind, **settings)
    assert worse.rows == [2] * 2 + [1] * 4
    assert close(together, apart) < TOLERANCE[kind]


def test_a_draw_holds_for_a_step_and_the_next_draws_anew():
    class Executor:
        class_obj = network("unet").model

        def __call__(self, x, t, *args, **kwargs):
            return x / t

    sigmas, x = torch.tensor([10.0, 5.0, 1.0, 0.0]), torch.zeros(1, 4, 16, 16)
    draws = {
        sigma: InputNoise(0.1, 0)(Executor(), x, torch.tensor([sigma]), transformer_options={"sample_sigmas": sigmas})
        for sigma in (10.0, 9.0, 5.1, 5.0, 1.0)
    }
    assert close(draws[10.0], draws[9.0]) < 1e-6 and close(draws[10.0], draws[5.1]) < 1e-6
    for one, other in ((10.0, 5.0), (5.0, 1.0)):
        assert abs(torch.corrcoef(torch.stack([draws[one].flatten(), draws[other].flatten()]))[0, 1]) < 0.1


@pytest.mark.parametrize(("sampler", "evaluations"), [("euler", 1), ("heun", 2), ("dpm_2", 2), ("heunpp2", 3)])
def test_where_a_guidance_asks_all_evaluations_of_a_samplers_step_share_a_draw(sampler, evaluations, monkeypatch):
    moments, draw = [], host_degraded._moment

    def watched(*args):
        moments.append(draw(*args))
        return moments[-1]

    monkeypatch.setattr(host_degraded, "_moment", watched)
    main = network("unet")
    sample(autoguided(main, degraded(main, "input noise"), 1.5), cfg=1.0, steps=3, sampler=sampler)
    steps = [moment.step for moment in moments]
    assert sorted(set(steps)) == [0, 1, 2] and steps == sorted(steps) and steps.count(0) == evaluations


# ---------------------------------------------------------------------------------------------------------- as a weak model


@SHARING
def test_autoguidance_by_a_degraded_version_shares_the_network_and_is_the_sum_of_both_evaluated_separately(
    kind, degradation
):
    main = network(kind)
    weak = degraded(main, degradation)
    assert weak.model is main.model
    d, d_weak = (sample(model, kind, cfg=1.0, steps=1) for model in (main, weak))
    guided = sample(autoguided(main, weak, 1.5), kind, cfg=1.0, steps=1)
    assert close(guided, d + 1.5 * (d - d_weak)) < 1e-5 and close(guided, d) > 1e-3
    assert torch.equal(sample(main, kind, cfg=1.0, steps=1), d)


def test_rounding_is_refused_as_weak_model_of_a_network_that_cannot_be_loaded_again():
    main = network("sd3")
    with pytest.raises(ValueError, match=r"share one set of weights. Load the checkpoint a second time"):
        sample(autoguided(main, degraded(main, "quantised weights")), "sd3")


@needs_copy
def test_rounding_a_checkpoint_gives_the_weak_model_weights_of_its_own(sd3_weights, tmp_path):
    save(tmp_path / "a.ckpt", {PREFIX + key: tensor for key, tensor in sd3_weights[0].items()})
    main = comfy.sd.load_checkpoint_guess_config(str(tmp_path / "a.ckpt"), False, False, False)[0]
    weak = degraded(main, "quantised weights")
    d, d_weak = sample_checkpoint(main), sample_checkpoint(weak)
    assert close(d, d_weak) > 1e-3
    assert close(sample_checkpoint(autoguided(main, weak)), d) > 1e-3
    assert close(sample_checkpoint(autoguided(main, weak, -1.0)), d_weak) < 1e-3  # the weak model itself
    assert torch.equal(sample_checkpoint(main), d)


def test_they_can_be_chained_and_guided():
    model = network("sd3")
    worse = degraded(degraded(degraded(model, "input noise"), "dropout"), "fewer layers", layers="double.0")
    assert close(sample(pag(worse), "sd3"), sample(worse, "sd3")) > 1e-3
    assert close(sample(worse, "sd3"), sample(degraded(model, "fewer layers", layers="double.0"), "sd3")) > 1e-3


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])
def test_pag_and_dropout_act_together_on_the_same_layers(kind):
    model = network(kind)
    results = [sample(m, kind) for m in (pag(degraded(model, "dropout")), pag(model), degraded(model, "dropout"))]
    assert all(close(results[0], other) > 1e-3 for other in results[1:])


# ---------------------------------------------------------------------------------------------------------- the equations


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("flow", [False, True])
def test_input_noise_is_what_the_same_picture_looks_like_at_k_times_its_noise(sigma, flow):
    picture, noise, extra = (noise_like(torch.empty(100_000), seed).double() for seed in range(3))
    at = torch.tensor(sigma, dtype=torch.float64)
    x, raised = noisier((1 - at if flow else 1) * picture + at * noise, at, 1.2, extra, flow)
    ratio = raised / (1 - raised) if flow else raised
    if sigma < 1 or not flow:
        assert torch.allclose(ratio, 1.2 * (at / (1 - at) if flow else at))
    left = x - (1 - raised if flow else 1) * picture
    assert left.std() == pytest.approx(raised.item(), rel=0.02)


def test_the_network_is_told_the_raised_noise_level():
    seen = []

    def watch(executor, x, t, *args, **kwargs):
        seen.append((x, t))
        return executor(x, t, *args, **kwargs)

    for kind in ("unet", "flux"):
        worse = degraded(network(kind), "input noise", 0.2)
        worse.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
        sample(worse, kind, cfg=1.0, steps=1)
    plain = network("unet").get_model_object("model_sampling").sigma_max
    assert torch.allclose(seen[0][1], 1.2 * plain) and seen[0][0].std() / plain == pytest.approx(1.2, rel=0.1)
    assert seen[1][1].item() == 1 and seen[1][0].std() == pytest.approx(1, rel=0.05)  # all noise as it is


@pytest.mark.parametrize(("bits", "levels"), [(2, 3), (4, 15)])
def test_rounding_keeps_the_largest_weight_of_an_output_and_so_many_levels(bits, levels):
    weight = noise_like(torch.empty(5, 40, 3, 3))
    weight[4] = 0
    out = rounded(weight, bits)
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((out - weight).abs() <= scale / 2 + 1e-6).all() and torch.equal(out[4], weight[4])
    assert all(len(row.unique()) <= levels for row in out)
    assert torch.allclose(out.abs().amax((1, 2, 3)), weight.abs().amax((1, 2, 3)))


def test_rounding_reaches_the_matrices_and_kernels_of_the_diffusion_model_only():
    model = degraded(network("unet"), "quantised weights")
    tensors = model.model.state_dict()
    assert {key.partition(".")[0] for key in model.patches} == {"diffusion_model"}
    assert all(key.endswith(".weight") and tensors[key].ndim >= 2 for key in model.patches)
    assert "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v.weight" in model.patches


def test_a_layer_that_is_left_out_is_not_computed():
    model = network("sd3")
    calls = []
    for block in model.model.diffusion_model.joint_blocks:
        block.x_block.attn.qkv.register_forward_hook(lambda *args: calls.append(1))
    sample(degraded(model, "fewer layers", layers="double.0-1"), "sd3", steps=1)
    assert len(calls) == 1


def test_fewer_layers_is_the_network_without_them():
    model, shorter = network("flux"), network("flux")
    del shorter.model.diffusion_model.single_blocks[1]
    del shorter.model.diffusion_model.double_blocks[0]
    worse = degraded(model, "fewer layers", layers="double.0, single.1")
    assert close(sample(worse, "flux"), sample(shorter, "flux")) < 1e-5


def test_dropout_keeps_what_is_added_on_average_with_one_mask_for_the_prompts_of_a_sample():
    added = torch.ones(4, 100, 50, dtype=torch.float64)  # two samples under two prompts
    out = WorseLayers((), 0.2).dropped(added, Moment(), 2, "")
    assert out.unique().tolist() == [0, pytest.approx(1.25)] and out.mean() == pytest.approx(1, abs=0.02)
    assert torch.equal(out[:2], out[2:]) and not torch.equal(out[0], out[1])
    assert out.dtype == added.dtype and (added == 1).all()


def test_dropout_acts_in_the_chosen_layers_only():
    model = network("unet")
    everywhere, one, other = (
        sample(degraded(model, "dropout", layers=layers), steps=1) for layers in ("auto", "middle", "output.0")
    )
    assert close(one, other) > 1e-4 and close(one, everywhere) > 1e-4
    assert torch.equal(sample(degraded(model, "dropout", layers="all"), steps=1), everywhere)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_what_cannot_work_is_refused_with_the_reason():
    assert "works on transformers" in refusal(network("unet"), "fewer layers")
    assert 'there is no "double.9". This model has double.0-2' in refusal(network("sd3"), "dropout", layers="double.9")
    assert 'there is no "double.9"' in refusal(network("sd3"), "fewer layers", layers="double.9")
    assert "Linear" in refusal(networks.unknown(), "dropout")
    for amount in (-0.1, 0.96, float("nan")):
        assert "a number from 0 to 0.95" in refusal(network("unet"), "input noise", amount=amount)
    assert "a whole number from 2 to 8" in refusal(network("unet"), "quantised weights", bits=1)


def test_input_noise_needs_no_knowledge_of_the_network():
    model = networks.wan()
    conds = prompts("wan")
    assert close(sample(degraded(model, "input noise"), "wan", conds=conds), sample(model, "wan", conds=conds)) > 1e-3


def test_layers_that_another_pack_keeps_from_running_are_an_error():
    model = network("sd3")
    worse = degraded(model, "dropout")

    def instead(executor, x, *args, **kwargs):
        return torch.zeros_like(x)

    worse.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "other pack", instead)
    with pytest.raises(RuntimeError, match=r"none of the layers double.0, double.1, double.2 of .* ran"):
        sample(worse, "sd3")
