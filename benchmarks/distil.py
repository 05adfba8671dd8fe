"""Guidance learnt by a LoRA: teachers and their students on the small under-trained model of two digits.

    python dev.py benchmark distil [--pictures N] [--seeds 3 4]

Each teacher is a guided model. Distil Guidance trains a LoRA on its trajectories, of prompts and a seed that the
evaluation has not. The LoRA is saved by the host's Save LoRA Weights, read by its Load LoRA, and sampled at cfg 1
without guidance. 16 Euler steps, the same prompts and noise for all rows. Written to benchmarks/results/distil.json and
.md after each teacher; those that are there are not sampled again, but with --again. LoRAs are kept in output/distil,
and trained once.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .provenance import facts_of_run, named
from .rows import CLEAR, between, facts, known_rows, marked, parsed
from .study.cells import reference_of
from .study.command import LAYERS, ROOT, SETTINGS, demo_files
from .study.measured import features_of, measured
from .study.methods import METHODS, Method
from .study.report import number, table, with_interval
from .study.rig import EMPTY, Rig, start_host
from .study.suites import DemoDigits

RESULTS, README = ROOT / "benchmarks/results/distil.json", ROOT / "benchmarks/README.md"
KEPT = ROOT / "output/distil"  # the LoRAs
SETTING = "early"
STEPS, BATCH, PER_PROMPT, DRAWS = 16, 40, 2, 200
PICTURES = 1000  # of each seed
TRAIN_SEED, TRAIN_PROMPTS = 77, 400
TRAINING = {"iterations": 500, "batch_size": 48, "learning_rate": 0.002, "rank": 16, "checkpointing": False}

COLUMNS = {
    "rows": "rows", "accuracy": "accuracy", "fd": "FD", "fd_pixel": "FD pixel", "diversity": "diversity",
    "share": "share of the gain in FD", "apart": "FD from the teacher's",
}  # fmt: skip
MORE_IS_BETTER = ("accuracy", "diversity")
WORDS = (
    "*rows*: of the network, per step and picture. *accuracy*, *FD*, *FD pixel*, *diversity*: as in the study. *share of "
    "the gain in FD*: (none − student) / (none − teacher), of the means over the seeds; in brackets where the "
    f"teacher's gain is less than {CLEAR} paired standard errors on a seed, empty where it has none on one. *FD from the "
    "teacher's*: the student's less the teacher's, and in paired standard errors, for each seed. **Bold**: better than "
    f"none by {CLEAR} paired standard errors on each seed; ~~struck out~~: worse by as much."
)


@dataclass(frozen=True)
class Teacher:
    """Guidances with their strengths, by the names of the study's methods."""

    parts: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        return " + ".join(f"{name} {strength:g}" for name, strength in self.parts)

    def build(self, rig: Rig, model, _strength=0.0):
        methods = {method.name: method for method in METHODS}
        cfg = 1.0
        for name, strength in self.parts:
            model, weight = methods[name].build(rig, model, strength)
            cfg = weight if weight != 1 else cfg
        return model, cfg


TEACHERS = (
    Teacher((("CFG", 1.25),)),
    Teacher((("PAG", 0.5), ("TSG", 1.1))),
    Teacher((("Autoguidance", 1.5), ("PAG", 0.5))),  # too strong together: FD is worse than without
    Teacher((("Autoguidance, less capacity", 1.25), ("PAG", 0.25))),  # of two gentle pairs, on seed 0
)
PLAIN = METHODS[0]


class Bench:
    """Trains the students, samples them and their teachers, and measures both."""

    def __init__(self, folder: Path, pictures: int, seeds: Sequence[int], compute: str, commit: str):
        self.suite, self.pictures, self.seeds, self.commit = DemoDigits(folder), pictures, seeds, commit
        self.compute = compute
        files = demo_files(folder, SETTINGS[SETTING])
        self.model = named(files.checkpoint)
        self.rig = Rig(
            files, STEPS, "euler", "simple", 128, 128, BATCH, compute=compute, decode=self.suite.decode, layers=LAYERS
        )
        self.reference = reference_of(self.suite)
        self.groups = np.arange(pictures) // PER_PROMPT
        different = -(-pictures // PER_PROMPT)
        self.prompts = {
            seed: [p for p in self.suite.prompts(different, seed) for _ in range(PER_PROMPT)] for seed in seeds
        }
        self.none = {seed: self._sampled(PLAIN, seed) for seed in seeds}

    def row(self, teacher: Teacher) -> dict:
        """What stands in the results."""
        path, trained = self._student(teacher)
        taught = Method("teacher", "", (0.0,), (), teacher.build, settings=teacher.name)
        with_it = lambda rig, model, strength: (self._with(model, path), 1.0)  # noqa: E731
        alone = Method("student", "", (0.0,), (), with_it, settings=named(path))
        cells = [self._cell(taught, alone, seed) for seed in self.seeds]
        return {
            "teacher": teacher.name,
            "commit": self.commit,
            "lora": named(path),
            "training": trained,
            "cells": cells,
        }

    def plain(self) -> dict:
        """The row of no guidance."""
        cells = []
        for seed in self.seeds:
            found, rows = self.none[seed]
            cells.append({"seed": seed, "rows": rows, **measured(found, self.groups, self.reference, None, DRAWS)})
        return {"commit": self.commit, "cells": cells}

    def _cell(self, taught: Method, alone: Method, seed: int) -> dict:
        base, found = self.none[seed][0], {method.name: self._sampled(method, seed) for method in (taught, alone)}
        cell: dict = {"seed": seed}
        for name, (features, rows) in found.items():
            cell[name] = {"rows": rows, **measured(features, self.groups, self.reference, base, DRAWS)}
        between_them = measured(found["student"][0], self.groups, self.reference, found["teacher"][0], DRAWS)
        cell["student"]["against_teacher"] = between_them["against_none"]
        return cell

    def _sampled(self, method: Method, seed: int) -> tuple[dict[str, np.ndarray], float]:
        """All that is measured of the pictures; how many rows of the network a picture took, per step. Kept in a file, so
        that a run that was ended goes on."""
        key = json.dumps(
            [self.model, method.name, method.settings, STEPS, seed, self.pictures, self.compute, self.commit]
        )
        file = KEPT / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
        if not file.exists():
            began, prompts = time.perf_counter(), self.prompts[seed]
            sampled = self.rig.sample(method, 0.0, prompts, seed)
            sys.stderr.write(f"  {method.name}, seed {seed}: {time.perf_counter() - began:.0f} s\n")
            np.savez(file, rows=sampled.rows, **features_of(sampled, prompts, self.reference))
        with np.load(file) as found:
            return {name: found[name] for name in found if name != "rows"}, float(found["rows"])

    def _with(self, model, path: Path):
        import nodes

        return nodes.LoraLoaderModelOnly().load_lora_model_only(model, self.rig._named("loras", path), 1.0)[0]

    def _student(self, teacher: Teacher) -> tuple[Path, dict]:
        """(the file of the LoRA, how it was trained). It is not trained again where it is there."""
        import folder_paths
        from comfy_extras.nodes_train import SaveLoRA

        key = json.dumps([self.model, teacher.name, STEPS, TRAIN_SEED, TRAIN_PROMPTS, self.compute, TRAINING])
        stem = hashlib.sha256(key.encode()).hexdigest()[:12]
        about = KEPT / f"{stem}.json"
        if not about.exists():
            lora, trained = self._trained(teacher)
            before = folder_paths.get_output_directory()
            folder_paths.set_output_directory(str(KEPT))
            try:
                SaveLoRA.execute(lora, stem, TRAINING["iterations"])
            finally:
                folder_paths.set_output_directory(before)
            about.write_text(json.dumps(trained), "utf-8")
        return sorted(KEPT.glob(f"{stem}_*.safetensors"))[-1], json.loads(about.read_text("utf-8"))

    def _trained(self, teacher: Teacher) -> tuple[dict, dict]:
        import comfy.samplers

        from ..nodes.distillation import DistilGuidance

        seen = {prompt.text for prompts in self.prompts.values() for prompt in prompts}
        texts = dict.fromkeys(p.text for p in self.suite.prompts(20 * TRAIN_PROMPTS, TRAIN_SEED) if p.text not in seen)
        model, cfg = teacher.build(self.rig, self.rig.model)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
        began = time.perf_counter(), time.process_time()
        with torch.inference_mode():  # as the host runs nodes
            out = DistilGuidance.built(
                model=model, positive=[self.rig.encode(text) for text in [*texts][:TRAIN_PROMPTS]],
                latent={"samples": torch.zeros(1, 4, 16, 16)}, negative=self.rig.encode(EMPTY), cfg=cfg, sigmas=sigmas,
                sampler=comfy.samplers.sampler_object("euler"), pictures=TRAIN_PROMPTS, seed=TRAIN_SEED,
                existing_lora="", **TRAINING,
            )  # fmt: skip
        lora, losses, _ = out.result
        losses = losses["loss"]
        sys.stderr.write(f"  trained in {time.perf_counter() - began[0]:.0f} s\n")
        return lora, {
            "commit": self.commit,
            "cpu_seconds": round(time.process_time() - began[1]),
            "first_loss": float(np.mean(losses[:20])),
            "last_loss": float(np.mean(losses[-20:])),
            "weights": sum(tensor.numel() for tensor in lora.values()),
        }


# --------------------------------------------------------------------------------------------------------- the page


def mean(cells: Sequence[dict], measure: str) -> float:
    return float(np.mean([cell["values"][measure][0] for cell in cells]))


def share(none: Sequence[dict], teacher: Sequence[dict], student: Sequence[dict]) -> float | None:
    """How much of the teacher's gain in FD the student has; None where the teacher has none on some seed."""
    if any(cell["against_none"]["fd"][0] >= 0 for cell in teacher):
        return None
    fd = [mean(cells, "fd") for cells in (none, teacher, student)]
    return (fd[0] - fd[2]) / (fd[0] - fd[1])


def values_of(cells: Sequence[dict]) -> list[str]:
    """The columns from rows to diversity: means over the seeds, marked where they are clearly better or worse than
    none."""
    texts = [f"{np.mean([cell['rows'] for cell in cells]):.2f}"]
    for measure in ("accuracy", "fd", "fd_pixel", "diversity"):
        apart = [cell["against_none"].get(measure) for cell in cells]
        texts.append(marked(number(mean(cells, measure)), apart, measure in MORE_IS_BETTER))
    return texts


def summary(results: dict) -> list[str]:
    none = results["none"]["cells"]
    rows = [["", "none", *values_of(none), "", ""]]
    for row in results["rows"]:
        teacher, student = ([cell[which] for cell in row["cells"]] for which in ("teacher", "student"))
        part = share(none, teacher, student)
        text = "" if part is None else f"{100 * part:.0f} %"
        clear = all(value <= -CLEAR * error for value, _, _, error in (cell["against_none"]["fd"] for cell in teacher))
        apart = [cell["against_teacher"]["fd"] for cell in student]
        said = ", ".join(f"{value:+.3f} ({value / max(error, 1e-9):+.1f})" for value, _, _, error in apart)
        rows.append([row["teacher"], "teacher", *values_of(teacher), "", ""])
        rows.append(["", "**student**", *values_of(student), text if clear or not text else f"({text})", said])
    return table(["teacher", "", *COLUMNS.values()], rows)


def missing(results: dict) -> list[str]:
    """What the run was ended before."""
    known = {row["teacher"] for row in results["rows"]}
    names = [teacher.name for teacher in TEACHERS if teacher.name not in known]
    return [f"Not sampled yet, the same command goes on with them: {'; '.join(names)}.", ""] if names else []


def page(results: dict) -> str:
    """results/distil.md."""
    run, settings = results["run"], ", ".join(f"{key} {value}" for key, value in TRAINING.items())
    lines = [
        "# Guidance learnt by a LoRA",
        "",
        f"Made by `{run['command']}` at {run['time']}: {facts(results)}. Model {results['model']}.",
        "",
        f"**A small model, CPU, not tried on real weights.** Two coloured digits; {STEPS} Euler steps; the same prompts "
        f"and noise for all rows. Each student was trained by Distil Guidance on {TRAIN_PROMPTS} trajectories of its "
        f"teacher, of prompts that the evaluation has not, with {settings}, and read by the host's Load LoRA.",
        "",
        *summary(results),
        *missing(results),
        WORDS,
        "",
        "## Each seed",
        "",
        "Intervals of 95 %, by prompts drawn anew. Last: differences from none in accuracy, FD, FD pixel and diversity, in "
        "paired standard errors.",
        "",
    ]
    measures, rows = ("accuracy", "fd", "fd_pixel", "diversity"), []
    for row in results["rows"]:
        for cell in row["cells"]:
            for which in ("teacher", "student"):
                values = [with_interval(cell[which]["values"].get(each)) for each in measures]
                apart = [cell[which]["against_none"][each] for each in measures]
                errors = ", ".join(f"{one[0] / max(one[3], 1e-9):+.1f}" for one in apart)
                rows.append([row["teacher"], which, str(cell["seed"]), *values, errors])
    lines += table(["teacher", "", "seed", *(COLUMNS[each] for each in measures), "from none"], rows)
    lines += ["## Trainings", "", "Loss: means of the first and last 20 iterations.", ""]
    trained = [
        [
            row["teacher"], number(row["training"]["first_loss"]), f"{row['training']['last_loss']:.4f}",
            str(row["training"]["weights"]), str(row["training"]["cpu_seconds"]), row["training"]["commit"], row["lora"],
        ]
        for row in results["rows"]
    ]  # fmt: skip
    lines += table(
        ["teacher", "first loss", "last loss", "numbers in the LoRA", "CPU seconds", "commit", "file"], trained
    )
    return "\n".join(lines).rstrip() + "\n"


def in_step(text: str, results: dict) -> str:
    """A README's text with the table made again."""
    made = "\n".join([*summary(results), *missing(results), f"From `results/{RESULTS.name}`: {facts(results)}.", ""])
    return between(text, "distil", made)


# ------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str]) -> int:
    options = parsed(__doc__ or "", arguments, RESULTS, PICTURES)
    host = start_host(options.comfyui, threads=1)
    run = facts_of_run("distil", arguments, host=f"ComfyUI {host}", draws=DRAWS)
    KEPT.mkdir(parents=True, exist_ok=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.demo, options.pictures, options.seeds, options.compute, run["commit"])
    same = {"pictures": options.pictures, "seeds": options.seeds, "compute": options.compute}
    results = {"run": run, "model": bench.model, **same}
    known = {} if options.again else {row["teacher"]: row for row in known_rows(options.results, results)}
    results |= {"none": bench.plain(), "rows": []}
    for teacher in TEACHERS:
        sys.stderr.write(f"{teacher.name}\n")
        results["rows"].append(known.get(teacher.name) or bench.row(teacher))
        options.results.write_text(json.dumps(results, indent=1), "utf-8")
        options.results.with_suffix(".md").write_text(page(results), "utf-8")
    if options.results == RESULTS:
        README.write_text(in_step(README.read_text("utf-8"), results), "utf-8")
    return 0
