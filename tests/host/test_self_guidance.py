"""Self-Guidance on the host: against the whole network's own forward, whose model_sampling is changed to give another time.

That is the one place where the host makes the network's time of σ, so that x, σ and the input scalings stay.
"""

import copy
import logging

import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_api.torch_helpers.torch_compile import set_torch_compile_wrapper
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM
from pack.guiders import host
from pack.patches import ShiftedTime
from pack.tests.host import invented, networks
from pack.tests.host.harness import TERM_NODES, Counter, close, guider_of, network, prompts, run, sample, sigmas_of
from pack.tests.host.test_architectures import OURS, forward

SHIFT = 0.05
KINDS = ("unet", "unet as EDM", "sdxl", "sd3", "flux", "wan")


def made(kind: str):
    """(a small model, the kind of its conditionings)"""
    if kind != "unet as EDM":
        return network(kind), kind
    return ModelSamplingContinuousEDM().patch(network("unet"), "v_prediction", 120.0, 0.002)[0], "unet"


def other_time(sampling, shift: float):
    """The host's model_sampling with another time for each σ: t'."""
    other, time_of = copy.copy(sampling), sampling.timestep
    first, last = (float(time_of(sigma)) for sigma in (sampling.sigma_min, sampling.sigma_max))
    further = shift * (last - min(first, 0))
    other.timestep = lambda sigma: (time_of(sigma) + further).clamp(max=last)
    return other


def told_otherwise(model, shift=SHIFT):
    """A clone of a model whose network is told t' at σ."""
    model = model.clone()
    model.add_object_patch("model_sampling", other_time(model.get_model_object("model_sampling"), shift))
    return model


def guided(model, scale=2.0, **settings):
    return TERM_NODES["BeyondCFGSelfGuidance"].execute(
        model=model, scale=scale, start_percent=0.0, end_percent=1.0, **{"shift": SHIFT, **settings}
    )[0]


def prediction(model, kind: str, cfg: float, sigma: float, batch=2) -> torch.Tensor:
    """D at one x: what a step of Euler to σ = 0 gives."""
    latent = networks.latent(kind, batch)
    return run(guider_of(model, *prompts(kind), cfg), latent, sigmas=torch.tensor([sigma, 0.0]))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_it_moves_away_from_the_whole_networks_prediction_at_another_time(kind, cfg):
    model, conds = made(kind)
    sigma = sigmas_of(model, 4)[2].item()
    other = told_otherwise(model)
    plain, positive = prediction(model, conds, cfg, sigma), prediction(model, conds, 1.0, sigma)
    worse = prediction(other, conds, 1.0, sigma)
    assert close(worse, positive) > 1e-3
    expected = plain + 2.0 * (positive - worse)
    assert close(prediction(guided(model), conds, cfg, sigma), expected) < 2e-5


def test_at_full_noise_there_is_no_noisier_time():
    for kind in ("unet", "sd3", "flux", "wan"):
        model = network(kind)
        sigma = float(model.get_model_object("model_sampling").sigma_max)
        assert close(prediction(guided(model), kind, 4.0, sigma), prediction(model, kind, 4.0, sigma)) < 2e-6


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"shift": 0.0}])
def test_off_costs_nothing(settings):
    counter = Counter(guided(network("unet"), **settings))
    assert torch.equal(sample(counter.model, steps=2), sample(network("unet"), steps=2)) and counter.rows == [2, 2]


A_TIME_FOR_EACH_TOKEN = r"^Self-Guidance: the network is told a time for each frame or token here, \[6, \d+"
TIMES_OF_ALL_ROWS = r"^Self-Guidance: the network is told 2 times, one for the picture and one for the sound"
REFUSED = {
    "LTX-Video with keyframes": A_TIME_FOR_EACH_TOKEN,
    "LTX-Video with weaker keyframes": A_TIME_FOR_EACH_TOKEN,
    "Wan 2.2 5B": A_TIME_FOR_EACH_TOKEN,
    "Cosmos-Predict2 I2V": A_TIME_FOR_EACH_TOKEN,
    "LTX-2": TIMES_OF_ALL_ROWS,
    "LTX-2 without sound": TIMES_OF_ALL_ROWS,
    "LTX-2.3 with weaker keyframes": TIMES_OF_ALL_ROWS,
}


def test_every_network_of_the_table_is_told_it_in_its_own_rows_alone(specimen, model, monkeypatch):
    shifted = ShiftedTime(shift=SHIFT)
    if specimen.name in REFUSED:
        with pytest.raises(RuntimeError, match=REFUSED[specimen.name]):
            forward(specimen, model, shifted)
        return
    plain, out = forward(specimen, model), forward(specimen, model, shifted)
    monkeypatch.setitem(model.model._modules, "model_sampling", other_time(model.model.model_sampling, SHIFT))
    expected = forward(specimen, model)
    assert close(out[2:], plain[2:]) < 1e-5 and close(out[OURS], expected[OURS]) < 1e-5
    assert close(plain[OURS], expected[OURS]) > 1e-4
    assert "forward" not in vars(model.model.diffusion_model)


def test_rows_that_are_told_different_times_share_nothing(caplog):
    caplog.set_level(logging.INFO)
    model = guided(network("sd3"))
    shared, whole = sample(model, "sd3", steps=3), sample(host.with_options(model, "off"), "sd3", steps=3)
    assert close(shared, whole) < 1e-6 and "computed once" not in caplog.text


def test_a_network_that_does_not_run_is_an_error(monkeypatch):
    model = guided(network("unet"))
    monkeypatch.setattr(model.model, "_apply_model", lambda x, *args, **kwargs: x)
    with pytest.raises(RuntimeError, match=r"^Self-Guidance: the network did not run in the host's way in UNetModel"):
        sample(model, steps=1)


@pytest.mark.parametrize("name", invented.NETWORKS)
def test_a_network_that_no_table_has_is_told_it_too(name):
    model, conds = invented.model(name), prompts("unet")
    latent, sigmas = torch.zeros(invented.LATENT[name]), torch.tensor([sigmas_of(model, 4)[2].item(), 0.0])

    def predicted(model, copies=1):
        return run(guider_of(model, *conds, 1.0), torch.cat([latent] * copies), sigmas=sigmas)[:1]

    plain, worse, out = predicted(model), predicted(told_otherwise(model)), predicted(guided(model))
    floor = max(close(predicted(model, 2), plain), 2e-6)  # what a row beside another rounds to
    error = close(out, plain + 2.0 * (plain - worse))
    assert close(worse, plain) > 1e-3 and error < 4 * floor < 2e-3


@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_a_compiled_network_is_compiled_once(kind):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def pytorch_attention(func, *args, **kwargs):
        return attention_pytorch(*args, **kwargs)

    model = guided(network(kind))
    model.model_options["transformer_options"]["optimized_attention_override"] = pytorch_attention
    torch._dynamo.reset()
    eager = sample(model, kind, steps=3)
    set_torch_compile_wrapper(model, backend=backend)
    for graphs in (1, 0):
        compiled.clear()
        assert close(sample(model, kind, steps=3), eager) < 1e-6
        assert len(compiled) == graphs
