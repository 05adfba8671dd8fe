"""Classifier guidance through the host: its own CLIP vision with random weights, its VAEs, and heads made here; and
networks of noisy latents, random or trained here."""

import gc
import math
import os
import weakref
from pathlib import Path
from types import SimpleNamespace

import comfy.clip_vision
import comfy.ldm.models.autoencoder
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from pack.guiders.base import Step
from pack.guiders.classifier import gradient
from pack.guiders.host import KEY
from pack.guiders.host import classifiers as host
from pack.guiders.host.classifiers import heads, latents
from pack.guiders.noisy_network import NoisyNetwork
from pack.nodes.classifier import NODES
from pack.tests.host import networks
from pack.tests.host.classifiers import LABELS, clip_vision, guided, save, save_tensors, whole_vae
from pack.tests.host.harness import Counter, close, network, noise_like, pag, sample

ClassifierGuidance, NoiseAwareClassifierGuidance = NODES

CHECKPOINTS = os.environ.get("BEYOND_CFG_MODELS")
needs_models = pytest.mark.skipif(not CHECKPOINTS, reason="BEYOND_CFG_MODELS is not set")


def parts(name: str = "tiny_sd15.ckpt"):
    """(CLIP, VAE) of a checkpoint."""
    loaded = comfy.sd.load_checkpoint_guess_config(str(Path(CHECKPOINTS) / name), True, True, False)
    return loaded[1], loaded[2]


@pytest.fixture(scope="module")
def tiny_vae():
    if not CHECKPOINTS:
        pytest.skip("BEYOND_CFG_MODELS is not set")
    with torch.inference_mode():  # as the executor loads it
        return parts()[1]


def refusal(*args, **changes) -> str:
    with pytest.raises(ValueError) as error:
        guided(*args, **changes)
    title, _, message = str(error.value).partition(": ")
    assert title == "Classifier Guidance"
    return message


def log_probability(model, picture: torch.Tensor) -> torch.Tensor:
    """Of a finished latent, by the classifier that the model carries."""
    classifier = model.model_options[KEY][-1].rule.classifier
    latent = model.get_model_object("latent_format").process_in(picture)
    with torch.inference_mode(False):
        return classifier.begin()(Step(latent.clone(), 0.0, 0.0))


def test_the_picture_is_taken_for_the_label_more_and_nothing_else_is_evaluated(classifier_folder, tiny_vae):
    model, latent = network("unet"), networks.latent("unet", 2, 12, 16)
    plain = sample(model, latent=latent)
    for label in LABELS:
        counter = Counter(guided(model, tiny_vae, label=label))
        result = sample(counter.model, latent=latent)
        assert result.isfinite().all() and counter.rows == [2] * 4
        before, after = (log_probability(counter.model, picture) for picture in (plain, result))
        assert (after > before).all(), label
        assert (after > before + 0.1).all() or label != "dog"


def test_each_samples_gradient_is_its_own(classifier_folder, tiny_vae):
    model = guided(network("unet"), tiny_vae)
    apart = model.model_options[KEY][-1].rule.classifier.begin()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    both = gradient(apart, Step(x, 0.0, 0.0))
    assert close(gradient(apart, Step(x[1:], 0.0, 0.0)), both[1:]) < 1e-5 and both.abs().max() > 0


def test_its_gradient_is_that_of_finite_differences(classifier_folder, tiny_vae):
    model = guided(network("unet"), tiny_vae)
    log_p = model.model_options[KEY][-1].rule.classifier.begin()
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = gradient(log_p, Step(x, 0.0, 0.0))
    along = found / found.norm()
    with torch.inference_mode(False), torch.no_grad():
        up, down = (log_p(Step(x + h * along, 0.0, 0.0)).item() for h in (0.01, -0.01))
    assert abs((up - down) / 0.02 / found.norm().item() - 1) < 0.02


def test_at_scale_zero_and_outside_its_interval_not_a_bit_changes(classifier_folder, tiny_vae):
    model = network("unet")
    assert torch.equal(sample(guided(model, tiny_vae, scale=0.0)), sample(model))
    between_two_steps = guided(model, tiny_vae, start_percent=0.001, end_percent=0.01)
    assert torch.equal(sample(between_two_steps), sample(model))


@pytest.mark.parametrize("kind", ["taesd", "whole"])
def test_it_works_in_inference_mode_with_weights_that_were_loaded_there(classifier_folder, tiny_vae, kind):
    """As the executor runs nodes: loading, the node and sampling."""
    vae = tiny_vae if kind == "taesd" else whole_vae()
    expected = sample(guided(network("unet"), vae), steps=2)
    with torch.inference_mode():
        vae, model = vae if kind == "taesd" else whole_vae(), network("unet")
        result = sample(guided(model, vae), steps=2)
        assert next(vae.first_stage_model.parameters()).is_inference()
    assert torch.equal(result, expected)
    assert close(result, sample(network("unet"), steps=2)) > 1e-3


def test_the_hosts_models_are_as_they_were_and_the_runs_copies_are_gone(classifier_folder, monkeypatch):
    copies, kept = [], latents.differentiable

    def watched(*args):
        call = kept(*args)
        copies.extend(weakref.ref(tensor) for tensor in call.args[1].values() if not tensor.is_inference())
        return call

    monkeypatch.setattr(latents, "differentiable", watched)
    with torch.inference_mode():
        vision, vae = clip_vision(), whole_vae()
        before = {name: tensor.clone() for name, tensor in vision.model.state_dict().items()}
        own = [id(tensor) for tensor in vision.model.parameters()]
        sample(guided(network("unet"), vae, vision), steps=1)
        assert own == [id(tensor) for tensor in vision.model.parameters()]
        assert all(torch.equal(tensor, before[name]) for name, tensor in vision.model.state_dict().items())
    gc.collect()
    assert copies and not any(copy() is not None for copy in copies)


def test_it_is_added_to_other_terms_in_any_order(classifier_folder, tiny_vae):
    model = network("unet")
    one = sample(pag(guided(model, tiny_vae)), steps=1)
    other = sample(guided(pag(model), tiny_vae), steps=1)
    assert close(one, other) < 1e-6
    assert min(close(one, sample(pag(model), steps=1)), close(one, sample(guided(model, tiny_vae), steps=1))) > 1e-3


@needs_models
def test_on_a_flow_model_it_acts_from_the_first_step(classifier_folder):
    model, vae = network("sd3"), parts("tiny_sd3.ckpt")[1]
    counter = Counter(guided(model, vae, scale=200.0))
    result, plain = sample(counter.model, "sd3"), sample(model, "sd3")
    assert result.isfinite().all() and counter.rows == [2] * 4
    assert (log_probability(counter.model, result) > log_probability(counter.model, plain)).all()


def test_the_preprocessing_is_the_hosts_without_its_rounding():
    picture, vision = torch.rand(2, 50, 40, 3, generator=torch.Generator().manual_seed(0)), clip_vision()
    theirs = comfy.clip_vision.clip_preprocess(picture, vision.image_size, vision.image_mean, vision.image_std, False)
    ours = latents.preprocess(picture.movedim(-1, 1), vision)
    assert (ours - theirs).abs().max() < 0.6 / 255 / min(vision.image_std) + 0.1  # rounding, and bicubic's overshoot
    assert (ours - theirs).abs().median() < 0.6 / 255 / min(vision.image_std)


# --------------------------------------------------------------------------------------------------------------- words


@needs_models
def test_words_are_told_apart_by_the_text_encoder_that_belongs_to_clip_vision():
    clip, _ = parts("tiny_sd3.ckpt")
    vision = clip_vision(768)
    head = host.zero_shot(vision, clip, "red seven", "blue two\n\n  green four \nred seven\nblue two")
    assert head.weight.shape == (3, 768) and head.wanted == 0
    torch.testing.assert_close(head.weight.norm(dim=1), torch.full((3,), 100.0))
    _, pooled = clip.encode_from_tokens(clip.tokenize("green four"), return_pooled=True)
    projected = clip.cond_stage_model.clip_l.transformer.text_projection(pooled[0, :768].float())
    torch.testing.assert_close(head.weight[2] / 100, torch.nn.functional.normalize(projected, dim=-1))
    embedding = torch.randn(2, 768)
    expected = torch.nn.functional.cosine_similarity(embedding[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head.log_probability(embedding), (100 * expected).log_softmax(-1)[:, 0])


@needs_models
def test_words_guide(tiny_vae):
    with torch.inference_mode():
        clip, vision, model = parts("tiny_sd3.ckpt")[0], clip_vision(768), network("unet")
        words = {"label": "red seven", "other_labels": "blue two\ngreen four", "head": "", "clip": clip, "scale": 10.0}
        ours = guided(model, tiny_vae, vision, **words)
        before, after = (log_probability(ours, sample(m)) for m in (model, ours))
    assert (after > before).all()


@needs_models
def test_a_text_encoder_without_a_trained_projection_is_refused(tiny_vae):
    clip, _ = parts("tiny_sd15.ckpt")
    words = {"label": "red seven", "head": "", "other_labels": "blue two"}
    message = refusal(network("unet"), tiny_vae, clip_vision(768), clip=clip, **words)
    assert "clip_l of this clip has no trained projection" in message
    clip, _ = parts("tiny_sd3.ckpt")
    projection = clip.cond_stage_model.clip_l.transformer.text_projection.weight
    for wrong in (torch.eye(768), torch.zeros(768, 768), torch.full((768, 768), torch.nan), projection * 1000):
        kept = projection.data.clone()
        projection.data.copy_(wrong)
        assert "no trained projection" in refusal(network("unet"), tiny_vae, clip_vision(768), clip=clip, **words)
        projection.data.copy_(kept)
    assert refusal(network("unet"), tiny_vae, clip=clip, **words).startswith("clip has clip_l of 768")
    assert "no projection" in refusal(network("unet"), tiny_vae, clip_vision(None), clip=clip, **words)


# --------------------------------------------------------------------------------------------------------------- errors


def test_what_cannot_work_is_refused_by_name(classifier_folder, tiny_vae):
    model = network("unet")
    assert refusal(model, tiny_vae, head="") == "needs a clip, to understand the labels, or the name of a head"
    clip = SimpleNamespace(tokenize=None, cond_stage_model=None)  # not asked
    assert refusal(model, tiny_vae, head="", clip=clip, label=" ").startswith("label is empty")
    assert refusal(model, tiny_vae, head="", clip=clip, other_labels="dog\n ").startswith("other_labels is empty")
    many = "\n".join(map(str, range(1001)))
    assert refusal(model, tiny_vae, head="", clip=clip, other_labels=many).startswith(
        "other_labels has 1,001 lines; at most"
    )
    assert refusal(model, tiny_vae, clip_vision(kind="siglip_vision_model")).startswith("clip_vision is a siglip")
    assert "4 channels" in refusal(network("sd3"), tiny_vae) and "16" in refusal(network("sd3"), tiny_vae)
    assert "pictures" in refusal(network("wan"), tiny_vae)
    assert refusal(model, tiny_vae, scale=-1.0) == "scale is -1.0; it must be a number from 0 to 1000"
    no_vae = comfy.sd.VAE(sd={"nothing": torch.zeros(1)})
    assert refusal(model, no_vae).startswith("the VAE is empty")


def test_a_head_that_cannot_work_is_refused_by_file_key_and_shape(classifier_folder, tiny_vae):
    def said(label="dog", **changes) -> str:
        save(classifier_folder / "bad.safetensors", **changes)
        return refusal(network("unet"), tiny_vae, head="bad.safetensors", label=label)

    width = "[classes, 16], since clip_vision gives 16 features"
    assert said(weight=None) == f'bad.safetensors: has no "weight", which must be {width}; it has bias'
    assert said(weight=torch.ones(3)) == f'bad.safetensors: "weight" is [3]; it must be {width}'
    assert said(weight=torch.ones(3, 8)).startswith(f'bad.safetensors: "weight" is [3, 8]; it must be {width}')
    assert "two classes" in said(weight=torch.ones(1, 16))
    assert said(bias=torch.ones(2)) == 'bad.safetensors: "bias" is [2]; it must be [3], one for each class'
    assert "finite" in said(bias=torch.full((3,), torch.nan)) and "finite" in said(bias=torch.ones(3, dtype=torch.int))
    assert "JSON list of 3 texts" in said(labels=["a"]) and "JSON list" in said(labels="{")
    assert said(label="cow").endswith("it must be a number from 0 to 2, or one of: cat, dog, bird")
    assert said(labels=None, label="3").endswith("it must be a number from 0 to 2")
    (classifier_folder / "bad.safetensors").write_bytes(b"no tensors")
    assert refusal(network("unet"), tiny_vae, head="bad.safetensors").startswith("bad.safetensors cannot be read")
    missing = refusal(network("unet"), tiny_vae, head="../pets")
    assert missing == 'there is no file "../pets". The folder classifiers has: bad.safetensors, pets.safetensors'


def test_a_label_is_a_name_or_a_number(classifier_folder):
    vision = clip_vision()
    assert [host.load_head(vision, "pets.safetensors", label).wanted for label in ("dog", " bird", "0")] == [1, 2, 0]
    save(classifier_folder / "numbers.safetensors", labels=["2", "1", "0"])
    assert host.load_head(vision, "numbers.safetensors", "0").wanted == 2  # a name before a number


def test_a_label_of_any_length_is_no_more_than_no_label(classifier_folder):
    for label in ("9" * 5000, "0" * 5000 + "x", "x" * 20_000):
        with pytest.raises(ValueError, match=r"it must be a number from 0 to 2, or one of: cat, dog, bird$") as error:
            host.load_head(clip_vision(), "pets.safetensors", label)
        assert str(error.value).startswith(f'label is "{label[:100]}… (') and len(str(error.value)) < 300


def test_brackets_within_brackets_beyond_what_the_tokenizer_reads_are_refused_by_the_label(tiny_vae):
    """The host's tokenizer goes into each pair by itself."""
    with pytest.raises(ValueError, match="has too many brackets within brackets"):
        heads._embed_text(parts()[0], "clip_l", None, "(" * 3000 + "cat" + ")" * 3000)


def test_the_node_is_declared_in_full():
    schema = ClassifierGuidance.define_schema()
    assert schema.node_id == "BeyondCFGClassifier"
    assert all(given.tooltip for given in schema.inputs)


# ------------------------------------------------------------------------------------------- networks of noisy latents

CHANNELS = {"unet": 4, "sd3": 16, "flux": 16}
KINDS = pytest.mark.parametrize("kind", CHANNELS)


def noisy_tensors(channels: int, classes: int = 3, features: int = 16) -> dict[str, torch.Tensor]:
    """Of a network with two layers; random, and of a size that keeps that of what passes."""
    generator = torch.Generator().manual_seed(1)

    def layer(name: str, *shape: int) -> dict[str, torch.Tensor]:
        weight = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        return {f"{name}.weight": weight, f"{name}.bias": 0.1 * torch.randn(shape[0], generator=generator)}

    convolutions = layer("conv.0", 8, channels, 3, 3) | layer("conv.1", 12, 8, 3, 3)
    films = layer("film.0", 16, features) | layer("film.1", 24, features)
    return convolutions | films | layer("head", classes, 12)


def save_noisy(path: Path, channels: int = 4, labels=LABELS, **changes):
    save_tensors(
        path, noisy_tensors(channels), labels, {key.replace("_", "."): value for key, value in changes.items()}
    )


@pytest.fixture
def noisy_folder(classifier_folder) -> Path:
    for kind, channels in CHANNELS.items():
        save_noisy(classifier_folder / f"{kind}.safetensors", channels)
    return classifier_folder


def noisily(model, kind="unet", **changes):
    given = {
        "classifier": f"{kind}.safetensors",
        "label": "dog",
        "scale": 30.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
    }
    return NoiseAwareClassifierGuidance.execute(model=model, **(given | changes)).result[0]


def noisy_refusal(*args, **changes) -> str:
    with pytest.raises(ValueError) as error:
        noisily(*args, **changes)
    title, _, message = str(error.value).partition(": ")
    assert title == "Noise-Aware Classifier Guidance"
    return message


@KINDS
def test_on_every_kind_of_model_the_label_becomes_likelier_and_nothing_else_is_evaluated(noisy_folder, kind):
    model, latent = network(kind), networks.latent(kind, 2, 12, 18)
    plain, ask = sample(model, kind, latent=latent), NoisyNetwork(noisy_tensors(CHANNELS[kind]))
    for wanted, label in enumerate(LABELS):
        counter = Counter(noisily(model, kind, label=label))
        result = sample(counter.model, kind, latent=latent)
        assert result.isfinite().all() and counter.rows == [2] * 4
        before, after = (
            ask(model.get_model_object("latent_format").process_in(picture).float(), 0.03, 1.0)[:, wanted]
            for picture in (plain, result)
        )
        assert (after > before).all(), label
        assert torch.equal(sample(noisily(model, kind, label=label), kind, latent=latent), result)


@KINDS
def test_a_step_to_the_end_is_the_equation(noisy_folder, kind):
    """From σ to 0 in one step the result is D + s (b²/a) ∇ log p(y | x; σ) itself, at the x that the sampler has."""
    model, sigma, latent = network(kind), 0.7, networks.latent(kind, 2)
    signal = 1.0 if kind == "unet" else 1 - sigma
    run = {"latent": latent, "sigmas": torch.tensor([sigma, 0.0])}
    into = model.get_model_object("latent_format").process_in
    x = (sigma * noise_like(latent)).requires_grad_()  # the host leaves an empty latent 0
    log_p = NoisyNetwork(noisy_tensors(CHANNELS[kind]))(x, sigma, signal)[:, 1].sum()
    moved = 30.0 * sigma**2 / signal * torch.autograd.grad(log_p, x)[0]
    difference = into(sample(noisily(model, kind), kind, **run)) - into(sample(model, kind, **run))
    assert close(difference, moved) < 1e-4 and moved.abs().max() > 1e-2


def test_at_scale_zero_and_outside_its_interval_the_network_is_not_asked(noisy_folder, monkeypatch):
    asked, kept = [], NoisyNetwork.__call__
    monkeypatch.setattr(NoisyNetwork, "__call__", lambda self, *step: asked.append(step[1:]) or kept(self, *step))
    model = network("unet")
    assert torch.equal(sample(noisily(model, scale=0.0)), sample(model))
    assert torch.equal(sample(noisily(model, start_percent=0.001, end_percent=0.01)), sample(model))
    assert not asked
    assert not torch.equal(sample(noisily(model, start_percent=0.5)), sample(model))
    assert 0 < len(asked) < 4 and all(signal == 1.0 for _, signal in asked)


def test_it_works_in_inference_mode_and_its_copies_go_with_the_run(noisy_folder, monkeypatch):
    copies, kept = [], NoisyNetwork.to

    def watched(*args):
        copy = kept(*args)
        copies.extend(map(weakref.ref, copy.tensors.values()))
        return copy

    monkeypatch.setattr(NoisyNetwork, "to", watched)
    expected = sample(noisily(network("unet")), steps=2)
    assert len(copies) == 10  # once in a run
    with torch.inference_mode():
        ours = noisily(network("unet"))
        assert torch.equal(sample(ours, steps=2), expected)
    gc.collect()
    assert len(copies) == 20 and not any(copy() is not None for copy in copies)
    assert close(expected, sample(network("unet"), steps=2)) > 1e-3


def test_a_noisy_term_and_another_act_in_any_order(noisy_folder):
    model = network("unet")
    one, other = sample(pag(noisily(model)), steps=1), sample(noisily(pag(model)), steps=1)
    assert close(one, other) < 1e-6
    assert min(close(one, sample(pag(model), steps=1)), close(one, sample(noisily(model), steps=1))) > 1e-3


# Samples whose numbers are all N(+MEAN, STD²), or all N(−MEAN, STD²): what a diffusion model of them predicts is known.
MEAN, STD = 0.4, 0.5
SIZE = (4, 8, 8)


def two_kinds(model, flow: bool):
    """MODEL as the exact model of such samples, for any prompt."""

    def denoise(apply_model, args):
        x, sigma = args["input"], args["timestep"][0]
        signal = 1 - sigma if flow else 1.0
        spread = (signal * STD) ** 2 + sigma**2
        lean = (signal * MEAN * x.flatten(1).sum(1) / spread).tanh().view(-1, 1, 1, 1)  # p(+) − p(−)
        return (signal * STD**2 * x + sigma**2 * MEAN * lean) / spread

    model = ModelSamplingSD3().patch(model, shift=1.0, multiplier=1000)[0] if flow else model.clone()
    model.set_model_unet_function_wrapper(denoise)
    return model


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """A network that has learnt to tell them apart, from samples and noise alone."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        tensors = {key: tensor.requires_grad_() for key, tensor in noisy_tensors(SIZE[0], classes=2).items()}
        optimizer = torch.optim.Adam(tensors.values(), lr=5e-3)
        for _ in range(300):
            kinds = torch.randint(2, (64,), generator=generator)
            x = STD * torch.randn(64, *SIZE, generator=generator) + MEAN * (2 * kinds - 1).view(-1, 1, 1, 1)
            sigma = math.exp(8 * torch.rand((), generator=generator).item() - 4)
            x = x + sigma * torch.randn(x.shape, generator=generator)
            optimizer.zero_grad()
            torch.nn.functional.nll_loss(NoisyNetwork(tensors)(x, sigma, 1.0), kinds).backward()
            optimizer.step()
    return {key: tensor.detach() for key, tensor in tensors.items()}


@pytest.mark.parametrize("flow", [False, True], ids=["VE", "flow"])
def test_a_trained_network_guides_samples_to_the_kind_that_is_asked_for(noisy_folder, trained, flow):
    """One file serves both ways of sampling, though it has seen one of them in training."""
    save_noisy(noisy_folder / "trained.safetensors", labels=["minus", "plus"], **rename(trained))
    model = two_kinds(network("unet"), flow)
    run = {"latent": torch.zeros(64, *SIZE), "cfg": 1.0, "steps": 12}
    into = model.get_model_object("latent_format").process_in

    def means(model) -> torch.Tensor:
        return into(sample(model, **run)).flatten(1).mean(1)

    plain = means(model)
    assert 0.3 < (plain > 0).float().mean() < 0.7 and ((plain.abs() - MEAN).abs() < 0.15).all()
    for label, sign in (("plus", 1), ("minus", -1)):
        result = means(noisily(model, classifier="trained.safetensors", label=label, scale=3.0))
        assert (sign * result > 0).float().mean() > 0.9
        assert (sign * result).mean() < 2 * MEAN  # still samples of the model


def rename(tensors: dict) -> dict:
    return {key.replace(".", "_"): tensor for key, tensor in tensors.items()}


def test_a_network_that_cannot_work_is_refused_by_file_tensor_and_shape(noisy_folder):
    def said(label="dog", model=None, **changes) -> str:
        save_noisy(noisy_folder / "bad.safetensors", **changes)
        return noisy_refusal(model or network("unet"), classifier="bad.safetensors", label=label)

    first = "[out, 4, 3, 3], since the model's latents have 4 channels"
    assert said(conv_0_weight=None).startswith(
        f'bad.safetensors: has no "conv.0.weight", which must be {first}; it has'
    )
    assert said(channels=16) == f'bad.safetensors: "conv.0.weight" is [8, 16, 3, 3]; it must be {first}'
    assert said(conv_0_weight=torch.ones(8, 4, 5, 5)).endswith(f"is [8, 4, 5, 5]; it must be {first}")
    assert said(conv_0_bias=torch.ones(4)) == 'bad.safetensors: "conv.0.bias" is [4]; it must be [8]'
    then = "[out, 8, 3, 3], since conv.0 gives 8 channels"
    assert said(conv_1_weight=torch.ones(8, 9, 3, 3)).endswith(f'"conv.1.weight" is [8, 9, 3, 3]; it must be {then}')
    assert said(film_0_weight=torch.ones(8, 16)).endswith("is [8, 16]; it must be [16, F], gains before shifts")
    assert said(film_1_weight=torch.ones(24, 8)).endswith("is [24, 8]; it must be [24, 16], gains before shifts")
    assert said(film_1_bias=None).startswith(
        'bad.safetensors: has no "film.1.bias", which must be [24]; it has conv.0.'
    )
    odd = {"film_0_weight": torch.ones(16, 7), "film_1_weight": torch.ones(24, 7)}
    assert said(**odd).endswith('"film.0.weight" takes 7 features; it must be an even number')
    head = "[classes, 12], since conv.1 gives 12 channels"
    assert said(head_weight=torch.ones(3, 8)).endswith(f'"head.weight" is [3, 8]; it must be {head}')
    assert said(head_weight=torch.ones(1, 12)).endswith("it must have two classes at least")
    assert said(head_bias=torch.ones(2)).endswith('"head.bias" is [2]; it must be [3], one for each class')
    assert said(norm_0_weight=torch.ones(8)).startswith("bad.safetensors: has norm.0.weight, which the network of")
    for bad in (torch.full((8,), torch.nan), torch.full((8,), torch.inf), torch.ones(8, dtype=torch.int)):
        assert '"conv.0.bias" is torch.' in said(conv_0_bias=bad) and "must hold finite" in said(conv_0_bias=bad)
    assert "JSON list of 3 texts" in said(labels=["a"])
    assert said(label="cow").endswith("it must be a number from 0 to 2, or one of: cat, dog, bird")
    assert said(labels=None, label="3").endswith("it must be a number from 0 to 2")
    (noisy_folder / "bad.safetensors").write_bytes(b"no tensors")
    assert noisy_refusal(network("unet"), classifier="bad.safetensors").startswith("bad.safetensors cannot be read")
    has = "bad.safetensors, flux.safetensors, pets.safetensors, sd3.safetensors, unet.safetensors"
    assert noisy_refusal(network("unet"), classifier="") == f'there is no file "". The folder classifiers has: {has}'
    pets = noisy_refusal(network("unet"), classifier="pets.safetensors")
    assert pets == f'pets.safetensors: has no "conv.0.weight", which must be {first}; it has bias, weight'


def test_a_noisy_network_is_refused_where_the_model_makes_no_pictures_or_a_number_is_wrong(noisy_folder):
    assert noisy_refusal(network("wan"), "flux").startswith("works on pictures; this model is of another kind")
    assert noisy_refusal(network("unet"), scale=-1.0) == "scale is -1.0; it must be a number from 0 to 1000"
    assert "start_percent is 0.6" in noisy_refusal(network("unet"), start_percent=0.6, end_percent=0.5)
    ours = noisily(network("unet"))
    ask = ours.model_options[KEY][-1].rule.classifier.begin()
    with pytest.raises(ValueError, match=r"latents of pictures, not of shape \[1, 1, 64\]"):
        ask(Step(torch.zeros(1, 1, 64), 1.0, 1.0))


def test_a_network_that_overflows_has_no_effect_and_the_log_says_so(noisy_folder, caplog):
    save_noisy(noisy_folder / "huge.safetensors", conv_0_weight=torch.full((8, 4, 3, 3), 3e38))
    model = network("unet")
    assert torch.equal(sample(noisily(model, classifier="huge.safetensors")), sample(model))
    assert [record.message for record in caplog.records if "no finite number" in record.message]


def test_the_noise_aware_node_is_declared_in_full():
    schema = NoiseAwareClassifierGuidance.define_schema()
    assert (schema.node_id, schema.display_name) == ("BeyondCFGNoisyClassifier", "Noise-Aware Classifier Guidance")
    assert all(given.tooltip for given in schema.inputs)
