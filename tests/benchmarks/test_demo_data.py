"""The demo's pictures are exactly what seed, split and index say; the demo model is what the host loads and samples."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pack.benchmarks.digits import data
from pack.benchmarks.digits import train_model as train

needs_host = pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")


def test_a_picture_is_the_same_alone_in_any_order_and_from_another_object():
    forwards = [data.Digits("judge", seed=3).picture(i) for i in range(6)]
    digits = data.Digits("judge", seed=3)
    backwards = [digits.picture(i) for i in reversed(range(6))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert forwards[0].shape == (128, 128, 3) and forwards[0].dtype == np.uint8


def test_the_random_numbers_are_those_of_splitmix64():
    """Written once more, in whole numbers of any size."""
    mask, expected = 2**64 - 1, []
    for i in range(4):
        z = i * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        expected.append(((z ^ z >> 31) >> 11) / 2**53)
    assert data.uniform(0)[:4].tolist() == expected
    assert abs(data.uniform(512).mean() - 0.5) < 0.05


def test_splits_seeds_and_indices_share_no_random_number():
    last = 2**32 - 1
    places = [(seed, split, index) for seed in (0, 1, 2**20 - 1) for split in data.SPLITS for index in (0, 1, last)]
    starts = sorted(data.Digits(split, seed).start(index) for seed, split, index in places)
    assert all(b - a >= data.NUMBERS for a, b in itertools.pairwise(starts))
    assert starts[-1] + data.NUMBERS <= 2**63
    with pytest.raises(ValueError, match="out of range"):
        data.Digits("judge").start(2**32)


def test_splits_have_no_picture_in_common():
    seen = {data.Digits(split).picture(i, 32).tobytes() for split in data.SPLITS for i in range(100)}
    assert len(seen) == 300


def test_a_picture_uses_no_more_numbers_than_it_has():
    digits, used = data.Digits("generator"), []
    for index in range(20):
        label, stream = digits._stream(index)
        data.ground(stream, place := np.linspace(0, 1, 8, dtype=np.float32))
        for digit in label[1::2]:
            data.stroke(data.STROKES[digit], stream, 1.0, place, place)
            stream.between(0, 1, 3)
        used.append(stream.next)
    assert set(used) == {used[0]} and used[0] <= data.NUMBERS


def test_prompts_and_labels_say_the_same():
    digits = data.Digits("reference")
    for i in range(50):
        assert data.label_of(digits.prompt(i)) == digits.label(i)
    assert data.prompt_of((0, 7, 2, 2)) == "red seven blue two"
    every = list(itertools.product(range(5), range(10), range(5), range(10)))
    assert len({data.prompt_of(label) for label in every}) == len(every)
    with pytest.raises(ValueError, match="colour"):
        data.label_of("red seven")


def test_the_picture_shows_the_colours_of_its_label():
    """The pixels that differ most from the ground are nearer to the label's colour than to any other."""
    digits, colours = data.Digits("judge"), np.array(list(data.COLOURS.values()))
    for i in range(40):
        picture = digits.picture(i).astype(float) / 255
        for half, colour in zip((picture[:, :64], picture[:, 64:]), digits.label(i)[::2], strict=True):
            brightest = half.reshape(-1, 3)[half.max(2).flatten().argsort()[-200:]].mean(0)
            assert np.square(colours - brightest).sum(1).argmin() == colour


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A training of 2 steps."""
    out = tmp_path_factory.mktemp("demo")
    few = "--steps 2 --every 1 --pictures 32 --judge-pictures 64 --judged 2 --batch 8 --device cpu"
    train.main(["--out", str(out), *few.split()])
    return out


def test_the_log_has_the_loss_and_what_the_judge_read(trained):
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert lines[-1]["finished"] and {"digit", "colour", "all", "seconds"} <= set(lines[-1])


def test_training_goes_on_as_if_it_had_not_stopped(trained, tmp_path):
    """Two steps, and one and one, give the same weights."""
    common = [
        *[
            "--every",
            "9",
            "--pictures",
            "32",
            "--judge-pictures",
            "64",
            "--judged",
            "2",
            "--batch",
            "8",
            "--device",
            "cpu",
            "--no-bf16",
        ],
        "--out",
    ]
    done, train.Trainer.done = train.Trainer.done, lambda self: float(self.step >= self.options.steps)
    try:
        for folder, steps in ("whole", "2"), ("parts", "1"), ("parts", "2"):
            train.main([*common, str(tmp_path / folder), "--steps", steps])
    finally:
        train.Trainer.done = done
    states = [torch.load(tmp_path / folder / "state.pt")["network"] for folder in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(SystemExit, match="dropout"):
        train.main([*common, str(tmp_path / "whole"), "--steps", "3", "--dropout", "0"])


@needs_host
def test_the_host_loads_it_and_computes_what_training_computed(trained):
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    model = comfy.sd.load_diffusion_model(str(trained / "diffusion_models/demo_flux.safetensors"))
    clip = comfy.sd.load_clip(
        [str(trained / "text_encoders/demo_text.ckpt")], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION
    )
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(trained / "vae/demo_vae.ckpt")))
    assert type(model.model.model_config).__name__ == "FluxSchnell"

    # the prompt's 8 rows
    ours = train.Prompts("cpu")
    conds = {}
    for words in "red seven blue two", "":
        text, pooled = conds[words] = clip.encode_from_tokens(clip.tokenize(words), return_pooled=True)
        rows, end = ours([words])
        torch.testing.assert_close(text, rows)
        torch.testing.assert_close(pooled, end)

    # the network, with weights large enough that every part counts
    torch.manual_seed(0)
    network = train.Network()
    for parameter in network.parameters():
        parameter.data = (parameter + 0.05 * torch.randn_like(parameter)).half().float()
    train.save(trained / "diffusion_models/large.safetensors", network.weights())
    model = comfy.sd.load_diffusion_model(str(trained / "diffusion_models/large.safetensors"))
    comfy.model_management.load_models_gpu([model])
    x, sigma = torch.randn(1, 16, 16, 16), torch.tensor([0.6])
    for words, (text, pooled) in conds.items():
        with torch.no_grad():
            host = model.model.diffusion_model(x, sigma, context=text.float(), y=pooled.float(), guidance=None)
            torch.testing.assert_close(host, network(x, sigma, *ours([words])), atol=2e-5, rtol=1e-4)

    # the VAE
    pictures, _ = train.pictures_of("judge", 2, side=128)
    latents = train.encode(pictures)
    scaled = model.model.process_latent_in(vae.encode(pictures.movedim(1, -1))).cpu()
    torch.testing.assert_close(scaled, latents, atol=2e-3, rtol=0)
    decoded = vae.decode(model.model.process_latent_out(latents)).movedim(-1, 1)
    torch.testing.assert_close(decoded, train.decode(latents), atol=4e-3, rtol=0)
    assert (decoded - pictures).abs().mean() < 0.08
