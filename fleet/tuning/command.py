"""python dev.py fleet tune: search good values of any inputs of a workflow."""

from __future__ import annotations

import json
import sys
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from ...tools import workflows
from ...tools.console import Failure, say
from ...tools.places import OUTPUT
from ..cells import Cell, Failed
from ..command import Hire, commands, numbers, with_limits, with_workers
from ..pool import Pool
from ..progress import Bars
from ..store import Store
from .axes import axes_of
from .page import AskingPage
from .person import Remembered, compared
from .plots import plots
from .search import Found, Goal, Tried, search
from .workflows import Function, Number, WorkflowTask, kept_values, short, with_settings


@commands.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--vary", multiple=True, metavar="NODE.INPUT=RANGE", help="0:6, 0.1:10:log, or auto|single.3; again for more."
)
@click.option("--number", metavar="NODE.NAME", help="Judge by a number that a node gives out.")
@click.option("--function", metavar="FILE.py:NAME", help="Judge by a function of your own: pictures → a number.")
@click.option("--person", is_flag=True, help="Judge by your eye: a page asks which of two pictures is better.")
@click.option("--less", is_flag=True, help="Less is better; without it more is.")
@click.option("--cost", is_flag=True, help="Find what is cheap as well: rows of the network per step.")
@click.option(
    "--trials", type=click.IntRange(1), default=40, show_default=True, help="Settings to try; with --person 8."
)
@click.option("--at-once", type=click.IntRange(1), default=4, show_default=True, help="Settings asked for together.")
@click.option("--answers", type=click.IntRange(2), default=20, show_default=True, help="Of the person.")
@click.option("--seeds", default="1,2", show_default=True, metavar="N,N", help="Of the pictures of each setting.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the search.")
@click.option(
    "--keep", is_flag=True, help="Keep the best values for this checkpoint: Guidance (easy) then offers them."
)
@click.option("--out", type=click.Path(path_type=Path), help="Where the results go; output/tune/NAME without it.")
@with_limits
@with_workers
def tune(
    file: Path, vary, number, function, person: bool, less: bool, cost: bool, trials: int, at_once: int, answers: int,
    seeds: str, seed: int, keep: bool, out: Path | None, limit: float, tries: int, workers: Hire, address: str,
):  # fmt: skip
    """Search good values of any inputs of a workflow in the API format.

    For example: python dev.py fleet tune WORKFLOW.json --vary PAG.scale=0:6 --vary KSampler.cfg=1:8 --person
    """
    graph = workflows.load(file)
    axes = axes_of(graph, vary)
    if sum(map(bool, (number, function, person))) != 1:
        raise Failure("Say how pictures are judged: by one of --number, --function and --person.")
    if person and (cost or less):
        raise Failure("--person is asked which picture is better: --cost and --less do not go with it.")
    objective = Number(number) if number else Function(function) if function else None
    places = numbers(seeds)
    if not places:
        raise Failure("--seeds is empty; write some, such as 1,2.")
    task = WorkflowTask(graph, axes, places, objective, not less, cost)
    folder = out or OUTPUT / "tune" / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    first = [task.start] if task.start else []
    with Bars() as bars, Pool(workers(), Store(folder), bars, limit, tries, address=address) as pool:
        if person:
            found = _by_eye(task, pool, answers, trials if _was_given("trials") else 8, seed, first, folder)
        else:
            found = search(task, pool, trials, at_once, seed, first, _Heard(task, trials))
        for path in written(folder, graph, axes, found):
            say(f"Written {path}")
        say(f"Best: {_settings(found.best)}; {_scores(found.goals, found.best)}")
        for one in found.front if len(found.goals) > 1 else ():
            say(f"  on the front: {_settings(one)}; {_scores(found.goals, one)}")
        if keep:
            _keep(pool, graph, axes, found.best)


def _by_eye(task, pool, answers: int, candidates: int, seed: int, first, folder: Path) -> Found:
    with AskingPage() as page:
        say(f"Open this page and answer: {page.url}")
        if sys.stdout.isatty():
            webbrowser.open(page.url)
        try:
            person = Remembered(page, folder / "answers.jsonl")
            return compared(task, pool, person, answers, candidates, seed, first, say)
        except ValueError as error:
            raise Failure(f"The pictures cannot be compared: {error}.") from None
        finally:
            page.finish()


def _was_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is not click.core.ParameterSource.DEFAULT


def _keep(pool: Pool, graph: dict, axes, best: Tried) -> None:
    """Have the values kept for the checkpoint, by the node Keep Values on a worker."""
    cells = {
        what: Cell("workflow", {"workflow": made, "at": time.time()})  # not again from the store
        for what, made in kept_values(graph, axes, best.settings).items()
    }
    kept = {}
    for what, cell in cells.items():
        lacking = pool.check([cell])
        if not lacking:
            kept[what] = cell
        elif all("for node of BeyondCFGKeepValues" in one for one in lacking):  # whose choices are the guidance nodes
            say(f"--keep: {what} is no guidance node, so its values are in best_workflow.json only.")
        else:
            raise Failure("\n".join(f"--keep: {one}" for one in lacking))
    if not kept:
        say("--keep: no input of a guidance node was varied, so there is nothing to keep.")
        return
    for what, result in zip(kept, pool.run([*kept.values()]), strict=True):
        if isinstance(result, Failed):
            raise Failure(f"--keep: {what}: {result.reason}")
        say(f"Kept for this checkpoint: {what}.")


def written(folder: Path, graph: dict, axes, found: Found) -> list[Path]:
    """The best workflow, all trials and the pictures, as files. Raises Failure where no trial has worked."""
    try:
        best = found.best
    except ValueError as error:
        raise Failure(f"Nothing was found: {error}.") from None
    goals = [{"name": goal.name, "more_is_better": goal.more_is_better} for goal in found.goals]
    trials = [{"settings": dict(one.settings), "scores": [*one.scores], "why": one.why} for one in found.tried]
    files = {
        "best_workflow.json": with_settings(graph, axes, best.settings),
        "trials.json": {"goals": goals, "trials": trials, "front": [dict(one.settings) for one in found.front]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
    return [*(folder / name for name in files), *plots(found, folder)]


def _settings(tried: Tried) -> str:
    return ", ".join(f"{name} {short(value)}" for name, value in tried.settings.items())


def _scores(goals: Sequence[Goal], tried: Tried) -> str:
    return ", ".join(f"{goal.name} {short(score)}" for goal, score in zip(goals, tried.scores, strict=True))


@dataclass
class _Heard:
    """Says each trial when it is judged."""

    task: WorkflowTask
    trials: int
    count: int = 0

    def __call__(self, tried: Tried) -> None:
        """Raises Failure where the very first trial fails: then all would, and the reason helps at once."""
        if not tried.scores and tried.settings == self.task.start:
            raise Failure(f"The workflow fails with its own values: {tried.why}")
        self.count += 1
        worth = _scores(self.task.goals, tried) if tried.scores else f"failed: {tried.why}"
        say(f"Trial {self.count} of {self.trials}: {_settings(tried)}; {worth}")


__all__: Sequence[str] = ("tune", "written")
