"""What each guidance does to pictures, and what it costs: a table from one command.

    python dev.py benchmark study                      the demo models, all settings; resumes where it was stopped
    python dev.py benchmark study --setting early      some of them: early, better, unconditional, no-dropout, layers,
                                                      field
    python dev.py benchmark study --setting early --again    forgets what is in the results of a setting, samples all anew;
                                                      --again SIMS "SIMS + Classifier" only these rows
    python dev.py benchmark study --quick              few pictures, only to show that it runs
    python dev.py benchmark study --checkpoint my.safetensors --prompts prompts.txt [--weak older.safetensors]
    python dev.py benchmark study --only-report        tables and curves again, from the results

With a judge (the demo models) every method gets the same number of strengths, tried with `--choose` pictures of one seed;
the one of least Fréchet distance is reported with `--report` pictures of other seeds. Without a judge (your model) every
strength is sampled, and what needs no judge is reported. All methods share prompts and noise, picture by picture.

Results are JSON, one line for each finished cell, written when it is finished: a second run does only what is missing.
The pictures' features, which paired intervals need, lie beside them under output/quality; what is lost there is sampled
again. Needs a ComfyUI (--comfyui, COMFYUI_PATH, or the one that dev.py has fetched) and runs in its Python.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...fleet.pool import Pool, Worker
from ...fleet.progress import Bars
from ..provenance import facts_of_run, named
from .cells import CHOOSE_SEED, KINDS, Results, Study
from .methods import ALL, DEGRADATIONS, FIELD, METHODS, NEGATIVE, NONE, POOL_SIZE, Method
from .report import write_report
from .rig import EMPTY, Files, Rig, start_host
from .suites import DemoDigits, PromptFile
from .summary import in_step

ROOT = Path(__file__).resolve().parents[2]

RECIPE = 3  # raise it when what a cell means changes: cells of an older recipe are then sampled again
RESULTS, PAGES = ROOT / "benchmarks/results", (ROOT / "benchmarks/README.md", ROOT / "README.md")
REPORT_SEEDS = (3, 4)  # 1 and 2 had been looked at while the strengths to try were settled
POOL_SEED = 1000  # of the prompts that ICG draws from
LAYERS = "single.3"  # the best of SETTINGS["layers"]


@dataclass(frozen=True)
class Setting:
    """One of the demo's tables: a model, what it is guided by, and which methods are worth their time there."""

    model: str
    others: dict[str, tuple[str, ...]]
    methods: tuple[str, ...] = tuple(method.name for method in METHODS)
    conditional: bool = True
    layers: tuple[str, ...] = (LAYERS,)  # of PAG and SEG: a table for each
    choose: int = 200  # pictures for choosing a strength
    pictures: int = 1000  # that are reported of each seed
    reported: bool = True  # or only the strengths on the seed for choosing


MODELS = "diffusion_models/demo_flux{}.safetensors"
CLASSIFIERS = "classifiers/demo_left.safetensors", "classifiers/demo_right.safetensors"
DEGRADED = tuple(method.name for method in METHODS if method.name.startswith(tuple(DEGRADATIONS)))
FEW = (NONE, "CFG", "CFG + interval", "PAG", "SEG", "ICG", "Autoguidance")


def files(*names: str) -> tuple[str, ...]:
    return tuple(MODELS.format(name) for name in names)


SETTINGS = {
    "early": Setting(
        "_early",
        {
            "weak": files("_weak"), "smaller": files("_small_early"), "smaller and weak": files("_small_weak"),
            "own pictures": ("loras/demo_own_pictures_lora.safetensors",), "classifiers": CLASSIFIERS,
        },
        tuple(method.name for method in METHODS if method.name != "Post-hoc EMA"),
    ),
    "better": Setting(
        "",
        {
            "weak": files("_early"), "smaller": files("_small"), "smaller and weak": files("_small_early"),
            "snapshots": files("_early", "_ema_010", ""),
        },
        (*FEW, "Autoguidance, both", "Post-hoc EMA", *DEGRADED),
    ),
    "unconditional": Setting(
        "_early",
        {"weak": files("_weak"), "classifiers": CLASSIFIERS},
        (NONE, "PAG", "SEG", "SAG", "TSG", "Autoguidance", "Classifier", "Truncation"),
        conditional=False,
    ),
    "layers": Setting(
        "_early", {}, ("PAG", "SEG"), layers=("double.0", *(f"single.{at}" for at in range(6)), "auto"), reported=False
    ),
    "no-dropout": Setting("_no_dropout_early", {"weak": files("_no_dropout_weak")}, (*FEW, "SAG", "TSG")),
    "field": Setting("_early", {}, (NONE, "CFG", *(method.name for method in FIELD)), choose=100, pictures=400),
}  # fmt: skip


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = parser.add_argument_group("your own model")
    own.add_argument("--checkpoint", type=Path, metavar="FILE")
    own.add_argument("--prompts", type=Path, metavar="FILE", help="one on each line")
    own.add_argument("--clip", type=Path, metavar="FILE", help="text encoder, or a checkpoint that has one")
    own.add_argument("--clip-type", default="stable_diffusion", help="as in the host's Load CLIP")
    own.add_argument("--vae", type=Path, metavar="FILE")
    own.add_argument("--weak", type=Path, metavar="FILE", help="a worse version of the model, for Autoguidance")
    own.add_argument("--negative", default=EMPTY, metavar="TEXT")
    own.add_argument("--unconditional", action="store_true", help="the empty prompt for all pictures")
    parser.add_argument(
        "--demo", type=Path, default=ROOT / "benchmarks/models", metavar="FOLDER", help="the demo models"
    )
    parser.add_argument("--setting", nargs="+", choices=list(SETTINGS), help="of the demo models; default: all")
    parser.add_argument("--quick", action="store_true", help="few pictures and steps: shows that it runs, and no more")
    parser.add_argument("--methods", nargs="+", choices=[m.name for m in ALL], metavar="NAME", help="default: all")
    parser.add_argument(
        "--layers", nargs="+", help="of PAG and SEG: a table for each; default: auto, or the demo's best"
    )
    parser.add_argument("--choose", type=int, metavar="N", help="pictures for choosing a strength; 200, in field 100")
    parser.add_argument(
        "--report", type=int, metavar="N", help="pictures for each seed; 1000, in field 400, or per prompt with yours"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=list(REPORT_SEEDS), help="none: choose, and no more")
    parser.add_argument("--per-prompt", type=int, default=2, metavar="N", help="pictures of each prompt")
    parser.add_argument("--steps", type=int, metavar="N")
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--batch", type=int, metavar="N", help="pictures sampled together")
    parser.add_argument(
        "--compute",
        choices=["default", "fp32", "fp16", "bf16"],
        help="default: bf16 for the demo models, but not with --quick",
    )
    parser.add_argument("--draws", type=int, default=200, metavar="N", help="of the bootstrap")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")), metavar="N")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="default: benchmarks/results, or output/quality")
    parser.add_argument("--only-report", action="store_true", help="write tables and curves from the results, no more")
    parser.add_argument(
        "--again",
        nargs="*",
        metavar="METHOD",
        help="forget what the results hold of these settings, or of these rows in them",
    )
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if bool(options.checkpoint) != bool(options.prompts):
        parser.error("--checkpoint and --prompts belong together")
    if options.unconditional and not options.checkpoint:
        parser.error("--unconditional is for your own model; the demo's is --setting unconditional")
    own_model, quick = options.checkpoint is not None, options.quick
    if options.again is not None and options.only_report:
        parser.error("--again forgets the results that --only-report is about")
    options.setting = ["own"] if own_model else options.setting or (["early"] if quick else list(SETTINGS))
    options.steps = options.steps or (4 if quick else 20 if own_model else 8)
    options.size = options.size or ([512, 512] if own_model else [128, 128])
    options.batch = options.batch or (4 if own_model else 40)
    options.compute = options.compute or ("default" if own_model or quick else "bf16")
    if quick:
        options.choose, options.seeds, options.draws = 36, options.seeds[:1], 20
        options.report = options.report or (None if own_model else 36)
    if options.results is None:
        options.results = ROOT / "output/quality" / ("quick" if quick else "") if own_model or quick else RESULTS
    return options


def main(arguments: Sequence[str], workers: Sequence[Worker] = (), address: str = "", limit: float = math.inf) -> int:
    """Run the study: in this process, or by workers of the fleet, each with the model in a process of its own."""
    options = parse(arguments)
    options.arguments = [*arguments]
    if not options.only_report:
        host = start_host(options.comfyui, options.threads)
        made = facts_of_run("study", arguments, host=f"ComfyUI {host}")
    with contextlib.ExitStack() as stack:
        if not options.only_report:
            bars = stack.enter_context(Bars())
            tries = 2 if workers else 1
            pool = stack.enter_context(Pool(workers, None, bars, limit, tries, KINDS, address))
        for name in options.setting:
            path = options.results / f"quality_{name}.jsonl"
            try:
                if not options.only_report:
                    run(name, path, options, made, pool)
            finally:
                if path.exists():
                    print(path, *write_report(path), sep="\n")
    if options.results == RESULTS:
        for page in PAGES:
            page.write_text(in_step(page.read_text("utf-8"), RESULTS), "utf-8")
    return 0


def run(name: str, path: Path, options, made: dict, pool: Pool) -> None:
    """One setting. made: the facts of this process, whose code does not change while it runs."""
    setting = setting_of(name, options)
    made_by = {"arguments": options.arguments, "setting": name, "folder": os.getcwd()}
    study = made_study(name, path, options, made_by, pool)
    methods = chosen_methods(options.methods or setting.methods, study.rig, len(set(study.rig.pool_texts)))
    lines = len(study.suite.lines) if isinstance(study.suite, PromptFile) else 0
    count = options.report or (options.per_prompt * lines if lines else setting.pictures)
    seeds = options.seeds if setting.reported else []
    if options.again is not None:
        for method in study.results.forget(options.again):
            sys.stderr.write(f"--again: {path.name} holds no row called {method}\n")
    study.results.begin({**made, "choose_seed": CHOOSE_SEED, "seeds": seeds, "draws": options.draws})

    def tried(method: Method) -> tuple[float, ...]:
        strengths = method.usual if options.checkpoint else method.strengths
        return strengths[::-2][::-1] if options.quick else strengths

    for layers in options.layers or setting.layers:
        study.rig.layers = layers
        study.run(methods, options.choose or setting.choose, count, seeds, tried)


def setting_of(name: str, options) -> Setting:
    """A setting of the demo's, or that of a user's own model."""
    if not options.checkpoint:
        return SETTINGS[name]
    others = {"weak": (options.weak,)} if options.weak else {}
    return Setting("", others, conditional=not options.unconditional, layers=("auto",))


def study_of(arguments: Sequence[str], name: str, made_by: dict) -> Study:
    """The study of one setting in the process of a worker, where the host is started for it."""
    options = parse(arguments)
    start_host(options.comfyui, options.threads)
    return made_study(name, options.results / f"quality_{name}.jsonl", options, made_by, None)


def made_study(name: str, path: Path, options, made_by: dict, pool: Pool | None) -> Study:
    """The study of one setting, its model loaded."""
    setting = setting_of(name, options)
    if options.checkpoint:
        suite = PromptFile.load(options.prompts)
        model = Files(options.checkpoint, options.clip, options.clip_type, options.vae, setting.others)
    else:
        suite = DemoDigits(options.demo)
        model = demo_files(options.demo, setting)
    texts = tuple(prompt.text for prompt in suite.prompts(POOL_SIZE, POOL_SEED))
    rig = Rig(
        model, options.steps, options.sampler, options.scheduler, *options.size, options.batch, options.negative,
        texts, setting.conditional, options.compute, suite.decode,
    )  # fmt: skip
    common = {
        "setting": name, "model": named(model.checkpoint), "suite": suite.name, "steps": options.steps,
        "sampler": options.sampler, "scheduler": options.scheduler, "width": rig.width, "height": rig.height,
        "compute": options.compute, "batch": options.batch, "per_prompt": options.per_prompt,
        "negative": options.negative, "conditional": setting.conditional, "recipe": RECIPE,
    }  # fmt: skip
    results = Results(path, ROOT / "output/quality" / path.stem)
    return Study(rig, suite, results, common, options.draws, pool=pool, made=made_by)


def chosen_methods(names: Sequence[str], rig: Rig, prompts: int) -> list[Method]:
    """Those that can be sampled here; says which cannot, and why."""
    methods = []
    for method in ALL:
        if method.name not in (NONE, *names):
            continue
        missing = [need for need in method.needs if need != NEGATIVE and need not in rig.files.others]
        why = ""
        if missing:
            why = f"there is no file for what it needs: {missing[0]}" + (" (--weak)" if missing == ["weak"] else "")
        elif NEGATIVE in method.needs and not rig.conditional and rig.negative == EMPTY:
            why = "the empty prompt would be guided away from itself"
        elif method.name == "ICG" and prompts < 2:
            why = "it draws from other prompts, and there is one only"
        if why:
            sys.stderr.write(f"{method.name} is left out: {why}\n")
        else:
            methods.append(method)
    return methods


def demo_files(folder: Path, setting: Setting) -> Files:
    others = {kind: tuple(folder / name for name in names) for kind, names in setting.others.items()}
    text, vae = folder / "text_encoders/demo_text.ckpt", folder / "vae/demo_vae.ckpt"
    found = Files(folder / MODELS.format(setting.model), text, "stable_diffusion", vae, others)
    needed = [found.checkpoint, found.clip, found.vae, folder / "judge.safetensors", *sum(found.others.values(), ())]
    missing = [path for path in needed if not path.exists()]
    if missing:
        raise SystemExit(f"There is no demo model in {folder} ({missing[0].name} is missing). Say where it is with --demo, "
                         "or sample a model of yours: --checkpoint FILE --prompts FILE.")  # fmt: skip
    return found
