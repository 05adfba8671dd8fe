"""Data of one and two dimensions whose score is known, and what guidances make of it, through the pack's own rules.

    python dev.py benchmark toy2d              numbers, figures and a page of them, from results/toy2d.safetensors
    python dev.py benchmark toy2d --train      trains these networks again first
    python dev.py benchmark toy2d --quick      few points, only to show that it runs; into output/toy2d
    python dev.py benchmark toy2d --only-page  the page again, from the numbers

Four examples, made again from what their papers say of them:

    tree       Karras et al. 2024, autoguidance, arXiv:2406.02507: figures 1 and 2, and the synthetic degradations
    interval   Kynkäänniemi et al. 2024, arXiv:2404.07724: figure 2, of one dimension
    triangle   Ho & Salimans 2022, CFG, arXiv:2207.12598: the figure of three Gaussians
    clusters   its two tables: quality against w by the share of training without a class, and by the number of steps

A seed is that of networks and of points: each has networks of its own, and all its runs start from the same noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from ..provenance import facts_of_run, named
from .figures import draw_all
from .networks import P_UNCOND, LogDensity, networks_of, train_all
from .page import page as page_of
from .study import (
    DEGRADED_RUNS,
    ROOT,
    SEEDS,
    STEPS_P,
    TABLE_STEPS,
    TABLE_W,
    TREE_RUNS,
    ClusterStudy,
    TreeStudy,
    Truth,
    interval_results,
    triangle_results,
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train the networks first")
    parser.add_argument("--quick", action="store_true", help="few points and one seed: shows that it runs, and no more")
    parser.add_argument("--only-page", action="store_true", help="write the page from the numbers, and no more")
    parser.add_argument("--weights", type=Path, default=ROOT / "benchmarks/results/toy2d.safetensors", metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: benchmarks/results")
    options = parser.parse_args(arguments)
    options.out = options.out or ROOT / ("output/toy2d" if options.quick else "benchmarks/results")
    options.seeds = SEEDS[: 1 if options.quick else None]
    return options


def tree_study(seed: int, networks: Mapping[str, LogDensity], truth: Truth, quick: bool) -> TreeStudy:
    return TreeStudy(seed, networks, truth, *((256, 6) if quick else ()))


def all_results(options: argparse.Namespace, truth: Truth) -> dict:
    tensors, quick = load_file(options.weights), options.quick
    found = {"tree": {}, "degraded": {}, "p_uncond": {}, "steps": {}}
    for seed in options.seeds:
        networks = networks_of(tensors, seed)
        study = tree_study(seed, networks, truth, quick)
        found["tree"][f"{seed}"] = study.results(TREE_RUNS[1:] if quick else TREE_RUNS)
        found["degraded"][f"{seed}"] = replace(study, points=study.points // 2).results(DEGRADED_RUNS)
        classes = ClusterStudy(seed, networks, 32 if quick else 256)
        for w in TABLE_W[:: 4 if quick else 1]:
            for p_uncond in P_UNCOND:
                cell = classes.results(p_uncond, w, 3 if quick else 16, heun=True)
                found["p_uncond"].setdefault(f"{p_uncond}", {}).setdefault(f"{w}", {})[f"{seed}"] = cell
            for steps in TABLE_STEPS:
                cell = classes.results(STEPS_P, w, steps // (8 if quick else 1), heun=False)
                found["steps"].setdefault(f"{steps}", {}).setdefault(f"{w}", {})[f"{seed}"] = cell
        print(f"seed {seed} is done", flush=True)
    return found | {"interval": interval_results(), "triangle": triangle_results()}


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    numbers, page = options.out / "toy2d.json", options.out / "toy2d.md"
    if not options.only_page:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.train:
            save_file(train_all(options.seeds, 64 if options.quick else 1), options.weights)
        truth = Truth()
        run = facts_of_run("toy2d", arguments, seeds=options.seeds, networks=named(options.weights))
        results = {"run": run, **all_results(options, truth)}
        numbers.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
        first = networks_of(load_file(options.weights), options.seeds[0])
        draw_all(tree_study(options.seeds[0], first, truth, options.quick), results, options.out)
    page.write_text(page_of(json.loads(numbers.read_text("utf-8"))), "utf-8")
    print(page)
    return 0
