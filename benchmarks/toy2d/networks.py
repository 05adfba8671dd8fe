"""Small networks for data of few dimensions, and their training.

    score(x; σ) = ∇ₓ G(x; σ),   G = gain/σ · mean h(x; σ)² − ½ |x|²/(σ_data² + σ²)         σ_data = ½

G is a log-density: the second term is that of N(0, σ_data² I) in noise, and h what the network knows better. As in the
2-D example of Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", arXiv:2406.02507, appendix
C; its layers keep the magnitude of what passes (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
Diffusion Models", EDM2, arXiv:2312.02696).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import linear, normalize, silu

from ...patches.post_hoc_ema import decay, gamma_of
from .mixtures import Mixture, both, clusters, trees

SIGMA_DATA = 0.5
LAYERS = 5
SILU_RMS = 0.596  # of silu(n), n ~ N(0, 1)
Between = Callable[[Tensor], Tensor]  # [..., width] → the same


class LogDensity(torch.nn.Module):
    """Parameters are `gain` and `weights.i` [width, inputs], of which only the directions of the rows matter.

    Data of two dimensions. With `classes` it takes a class as well: ones and zeros [..., classes], of no class all 0.
    """

    def __init__(self, width: int, generator: Generator, classes: int = 0):
        super().__init__()
        sizes = [2 + 2 + classes] + [width] * (LAYERS - 1)
        self.weights = torch.nn.ParameterList(torch.randn(width, size, generator=generator) for size in sizes)
        self.gain = torch.nn.Parameter(torch.zeros(()))

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> LogDensity:
        """With these parameters, for sampling only."""
        network = cls(len(weights["weights.0"]), Generator(), weights["weights.0"].shape[1] - 4)
        network.load_state_dict(weights)
        return network.requires_grad_(False)

    def forward(
        self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None, between: Between = lambda hidden: hidden
    ) -> Tensor:
        """G of x [..., 2], up to a constant: [...]. σ is a number or broadcasts against [..., 1]; `between` may change
        what passes from layer to layer."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype).expand(*x.shape[:-1], 1)
        x = x / (SIGMA_DATA**2 + sigma**2).sqrt()
        h = torch.cat([x, sigma.log() / 4, torch.ones_like(sigma), *([] if label is None else [label])], -1)
        for number, weight in enumerate(self.weights):
            h = linear(h if number == 0 else between(silu(h) / SILU_RMS), normalize(weight, dim=1))
        return self.gain / sigma[..., 0] * h.square().mean(-1) - x.square().sum(-1) / 2

    def score(self, x: Tensor, sigma: Tensor | float, *condition) -> Tensor:
        """∇ₓ G: [..., 2]"""
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self(x, sigma, *condition).sum(), x, create_graph=training)[0]

    @torch.no_grad()
    def denoised(self, x: Tensor, sigma: float, *condition) -> Tensor:
        """D = x + σ² score: [..., 2]"""
        return x + sigma**2 * self.score(x, sigma, *condition)

    @torch.no_grad()
    def normalize(self) -> None:
        """Elements of magnitude 1, so that a learning rate means the same for all layers at all times."""
        for weight in self.weights:
            weight.copy_(normalize(weight, dim=1) * math.sqrt(weight.shape[1]))


# ------------------------------------------------------------------------------------------------------------- training

Batch = tuple[Tensor, Tensor, Tensor | None, Tensor]  # x [levels, n, 2], σ [levels], classes, the score to learn


def noise_of(levels: int, generator: Generator) -> Tensor:
    """ln σ ~ N(−2.3, 1.5²): [levels], one from each of as many equal parts of the distribution. Points that share a
    level make the exact score cheap."""
    share = (torch.arange(levels) + torch.rand(levels, generator=generator)) / levels
    return torch.exp(-2.3 + 1.5 * torch.special.ndtri(share))


def exact_batch(data: Mixture, levels: int, points: int) -> Callable[[Generator], Batch]:
    """Noisy points of the data, some at each level, with the score of all data there."""

    def draw(generator: Generator) -> Batch:
        sigma = noise_of(levels, generator)
        clean = data.sample(levels * points, generator).view(levels, points, 2)
        x = clean + sigma[:, None, None] * torch.randn(clean.shape, generator=generator)
        return x, sigma, None, data.score(x, sigma)

    return draw


def labelled_batch(
    classes: Sequence[Mixture], p_uncond: float, levels: int, points: int
) -> Callable[[Generator], Batch]:
    """As many noisy points of each class, with its label, or none with probability `p_uncond`; what pulls each to the
    clean point that it came from is the score of all such points on average (Vincent 2011)."""

    def draw(generator: Generator) -> Batch:
        sigma = noise_of(levels, generator)
        each = levels * points // len(classes)
        clean = torch.stack([one.sample(each, generator) for one in classes], 1).view(levels, points, 2)
        x = clean + sigma[:, None, None] * torch.randn(clean.shape, generator=generator)
        label = torch.eye(len(classes)).repeat(each, 1).view(levels, points, len(classes))
        told = torch.rand(*label.shape[:2], 1, generator=generator) >= p_uncond
        return x, sigma, label * told, (clean - x) / sigma[:, None, None] ** 2

    return draw


def train(
    network: LogDensity, draw: Callable[[Generator], Batch], keep: Mapping[int, str], generator: Generator
) -> tuple[dict[str, dict[str, Tensor]], float]:
    """({name: averaged weights} of the steps to keep, the mean loss of the last tenth).

    Minimises σ² |score − target|². Adam at the rate 0.01/√max(step/512, 1); weights are averaged over training with
    σ_rel = 0.01 (arXiv:2312.02696).
    """
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    gamma, steps, kept, losses = gamma_of(0.01), max(keep), {}, []
    average = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(1, steps + 1):
        network.normalize()
        optimizer.param_groups[0]["lr"] = 0.01 / math.sqrt(max(step / 512, 1))
        x, sigma, label, target = draw(generator)
        sigma = sigma[:, None, None]
        loss = (sigma**2 * (network.score(x, sigma, label) - target).square()).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - decay(step, gamma))
        if step in keep:
            kept[keep[step]] = {name: value.clone() for name, value in average.items()}
    last = losses[-max(1, steps // 10) :]
    return kept, sum(last) / len(last)


# ---------------------------------------------------------------------------------------------- the networks of toy2d.py


@dataclass(frozen=True)
class Recipe:
    width: int
    keep: Mapping[int, str]  # step of training → name of the network then
    draw: Callable[[Generator], Batch]
    classes: int = 0


TREE_BATCH = 64, 64  # noise levels, points at each: 4096 as in the paper
CLUSTER_BATCH = 64, 16
P_UNCOND = (0.1, 0.2, 0.5)


def recipes(faster: int) -> list[Recipe]:
    """Those of the tree are the paper's, but for the batch. `faster`: with that part of the steps."""
    (a, b), classes = trees(), clusters()
    return [
        Recipe(32, {512 // faster: "unconditional"}, exact_batch(both(a, b), *TREE_BATCH)),
        Recipe(32, {512 // faster: "weak"}, exact_batch(a.mixture, *TREE_BATCH)),
        Recipe(64, {512 // faster: "early", 4096 // faster: "main"}, exact_batch(a.mixture, *TREE_BATCH)),
        *(
            Recipe(
                32,
                {1024 // faster: f"clusters {p_uncond}"},
                labelled_batch(classes, p_uncond, *CLUSTER_BATCH),
                len(classes),
            )
            for p_uncond in P_UNCOND
        ),
    ]


def train_all(seeds: Iterable[int], faster: int = 1) -> dict[str, Tensor]:
    """All networks of all seeds, as tensors "seed/network/parameter" in half precision."""
    tensors = {}
    for seed in seeds:
        for number, recipe in enumerate(recipes(faster)):
            generator, start = Generator().manual_seed(10 * seed + number), time.process_time()
            network = LogDensity(recipe.width, generator, recipe.classes)
            kept, loss = train(network, recipe.draw, recipe.keep, generator)
            print(f"seed {seed}: {', '.join(kept)}: loss {loss:.4f}, {time.process_time() - start:.0f} s", flush=True)
            for name, weights in kept.items():
                tensors |= {f"{seed}/{name}/{key}": value.half() for key, value in weights.items()}
    return tensors


def networks_of(tensors: Mapping[str, Tensor], seed: int) -> dict[str, LogDensity]:
    """Those of a seed, by name. Raises KeyError where there are none."""
    weights: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        of, network, key = name.split("/")
        if of == str(seed):
            weights.setdefault(network, {})[key] = value.float()
    if not weights:
        raise KeyError(f"there are no networks of seed {seed}")
    return {name: LogDensity.of(state) for name, state in weights.items()}
