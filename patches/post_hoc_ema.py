"""Post-hoc EMA.   θ̂(t; γ) = ∫₀ᵗ p(τ; t, γ) θ(τ) dτ ≈ Σᵢ xᵢ θ̂(tᵢ; γᵢ),   p(τ; t, γ) = (γ + 1) τ^γ / t^(γ+1)

An average of a network's weights over training, chosen after training (Karras et al. 2024, "Analyzing and Improving
the Training Dynamics of Diffusion Models", EDM2, arXiv:2312.02696, section 3). t is training time from its beginning,
in any unit; the power γ says how late the average looks. Its width relative to t is

    σ_rel = √((γ + 1) / ((γ + 2)² (γ + 3)))     0.05 → γ = 16.97, 0.10 → γ = 6.94; uniform: 1/√12 → γ = 0

In training it costs one line per step, θ̂ ← β(t) θ̂ + (1 − β(t)) θ with β(t) = (1 − 1/t)^(γ+1). Snapshots of one or more
such averages span profiles p; another profile is their least-squares combination, A x = b with Aᵢⱼ = ∫ pᵢ pⱼ and
bᵢ = ∫ pᵢ p, normalised to Σ x = 1. It is exact for a profile that is a snapshot's own. A target narrower than the
snapshots takes differences of them: their rounding, and all that is not smooth in training, grows with Σ |x|.

Here also for raw weights, γ = ∞. Their profile is a spike, with which least squares means nothing; instead weights move
in straight lines between the snapshots, and rest before the first. Weights that do so are averaged exactly, others with
an error that falls with the square of the distance between snapshots; but what is noise in training averages out only
over as many snapshots as there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

UNIFORM = 1 / math.sqrt(12)  # the σ_rel of γ = 0
RAW = math.inf  # the γ of weights that are no average

Profile = tuple[float, float]  # (t, γ)


def sigma_rel_of(gamma: float) -> float:
    """The relative length σ_rel of an average with exponent γ; the inverse of gamma_of."""
    return 0.0 if gamma == RAW else math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """The largest real root of γ³ + 7γ² + (16 − σ⁻²) γ + (12 − σ⁻²)."""
    if not 0 <= sigma_rel <= UNIFORM:
        raise ValueError(f"σ_rel is {sigma_rel}; it must be from 0 (raw weights) to {UNIFORM:.4f} (a uniform average)")
    if sigma_rel == 0:
        return RAW
    gamma, inverse = 1 / sigma_rel, sigma_rel**-2
    for _ in range(30):  # Newton falls to the root: it begins above it, where the cubic is convex
        value = ((gamma + 7) * gamma + 16 - inverse) * gamma + 12 - inverse
        gamma -= value / ((3 * gamma + 14) * gamma + 16 - inverse)
    return max(gamma, 0.0)


def decay(step: int, gamma: float) -> float:
    """β of the step's update, the first step being 1."""
    return (1 - 1 / step) ** (gamma + 1)


def overlap(a: Profile, b: Profile) -> float:
    """∫ p p' dτ."""
    (early, gamma), (late, other) = sorted((a, b))
    return (gamma + 1) * (other + 1) / (gamma + other + 1) * (early / late) ** other / late


def coefficients(snapshots: Sequence[Profile], target: Profile) -> list[float]:
    """What to multiply each snapshot with, so that their sum is the target."""
    _check(snapshots, target)
    if target in snapshots:
        return [float(snapshot == target) for snapshot in snapshots]
    if snapshots[0][1] == RAW:
        return _between([time for time, _ in snapshots], target)
    norm = torch.tensor([math.sqrt(overlap(a, a)) for a in snapshots], dtype=torch.float64)  # [n]
    gram = torch.tensor([[overlap(a, b) for b in snapshots] for a in snapshots], dtype=torch.float64)  # [n, n]
    right = torch.tensor([[overlap(a, target)] for a in snapshots], dtype=torch.float64)  # [n, 1]
    solution = torch.linalg.lstsq(gram / norm / norm[:, None], right / norm[:, None], driver="gelsd").solution
    solution = solution[:, 0] / norm
    return (solution / solution.sum()).tolist()


def misfit(snapshots: Sequence[Profile], coefficients: Sequence[float], target: Profile) -> float:
    """‖Σᵢ xᵢ pᵢ − p‖ / ‖p‖, for averages."""
    terms = [*zip(snapshots, coefficients, strict=True), (target, -1.0)]
    square = math.fsum(x * y * overlap(a, b) for a, x in terms for b, y in terms)
    return math.sqrt(max(square, 0.0) / overlap(target, target))


def _between(times: list[float], target: Profile) -> list[float]:
    """By parts, with F = ∫ p and θ straight between the times: θ̂ = θₙ − Σᵢ (mean of F from tᵢ₋₁ to tᵢ) (θᵢ − θᵢ₋₁)."""
    end, gamma = target

    def area(time: float) -> float:
        inside = min(time, end)
        return inside * (inside / end) ** (gamma + 1) / (gamma + 2) + time - inside

    means = [(area(late) - area(early)) / (late - early) for early, late in pairwise(times)]
    return [after - before for before, after in pairwise([0.0, *means, 1.0])]


def reconstruct(
    state_dicts: Iterable[Mapping[str, Tensor]], coefficients: Sequence[float], names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Σᵢ xᵢ θᵢ in float32 (float64 for tensors that are), in the last one's dtypes; what is not a floating number is
    the last one's. Each state dict is let go before the next is asked for, so that they may be read one at a time."""
    names = names or [f"snapshot {number}" for number in range(1, len(coefficients) + 1)]
    if not coefficients:
        raise ValueError("there are no snapshots; at least one is needed")
    remaining = iter(state_dicts)
    total: dict[str, Tensor] = {}
    for name, coefficient in zip(names, coefficients, strict=True):
        dtypes = _add(total, next(remaining), coefficient, name, names[0])
    for key, dtype in dtypes.items():
        total[key] = total[key].to(dtype)
        if dtype.is_floating_point and not total[key].float().isfinite().all():
            raise ValueError(f"{key} leaves the range of {dtype} where the snapshots' differences are added up so far")
    return total


def _add(total: dict[str, Tensor], state: Mapping[str, Tensor], coefficient: float, name: str, first: str) -> dict:
    """Adds to `total`, in place, and returns the dtypes of `state`."""
    if total and total.keys() != state.keys():
        key = min(total.keys() ^ state.keys())
        has, lacks = (first, name) if key in total else (name, first)
        raise ValueError(f"{lacks} has no {key}, but {has} has; snapshots must be of one network")
    for key, tensor in state.items():
        if key in total and total[key].shape != tensor.shape:
            shapes = f"{list(tensor.shape)} in {name} but {list(total[key].shape)} in {first}"
            raise ValueError(f"{key} is {shapes}; snapshots must be of one network")
        if not tensor.is_floating_point():
            total[key] = tensor
            continue
        wide = tensor if tensor.dtype == torch.float64 else tensor.float()
        if not torch.isfinite(wide).all():
            raise ValueError(f"{key} of {name} has values that are not finite")
        total[key] = total[key].add_(wide, alpha=coefficient) if key in total else wide * coefficient
    return {key: tensor.dtype for key, tensor in state.items()}


def _check(snapshots: Sequence[Profile], target: Profile) -> None:
    if not snapshots:
        raise ValueError("there are no snapshots; at least one is needed")
    for number, (time, gamma) in enumerate(snapshots, 1):
        if not (0 < time < math.inf and gamma >= 0):
            raise ValueError(f"snapshot {number} has time {time:g} and γ {gamma:g}; a time is above 0, a γ at least 0")
    for number, (before, after) in enumerate(pairwise([time for time, _ in snapshots]), 2):
        if before > after or snapshots[number - 1] in snapshots[: number - 1]:
            raise ValueError(
                f"snapshot {number} has time {after:g} and the one before it {before:g}; they must be in the order of "
                "training, each once"
            )
    if len({gamma == RAW for _, gamma in snapshots}) > 1:
        raise ValueError("raw weights and averages cannot be combined; all snapshots must be of one kind")
    if not ((0 < target[0] <= snapshots[-1][0] and 0 <= target[1] < RAW) or target in snapshots):
        raise ValueError(
            f"the target has time {target[0]:g} and γ {target[1]:g}; its time must be above 0 and at most that of the "
            f"last snapshot, {snapshots[-1][0]:g}, and its γ finite and at least 0"
        )
