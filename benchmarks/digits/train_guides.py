"""Makes what guides the demo model besides weaker versions of it: classifiers, and what it learns from its own pictures.

    python dev.py benchmark train-guides --models benchmarks/models --base diffusion_models/demo_flux_early.safetensors

    classifiers/demo_left.safetensors, demo_right.safetensors
        noise-aware (guiders/noisy_network.py): colour and digit of a half, as 10 colour + digit
    loras/demo_own_pictures_lora.safetensors
        for SIMS: what the base learns from pictures of its own

From a seed, about 8 minutes on one CPU core; what was reached stands in log_guides.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import COLOUR_NAMES, DIGIT_NAMES, prompt_of
from .train_model import Network, Prompts, encode, pictures_of, sample, save

WIDTHS, TIME = (32, 64, 64, 96), 64  # channels of the layers, and numbers that tell the noise level
LABELS = [f"{colour} {digit}" for colour in COLOUR_NAMES for digit in DIGIT_NAMES]
RANK = 16


class Classifier(nn.Module):
    """guiders/noisy_network.py, for training."""

    def __init__(self):
        super().__init__()
        channels = zip((16, *WIDTHS), WIDTHS, strict=False)
        self.conv = nn.ModuleList(nn.Conv2d(last, width, 3, 2, 1) for last, width in channels)
        self.film = nn.ModuleList(nn.Linear(TIME, 2 * width) for width in WIDTHS)
        self.head = nn.Linear(WIDTHS[-1], len(LABELS))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """[n, 16, 16, 16] = (1 − σ) x₀ + σ ε, [n] → logits [n, 50]"""
        h = x / torch.hypot(1 - sigma, sigma)[:, None, None, None]
        angles = (250 * torch.log(sigma / (1 - sigma)))[:, None] * 10000 ** (-torch.arange(TIME // 2) / (TIME // 2))
        time = torch.cat([angles.cos(), angles.sin()], 1)
        for conv, film in zip(self.conv, self.film, strict=True):
            gain, shift = film(time)[:, :, None, None].chunk(2, 1)
            h = F.silu(conv(h) * (1 + gain) + shift)
        return self.head(h.mean((2, 3)))


def noisy(latents: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    at = sigma[:, None, None, None]
    return (1 - at) * latents + at * torch.randn(latents.shape, generator=generator)


def train_classifier(half: int, latents: Tensor, classes: Tensor, steps: int, generator) -> Classifier:
    network = Classifier()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(latents), (128,), generator=generator)
        sigma = 0.01 + 0.98 * torch.rand(128, generator=generator)
        logits = network(noisy(latents[rows], sigma, generator), sigma)
        loss = F.cross_entropy(logits, classes[rows, half], label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def classes_of(labels: Tensor) -> Tensor:
    """[n, 4] → [n, 2]"""
    return 10 * labels[:, ::2] + labels[:, 1::2]


def make_classifiers(options) -> dict:
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    pictures, labels = pictures_of("generator", options.pictures)
    latents, classes = encode(pictures), classes_of(labels)
    unseen, truth = pictures_of("judge", 1000)
    unseen, truth, found = encode(unseen), classes_of(truth), {}
    for half, name in enumerate(("left", "right")):
        network = train_classifier(half, latents, classes, options.steps, generator)
        for sigma in 0.1, 0.5, 0.8:
            levels = torch.full((len(unseen),), sigma)
            with torch.no_grad():
                right = network(noisy(unseen, levels, generator), levels).argmax(1) == truth[:, half]
            found[f"{name}, σ {sigma}"] = round(right.float().mean().item(), 3)
        path = options.models / f"classifiers/demo_{name}.safetensors"
        save(path, network.state_dict(), labels=json.dumps(LABELS), licence="CC0")
    return found


def make_lora(options) -> dict:
    """Self-IMproving diffusion models with Synthetic data (arXiv:2408.16333): the auxiliary model is the base after more
    training, on pictures that the base has drawn."""
    base = Network().load(options.models / options.base).eval()
    prompts, generator = Prompts("cpu"), torch.Generator().manual_seed(options.seed)
    words = [prompt_of(tuple(label)) for label in pictures_of("generator", options.own, 10**6, side=8)[1].tolist()]
    starts = range(0, len(words), 64)
    own = torch.cat([sample(base, prompts, words[at : at + 64], options.seed * 10**6 + at) for at in starts])
    network = Network().load(options.models / options.base)
    optimizer = torch.optim.AdamW(network.parameters(), options.rate, betas=(0.9, 0.99), weight_decay=0.0)
    losses = []
    for step in range(options.own_steps):
        rows = torch.randint(len(own), (32,), generator=generator)
        sigma = torch.rand(32, generator=generator)
        at, noise = sigma[:, None, None, None], torch.randn(32, 16, 16, 16, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = network(at * noise + (1 - at) * own[rows], sigma, *prompts([words[row] for row in rows]))
        loss = (velocity.float() - (noise - own[rows])).square()[:, :12].mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1, (step + 1) / 50, 2 * (1 - step / options.own_steps))
        optimizer.step()
        losses.append(loss.item())
    lora, kept = difference(base, network, RANK)
    save(options.models / "loras/demo_own_pictures_lora.safetensors", lora, licence="CC0", base=options.base)
    first, last = (sum(part) / len(part) for part in (losses[:50], losses[-50:]))
    return {"own pictures": options.own, "loss": [round(first, 4), round(last, 4)], "kept by the LoRA": round(kept, 3)}


def difference(base: Network, network: Network, rank: int) -> tuple[dict[str, Tensor], float]:
    """The best LoRA of a rank for what training changed in the matrices, and its share of the change's square."""
    lora, kept, whole = {}, 0.0, 0.0
    trained = network.weights()
    for name, before in base.weights().items():
        if before.ndim != 2:
            continue
        change = (trained[name] - before).double()
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        root = s[:rank].sqrt()
        layer = "diffusion_model." + name.removesuffix(".weight")
        lora[f"{layer}.lora_up.weight"], lora[f"{layer}.lora_down.weight"] = (
            u[:, :rank] * root,
            root[:, None] * v[:rank],
        )
        kept, whole = kept + s[:rank].square().sum().item(), whole + s.square().sum().item()
    return lora, kept / whole if whole else math.nan


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="the folder of the demo models")
    parser.add_argument("--base", default="diffusion_models/demo_flux_early.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=24576, help="for the classifiers")
    parser.add_argument("--steps", type=int, default=4000, help="of the classifiers")
    parser.add_argument("--own", type=int, default=3072, help="pictures of the base's own")
    parser.add_argument("--own-steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=5e-4, help="of training on them")
    parser.add_argument("--only", choices=["classifiers", "lora"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name, make in ("classifiers", make_classifiers), ("lora", make_lora):
        if options.only in (None, name):
            began = time.perf_counter()
            entry = {"seed": options.seed, **make(options), "seconds": round(time.perf_counter() - began)}
            with open(options.models / "log_guides.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            print(entry, flush=True)
