"""The figures of toy2d.py, each from arrays of points."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap

from . import study as toy2d

ORANGE, GREY, DARK = "#e8923a", "#c9c9c9", "#20344f"
CLASS_COLOURS = ("#d1495b", "#2e7d6b", "#30638e")


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_all(study: toy2d.TreeStudy, results: dict, folder: Path) -> None:
    """Into files named as the page shows them."""
    draw_tree(study, folder / "toy2d_tree.png")
    draw_interval(folder / "toy2d_interval.png")
    draw_triangle(folder / "toy2d_triangle.png")
    draw_tables(results, folder / "toy2d_tables.png")


def draw_tree(study: toy2d.TreeStudy, path: Path, shown: int = 4000) -> None:
    """The paper's figure: what guidances make of class A, before the contours that hold 99 % of each class."""
    truth, side = study.truth, 360
    low, high = truth.inside.amin().item() - 0.05, truth.inside.amax().item() + 0.05
    line = torch.linspace(low, high, side)
    grid = torch.cartesian_prod(line, line)
    backgrounds = []
    for tree, colour in ((truth.b, GREY), (truth.a, ORANGE)):
        log_p = tree.mixture.log_density(grid)
        floor = tree.mixture.log_density(tree.mixture.means).max() - 2.12**2
        inside = (log_p >= floor).view(side, side).T
        backgrounds.append((torch.where(inside, 0.0, float("nan")).numpy(), ListedColormap([colour])))
    names = {run.name: run for run in toy2d.TREE_RUNS}
    chosen = ("no guidance", "CFG, w = 4", "CFG, w = 4, σ in (0.02, 0.2]", "score × 1.4", "autoguidance, w = 3")
    panels = [("ground truth", truth.points(study.points, study.seed))]
    panels += [(name, study.sample(names[name])) for name in chosen]
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 6.7), layout="constrained")
    for axis, (title, points) in zip(axes.flat, panels, strict=True):
        for image, colours in backgrounds:
            axis.imshow(image, cmap=colours, origin="lower", extent=(low, high) * 2, alpha=0.55)
        axis.scatter(*points[:shown].T.numpy(), s=0.9, color=DARK, linewidths=0)
        axis.set(title=title, xlim=(low, high), ylim=(low, high), xticks=[], yticks=[])
    save(figure, path)


def draw_interval(path: Path) -> None:
    """Points of two of the three modes on their way from noise, and where they end."""
    chosen = ("no guidance", "w = 6", "w = 6, σ in (0.1, 0.6]")
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained", sharey=True)
    for axis, name in zip(axes, chosen, strict=True):
        sigmas, paths = toy2d.interval_paths(toy2d.INTERVAL_RUNS[name])
        levels = [*sigmas[:-1], 0.01]
        shown = [at for at, sigma in enumerate(levels) if sigma >= 0.01]
        for at in range(10, 2000, 20):
            end = paths[-1, at]
            colour = CLASS_COLOURS[0] if end < 0.5 else CLASS_COLOURS[2]
            axis.plot([levels[i] for i in shown], paths[shown, at], color=colour, linewidth=0.5, alpha=0.5)
        share = (paths[-1] < 0.5).double().mean()
        axis.set(title=f"{name}\n{share:.1%} end at 0", xscale="log", xlim=(3, 0.01), ylim=(-2.2, 3.2), xlabel="σ")
        if "(" in name:
            axis.axvspan(0.1, 0.6, color=GREY, alpha=0.35, linewidth=0)
        axis.set_xticks([1, 0.1, 0.01], ["1", "0.1", "0.01"])
    axes[0].set(ylabel="x", yticks=[-1, 0, 1, 2, 3])
    save(figure, path)


def draw_triangle(path: Path) -> None:
    """Above the paper's densities, below what a sampler with CFG gives."""
    figure, axes = plt.subplots(2, len(toy2d.TRIANGLE_W), figsize=(9.6, 5.0), layout="constrained")
    for column, w in enumerate(toy2d.TRIANGLE_W):
        points, density = toy2d.tilted_grid(w)
        side = int(len(points) ** 0.5)
        image = density.sum(0).view(side, side).T
        reach = points.max().item()
        axes[0, column].imshow(image, origin="lower", extent=(-reach, reach) * 2, cmap="magma")
        axes[0, column].set(title=f"w = {w}")
        for sampled, colour in zip(toy2d.triangle_points(w), CLASS_COLOURS, strict=True):
            axes[1, column].scatter(*sampled.T, s=1.2, color=colour, linewidths=0, alpha=0.6)
        axes[1, column].set(aspect="equal")
    for axis in axes.flat:
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
    axes[0, 0].set(ylabel="p(x | c) p(c | x)ʷ, normalised")
    axes[1, 0].set(ylabel="sampled with CFG")
    save(figure, path)


def draw_tables(results: dict, path: Path) -> None:
    """Both tables as curves; bands reach from the least to the most of the seeds."""
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 6.0), layout="constrained", sharex=True)
    for column, (name, title) in enumerate((("p_uncond", "p_uncond = {}"), ("steps", "{} steps of Euler"))):
        for (value, rows), colour in zip(results[name].items(), CLASS_COLOURS, strict=True):
            w = [float(each) for each in rows]
            for row, measure in enumerate(("fd", "is")):
                cells = torch.tensor([[cell[measure] for cell in seeds.values()] for seeds in rows.values()])
                axes[row, column].fill_between(w, cells.amin(1), cells.amax(1), color=colour, alpha=0.2, linewidth=0)
                axes[row, column].plot(w, cells.mean(1), ".-", color=colour, label=title.format(value))
        axes[0, column].set(yscale="log", ylabel="Fréchet distance")
        axes[1, column].set(ylabel="inception score", xlabel="w of the paper, 0 without guidance")
        axes[1, column].set_xscale("symlog", linthresh=1)
        axes[1, column].set_xticks([0, 0.2, 0.5, 1, 2, 4], ["0", "0.2", "0.5", "1", "2", "4"])
        axes[0, column].legend(frameon=False)
    save(figure, path)
