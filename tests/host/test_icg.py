"""A condition that has nothing to do with the picture: drawn by (seed, step, sample), and nothing else is touched."""

import pytest
import torch
from pack.guiders import host
from pack.guiders.independent_condition import IndependentConditionGuidance, Pool
from pack.guiders.schedule import Schedule
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, guider_of, network, prompts, run, sample
from pack.tests.host.test_with_others import in_area


def icg(model, pool, scale=2.0):
    return host.add_term(model, host.Term(IndependentConditionGuidance(scale, pool), Schedule(), "ICG"))


def pool_of(kind, seeds=(3, 4, 5), tokens=20):
    conds = [prompt for seed in seeds for prompt in networks.conditioning(kind, seed, tokens=tokens)]
    return host.prompts(conds, 0)


@pytest.mark.parametrize("kind", ["unet", "sdxl", "sd3", "flux"])
def test_a_pool_of_the_negative_alone_is_cfg(kind):
    """ICG (w, ŷ = the negative) is CFG w; pooled vectors too."""
    model, (positive, negative) = network(kind), prompts(kind)
    same = host.prompts([*negative, *negative], 0)
    for batch in (1, 3):
        latent = networks.latent(kind, batch)
        expected = sample(model, kind, cfg=4.0, latent=latent)
        got = sample(icg(model, same, 3.0), kind, cfg=1.0, latent=latent, conds=(positive, negative))
        assert close(got, expected) < 5e-6


@pytest.mark.parametrize("pool", ["gaussian", "prompts"])
@pytest.mark.parametrize("kind", ["unet", "sdxl", "sd3", "flux"])
def test_it_acts_in_the_same_forward_and_leaves_the_global_generator_alone(kind, pool):
    model = network(kind)
    pool = Pool() if pool == "gaussian" else pool_of(kind)
    counter = Counter(icg(model, pool))
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    result = sample(counter.model, kind, cfg=1.0, latent=networks.latent(kind, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert counter.rows == [2] * 4 and {tuple(roles) for _, roles in counter.forwards} == {(0, 0)}
    assert close(result, sample(model, kind, cfg=1.0, latent=networks.latent(kind, 2))) > 1e-3
    assert torch.equal(result, sample(counter.model, kind, cfg=1.0, latent=networks.latent(kind, 2)))


def test_a_samples_condition_does_not_depend_on_what_else_is_in_the_batch():
    model, two = icg(network("unet"), pool_of("unet")), networks.latent("unet", 2)
    both = sample(model, latent=two, cfg=1.0)
    assert close(sample(model, latent=two[:1], cfg=1.0), both[:1]) < 1e-6


def lengths(kind, *tokens):
    """A pool of prompts of these lengths."""
    return host.prompts([prompt for n in tokens for prompt in networks.conditioning(kind, n, tokens=n)], 0)


@pytest.mark.parametrize("kind", ["flux", "sd3", "wan"])
def test_prompts_of_unlike_lengths_are_not_changed_to_fit_those_of_other_samples(kind):
    model, four = icg(network(kind), lengths(kind, 20, 15, 8)), networks.latent(kind, 4)
    counter = Counter(model)
    together = run(guider_of(counter.model, *prompts(kind), 1.0), four, steps=2)
    assert max(counter.rows) == 2 and len(counter.rows) > 2  # some steps draw texts of several lengths
    same = icg(network(kind), Pool(seed=1))
    alone, in_four = (run(guider_of(same, *prompts(kind), 1.0), four[:n], steps=2)[:1] for n in (1, 4))
    floor = max(close(alone, in_four), torch.finfo(torch.float32).eps)
    for n in range(1, 4):
        alone = run(guider_of(model, *prompts(kind), 1.0), four[:n], steps=2)
        assert close(alone[n - 1 :], together[n - 1 : n]) <= 10 * floor


def test_each_step_draws_anew_and_the_evaluations_of_one_step_share_a_draw():
    pool = pool_of("unet", seeds=range(3, 40))
    drawn = []

    class Watched(Pool):
        def draw(self, seed, step, sample):
            drawn.append((step, sample))
            return super().draw(seed, step, sample)

    watched = Watched(pool.conditions)
    sample(icg(network("unet"), watched), sampler="heun", steps=5, latent=networks.latent("unet", 2))
    assert drawn == [(step, sample) for step in range(5) for sample in range(2)]


def test_texts_of_other_lengths_and_regional_prompts_work_and_the_users_areas_stay():
    model, (positive, negative) = network("unet"), prompts("unet")
    regional = in_area(positive, (8, 16, 0, 0)) + networks.conditioning("unet", 9)
    plain = Counter(model)
    sample(plain.model, conds=(regional, negative))
    for pool in (pool_of("unet", tokens=8), pool_of("unet"), Pool()):
        counter = Counter(icg(model, pool))
        assert sample(counter.model, conds=(regional, negative)).isfinite().all()
        assert sum(counter.rows) == sum(plain.rows) + 4


@pytest.mark.parametrize(("kind", "part"), [("unet", "cross_attn"), ("sdxl", "pooled_output")])
def test_texts_of_another_models_encoder_are_refused_by_name(kind, part):
    ((text, more),) = prompts(kind)[0]
    given = {"cross_attn": text, **more}
    given[part] = torch.cat([given[part], given[part]], -1)
    other = [given.pop("cross_attn"), given]
    model = icg(network(kind), host.prompts([[text, more], other], 0))
    with pytest.raises(ValueError, match=r"ICG: its texts have .* the text encoder of another model made them"):
        sample(model, kind, cfg=1.0)


def test_the_guider_and_the_patch_are_alike():
    model = icg(network("unet"), pool_of("unet"))
    guider = host.make_guider(model, prompts("unet")[0], None, 1.0)
    assert torch.equal(run(guider, networks.latent("unet")), sample(model, cfg=1.0))
