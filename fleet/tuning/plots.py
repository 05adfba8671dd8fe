"""The search in pictures, by Optuna's own visualisation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna import visualization
from optuna.trial import TrialState

from .search import Found


def plots(found: Found, folder: Path) -> list[Path]:
    """Write what the trials say, as PNG files: how the search went on, each input by itself, and the front where there are
    two goals."""
    if sum(trial.state == TrialState.COMPLETE for trial in found.study.trials) < 2:
        return []
    draw, names = visualization.matplotlib, [goal.name for goal in found.goals]
    made = []
    for at, name in enumerate(names):

        def value(trial: Any, at: int = at) -> float:
            return trial.values[at]

        stem = name.replace(" ", "_").replace(".", "_")
        target: dict[str, Any] = {"target": value, "target_name": name}
        made.append(_kept(folder / f"history_{stem}.png", draw.plot_optimization_history, found.study, **target))
        made.append(_kept(folder / f"inputs_{stem}.png", draw.plot_slice, found.study, **target))
    if len(names) == 2:
        made.append(_kept(folder / "front.png", draw.plot_pareto_front, found.study, target_names=names))
    return made


def _kept(path: Path, plot: Callable, *args, **kwargs) -> Path:
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its matplotlib pictures experimental
        axes = plot(*args, **kwargs)
    figure = (axes.ravel()[0] if hasattr(axes, "ravel") else axes).figure
    figure.set_size_inches(max(8, figure.get_size_inches()[0]), 5)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)
    return path
