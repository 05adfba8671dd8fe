"""What is measured of a cell's pictures, each number with its interval, and the difference from no guidance."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .. import metrics
from .rig import Sampled
from .suites import Prompt, Reference


def features_of(sampled: Sampled, prompts: Sequence[Prompt], reference: Reference | None) -> dict[str, np.ndarray]:
    """All that later measures need of the pictures, one row for each."""
    height = sampled.pictures.shape[1]
    small = metrics.small(sampled.pictures, 16 if height % 16 == 0 else 8)
    found = {"small": small.astype(np.float32), **metrics.appearance(sampled.pictures)}
    if reference is not None:
        logits, features = reference.suite.read(sampled.pictures)
        found["features"] = (features / reference.unit).astype(np.float32)
        found["pixels"] = reference.pixels(sampled.pictures)
        if prompts[0].labels:
            found["all"] = metrics.hits(logits, np.array([prompt.labels for prompt in prompts]))
            hard = np.isin(np.arange(found["all"].shape[1]), reference.suite.hard)
            found["hard"], found["easy"] = found["all"][:, hard], found["all"][:, ~hard]
    return found


@dataclass(frozen=True)
class Measure:
    """A number of a cell. unbroken: by nearest neighbours, so that no picture may be drawn twice."""

    name: str
    of: Callable  # (features of the pictures, groups, reference) → a statistic of indices; KeyError where it has none
    unbroken: bool = False
    limit: float = np.inf  # the most that it can be; the least is 0


def mean_of(key: str, reduce=lambda x: x.reshape(len(x), -1).mean(1)) -> Callable:
    def of(found, groups, reference):
        if not found[key].size:
            raise ValueError(f"no {key}")
        values = reduce(found[key])
        return lambda at: float(values[at].mean())

    return of


def within_prompts(key: str) -> Callable:
    """Mean distance of the pictures of one prompt; for pixels the root of the mean of their squared differences."""

    def of(found, groups, reference):
        rows = found[key].reshape(len(groups), -1)
        known = np.unique(groups)
        spread = metrics.spreads(rows / rows.shape[1] ** (0.5 if key == "small" else 0), groups)
        values = spread[np.searchsorted(known, groups)]
        if np.isnan(values).all():
            raise ValueError("each prompt has one picture")
        return lambda at: float(np.nanmean(values[at]))

    return of


def flat(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, features.shape[-1]).astype(np.float64)


def distance_of(found, groups, reference):
    features = found["features"].astype(np.float64)
    return lambda at: metrics.frechet(flat(features[at]), reference.gaussian)


def pixel_distance_of(found, groups, reference):
    return lambda at: metrics.frechet(found["pixels"][at], reference.pixel_gaussian)


def precision_of(found, groups, reference):
    features = flat(found["features"])
    held = reference.manifold.holds(features).reshape(len(groups), -1).mean(1)
    return lambda at: float(held[at].mean())


def recall_of(found, groups, reference):
    parts = found["features"].shape[1]
    recall = metrics.Recall(flat(found["features"]), reference.manifold)
    return lambda at: recall((at[:, None] * parts + np.arange(parts)).ravel())


MEASURES = (
    Measure("accuracy", mean_of("hard"), limit=1),
    Measure("easy_accuracy", mean_of("easy"), limit=1),
    Measure("all_right", mean_of("all", lambda hits: hits.all(1)), limit=1),
    Measure("fd", distance_of),
    Measure("fd_pixel", pixel_distance_of),
    Measure("precision", precision_of, limit=1),
    Measure("recall", recall_of, unbroken=True, limit=1),
    Measure("diversity", within_prompts("features")),
    Measure("diversity_pixel", within_prompts("small")),
    Measure("contrast", mean_of("contrast")),
    Measure("saturation", mean_of("saturation")),
    Measure("clipped", mean_of("clipped"), limit=1),
)


def measured(
    found: dict,
    groups: np.ndarray,
    reference: Reference | None,
    base: dict | None,
    draws: int,
    measures: Sequence[Measure] = MEASURES,
) -> dict:
    """{"values": {measure: [value, low, high, standard error]}, "against_none": the same of differences}

    `base`: the features of the same prompts and noise without guidance."""
    values, differences = {}, {}
    for measure in measures:
        sure = metrics.half_samples if measure.unbroken else metrics.bootstrap
        count = max(2, draws // 4) if measure.unbroken else draws
        with contextlib.suppress(KeyError, ValueError):  # what these pictures have no such number for
            statistic = measure.of(found, groups, reference)
            values[measure.name] = listed(sure(statistic, groups, count), 0, measure.limit)
            if base is not None:
                other = measure.of(base, groups, reference)
                difference = functools.partial(lambda at, one, two: one(at) - two(at), one=statistic, two=other)
                differences[measure.name] = listed(sure(difference, groups, count))
    if base is not None:
        change = np.abs(found["small"] - base["small"]).mean(1)
        values["change"] = listed(metrics.bootstrap(lambda at: float(change[at].mean()), groups, draws))
    return {"values": values, "against_none": differences}


def listed(estimate: metrics.Estimate, least: float = -np.inf, most: float = np.inf) -> list[float]:
    low, high = max(least, estimate.low), min(most, estimate.high)
    return [round(float(number), 6) for number in (estimate.value, low, high, estimate.error)]
