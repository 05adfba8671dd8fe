"""Independent conditions on the host: made before models load, processed when a run begins, drawn at each step."""

from __future__ import annotations

import copy
import math

import comfy.sampler_helpers
import comfy.samplers
import torch

from ..independent_condition import Pool
from .random_texts import random_texts

TEXT = ("c_crossattn", "y")  # what a prompt is to the network: its tokens, and their pooled vector


def random_tokens(clip, size: int, seed: int) -> Pool:
    """`size` texts of random tokens through CLIP. Draws from a generator of its own. Raises ValueError as random_texts."""
    return Pool(tuple(map(tuple, random_texts(clip, size, seed))), seed)


def prompts(conditioning: list, seed: int) -> Pool:
    """Each of the prompts that are combined in `conditioning`. Raises ValueError for fewer than two."""
    if len(conditioning) < 2:
        raise ValueError(
            f"the pool holds {len(conditioning)} prompt; at least 2 are needed to draw from. Join several with the host's "
            f"Conditioning (Combine)"
        )
    return Pool(tuple((prompt,) for prompt in conditioning), seed)


class Pools:
    """The pools of one run, as rows that the host can evaluate."""

    def __init__(self, pools: set[Pool]):
        self._rows: dict[Pool, list[dict]] = {pool: [] for pool in pools}
        self._drawn: dict[Pool, tuple[tuple, list[dict]]] = {}

    def begin(self, guider, noise, latent_image, mask, seed, shapes) -> None:
        """Process each condition by itself, so that the areas of the user's own conditionings stay as they are."""
        more = {"latent_shapes": shapes} if shapes else {}
        for pool, rows in self._rows.items():
            for condition in pool.conditions:
                conds = {"positive": comfy.sampler_helpers.convert_cond(list(condition))}
                device = guider.model_patcher.load_device
                conds = comfy.samplers.process_conds(
                    guider.inner_model, noise, conds, device, latent_image, mask, seed, **more
                )
                rows.append(conds["positive"][0])

    def at(self, pool: Pool, positive: dict, seed: int, step: int, samples: int) -> list[dict]:
        """The row of ŷ at this step; the same object in all evaluations of it. All else is as in the `positive` row."""
        moment = (seed, step, samples)
        if pool not in self._drawn or self._drawn[pool][0] != moment:
            if not _text(positive):
                raise ValueError("ICG: the positive holds no text that a condition could be drawn for")
            draws = [pool.draw(seed, step, sample) for sample in range(samples)]
            if pool.is_gaussian:
                conds = {key: _noise_like(positive["model_conds"][key], draws) for key in _text(positive)}
            else:
                chosen = [self._rows[pool][draw % len(self._rows[pool])]["model_conds"] for draw in draws]
                conds = {key: _stacked([row[key] for row in chosen]) for key in _text(positive) if key in chosen[0]}
            row = {key: positive[key] for key in ("control", "hooks", "uuid") if key in positive}
            self._drawn[pool] = (moment, [{**row, "model_conds": {**positive["model_conds"], **conds}}])
        return self._drawn[pool][1]


def _text(row: dict) -> list[str]:
    return [key for key in TEXT if torch.is_tensor(getattr(row["model_conds"].get(key), "cond", None))]


def _noise_like(cond, draws: list[int]):
    """N(0, σ²) for each sample, σ the deviation of the whole condition (the paper's)."""
    drawn, like = copy.copy(cond), cond.cond[:1]
    noise = [torch.randn(like.shape, generator=torch.Generator().manual_seed(draw)) for draw in draws]
    drawn.cond = torch.cat(noise).to(like) * cond.cond.float().std().to(like)
    return drawn


def _stacked(conds: list):
    """One condition whose sample i is that of conds[i]. Texts of different lengths repeat to a common one, as the host
    does to put them in one batch."""
    stacked, parts = copy.copy(conds[0]), [cond.cond[:1] for cond in conds]
    if parts[0].ndim == 3:
        length = math.lcm(*(part.shape[1] for part in parts))
        parts = [part.repeat(1, length // part.shape[1], 1) for part in parts]
    stacked.cond = torch.cat(parts)
    return stacked
