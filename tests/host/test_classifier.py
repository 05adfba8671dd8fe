"""Classifier guidance through the host: its own CLIP vision with random weights, its VAEs, and heads made here."""

import gc
import json
import os
import weakref
from pathlib import Path

import comfy.clip_vision
import comfy.ldm.models.autoencoder
import comfy.sd
import comfy.utils
import folder_paths
import networks
import pytest
import torch
from harness import Counter, close, network, pag, sample
from pack.guiders.base import Step
from pack.guiders.classifier import gradient
from pack.guiders.host import KEY
from pack.guiders.host import classifier as host
from pack.nodes.classifier import ClassifierGuidance

FEATURES = 16
LABELS = ["cat", "dog", "bird"]
CHECKPOINTS = os.environ.get("BEYOND_CFG_MODELS")
needs_models = pytest.mark.skipif(not CHECKPOINTS, reason="BEYOND_CFG_MODELS is not set")


def clip_vision(features: int | None = FEATURES, kind: str = "clip_vision_model"):
    """Of the host's own class, as its loader makes one: in whatever mode the caller is in."""
    config = {
        "model_type": kind,
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "quick_gelu",
    }
    vision = comfy.clip_vision.ClipVisionModel(config | ({"projection_dim": features} if features else {}))
    networks.fill(vision.model, seed=3)
    return vision


def whole_vae(seed: int = 4):
    """The KL autoencoder of SD, small."""
    shape = {"ch": 32, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, "z_channels": 4, "double_z": True}
    shape |= {"in_channels": 3, "out_ch": 3, "resolution": 64, "attn_resolutions": [], "dropout": 0.0}
    config = {"params": {"ddconfig": shape, "embed_dim": 4}}
    network = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=shape, embed_dim=4)
    networks.fill(network, seed)
    return comfy.sd.VAE(sd=network.state_dict(), config=config)


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


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The host's model folder `classifiers`, with a head in it."""
    places = folder_paths.folder_names_and_paths | {host.FOLDER: ([str(tmp_path)], {""})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", places)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    save(tmp_path / "pets.safetensors")
    return tmp_path


def save(path: Path, labels=LABELS, **changes):
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(3, FEATURES, generator=generator), "bias": torch.zeros(3)} | changes
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    labels = labels if labels is None or isinstance(labels, str) else json.dumps(labels)
    comfy.utils.save_torch_file(tensors, str(path), metadata=None if labels is None else {"labels": labels})


def guided(model, vae, vision=None, **changes):
    given = {"label": "dog", "other_labels": "", "head": "pets.safetensors", "scale": 50.0}
    given |= {"start_percent": 0.0, "end_percent": 1.0, "vae": vae, "clip_vision": vision or clip_vision()}
    return ClassifierGuidance.execute(model=model, **(given | changes)).result[0]


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


def test_the_picture_is_taken_for_the_label_more_and_nothing_else_is_evaluated(folder, tiny_vae):
    model, latent = network("unet"), networks.latent("unet", 2, 12, 16)
    plain = sample(model, latent=latent)
    for label in LABELS:
        counter = Counter(guided(model, tiny_vae, label=label))
        result = sample(counter.model, latent=latent)
        assert result.isfinite().all() and counter.rows == [2] * 4
        before, after = (log_probability(counter.model, picture) for picture in (plain, result))
        assert (after > before).all(), label
        assert (after > before + 0.1).all() or label != "dog"


def test_each_samples_gradient_is_its_own(folder, tiny_vae):
    model = guided(network("unet"), tiny_vae)
    apart = model.model_options[KEY][-1].rule.classifier.begin()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    both = gradient(apart, Step(x, 0.0, 0.0))
    assert close(gradient(apart, Step(x[1:], 0.0, 0.0)), both[1:]) < 1e-5 and both.abs().max() > 0


def test_its_gradient_is_that_of_finite_differences(folder, tiny_vae):
    model = guided(network("unet"), tiny_vae)
    log_p = model.model_options[KEY][-1].rule.classifier.begin()
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = gradient(log_p, Step(x, 0.0, 0.0))
    along = found / found.norm()
    with torch.inference_mode(False), torch.no_grad():
        up, down = (log_p(Step(x + h * along, 0.0, 0.0)).item() for h in (0.01, -0.01))
    assert abs((up - down) / 0.02 / found.norm().item() - 1) < 0.02


def test_at_scale_zero_and_outside_its_interval_not_a_bit_changes(folder, tiny_vae):
    model = network("unet")
    assert torch.equal(sample(guided(model, tiny_vae, scale=0.0)), sample(model))
    between_two_steps = guided(model, tiny_vae, start_percent=0.001, end_percent=0.01)
    assert torch.equal(sample(between_two_steps), sample(model))


@pytest.mark.parametrize("kind", ["taesd", "whole"])
def test_it_works_in_inference_mode_with_weights_that_were_loaded_there(folder, tiny_vae, kind):
    """As the executor runs nodes: loading, the node and sampling."""
    vae = tiny_vae if kind == "taesd" else whole_vae()
    expected = sample(guided(network("unet"), vae), steps=2)
    with torch.inference_mode():
        vae, model = vae if kind == "taesd" else whole_vae(), network("unet")
        result = sample(guided(model, vae), steps=2)
        assert next(vae.first_stage_model.parameters()).is_inference()
    assert torch.equal(result, expected)
    assert close(result, sample(network("unet"), steps=2)) > 1e-3


def test_the_hosts_models_are_as_they_were_and_the_runs_copies_are_gone(folder, monkeypatch):
    copies, kept = [], host.differentiable

    def watched(*args):
        call = kept(*args)
        copies.extend(weakref.ref(tensor) for tensor in call.args[1].values() if not tensor.is_inference())
        return call

    monkeypatch.setattr(host, "differentiable", watched)
    with torch.inference_mode():
        vision, vae = clip_vision(), whole_vae()
        before = {name: tensor.clone() for name, tensor in vision.model.state_dict().items()}
        own = [id(tensor) for tensor in vision.model.parameters()]
        sample(guided(network("unet"), vae, vision), steps=1)
        assert own == [id(tensor) for tensor in vision.model.parameters()]
        assert all(torch.equal(tensor, before[name]) for name, tensor in vision.model.state_dict().items())
    gc.collect()
    assert copies and not any(copy() is not None for copy in copies)


def test_it_is_added_to_other_terms_in_any_order(folder, tiny_vae):
    model = network("unet")
    one = sample(pag(guided(model, tiny_vae)), steps=1)
    other = sample(guided(pag(model), tiny_vae), steps=1)
    assert close(one, other) < 1e-6
    assert min(close(one, sample(pag(model), steps=1)), close(one, sample(guided(model, tiny_vae), steps=1))) > 1e-3


@needs_models
def test_on_a_flow_model_it_acts_from_the_first_step(folder):
    model, vae = network("sd3"), parts("tiny_sd3.ckpt")[1]
    counter = Counter(guided(model, vae, scale=200.0))
    result, plain = sample(counter.model, "sd3"), sample(model, "sd3")
    assert result.isfinite().all() and counter.rows == [2] * 4
    assert (log_probability(counter.model, result) > log_probability(counter.model, plain)).all()


def test_the_preprocessing_is_the_hosts_without_its_rounding():
    picture, vision = torch.rand(2, 50, 40, 3, generator=torch.Generator().manual_seed(0)), clip_vision()
    theirs = comfy.clip_vision.clip_preprocess(picture, vision.image_size, vision.image_mean, vision.image_std, False)
    ours = host.preprocess(picture.movedim(-1, 1), vision)
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


def test_what_cannot_work_is_refused_by_name(folder, tiny_vae):
    model = network("unet")
    assert refusal(model, tiny_vae, head="") == "needs a clip, to understand the labels, or the name of a head"
    assert refusal(model, tiny_vae, head="", clip=object(), label=" ").startswith("label is empty")
    assert refusal(model, tiny_vae, head="", clip=object(), other_labels="dog\n ").startswith("other_labels is empty")
    assert refusal(model, tiny_vae, clip_vision(kind="siglip_vision_model")).startswith("clip_vision is a siglip")
    assert "4 channels" in refusal(network("sd3"), tiny_vae) and "16" in refusal(network("sd3"), tiny_vae)
    assert "pictures" in refusal(network("wan"), tiny_vae)
    assert refusal(model, tiny_vae, scale=-1.0) == "scale is -1.0; it must be a number from 0 to 1000"
    no_vae = comfy.sd.VAE(sd={"nothing": torch.zeros(1)})
    assert refusal(model, no_vae).startswith("the VAE is empty")


def test_a_head_that_cannot_work_is_refused_by_file_key_and_shape(folder, tiny_vae):
    def said(label="dog", **changes) -> str:
        save(folder / "bad.safetensors", **changes)
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
    (folder / "bad.safetensors").write_bytes(b"no tensors")
    assert refusal(network("unet"), tiny_vae, head="bad.safetensors").startswith("bad.safetensors cannot be read")
    missing = refusal(network("unet"), tiny_vae, head="../pets")
    assert missing == 'there is no head "../pets". The folder classifiers has: bad.safetensors, pets.safetensors'


def test_a_label_is_a_name_or_a_number(folder):
    vision = clip_vision()
    assert [host.load_head(vision, "pets.safetensors", label).wanted for label in ("dog", " bird", "0")] == [1, 2, 0]
    save(folder / "numbers.safetensors", labels=["2", "1", "0"])
    assert host.load_head(vision, "numbers.safetensors", "0").wanted == 2  # a name before a number


def test_the_node_is_declared_in_full():
    schema = ClassifierGuidance.define_schema()
    assert schema.node_id == "BeyondCFGClassifier"
    assert all(given.tooltip for given in schema.inputs)
