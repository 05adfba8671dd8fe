"""What is asked for and how it is judged: the demo's digits, or a user's own prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from .. import metrics
from ..provenance import named

REFERENCE_ROWS = 2000  # of the reference for precision and recall, which compare all with all


@dataclass(frozen=True)
class Prompt:
    text: str
    labels: tuple[int, ...] = ()  # what the judge should find


class Suite(Protocol):
    """What is asked for, and what it is compared with."""

    name: str
    judged: bool
    decode: Callable | None  # latents → pictures [n, 3, h, w] where the suite knows a faster way than the VAE
    hard: tuple[int, ...]  # which of a prompt's labels accuracy is about; the others are a check that they are easy

    def prompts(self, count: int, seed: int) -> list[Prompt]:
        """The same for the same count and seed."""

    def read(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """pictures [n, height, width, 3] of 0…1 → the judge's logits [n, labels, classes], features [n, parts, d]"""

    def reference(self) -> np.ndarray:
        """Real pictures [n, height, width, 3] of 0…1, of a split that neither generator nor judge has seen."""

    def real(self, count: int, seed: int) -> tuple[np.ndarray, list[Prompt]]:
        """Real pictures of the generator's split with what they show: what a perfect generator could reach."""


@dataclass(frozen=True)
class PromptFile:
    """A user's prompts, in their order, again from the first where more are asked for; no judge."""

    lines: tuple[str, ...]
    name: str = "prompts"
    judged: bool = False
    decode: None = None
    hard: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: Path) -> PromptFile:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        lines = tuple(line for line in lines if line and not line.startswith("#"))
        if not lines:
            raise SystemExit(f"{path} holds no prompt; write one on each line.")
        return cls(lines, path.name)

    def prompts(self, count: int, seed: int) -> list[Prompt]:
        return [Prompt(self.lines[at % len(self.lines)]) for at in range(count)]


class DemoDigits:
    """Two coloured digits, as benchmarks/digits/data.py draws them, and the judge that train_model.py has trained."""

    judged, hard = True, (1, 3)  # colours are learned at once: the digits are what can go wrong
    REFERENCE = 2500  # pictures

    def __init__(self, folder: Path):
        from safetensors.torch import load_file

        from ..digits import train_model as trained

        self.name, self._trained = f"demo digits, judge {named(folder / 'judge.safetensors')}", trained
        self._judge = trained.Judge().eval()
        self.decode = trained.decode  # what demo_vae.ckpt computes, twenty times faster
        weights = load_file(folder / "judge.safetensors")
        self._judge.load_state_dict({name: tensor.float() for name, tensor in weights.items()})

    def prompts(self, count: int, seed: int) -> list[Prompt]:
        digits = self._trained.Digits("reference")
        labels = [digits.label(10**6 * (seed + 1) + at) for at in range(count)]  # of pictures that are not drawn
        return [Prompt(self._trained.prompt_of(label), tuple(label)) for label in labels]

    @torch.inference_mode()
    def read(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = [], []
        for start in range(0, len(pictures), 250):
            chunk = torch.from_numpy(pictures[start : start + 250]).float().permute(0, 3, 1, 2)
            seen = self._judge.features(chunk)  # [2n, 32]: left halves, then right
            colour, digit = self._judge.colour(seen.relu()), self._judge.digit(seen.relu())
            colour = torch.nn.functional.pad(colour, (0, digit.shape[1] - colour.shape[1]), value=-torch.inf)
            both = torch.stack([colour, digit], 1).unflatten(0, (2, -1))  # [half, n, colour or digit, classes]
            logits.append(both.transpose(0, 1).flatten(1, 2))  # [n, 4, classes]
            features.append(seen.unflatten(0, (2, -1)).transpose(0, 1))
        return torch.cat(logits).numpy(), torch.cat(features).numpy()

    def reference(self) -> np.ndarray:
        return self._as_the_vae_shows("reference", self.REFERENCE, 0)[0]

    def real(self, count: int, seed: int) -> tuple[np.ndarray, list[Prompt]]:
        pictures, labels = self._as_the_vae_shows("generator", count, 10_000 * seed)
        return pictures, [Prompt(self._trained.prompt_of(label), tuple(label)) for label in labels]

    def _as_the_vae_shows(self, split: str, count: int, start: int) -> tuple[np.ndarray, list]:
        """Real pictures through encoder and decoder, with their labels: as they are, sharper than anything that the
        generator could show, they would make every guidance that draws thicker and brighter strokes look right."""
        pictures, labels = self._trained.pictures_of(split, count, start)
        seen = torch.cat([self.decode(self._trained.encode(chunk)) for chunk in pictures.split(250)])
        return seen.permute(0, 2, 3, 1).numpy(), labels.tolist()


class Reference:
    """Real pictures as the measures see them."""

    def __init__(self, suite: Suite):
        pictures = suite.reference()
        features = suite.read(pictures)[1].astype(np.float64)
        self.suite = suite
        self.unit = features.reshape(-1, features.shape[-1]).std(0).mean()  # of all distances in features
        rows = features.reshape(-1, features.shape[-1]) / self.unit
        self.gaussian = metrics.Gaussian.of(rows)
        thinned = rows[np.random.default_rng(0).permutation(len(rows))[:REFERENCE_ROWS]]
        self.manifold = metrics.Manifold(thinned)
        self.pixels = metrics.PixelSpace.of(pictures)
        self.pixel_gaussian = metrics.Gaussian.of(self.pixels(pictures))
