"""What the pack's corrections give is what the host's nodes give, where both do the same thing."""

import inspect
import types

import comfy.model_sampling
import comfy.samplers
import comfy_extras.nodes_post_processing  # and by it nodes_latent, which cannot be imported first
import pytest
import torch
from comfy_extras.nodes_cfg import CFGNorm
from comfy_extras.nodes_eps import EpsilonScaling as HostEpsilonScaling
from comfy_extras.nodes_eps import TemporalScoreRescaling as HostTemporalScoreRescaling
from comfy_extras.nodes_lumina2 import RenormCFG
from pack.guiders import EpsilonScaling, NormCap, TemporalScoreRescaling, Tonemap
from pack.guiders.base import NEGATIVE, POSITIVE, GuidanceRule, Step
from pack.tests.toy import Gaussian, Mixture

SIGMA = 0.6
POSITIVE_AT, NEGATIVE_AT = Gaussian(1.0, 0.5), Mixture((-1.0, 0.5), 0.7)


class Patched:
    """A MODEL that only remembers what a node of the host puts on it."""

    def __init__(self, sampling=None, channels: int = 4):
        self.options: dict = {}
        self.model = types.SimpleNamespace(diffusion_model=types.SimpleNamespace(in_channels=channels))
        self.current_patcher = types.SimpleNamespace(get_model_object=lambda name: sampling)

    def clone(self):
        return self

    def set_model_sampler_cfg_function(self, function):
        self.options["sampler_cfg_function"] = function

    def set_model_sampler_post_cfg_function(self, function):
        self.options["sampler_post_cfg_function"] = [function]


def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return POSITIVE_AT(x, SIGMA), NEGATIVE_AT(x, SIGMA)


def theirs(node, x: torch.Tensor, cfg: float, *settings, sampling=None) -> torch.Tensor:
    """CFG by the host's own function, with a node of the host on the model."""
    model = Patched(sampling, x.shape[1])
    node.execute(model, *settings)
    sigma = torch.full((x.shape[0],), SIGMA, dtype=x.dtype)
    return comfy.samplers.cfg_function(model, *both(x), cfg, x, sigma, model.options)


def ours(rule: GuidanceRule, x: torch.Tensor, cfg: float, **about) -> torch.Tensor:
    positive, negative = both(x)
    step = Step(x, SIGMA, SIGMA, cfg=cfg, **about)
    return rule.begin()(negative + (positive - negative) * cfg, {POSITIVE: positive, NEGATIVE: negative}, step)


def latent(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("cfg", [1.5, 4.0, 12.0])
def test_a_norm_cap_per_position_is_the_hosts_cfg_norm_in_any_batch(cfg):
    x = latent(3)
    found = ours(NormCap(norm="position"), x, cfg)
    torch.testing.assert_close(found, theirs(CFGNorm, x, cfg, 1.0), rtol=0, atol=1e-7)  # theirs adds 1e-8 to a length


@pytest.mark.skipif("pre_cfg" not in inspect.signature(CFGNorm.execute).parameters, reason="this host has no pre_cfg")
@pytest.mark.parametrize("cfg", [1.5, 4.0, 12.0])
def test_of_the_velocity_it_is_the_hosts_cfg_norm_before_cfg_where_that_shortens(cfg):
    x, (positive, negative) = latent(3), both(latent(3))
    guided = negative + (positive - negative) * cfg
    longer = (x - guided).norm(dim=1, keepdim=True) > (x - positive).norm(dim=1, keepdim=True)
    assert longer.any()
    expected = torch.where(longer, theirs(CFGNorm, x, cfg, 1.0, True), guided)
    torch.testing.assert_close(ours(NormCap(norm="position", of="velocity"), x, cfg), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("cfg", [1.5, 4.0, 12.0])
@pytest.mark.parametrize("ratio", [1.0, 1.2])
def test_a_norm_cap_of_the_whole_is_the_hosts_renorm_cfg_of_each_sample_alone(cfg, ratio):
    x = latent(3)
    found = ours(NormCap(ratio=ratio), x, cfg)
    for row in range(3):
        one = x[row : row + 1]
        expected = theirs(RenormCFG, one, cfg, 100.0, ratio)
        torch.testing.assert_close(found[row : row + 1], expected, rtol=0, atol=1e-14)


def test_the_hosts_renorm_cfg_has_no_answer_for_two_samples():
    with pytest.raises(RuntimeError, match="ambiguous"):
        theirs(RenormCFG, latent(2), 4.0, 100.0, 1.0)


@pytest.mark.parametrize("signal", [1.0, 1 - SIGMA], ids=["diffusion", "flow"])
def test_epsilon_scaling_is_the_hosts_for_every_network(signal):
    x = latent(3)
    found = ours(EpsilonScaling(1.02), x, 4.0, signal=signal)
    torch.testing.assert_close(found, theirs(HostEpsilonScaling, x, 4.0, 1.02), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("k", "spread"), [(0.95, 1.0), (0.93, 3.0), (4.0, 0.5)])
@pytest.mark.parametrize("flow", [False, True], ids=["diffusion", "flow"])
def test_temporal_score_rescaling_is_the_hosts_for_one_sample(flow, k, spread):
    sampling = (comfy.model_sampling.CONST if flow else comfy.model_sampling.EPS)()
    x = latent()
    found = ours(TemporalScoreRescaling(k, spread), x, 4.0, signal=1 - SIGMA if flow else 1.0)
    expected = theirs(HostTemporalScoreRescaling, x, 4.0, k, spread, sampling=sampling)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 4.0])
def test_a_tonemap_is_the_hosts_reinhard_of_the_direction_so_far(multiplier):
    x, (positive, negative) = latent(3), both(latent(3))
    operation = comfy_extras.nodes_latent.LatentOperationTonemapReinhard.execute(multiplier)[0]
    found = ours(Tonemap(multiplier=multiplier), x, 7.0)
    mapped = operation(latent=positive - negative)
    torch.testing.assert_close(found, positive + 6 * mapped, rtol=0, atol=1e-8)  # theirs adds 1e-10 to a length
    theirs = negative + 7 * mapped  # of LatentApplyOperationCFG: the positive is nearer to the negative, too
    torch.testing.assert_close(found - theirs, positive - negative - mapped, rtol=0, atol=1e-8)
