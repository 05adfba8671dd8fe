"""Layer Probe on small networks: what it measures is what single nodes do, and sampling is what it is without it."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from pack.guiders.base import Branch
from pack.guiders.host import Term, add_term, with_recorder
from pack.guiders.host.distillation import Sampling
from pack.guiders.host.layer_probe import probe_layers
from pack.guiders.host.measured import measured_for
from pack.guiders.host.recorder import Recorder
from pack.guiders.layer_probe import Findings
from pack.guiders.layer_probe import LayerProbe as Rule
from pack.guiders.perturbation import PerturbationGuidance
from pack.guiders.schedule import Schedule
from pack.nodes.layer_probe import LayerProbe
from pack.nodes.terms import LAYERED
from pack.patches import BlurredQuery, IdentityAttention, SkippedLayer
from pack.patches.host import KEY, select_layers
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, pag, prompts, rounding, sample, shared_network, sigmas_of

ALL = ("unet", "sdxl", "sd3", "flux", "wan")
KINDS = pytest.mark.parametrize("kind", ALL)
STEPS, SEED = 3, 11


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The host's user folder, and where its nodes put pictures."""
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    return tmp_path


def given(kind: str, model, **changes) -> dict:
    """The inputs of the node, each as one value."""
    values = {item.id: item.default for item in LayerProbe.inputs if getattr(item, "default", None) is not None}
    values |= {
        "model": model, "positive": [networks.conditioning(kind, 1)], "latent": {"samples": networks.latent(kind)},
        "sampler": comfy.samplers.sampler_object("euler"), "sigmas": sigmas_of(model, STEPS), "seed": SEED,
        "pictures": 1,
    }  # fmt: skip
    return values | changes


def run(kind: str, model, **changes):
    """What the node gives, called as the host calls it."""
    values = {name: value if name == "positive" else [value] for name, value in given(kind, model, **changes).items()}
    return LayerProbe.execute(**values).result


def rule_on(model, kind: str, method=IdentityAttention, negative=True):
    """(a clone of MODEL that is measured in all layers, what is found, the layers)"""
    layers = select_layers(model, "all", skip=method is SkippedLayer)
    found = Findings()
    rule = Rule(tuple(Branch(perturbation=method(layers=(layer,))) for layer in layers), negative, found)
    return add_term(model, Term(rule, Schedule(), "Layer Probe")), found, layers


def probed(kind: str, model, method=IdentityAttention, steps=1, samples=1, cfg=1.0, negative=None):
    """What the host's side finds in all layers of `model`."""
    layers = select_layers(model, "all", skip=method is SkippedLayer)
    rows = [(str(layer), method(layers=(layer,))) for layer in layers]
    sampling = Sampling(comfy.samplers.sampler_object("euler"), sigmas_of(model, steps), cfg, negative, SEED)
    latent = networks.latent(kind).repeat(samples, *[1] * (networks.latent(kind).ndim - 1))
    return layers, probe_layers(model, [networks.conditioning(kind, 1)], latent, samples, sampling, rows, "Layer Probe")


# ------------------------------------------------------------------------------------------------------- what it measures


@KINDS
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_sampling_with_the_probe_is_sampling_without_it(kind, cfg):
    """But for the rounding that the size of a batch brings, which is measured here."""
    model = shared_network(kind)
    on, found, layers = rule_on(model, kind)
    with_it, without = sample(on, kind, cfg, steps=STEPS), sample(model, kind, cfg, steps=STEPS)
    assert close(with_it, without) <= 4 * rounding(model, kind, cfg, steps=STEPS) + 1e-12
    assert len(found.runs) == 1 and len(found.runs[0]) == STEPS
    assert found.measures([*map(str, layers)]).moved.shape == (len(layers), 1)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, method) for kind in ALL for method in (IdentityAttention, BlurredQuery)),
        *((kind, SkippedLayer) for kind in ALL if kind not in ("unet", "sdxl")),  # whose layers cannot be skipped
    ],
)
def test_each_direction_is_that_of_the_single_node_in_that_layer(kind, method):
    """A sampling of one step gives the prediction itself, so a node of scale 1 shows its direction in the picture."""
    model = shared_network(kind)
    layers, found = probed(kind, model, method)
    latents = found.towards([1.0] * len(layers))
    noise = comfy.sample.prepare_noise(networks.latent(kind), SEED)

    def picture(on) -> torch.Tensor:
        guider = comfy.samplers.CFGGuider(on)
        guider.inner_set_conds({"positive": networks.conditioning(kind, 1)})
        guider.set_cfg(1.0)
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, networks.latent(kind), euler, sigmas_of(on, 1), disable_pbar=True, seed=SEED)

    assert close(latents[:1], picture(model)) < 1e-5
    for layer, latent in zip(layers, latents[1:], strict=True):
        rule = PerturbationGuidance(1.0, method(layers=(layer,)))
        guided = picture(add_term(model, Term(rule, Schedule(), "one")))
        assert close(latent, guided[0]) < 1e-5, layer


@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_a_sample_alone_is_measured_as_it_is_in_a_batch(kind):
    model = shared_network(kind)
    (layers, alone), (_, together) = (probed(kind, model, steps=STEPS, samples=count) for count in (1, 3))
    one, all_of_them = alone.measures, together.measures
    assert all_of_them.moved.shape == (len(layers), 3)
    for name in ("moved", "fine", "ahead"):
        assert torch.allclose(getattr(one, name)[:, 0], getattr(all_of_them, name)[:, 0], rtol=1e-3, atol=1e-5), name
    assert close(alone.positive, together.positive) < 1e-5


def test_the_measures_are_what_their_formulas_say():
    """Computed here once more, of predictions by separate samplings of one step."""
    kind = "sd3"
    model = shared_network(kind)
    negative = networks.conditioning(kind, 2)
    layers, found = probed(kind, model, negative=negative)
    measures = found.measures
    noise, latent, euler = comfy.sample.prepare_noise(networks.latent(kind), SEED), networks.latent(kind), "euler"

    def prediction(on, prompt) -> torch.Tensor:
        guider = comfy.samplers.CFGGuider(on)
        guider.inner_set_conds({"positive": prompt})
        guider.set_cfg(1.0)
        sampler = comfy.samplers.sampler_object(euler)
        made = guider.sample(noise, latent, sampler, sigmas_of(on, 1), disable_pbar=True, seed=SEED)
        return model.model.process_latent_in(made).double()

    clean = prediction(model, networks.conditioning(kind, 1))
    cfg = clean - prediction(model, negative)
    for at, layer in enumerate(layers):
        way = prediction(pag(model, 1.0, str(layer)), networks.conditioning(kind, 1)) - clean
        cosine = (way * cfg).sum() / (way.norm() * cfg.norm())
        assert measures.moved[at, 0].item() == pytest.approx((way.norm() / clean.norm()).item(), rel=1e-3)
        assert measures.to_cfg[at, 0].item() == pytest.approx(cosine.item(), abs=1e-3)
        assert measures.effective_cfg[at, 0].item() == pytest.approx(
            ((way * cfg).sum() / (cfg * cfg).sum()).item(), rel=1e-2, abs=1e-4
        )
    assert torch.allclose(measures.alike.diagonal(), torch.ones(len(layers), dtype=torch.float64), atol=1e-6)
    assert ((measures.fine >= 0) & (measures.fine <= 1)).all()


@KINDS
def test_all_layers_are_rows_of_one_call_in_each_step(kind):
    counter = Counter(shared_network(kind))
    layers, _ = probed(kind, counter.model, steps=STEPS, cfg=4.0, negative=networks.conditioning(kind, 2))
    assert counter.rows == [2 + len(layers)] * STEPS


def test_two_runs_are_equal_and_another_seed_is_another():
    model = shared_network("unet")
    one, same, other = (run("unet", model, seed=seed, keep=False) for seed in (1, 1, 2))
    assert torch.equal(one[0], same[0]) and one[1:4] == same[1:4]
    assert torch.equal(one[4]["samples"], same[4]["samples"])
    assert not torch.equal(one[4]["samples"], other[4]["samples"])


# ------------------------------------------------------------------------------------------------------------ the node


@pytest.mark.parametrize("kind", ["unet", "flux"])
@pytest.mark.parametrize("guidance", list(LAYERED))
def test_every_guidance_in_layers_can_be_probed(kind, guidance):
    model = shared_network(kind)
    if kind in ("unet", "sdxl") and "Skip" in guidance:
        with pytest.raises(ValueError, match="Layer Probe: no layer of Stable Diffusion 1, 2, XL, SVD can be skipped"):
            run(kind, model, guidance=guidance)
        return
    picture, layers, scale, reason, predictions = run(kind, model, guidance=guidance)
    assert picture.shape[0] == 1 and picture.shape[-1] == 3 and reason and scale > 0
    assert select_layers(model, layers)
    assert predictions["samples"].shape[0] > 2


def test_heads_that_are_named_are_measured_one_by_one():
    model = shared_network("flux")
    *_, predictions = run("flux", model, layers="single.1:h0,h1, double.0", keep=False)
    assert len(predictions["samples"]) == 1 + 3 + 1  # as it is, double.0 and two heads, auto


def test_other_guidances_on_the_model_act_and_the_model_stays_as_it_was():
    """Guidance Recorder does not hear the probe's run."""
    recorder = Recorder()
    model = with_recorder(pag(shared_network("unet"), 3.0), recorder)
    before = dict(model.model_options)
    guided = run("unet", model, keep=False)[4]["samples"]
    plain = run("unet", shared_network("unet"), keep=False)[4]["samples"]
    assert close(guided[0], plain[0]) > 1e-3  # far more than rounding
    assert model.model_options == before and not recorder.calls
    assert [term.node for term in model.model_options[KEY]] == ["PAG"]


def test_a_vae_shows_what_each_layer_guides_towards():
    class Vae:
        first_stage_model, latent_channels = None, 4

        def decode(self, latent):
            return latent[:, :3].movedim(1, -1).clamp(0, 1)

    model = shared_network("unet")
    plain, with_vae = (run("unet", model, keep=False, **more)[0] for more in ({}, {"vae": Vae()}))
    assert with_vae.shape[1] > plain.shape[1]
    assert torch.equal(with_vae[:, : plain.shape[1], : plain.shape[2]], plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cfg": 4.0}, "cfg is 4 but no negative is connected; connect one, or set cfg to 1 (no CFG)"),
        ({"layers": "input.99"}, 'layers "input.99": there is no "input.99".'),
        ({"layers": ""}, 'layers "": cannot read ""'),
        ({"layers": "middle:h99"}, "PAG: middle has no head h99. It has 4 heads, h0 to h3."),
        ({"guidance": "Nothing"}, 'guidance is "Nothing"; it must be one of PAG, SEG'),
        ({"positive": [[]]}, "positive has no prompt; connect one at least"),
        ({"positive": [prompts("unet")[0] * 3]}, "pictures is 1 and positive has 3 prompts; each needs one at least"),
        ({"model": "unknown"}, "BaseModel (Linear) is not supported"),
        ({"guidance": "Skip Layer"}, "no layer of Stable Diffusion 1, 2, XL, SVD can be skipped"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(changes, message):
    model = networks.unknown() if "model" in changes else shared_network("unet")
    with pytest.raises(ValueError) as error:
        run("unet", model, **{key: value for key, value in changes.items() if key != "model"})
    assert str(error.value).startswith(f"Layer Probe: {message}")


def test_cancel_ends_it_and_leaves_nothing_on_the_model():
    model = shared_network("unet")
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run("unet", model)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert not model.model_options.get(KEY) and measured_for(model) is None
