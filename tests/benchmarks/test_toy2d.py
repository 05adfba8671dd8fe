"""Data whose score is known: the mathematics of the toy, what its guidances do to it, and what its results say."""

import json
import math
import re

import pytest
import torch
from pack.benchmarks.toy2d import command, page
from pack.benchmarks.toy2d import study as toy2d
from pack.benchmarks.toy2d.mixtures import Mixture, both, clusters, follow, noise_levels, trees
from pack.benchmarks.toy2d.networks import (
    P_UNCOND,
    LogDensity,
    exact_batch,
    labelled_batch,
    networks_of,
    train,
    train_all,
)
from pack.benchmarks.toy2d.study import NEGATIVE, POSITIVE, ROOT, WEAK, Interval, Truth, autoguidance, cfg, guided
from safetensors.torch import load_file

RESULTS, WEIGHTS = ROOT / "benchmarks/results", ROOT / "benchmarks/results/toy2d.safetensors"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(mixture):
    return Mixture(mixture.weights.double(), mixture.means.double(), mixture.covariances.double())


@pytest.fixture(scope="module")
def truth():
    return Truth()


@pytest.fixture(scope="module")
def results():
    return json.loads((RESULTS / "toy2d.json").read_text("utf-8"))


# --------------------------------------------------------------------------------------------------------- the mixtures


def test_density_is_that_of_torch():
    mixture = double(clusters(3)[0])
    x = torch.randn(50, 2, generator=seeded(), dtype=torch.float64)
    for sigma in (0.0, 0.3):
        noise = sigma**2 * torch.eye(2, dtype=torch.float64)
        gaussians = torch.distributions.MultivariateNormal(mixture.means, mixture.covariances + noise)
        expected = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), gaussians)
        assert torch.allclose(mixture.log_density(x, sigma), expected.log_prob(x), atol=1e-9)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 3.0])
def test_score_is_the_gradient_of_the_density(sigma):
    mixture = double(trees()[0].mixture)
    x = (mixture.sample(300, seeded()) + sigma).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, sigma).sum(), x)
    score = mixture.score(x.detach(), sigma)
    assert torch.allclose(score, gradient, rtol=1e-6, atol=1e-6 / sigma)
    assert torch.allclose(mixture.denoised(x.detach(), sigma), x.detach() + sigma**2 * gradient, atol=1e-8)


def test_each_noise_level_of_a_batch_is_its_own():
    mixture, sigma = double(trees()[0].mixture), torch.tensor([0.01, 0.5, 2.0], dtype=torch.float64)
    x = mixture.sample(30, seeded()).view(3, 10, 2)
    for function in (mixture.score, mixture.denoised, mixture.log_density):
        apart = torch.stack([function(some, level.item()) for some, level in zip(x, sigma, strict=True)])
        assert torch.allclose(function(x, sigma), apart, rtol=1e-9, atol=1e-9)


def test_single_precision_is_enough_for_the_trees(truth):
    x = truth.points(500, 0)
    exact = double(truth.data)
    assert (truth.data.log_density(x) - exact.log_density(x.double())).abs().max() < 0.02
    assert (truth.data.denoised(x, 0.002) - exact.denoised(x.double(), 0.002)).abs().max() < 1e-5


def test_trees_are_those_of_the_paper(truth):
    """Mean 0 and standard deviation ½ of both together is what its root and stretch are there for."""
    mean, covariance = both(truth.a, truth.b).moments()
    assert mean.tolist() == pytest.approx([-0.0001, 0.0006], abs=1e-4)
    assert covariance.diagonal().sqrt().tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    assert len(truth.a.shares) == 127 and len(truth.data.weights) == 127 * 8
    assert truth.data.moments()[0].tolist() == pytest.approx([0.3719, 0.3646], abs=1e-4)


def test_points_have_the_mixtures_moments_and_few_are_outliers(truth):
    x = truth.points(40_000, 0)
    mean, covariance = truth.data.moments()
    assert (x.mean(0) - mean).abs().max() < 5 * 0.35 / 200
    assert (x.T.cov() - covariance).abs().max() < 0.005
    assert 0.010 < (truth.data.log_density(x) < truth.floor).double().mean() < 0.016
    measured = truth.measured(x[:4096], 0)
    assert measured["far"] == 0 and measured["sw1"] < 0.015 and measured["cov50"] > 0.85 and measured["other"] < 0.01


def test_classes_of_the_clusters_reach_into_each_other():
    classes = clusters()
    x = torch.cat([one.sample(500, seeded(number)) for number, one in enumerate(classes)])
    log_p = torch.stack([one.log_density(x) for one in classes], 1)
    right = (log_p.argmax(1) == torch.arange(len(classes)).repeat_interleave(500)).double().mean()
    assert 0.7 < right < 0.95


# -------------------------------------------------------------------------------------------- the sampler and the rules


def gaussian(mean, std):
    return Mixture.of([1], [[mean]], [[[std**2]]], torch.float64)


@pytest.mark.parametrize(("heun", "order"), [(True, 2), (False, 1)])
def test_the_samplers_error_is_of_its_order(heun, order):
    data, x = gaussian(0.7, 0.5), torch.tensor([[3.0], [-4.0]], dtype=torch.float64)
    denoise = guided({POSITIVE: data.denoised})
    carried = 0.7 + (x - 0.7) * 0.5 / math.hypot(0.5, 5.0)
    errors = [(follow(denoise, x, noise_levels(steps), heun) - carried).abs().max() for steps in (64, 128)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_cfg_of_two_gaussians_narrows_by_the_product_of_their_powers():
    x = torch.tensor([[3.0], [-4.0]], dtype=torch.float64)
    networks = {POSITIVE: gaussian(0, 0.5).denoised, NEGATIVE: gaussian(0, 1.0).denoised}
    end = follow(guided(networks, cfg(3)), x, noise_levels(256))
    narrow, wide = (std / math.hypot(std, 5.0) for std in (0.5, 1.0))
    assert torch.allclose(end, x * narrow**3 / wide**2, rtol=2e-3)


def test_a_guidance_is_asked_for_its_network_in_its_interval_alone_and_for_whole_steps():
    asked = []

    def network(name):
        return lambda x, sigma: asked.append((name, sigma)) or x / (1 + sigma**2)

    sigmas, x = noise_levels(8), torch.ones(1, 1)
    follow(guided({POSITIVE: network("+"), NEGATIVE: network("-")}, cfg(2, Interval(0.05, 0.7))), x, sigmas)
    begins = [at for at, sigma in enumerate(sigmas) if 0.05 < sigma <= 0.7]
    assert [sigma for name, sigma in asked if name == "-"] == [s for at in begins for s in (sigmas[at], sigmas[at + 1])]
    asked.clear()
    follow(guided({POSITIVE: network("+")}, cfg(1), autoguidance(1)), x, sigmas)
    assert len(asked) == 2 * 8 - 1


def test_exact_networks_that_see_too_much_noise_guide_each_other_back(truth):
    """The paper's input noise without training: D(x; 1.1σ), too narrow, guided by D(x; 1.2σ), narrower still."""
    start = truth.points(1024, 1) + 5 * torch.randn(1024, 2, generator=seeded())
    levels = noise_levels(32)
    exact = follow(guided({POSITIVE: truth.data.denoised}), start, levels)
    networks = {
        POSITIVE: lambda x, sigma: truth.data.denoised(x, 1.1 * sigma),
        WEAK: lambda x, sigma: truth.data.denoised(x, 1.2 * sigma),
    }
    ends = {w: follow(guided(networks, autoguidance(w)), start, levels) for w in (1, 2)}
    away = {w: toy2d.sliced_wasserstein(end, exact) for w, end in ends.items()}
    width = {w: (end.var(0).mean() / exact.var(0).mean()).sqrt() for w, end in ends.items()}
    assert width[1] < 0.95 and abs(width[2] - 1) < 0.015
    assert away[1] > 0.015 and away[2] < 0.25 * away[1], (away, width)
    assert truth.measured(ends[2], 1)["out"] < 0.025


# --------------------------------------------------------------------------------------------- the figures' closed forms


def test_cfg_everywhere_empties_a_mode_that_the_other_class_has_and_an_interval_does_not():
    share = toy2d.interval_results()
    assert [share[f"w = {w}"] for w in (2, 4, 6)] == pytest.approx([0.325, 0.041, 0.0], abs=0.005)
    assert share["no guidance"] == pytest.approx(0.51, abs=0.005)
    assert share["w = 6, σ in (0.1, 0.6]"] == pytest.approx(0.495, abs=0.005)
    assert share["w = 6, σ in (0, 0.6]"] == pytest.approx(0.495, abs=0.005)
    assert share["w = 6, σ in (0.1, ∞]"] < 0.001


@pytest.mark.parametrize("w", [0, 1, 4])
def test_the_papers_density_has_cfgs_score_at_each_noise_level(w):
    classes = toy2d.triangle()
    every = Mixture.together(classes, [1, 1, 1])
    x = torch.randn(20, 2, generator=seeded(), dtype=torch.float64).requires_grad_()
    for sigma in (0.1, 2.0):
        (gradient,) = torch.autograd.grad(toy2d.tilted(classes, 1, w, x, sigma).sum(), x)
        denoise = guided({POSITIVE: classes[1].denoised, NEGATIVE: every.denoised}, cfg(1 + w))
        score = (denoise(x.detach(), sigma, sigma, 0) - x.detach()) / sigma**2
        assert torch.allclose(score, gradient, atol=1e-9)


def test_the_papers_density_is_the_data_without_guidance_and_moves_less_than_the_points_that_cfg_samples():
    points, density = toy2d.tilted_grid(0)
    top = toy2d.triangle()[0].log_density(points).softmax(0)
    assert torch.allclose(density[0], top, atol=1e-12)
    found = toy2d.triangle_results()
    assert found["0"]["density_mean"] == pytest.approx(1, abs=2e-3)
    assert found["0"]["density_std"] == pytest.approx(0.6, abs=2e-3)
    assert found["0"]["sampled_std"] == pytest.approx(0.6, abs=0.04)
    means = [[found[f"{w}"][name] for w in toy2d.TRIANGLE_W] for name in ("density_mean", "sampled_mean")]
    assert all(sorted(each) == each for each in means) and means[1][-1] > means[0][-1] + 0.5


# --------------------------------------------------------------------------------------------------------- the networks


def test_the_networks_score_is_the_slope_of_its_log_density_whatever_the_length_of_its_rows():
    network = LogDensity(16, seeded(), classes=3).double().requires_grad_(False)
    network.gain.fill_(0.7)
    x, label, step = torch.randn(9, 2, generator=seeded(1)).double(), torch.eye(3).double().repeat(3, 1), 1e-5
    score = network.score(x, 0.3, label)
    for axis in range(2):
        move = step * torch.eye(2)[axis].double()
        slope = (network(x + move, 0.3, label) - network(x - move, 0.3, label)) / (2 * step)
        assert torch.allclose(score[:, axis], slope, atol=1e-7)
    assert torch.allclose(network.denoised(x, 0.3, label), x + 0.09 * score)
    network.weights[1].mul_(5.0)
    assert torch.allclose(network.score(x, 0.3, label), score)
    assert not torch.allclose(network.score(x, 0.3, label.roll(1, 0)), score)


def test_without_a_gain_the_network_knows_a_gaussian():
    network = LogDensity(8, seeded())
    x = torch.randn(5, 2, generator=seeded())
    assert torch.allclose(network.score(x, 0.3), -x / (0.25 + 0.09))


def test_degradations_of_nothing_change_nothing_and_others_draw_anew():
    network, x = LogDensity(16, seeded()).requires_grad_(False), torch.randn(6, 2, generator=seeded())
    network.gain.fill_(0.5)
    for worse in (toy2d.noisier, toy2d.lossy):
        assert torch.equal(worse(network, 0.0, seeded())(x, 0.3), network.denoised(x, 0.3))
        denoised = worse(network, 0.2, seeded())
        assert not torch.equal(denoised(x, 0.3), denoised(x, 0.3))


def test_input_noise_is_what_the_raised_level_says(monkeypatch):
    network, seen = LogDensity(4, seeded()), []
    monkeypatch.setattr(network, "denoised", lambda x, sigma: seen.append((x, sigma)))
    toy2d.noisier(network, 0.2, seeded())(torch.zeros(20_000, 2), 0.5)
    ((x, sigma),) = seen
    assert sigma == pytest.approx(0.6) and x.std().item() == pytest.approx(math.sqrt(0.6**2 - 0.5**2), rel=0.02)


def test_a_batch_without_some_of_its_classes_teaches_the_same_score():
    classes = clusters()
    x, sigma, label, target = labelled_batch(classes, 0.25, 32, 64)(seeded())
    assert x.shape == target.shape == (32, 64, 2) and label.shape == (32, 64, 8)
    assert set(label.sum(-1).unique().tolist()) == {0.0, 1.0}
    assert (label.sum(-1) == 0).double().mean() == pytest.approx(0.25, abs=0.04)
    for at in (16, 31):  # where noise hides the class, the pulls' mean is the score of all
        pull, score = target[at], Mixture.together(classes, [1] * 8).score(x[at], sigma[at].item())
        assert (pull - score).mean(0).abs().max() < 4 * (pull - score).std(0).max() / 8


def test_training_learns_and_is_the_same_for_the_same_seed():
    data = clusters(2)[0]

    def trained():
        generator = seeded(3)
        return train(LogDensity(16, generator), exact_batch(data, 32, 8), {10: "early", 40: "late"}, generator)

    kept, loss = trained()
    again, _ = trained()
    assert list(kept) == ["early", "late"]
    assert all(torch.equal(value, again["late"][name]) for name, value in kept["late"].items())
    x, sigma, _, target = exact_batch(data, 32, 8)(seeded(9))

    def error(network):
        return (sigma[:, None, None] ** 2 * (network.score(x, sigma[:, None, None]) - target).square()).sum(-1).mean()

    untrained, early, late = (
        error(LogDensity(16, seeded())), error(LogDensity.of(kept["early"])), error(LogDensity.of(kept["late"]))
    )  # fmt: skip
    assert late < early < untrained and loss < untrained


def test_trained_networks_are_found_again_by_seed_and_name():
    tensors = train_all([4], faster=512)
    networks = networks_of(tensors, 4)
    assert {*networks} == {"unconditional", "weak", "early", "main", *(f"clusters {p}" for p in P_UNCOND)}
    assert torch.equal(networks["main"].gain, tensors["4/main/gain"].float())
    with pytest.raises(KeyError, match="seed 5"):
        networks_of(tensors, 5)


# ---------------------------------------------------------------------------------------------------- what it all shows


@pytest.mark.parametrize("seed", toy2d.SEEDS)
def test_the_shipped_networks_show_it_again_with_few_points(seed, truth):
    study = toy2d.TreeStudy(seed, networks_of(load_file(WEIGHTS), seed), truth, points=512)
    runs = {run.name: run for run in toy2d.TREE_RUNS}
    none = study.sample(runs["no guidance"])
    assert torch.equal(study.sample(runs["autoguidance by itself, w = 3"]), none)
    better = study.sample(runs["autoguidance, w = 2"])
    assert truth.measured(better, seed)["out"] < truth.measured(none, seed)["out"]
    far = study.sample(runs["CFG, w = 4"])
    assert (far.mean(0) - none.mean(0)).norm() > 0.2 and truth.measured(far, seed)["other"] == 0


@pytest.mark.parametrize("statement", page.HOLD, ids=lambda statement: statement.text)
def test_what_the_page_says_holds_of_every_seed(statement, results):
    assert len(statement.values(results)) == len(toy2d.SEEDS) and statement.holds(results)


@pytest.mark.parametrize("statement", page.FAIL, ids=lambda statement: statement.text)
def test_what_the_page_says_does_not_hold_of_every_seed_does_not(statement, results):
    assert not statement.holds(results)


def test_results_record_what_made_them(results):
    assert results["run"]["seeds"] == list(toy2d.SEEDS)
    assert results["run"]["command"].startswith("python benchmarks/toy2d.py")
    assert {"time", "commit", "machine", "torch", "python", "networks"} <= {*results["run"]}
    for seed in toy2d.SEEDS:
        assert {run.name for run in toy2d.TREE_RUNS} < {*results["tree"][f"{seed}"]}
        assert {run.name for run in toy2d.DEGRADED_RUNS} < {*results["degraded"][f"{seed}"]}


def test_the_page_is_in_step_with_the_numbers_and_its_figures_are_there(results):
    text = (RESULTS / "toy2d.md").read_text("utf-8")
    assert text == page.page(results)
    assert all((RESULTS / name).stat().st_size < 300_000 for name in re.findall(r"!\[\]\((.*?)\)", text))


def test_a_quick_run_writes_all_of_it(tmp_path):
    assert command.main(["--quick", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "toy2d.md").read_text("utf-8")
    assert all((tmp_path / name).exists() for name in re.findall(r"!\[\]\((.*?)\)", page))
    (tmp_path / "toy2d.md").unlink()
    assert command.main(["--only-page", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "toy2d.md").read_text("utf-8") == page
