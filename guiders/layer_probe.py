"""What each layer of a network guides towards:   Δₗ = D₊ − D₋ₗ, measured and not added to D

D₋ₗ is the positive's prediction with one perturbation in the layer l, so Δₗ is what PAG, SEG and the like add for each
unit of their scale there (perturbation.py). All layers are branches of one model call, and D stays as it is.

Of each model call and sample, in float32:

    moved          ‖Δₗ‖ / ‖D₊ of the last call‖: how far scale 1 moves the picture
    fine           ‖Δₗ − low‖² / (‖low‖² + ‖Δₗ − low‖²), where low is what is left of Δₗ at half the size, by the
                   pyramid of frequency_decoupled.py: the share of edges and texture
    ahead          cos(Δₗ, D₊′ − D₊), where D₊′ is the next call's: whether the layer guides to where the model
                   itself goes next
    to CFG         cos(Δₗ, D₊ − D₋)
    effective cfg  ⟨Δₗ, D₊ − D₋⟩ / ⟨D₊ − D₋, D₊ − D₋⟩, of the sums over all calls: what scale 1 adds to cfg, as in
                   Guidance Report (arXiv:2602.22570)
    alike          cos(Δₗ, Δₘ)

Of a picture, the means over its calls. A direction that is 0 has the cosine 0 with everything.

The suggestion is the layer of the largest `ahead`. A weak prediction is of use where it errs as the model does when it
sees less of the picture; then the step from weak to clean goes on in the step from now to later. A direction that the
model does not follow is a change of its own, such as of colour. Layers that hardly act are left out. Where the best has
no `ahead` above 0, or is not clearly further ahead than the layers "auto", these are suggested. That is a reason and no
proof: whether pictures become better there was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import NEGATIVE, POSITIVE, Apply, Branch, GuidanceRule, Latent, Predictions, Step
from .frequency_decoupled import left_at_half_size
from .linalg import exact, in_shape, per_sample

LEAST = 0.1  # of the median of `moved`: a layer that moves less hardly acts
CLEAR = 2.0  # standard errors of the mean over pictures
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Heard:
    """One model call, on the device: products of directions of `layers` rows, the reference direction of CFG and D₊."""

    step: int
    products: Tensor  # [samples, layers + 2, layers + 2]; of CFG 0 where no negative was predicted
    parts: Tensor  # [samples, layers, 2]: squares of the coarse part and of the fine one
    onward: Tensor | None  # [samples, layers + 1]: of the call before, the products with how D₊ changed; its square


@dataclass(eq=False)
class Findings:
    """What runs have shown. shown_at: the number of the step whose predictions are kept, of the first run."""

    shown_at: int = 0
    runs: list[list[Heard]] = field(default_factory=list)
    positive: Latent | None = None  # [1, …], of the first sample
    directions: tuple[Latent, ...] = ()  # likewise, of each layer

    def measures(self, names: Sequence[str]) -> Measures:
        """The means over calls, read from the device. Raises ValueError where no call was heard."""
        if not any(self.runs):
            raise ValueError("no step was sampled, so nothing could be measured")
        of_run = [_of_run([_on_cpu(call) for call in run]) for run in self.runs if run]
        steps = sorted({step for one in of_run for step in one.by_step})
        by_step = [torch.stack([one.by_step[step] for one in of_run if step in one.by_step]).mean(0) for step in steps]
        pictures = {key: torch.cat([getattr(one, key) for one in of_run], 1) for key in ("moved", "fine", "ahead")}
        cfg = [torch.cat([getattr(one, key) for one in of_run], 1) for key in ("to_cfg", "effective_cfg")]
        known = any(one.has_cfg for one in of_run)
        return Measures(
            tuple(names),
            **pictures,
            to_cfg=cfg[0] if known else None,
            effective_cfg=cfg[1] if known else None,
            alike=torch.stack([one.alike for one in of_run]).mean(0),
            steps=tuple(steps),
            by_step=torch.stack(by_step, 1),
        )


@dataclass(frozen=True)
class Measures:
    """Of each layer and picture, [layers, pictures], on the CPU; means over the picture's model calls."""

    names: tuple[str, ...]
    moved: Tensor
    fine: Tensor
    ahead: Tensor
    to_cfg: Tensor | None  # cosines; None where no negative was predicted, as effective_cfg
    effective_cfg: Tensor | None
    alike: Tensor  # [layers, layers] of cosines
    steps: tuple[int, ...]
    by_step: Tensor  # moved, [layers, steps]

    def line(self, at: int) -> dict[str, float]:
        """The means over pictures of one layer, by name; angles in degrees. What is not known is left out."""
        found = {key: getattr(self, key)[at].mean().item() for key in ("moved", "fine", "ahead")}
        if self.to_cfg is not None and self.effective_cfg is not None:
            found["angle to CFG"] = angle(self.to_cfg[at].mean().item())
            found["effective cfg"] = self.effective_cfg[at].mean().item()
        return found

    def nearest(self, at: int, among: int) -> tuple[int, float] | None:
        """(another of the first `among` layers, the angle in degrees) whose direction is the nearest; None without."""
        others = [(self.alike[at, other].item(), other) for other in range(among) if other != at]
        others = [(cosine, other) for cosine, other in others if math.isfinite(cosine)]
        return (max(others)[1], angle(max(others)[0])) if others else None


@dataclass(frozen=True)
class Choice:
    """Which layer is suggested, by its place. None: the layers of "auto"."""

    at: int | None
    best: int | None  # the layer that is furthest ahead; None where none acts
    acting: tuple[int, ...]  # the layers among which it was chosen
    margin: float = 0.0  # how much further ahead the best is than "auto", in standard errors; 0 of one picture


def choose(measures: Measures, auto: int) -> Choice:
    """The layer that is suggested. auto: the place of the row in which all layers of "auto" are perturbed together."""
    layers = [*range(auto)]
    moved, ahead = measures.moved.mean(1), measures.ahead.mean(1)
    finite = [at for at in layers if moved[at].isfinite() and ahead[at].isfinite()]
    median = moved[finite].median().item() if finite else 0.0
    acting = tuple(at for at in finite if moved[at] > 0 and moved[at] >= LEAST * median)
    if not acting:
        return Choice(None, None, acting)
    best = max(acting, key=lambda at: ahead[at].item())
    if ahead[best] <= 0:
        return Choice(None, best, acting)
    more = measures.ahead[best] - measures.ahead[auto]
    if not measures.moved[auto].isfinite().all() or measures.moved[auto].mean() == 0:
        return Choice(best, best, acting)  # auto does nothing here
    if more.mean() <= 0:
        return Choice(None, best, acting)
    if len(more) == 1:
        return Choice(best, best, acting)
    margin = (more.mean() / (more.std() / len(more) ** 0.5).clamp(min=1e-9)).item()
    return Choice(best if margin >= CLEAR else None, best, acting, margin)


def angle(cosine: float) -> float:
    """In degrees."""
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine)))) if math.isfinite(cosine) else math.nan


@dataclass(frozen=True)
class LayerProbe(GuidanceRule):
    """Asks for a weak branch of each layer, and notes what they come to. It changes nothing."""

    weak: tuple[Branch, ...]
    with_negative: bool
    found: Findings = field(compare=False)

    def branches(self) -> tuple[Branch, ...]:
        return (NEGATIVE, *self.weak) if self.with_negative else self.weak

    def begin(self) -> Apply:
        self.found.runs.append([])
        listen = _Listener(self, len(self.found.runs) == 1)

        def apply(denoised: Latent, predictions: Predictions, step: Step) -> Latent:
            listen(predictions, step)
            return denoised

        return apply


class _Listener:
    """One run. It holds the directions of the call before, since `ahead` needs the one after."""

    def __init__(self, rule: LayerProbe, is_first: bool):
        self._rule, self._found, self._is_first = rule, rule.found, is_first
        self._before: Tensor | None = None  # [samples, layers + 2, n]

    def __call__(self, predictions: Predictions, step: Step) -> None:
        positive = exact(predictions[POSITIVE])
        directions = [positive - exact(predictions[branch]) for branch in self._rule.weak]
        cfg = torch.zeros_like(positive)
        if self._rule.with_negative:
            cfg = positive - exact(predictions[NEGATIVE])
        flat = torch.stack([*directions, cfg, positive], 1).flatten(2)
        products = torch.stack([one @ one.T for one in flat])  # sample by sample: a batch would be rounded otherwise
        onward = None
        if self._before is not None and self._before.shape == flat.shape:
            change = flat[:, -1] - self._before[:, -1]
            onward = torch.stack([one[:-2] @ way for one, way in zip(self._before, change, strict=True)])
            onward = torch.cat([onward, change.square().sum(1, keepdim=True)], 1)
        self._before = flat
        parts = torch.stack([_parts(direction, step) for direction in directions], 1)
        self._found.runs[-1].append(Heard(step.index, products, parts, onward))
        if self._is_first and step.index == self._found.shown_at and self._found.positive is None:
            self._found.positive = positive[:1].clone()
            self._found.directions = tuple(direction[:1].clone() for direction in directions)


def _parts(direction: Latent, step: Step) -> Tensor:
    """The squares of its coarse part and of its fine one, [samples, 2]."""

    def coarse(x: Latent) -> Latent:
        return left_at_half_size(x, tuple(range(max(2, x.ndim - 2), x.ndim)))

    low = in_shape(coarse, direction, shapes=step.shapes)
    squares = [part.square().sum(per_sample(part)) for part in (low, direction - low)]
    return torch.stack(squares, 1)


@dataclass(frozen=True)
class _OfRun:
    """The measures of one run, [layers, samples]."""

    moved: Tensor
    fine: Tensor
    ahead: Tensor
    to_cfg: Tensor
    effective_cfg: Tensor
    has_cfg: bool
    alike: Tensor  # [layers, layers]
    by_step: dict[int, Tensor]  # step → [layers]


def _on_cpu(call: Heard) -> Heard:
    """In float64, so that nothing is lost in what follows."""
    onward = None if call.onward is None else call.onward.cpu().double()
    return Heard(call.step, call.products.cpu().double(), call.parts.cpu().double(), onward)


def _of_run(calls: list[Heard]) -> _OfRun:
    products = torch.stack([call.products for call in calls])  # [calls, samples, layers + 2, layers + 2]
    lengths = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()  # [calls, samples, layers + 2]
    moved = lengths[..., :-2] / lengths[-1:, :, -1:].clamp(min=TINY)
    cosines = products / (lengths[..., None] * lengths[..., None, :]).clamp(min=TINY)
    parts = torch.stack([call.parts for call in calls])  # [calls, samples, layers, 2]
    fine = parts[..., 1] / parts.sum(-1).clamp(min=TINY)
    ahead = [_ahead(before, call) for before, call in zip(lengths, calls[1:], strict=False)]
    known = [one for one in ahead if one is not None]
    total = products.sum(0)
    by_step: dict[int, list[Tensor]] = {}
    for call, one in zip(calls, moved, strict=True):
        by_step.setdefault(call.step, []).append(one.mean(0))
    return _OfRun(
        moved=moved.mean(0).T,
        fine=fine.mean(0).T,
        ahead=torch.stack(known).mean(0).T if known else torch.zeros_like(moved[0].T),
        to_cfg=cosines[..., :-2, -2].mean(0).T,
        effective_cfg=(total[:, :-2, -2] / total[:, -2:-1, -2].clamp(min=TINY)).T,
        has_cfg=bool(total[:, -2, -2].any()),
        alike=cosines[..., :-2, :-2].mean((0, 1)),
        by_step={step: torch.stack(found).mean(0) for step, found in by_step.items()},
    )


def _ahead(before: Tensor, call: Heard) -> Tensor | None:
    """[samples, layers], of the call before this one, whose lengths are `before`."""
    if call.onward is None:
        return None
    return call.onward[:, :-1] / (before[:, :-2] * call.onward[:, -1:].sqrt()).clamp(min=TINY)
