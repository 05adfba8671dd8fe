"""The demo's models, as they come with the pack: the host's own nodes load them, a judge reads what they draw."""

import os
from pathlib import Path

import folder_paths
import pytest
import torch
from pack.benchmarks.digits import train_model as trained
from pack.tools import demo, hosts, places
from pack.tools.console import Failure
from PIL import Image
from safetensors.torch import load_file

import nodes

MODELS = Path(__file__).resolve().parent.parent.parent / "benchmarks/models"
SEED, PICTURES = 0, 24  # of two digits each


@pytest.fixture(scope="module")
def load():
    """load(name) → MODEL. The host's loader nodes know all of our files by their names."""
    for kind in "diffusion_models", "text_encoders", "vae":
        folder_paths.add_model_folder_path(kind, str(MODELS / kind), is_default=True)
    return lambda name: nodes.UNETLoader().load_unet(name, "default")[0]


@pytest.fixture(scope="module")
def asked(load):
    """(labels [24, 4], their prompts as one conditioning of 24 rows, the empty prompt)"""
    (clip,) = nodes.CLIPLoader().load_clip("demo_text.ckpt", "stable_diffusion")
    labels = [trained.Digits("reference").label(10**6 + number) for number in range(PICTURES)]
    rows = [nodes.CLIPTextEncode().encode(clip, trained.prompt_of(label))[0][0] for label in labels]
    text, pooled = torch.cat([text for text, _ in rows]), torch.cat([more["pooled_output"] for _, more in rows])
    return torch.tensor(labels), [[text, {"pooled_output": pooled}]], nodes.CLIPTextEncode().encode(clip, "")[0]


@pytest.fixture(scope="module")
def draw(load, asked):
    """draw(file, cfg) → LATENT of 24 pictures, by the host's KSampler"""
    _, positive, negative = asked
    empty = {"samples": torch.zeros(PICTURES, 16, 16, 16)}

    @torch.inference_mode()
    def sample(name: str, cfg: float = 1.0):
        return nodes.KSampler().sample(load(name), SEED, 12, cfg, "euler", "simple", positive, negative, empty)[0]

    return sample


@pytest.fixture(scope="module")
def seen(load):
    """seen(LATENT) [n, 16, 16, 16]: as the networks see it"""
    model = load("demo_flux.safetensors").model
    return lambda latent: model.process_latent_in(latent["samples"])


@pytest.fixture(scope="module")
def right(asked, draw, seen):
    """right(file, cfg) → the share of the digits asked for that the judge finds. The pictures are trained.decode's, which
    is faster than the VAE file and the same."""
    judge = trained.Judge().eval()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(MODELS / "judge.safetensors").items()})
    labels = asked[0]
    return lambda *given: trained.accuracy(judge.labels(trained.decode(seen(draw(*given)))), labels)["digit"]


def test_all_files_are_small_enough_for_a_clone():
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) <= 40e6


def test_the_host_loads_every_network_as_a_flux(load):
    names = sorted(file.name for file in (MODELS / "diffusion_models").iterdir())
    assert {"demo_flux.safetensors", "demo_flux_early.safetensors", "demo_flux_weak.safetensors"} <= set(names)
    for name in names:
        assert type(load(name).model.model_config).__name__ == "FluxSchnell", name


def test_the_vae_file_does_what_training_decoded_with(draw, seen):
    (vae,) = nodes.VAELoader().load_vae("demo_vae.ckpt")
    latent = {"samples": draw("demo_flux.safetensors")["samples"][:2]}
    (pictures,) = nodes.VAEDecode().decode(vae, latent)
    torch.testing.assert_close(pictures.movedim(-1, 1), trained.decode(seen(latent)), atol=4e-3, rtol=0)


def test_the_judge_finds_the_digits_that_were_asked_for(right):
    """Chance is 0.1. With seeds 0 to 4 the better one has 0.88 to 0.96, the weak one 0.21 to 0.29: each bound is at least
    0.1 from what was seen, and what 48 digits say is uncertain by 0.05 and 0.06."""
    assert right("demo_flux.safetensors") > 0.7
    assert right("demo_flux_weak.safetensors") < 0.4


def test_cfg_repairs_the_digits_of_the_early_network(right):
    """With seeds 0 to 4 from 0.56 … 0.67 to 0.83 … 0.96, pair by pair 0.17 to 0.40 more."""
    assert right("demo_flux_early.safetensors", 3.0) > right("demo_flux_early.safetensors") + 0.1


@pytest.fixture
def show(server, monkeypatch, tmp_path):
    """`dev.py demo` on the host that runs already: two columns, two steps."""
    monkeypatch.setattr(places, "OUTPUT", tmp_path)
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(demo, "PROMPTS", demo.PROMPTS[:2])
    host = hosts.choose(hosts.Choice(comfyui=os.environ["COMFYUI_PATH"]))
    return lambda: demo.show(host, server)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
    return picture


def test_the_demo_shows_every_guidance_at_work(show, tmp_path, capsys):
    show()
    rows = [
        [opened(tmp_path / f"demo/{row}-{column}.png") for column in (1, 2)] for row in range(1, len(demo.ROWS) + 1)
    ]
    assert all(picture.size == (128, 128) for row in rows for picture in row)
    shown = {tuple(picture.tobytes() for picture in row) for row in rows}
    assert len(shown) == len(demo.ROWS)
    said = capsys.readouterr().out
    assert f"side by side in {tmp_path / 'demo/grid.png'}" in said and "PyTorch" in said
    assert opened(tmp_path / "demo/grid.png").height > 128 * len(demo.ROWS)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MODEL", "none.safetensors", "UNETLoader.*none.safetensors"),
        ("ROWS", [("a", 1, {"NoSuchNode": {}})], "no node NoSuchNode"),
        ("ROWS", [("a", 1, {"BeyondCFGPAG": {"layers": "single.99"}})], "BeyondCFGPAG.*single.99"),
    ],
)
def test_a_demo_that_fails_says_why(show, monkeypatch, name, value, says):
    monkeypatch.setattr(demo, name, value)
    with pytest.raises(Failure, match=f"(?s){says}"):
        show()
