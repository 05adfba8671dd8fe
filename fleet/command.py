"""python dev.py fleet COMMAND: sweeps and studies by many workers, here or on other machines.

What is finished is kept, cell by cell, in the output folder: the same command again does only what is missing.
Workers are ComfyUI servers. One is started on this machine, unless --workers, --gpus or --url says otherwise.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from ..tools import hosts
from ..tools.__main__ import ended
from ..tools.console import Failure, say
from ..tools.places import OUTPUT
from .cells import Cell
from .kinds.base import Worker
from .pool import Pool
from .progress import Bars
from .report import plan, write_report
from .store import Store
from .sweeps import loaded

Hire = Callable[[], list[Worker]]


@click.group(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.pass_context
def commands(context: click.Context):
    """All commands; further groups are added to this one."""
    context.obj = hosts.Choice(**(context.obj or {}))


def with_workers(command: Callable) -> Callable:
    """The options that say who does the cells; a command gets them as `workers`, a function, and `address`."""

    @functools.wraps(command)
    @click.pass_obj
    def call(choice, workers, gpus, urls, address, **given):
        gpus = gpus or (1 if choice.gpu and not workers else 0)
        return command(workers=lambda: workers_of(choice, workers, gpus, urls), address=address, **given)

    for option in (
        click.option("--ray-address", "address", default="", help="A Ray cluster: its machines do the cells."),
        click.option("--url", "urls", multiple=True, help="A ComfyUI server that runs already; may be given again."),
        click.option("--gpus", type=click.IntRange(0), default=0, help="Workers with a GPU and a ComfyUI each."),
        click.option("--workers", type=click.IntRange(0), default=0, help="Workers on the CPU with a ComfyUI each."),
    ):
        call = option(call)
    return call


def with_limits(command: Callable) -> Callable:
    """The options of a pool that say when a cell has failed."""
    command = click.option("--limit", type=float, default=600.0, show_default=True, help="Seconds for a cell.")(command)
    return click.option("--tries", type=click.IntRange(1), default=3, show_default=True, help="Of a cell.")(command)


def workers_of(choice: hosts.Choice, count: int, gpus: int, urls: Sequence[str]) -> list[Worker]:
    """The workers that the options name."""
    if not count and not gpus and not urls:
        count = 1
    found = [Worker(url, url=url, cpus=0) for url in dict.fromkeys(urls)]
    if count or gpus:
        host = hosts.ready(choice)
        place = {"folder": str(host.folder), "python": str(host.python), "version": host.version or ""}
        found += [Worker(f"worker {at + 1}", host=place) for at in range(count)]
        found += [Worker(f"gpu {at + 1}", host=place, gpu=True) for at in range(gpus)]
    return found


@commands.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--vary", multiple=True, metavar="NODE.INPUT=VALUE,VALUE", help="As in the node Guidance Sweep.")
@click.option("--seeds", default="", metavar="N,N", help="Each combination is made with each of these seeds.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the results go; output/fleet/NAME without it.")
@with_limits
@with_workers
def run(file: Path, vary, seeds: str, out: Path | None, limit: float, tries: int, workers: Hire, address: str):
    """Run a workflow in the API format with all combinations of values, or the cells of a file.

    For example: python dev.py fleet run WORKFLOW.json --vary 5.cfg=1,3,5 --seeds 1,2,3 --workers 2
    """
    cells = loaded(file, vary, numbers(seeds))
    failed = do(cells, workers(), out or OUTPUT / "fleet" / file.stem, limit, tries, address)
    if failed:
        raise Failure(
            f"{failed} of {len(cells)} cells have failed; the report says why. The same command tries them again."
        )


def do(cells: Sequence[Cell], workers: Sequence[Worker], folder: Path, limit: float, tries: int, address: str) -> int:
    """Do cells and write the report of them; how many have failed."""
    plan(folder, cells)
    with Bars() as bars, Pool(workers, Store(folder), bars, limit, tries, address=address) as pool:
        try:
            failed = pool.work(cells)
            plan(folder, cells, failed)
        finally:
            for path in write_report(folder):
                say(f"Written {path}")
    return len(failed)


@commands.command()
@click.option("--cells", "file", type=click.Path(path_type=Path), help="A workflow or cells that shall run there.")
@with_workers
def check(file: Path | None, workers: Hire, address: str):
    """Say whether each worker answers, and has the nodes and models of a workflow: fleet check --url URL"""
    cells = (
        loaded(file, (), ())
        if file
        else [Cell("workflow", {"workflow": {"1": {"class_type": "KSampler", "inputs": {}}}})]
    )
    found = workers()
    with Bars() as bars, Pool(found, progress=bars, address=address) as pool:
        lacking = pool.check(cells)
    if lacking:
        raise Failure("\n".join(lacking))
    say(f"{len(found)} worker{'s' * (len(found) > 1)}: all is there.")


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path):
    """Write the tables and the page of a run again, from what is finished in its FOLDER."""
    for path in write_report(folder):
        say(f"Written {path}")


@commands.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--limit", type=float, default=7200.0, show_default=True, help="Seconds for a cell.")
@with_workers
def study(arguments: tuple[str, ...], limit: float, workers: Hire, address: str):
    """The study of quality by many workers, each with the model in a process of its own: arguments as those of
    python dev.py benchmark study."""
    found = [replace(worker, host=None) for worker in workers() if not worker.url]
    if not found:
        raise Failure("The study runs in the workers' own processes, so it cannot use --url: give --workers or --gpus.")
    importlib.import_module("pack.benchmarks.study.command").main(arguments, found, address, limit)


@commands.command()
@click.option(
    "--workers", "counts", default="", help="How many, one run for each: 1,10,100 tiny ones, or 1,2 ComfyUIs."
)
@click.option("--cells", type=click.IntRange(1), default=20, show_default=True, help="For each actor.")
@click.option("--seconds", type=float, default=0.0, show_default=True, help="That each cell sleeps.")
@click.option(
    "--workflow", type=click.Path(path_type=Path), help="Real work: --cells seeds of it by each number of ComfyUIs."
)
@click.option(
    "--processes", type=click.IntRange(1), default=50, show_default=True, help="That the tiny actors share at most."
)
@click.pass_obj
def simulate(choice: hosts.Choice, counts: str, cells: int, seconds: float, workflow: Path | None, processes: int):
    """What scheduling costs for each cell: many tiny workers on this machine, cells that do nothing; into
    benchmarks/results/fleet.json and fleet.md. With --workflow what more workers bring; into fleet_work.json and .md."""
    from .simulation import simulated, worked

    if workflow:
        paths = worked(workflow, numbers(counts or "1,2"), cells, lambda count: workers_of(choice, count, 0, ()))
    else:
        paths = simulated(numbers(counts or "1,10,100"), cells, seconds, processes)
    for path in paths:
        say(f"Written {path}")


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them. Raises Failure."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise Failure(f"{text}: these must be whole numbers with commas between them, such as 1,2,3.") from None


def main(choice: dict, arguments: Sequence[str]) -> int:
    """Run a command; its exit status."""
    importlib.import_module(f"{__package__}.tuning.command")  # which adds its own
    return ended(
        lambda: commands.main([*arguments] or ["--help"], prog_name="dev.py fleet", standalone_mode=False, obj=choice)
    )
