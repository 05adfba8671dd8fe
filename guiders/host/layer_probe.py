"""Layer Probe on the host: the model samples as it always does, and all layers are measured in the same model calls.

The layers are branches of one term, so the host evaluates them together with the positive, in groups as large as its
memory allows, and rows are computed once as long as they are equal. Other guidances on the MODEL act in the sampling and
keep acting; what a layer guides towards is measured of the positive's own prediction. Guidance Reuse, Guidance Stop and
recorders on the MODEL do not take part: here each step is measured, and it is not their run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.sample
import torch
from torch import Tensor

from ...patches.base import Perturbation
from ..base import Branch
from ..layer_probe import Findings, LayerProbe, Measures
from ..schedule import Schedule
from .attach import add_term, check_cfg, make_guider
from .distillation import Progress, Sampling
from .recorder import RECORDERS
from .run import REUSE, STOP
from .term import Term


@dataclass(frozen=True)
class Probed:
    """What a Layer Probe has found."""

    measures: Measures
    positive: (
        Tensor  # [1, …], in the network's own units: the prediction of the first picture half way through sampling
    )
    directions: tuple[Tensor, ...]  # likewise, of each row
    process_out: Callable[[Tensor], Tensor]  # from the network's own units to a LATENT's

    def towards(self, scales: Sequence[float]) -> Tensor:
        """The prediction, and behind it what it becomes with each row's direction times its scale, [1 + rows, …], as a
        LATENT holds it."""
        moved = [self.positive + scale * way for scale, way in zip(scales, self.directions, strict=True)]
        return torch.cat([self.process_out(one) for one in (self.positive, *moved)])


def probe_layers(
    model,
    prompts: Sequence[list],
    latent: Tensor,
    pictures: int,
    sampling: Sampling,
    perturbations: Sequence[tuple[str, Perturbation]],
    node: str,
) -> Probed:
    """Sample so many pictures of MODEL, of the prompts in turn, and measure each of `perturbations`, with its name.

    prompts: a conditioning of one entry each. latent: [pictures sampled together, …]. node: whose run it is. Raises
    ValueError where there is nothing to sample, or where cfg needs a negative."""
    check_cfg(sampling.cfg, sampling.negative is not None)
    if not prompts:
        raise ValueError("positive has no prompt; connect one at least")
    if pictures < len(prompts):
        raise ValueError(f"pictures is {pictures} and positive has {len(prompts)} prompts; each needs one at least")
    if latent.is_nested:
        raise ValueError("this latent packs several, such as video and sound, which cannot be measured together")
    steps = len(sampling.sigmas) - 1
    found = Findings(shown_at=steps // 2)
    weak = tuple(Branch(perturbation=perturbation) for _, perturbation in perturbations)
    rule = LayerProbe(weak, sampling.negative is not None, found)
    probed = add_term(model, Term(rule, Schedule(), node))
    for key in (RECORDERS, REUSE, STOP):
        probed.model_options.pop(key, None)
    latent = comfy.sample.fix_empty_latent_channels(probed, latent)
    progress = Progress(probed, steps * math.ceil(pictures / len(latent)))
    with torch.inference_mode():
        for number, begin in enumerate(range(0, pictures, len(latent))):
            start, seed = latent[: pictures - begin], (sampling.seed + number) % 2**64
            guider = make_guider(probed, prompts[number % len(prompts)], sampling.negative, sampling.cfg)
            guider.sample(
                comfy.sample.prepare_noise(start, seed), start, sampling.sampler, sampling.sigmas, disable_pbar=True,
                seed=seed, callback=lambda step, x0, x, total: progress.step(x0),
            )  # fmt: skip
        measures = found.measures([name for name, _ in perturbations])
        if found.positive is None:
            raise ValueError("with these sigmas the sampler takes no step half way, so there is no prediction to show")
        positive, ways = found.positive.cpu(), tuple(way.cpu() for way in found.directions)
        return Probed(measures, positive, ways, model.model.process_latent_out)


def decoded(vae, latents: Tensor) -> Tensor:
    """Latents [n, …] as pictures [n, height, width, channels], one after the other; of a video the frame in its middle."""
    pictures = []
    for at in range(len(latents)):
        frames = vae.decode(latents[at : at + 1])
        frames = frames.reshape(-1, *frames.shape[-3:])
        pictures.append(frames[len(frames) // 2])
    return torch.stack(pictures)
