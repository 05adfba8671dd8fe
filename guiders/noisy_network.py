"""log p(y | x; σ) = log_softmax(head(mean h))[y]     a small network of noisy latents, and the file that holds one

What classifier guidance asks (Dhariwal & Nichol 2021, arXiv:2105.05233), simple to write from any training code. Of
x = a x₀ + b ε, [batch, channels, height, width] of any height and width, a > 0 and b = σ > 0. x₀ is as the diffusion
model sees it: the VAE's latent in the scale that the host gives it (process_in of its latent format).

    input   h = x / √(a² + b²)                                      one file serves VE, VP and flow sampling
    time    f = [cos(ω₀ t) … cos(ωₙ t), sin(ω₀ t) … sin(ωₙ t)]      ωₖ = 10000^(−2k/F), k from 0 to n = F/2 − 1
            t = 250 ln(b/a)                                         1000 of EDM's c_noise, in DDPM's embedding
    body    h ← silu(conv.i(h) (1 + gain) + shift), i = 0, 1, …     3 × 3, stride 2, padding 1
            (gain, shift) = the halves of film.i(f)
    head    log_softmax(head(mean of h over height and width))

The file is a .safetensors of the tensors that torch's state_dict has, where `conv` and `film` are lists of Conv2d and of
Linear, and `head` is a Linear:

    conv.i.weight   [out, in, 3, 3]     conv.i.bias   [out]         in of conv.0: the latent's channels
    film.i.weight   [2 out, F]          film.i.bias   [2 out]       F even, the same for all
    head.weight     [classes, out]      head.bias     [classes]     out of the last conv
    labels          optional, in the file's metadata: a JSON list of the classes' names
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, silu

from .base import About, Latent

ABOUT = About(
    node_id="BeyondCFGNoisyClassifier",
    name="Noise-Aware Classifier Guidance",
    summary=(
        "Guides the picture towards a label of a small classifier, which you train on this model's noisy latents. It "
        "needs no VAE and no CLIP, so it is cheap. If pictures break, let it begin a little later. "
        "guiders/noisy_network.py describes the file."
    ),
    paper="arXiv:2105.05233",
    aliases=(
        "classifier guidance",
        "noisy classifier",
        "guided diffusion",
        "ADM-G",
        "time-dependent classifier",
    ),
)


@dataclass(frozen=True, eq=False)
class NoisyNetwork:
    """A classifier of noisy latents, by the tensors of its file."""

    tensors: Mapping[str, Tensor]  # of the file

    def __call__(self, x: Latent, noise: float, signal: float) -> Tensor:
        """log p of each class, [batch, classes]; x of the tensors' device and dtype."""
        h = x / math.hypot(signal, noise)
        time = embedded(250 * math.log(noise / signal), self.tensors["film.0.weight"].shape[1]).to(x)
        for i in range(depth(self.tensors)):
            gain, shift = linear(time, *self._layer(f"film.{i}")).view(2, -1, 1, 1)
            h = silu(conv2d(h, *self._layer(f"conv.{i}"), stride=2, padding=1) * (1 + gain) + shift)
        return linear(h.mean((2, 3)), *self._layer("head")).log_softmax(-1)

    def _layer(self, name: str) -> tuple[Tensor, Tensor]:
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def to(self, device: torch.device, dtype: torch.dtype) -> NoisyNetwork:
        """A copy there, which autograd takes even of tensors that were made in inference mode."""
        with torch.inference_mode(False):
            return NoisyNetwork({key: tensor.to(device, dtype, copy=True) for key, tensor in self.tensors.items()})


def embedded(t: float, width: int) -> Tensor:
    """f, [width], in float64."""
    frequencies = 10000 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    return torch.cat([(t * frequencies).cos(), (t * frequencies).sin()])


def depth(tensors: Mapping[str, Tensor]) -> int:
    """How many layers the body has."""
    return next(i for i in itertools.count() if f"conv.{i}.weight" not in tensors)
