"""Rules that are in the host too: equal where the formula is the same, else the difference is what their docstring says.

The host's own functions are called, on predictions that are known exactly.
"""

import pytest
import torch
from comfy_extras.nodes_cfg import CFGZeroStar
from comfy_extras.nodes_fresca import FreSca
from comfy_extras.nodes_mahiro import Mahiro as HostsMahiro
from comfy_extras.nodes_tcfg import TCFG
from pack.guiders import ClassifierFreeGuidance, FrequencyDecoupled, Mahiro, TangentialCFG, ZeroStar
from pack.guiders.base import NEGATIVE, POSITIVE, GuidanceRule, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.linalg import dot
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy

CFG, SIGMA = 6.0, 0.7
DENOISERS = {POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7)}


class Caught:
    """A model that keeps the function which a node gives it."""

    def clone(self):
        return self

    def set_model_sampler_post_cfg_function(self, function, **_):
        self.post_cfg = function

    def set_model_sampler_pre_cfg_function(self, function, **_):
        self.pre_cfg = function


def x_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def theirs(node, x: torch.Tensor, *settings) -> torch.Tensor:
    """What the sampler makes of the predictions at x, with the host's node on the model."""
    model = Caught()
    node.execute(model, *settings)
    conds = [DENOISERS[branch](x, SIGMA) for branch in (POSITIVE, NEGATIVE)]
    if hasattr(model, "pre_cfg"):
        conds = model.pre_cfg({"input": x, "conds_out": conds, "conds": ["positive", "negative"]})
    denoised = conds[1] + CFG * (conds[0] - conds[1])
    if not hasattr(model, "post_cfg"):
        return denoised
    given = {"cond_denoised": conds[0], "uncond_denoised": conds[1], "denoised": denoised}
    return model.post_cfg({"input": x, "cond_scale": CFG, "sigma": torch.tensor([SIGMA]), **given})


def ours(rule: GuidanceRule, x: torch.Tensor) -> torch.Tensor:
    run = GuidanceRun([(ClassifierFreeGuidance(CFG), Interval()), (rule, Interval())])
    return run(Step(x, SIGMA, SIGMA, index=5, time=0.5, signal=1 - SIGMA, cfg=CFG), Toy(DENOISERS))


def moved(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x − D₊ and x − D₋: the velocities times σ."""
    positive, negative = (x - DENOISERS[branch](x, SIGMA) for branch in (POSITIVE, NEGATIVE))
    return positive, negative


def test_the_hosts_cfg_zero_star_lacks_what_is_of_x():
    """It scales x₀ where the paper scales the velocity: (1 − w)(1 − α) x is what it lacks."""
    x = x_of(3, 4, 6, 5)
    positive, negative = moved(x)
    alpha = dot(positive, negative) / dot(negative, negative)
    lacking = (1 - CFG) * (1 - alpha) * x
    assert lacking.abs().max() > 0.1
    added = (
        1e-8 * (CFG - 1) * (alpha * (x - negative) / dot(negative, negative)).abs().max()
    )  # to ‖x − D₋‖², by the host
    torch.testing.assert_close(ours(ZeroStar(), x) - theirs(CFGZeroStar, x), lacking, rtol=0, atol=1.01 * added.item())


def test_tangential_cfg_is_the_hosts_tcfg():
    x = x_of(3, 4, 6, 5)
    assert (ours(TangentialCFG(), x) - ours(TangentialCFG(0.0), x)).abs().max() > 0.1
    # theirs is in float32, and a factor on (1 − w)(x − D₋)
    torch.testing.assert_close(ours(TangentialCFG(), x), theirs(TCFG, x), rtol=0, atol=(CFG - 1) * 1e-6)


@pytest.mark.parametrize("spatial", [(24, 32), (15, 33), (2, 24, 31)], ids=str)
@pytest.mark.parametrize("cutoff", [3, 20])
def test_frequency_decoupled_by_fourier_is_the_hosts_fresca(spatial, cutoff):
    """Theirs are factors on w (D₊ − D₋), ours on (w − 1)(D₊ − D₋)."""
    x, low, high = x_of(2, 4, *spatial), 0.75, 1.5
    factors = {"low": (low * CFG - 1) / (CFG - 1), "high": (high * CFG - 1) / (CFG - 1)}
    rule = FrequencyDecoupled(**factors, bands="fourier", cutoff=cutoff)
    expected = theirs(FreSca, x, low, high, cutoff)
    assert (expected - ours(FrequencyDecoupled(1.0, 1.0), x)).abs().max() > 0.1
    # theirs is in float32, of numbers up to 20
    torch.testing.assert_close(ours(rule, x), expected, rtol=0, atol=20 * 1e-6)


def test_mahiro_of_one_sample_is_the_hosts():
    x = x_of(1, 4, 6, 5)
    assert (ours(Mahiro(), x) - ours(Mahiro(0.0), x)).abs().max() > 0.1
    torch.testing.assert_close(ours(Mahiro(), x), theirs(HostsMahiro, x), rtol=0, atol=1e-14)


def test_mahiro_of_the_host_lets_samples_change_each_other_and_ours_does_not():
    x = x_of(3, 4, 6, 5)
    x[1] *= 3
    alone = torch.cat([theirs(HostsMahiro, row) for row in x.split(1)])
    torch.testing.assert_close(ours(Mahiro(), x), alone, rtol=0, atol=1e-14)
    assert (theirs(HostsMahiro, x) - alone).abs().amax((1, 2, 3)).min() > 0.01
