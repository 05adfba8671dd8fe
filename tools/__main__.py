"""python dev.py COMMAND: set up, test, show and serve the pack.

Everything lands in .venv, .host and output; delete them to undo it. What was interrupted carries on at the next call.
The package index is UV_DEFAULT_INDEX or PIP_INDEX_URL if set, else PyPI.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from . import demo, environment, hosts, workflows
from .benchmark import PROGRAMS
from .console import Failure, busy, say
from .hosts import Choice
from .places import MODELS, OUTPUT, ROOT
from .processes import Stopped, listen_to_signals, run_step, spawn, stop_everything, wait
from .server import Server, running


@click.group(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def commands():
    pass


def with_host(command):
    """The options that say which ComfyUI a command uses; it gets them as a Choice."""

    @functools.wraps(command)
    def call(comfyui, python, version, gpu, **given):
        return command(Choice(comfyui, python, version, gpu), **given)

    for option in (
        click.option("--gpu", is_flag=True, help="Use the GPU. A fetched ComfyUI runs on the CPU without it."),
        click.option("--host-version", "version", type=click.Choice(list(hosts.PINNED)), help="Which one to fetch."),
        click.option("--python", help="The Python of that ComfyUI, where it is not found."),
        click.option("--comfyui", help="Your own ComfyUI instead of a fetched one; or set COMFYUI_PATH."),
    ):
        call = option(call)
    return call


@commands.command()
@with_host
def setup(choice: Choice):
    """Make .venv and fetch a ComfyUI into .host; every other command does this first."""
    host = hosts.ready(choice)
    say(f"Ready: {host.name}, run by {host.python}.")


@commands.command("demo")
@with_host
def show_demo(choice: Choice):
    """Draw a small model's pictures with each guidance, into output/demo/grid.png."""
    host = hosts.ready(choice)
    with running(host, choice.gpu) as server:
        demo.show(host, server)


@commands.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@with_host
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def test(choice: Choice, pytest_args: tuple[str, ...]):
    """Run the tests, with any arguments of pytest: python dev.py test -k interval"""
    host = hosts.ready(choice)
    if host.version:
        environment.install_fleet()
        environment.get_browser(pytest_args)
    elif not host.python_gives("import click, filelock, pypi_simple, pytest, requests, rich, websocket; print(1)"):
        install = f"{host.python} -m pip install pytest -r {ROOT / 'tools/requirements.txt'}"
        raise Failure(f"The Python {host.python} lacks packages of the tests: install them with  {install}")
    paths = {"COMFYUI_PATH": str(host.folder), "BEYOND_CFG_MODELS": str(MODELS / "checkpoints")}
    # Two at a time, or more: a worker takes a core and about 2 GB. -n0 in the arguments runs all in one process.
    workers = ["-n", min(os.cpu_count() or 1, 4), "--dist", "loadgroup"] if host.version else []
    command = [host.python, "-m", "pytest", *workers, *pytest_args]
    sys.exit(wait(spawn(command, env=environment.variables() | paths)))


@commands.command()
@with_host
@click.option("--pictures", is_flag=True, help="Also the pictures of examples and help pages; minutes.")
@click.argument("names", nargs=-1)
def docs(choice: Choice, pictures: bool, names: tuple[str, ...]):
    """Write what is made of code and results: pages of new nodes, locales, tables, Layer Maps; and pictures of NAMES."""
    host = hosts.ready(choice)
    env = environment.variables() | {"COMFYUI_PATH": str(host.folder)}
    run_step("Writing pages, locales, tables and Layer Maps", [host.python, "-m", "tools.docs"], env)
    if pictures or names:
        from . import thumbnails

        thumbnails.write(host, names)


@commands.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@with_host
@click.argument("name", type=click.Choice([*PROGRAMS]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def benchmark(choice: Choice, name: str, arguments: tuple[str, ...]):
    """Measure quality or cost, or train the demo models: python dev.py benchmark study --quick"""
    host = hosts.ready(choice)
    if name == "tuner" and host.version:
        environment.install_fleet()
    env = environment.variables() | {"COMFYUI_PATH": str(host.folder)}
    sys.exit(wait(spawn([host.python, "-m", "tools.benchmark", os.getcwd(), name, *arguments], env=env)))


@commands.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@with_host
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def fleet(choice: Choice, arguments: tuple[str, ...]):
    """Sweeps and studies by many workers: python dev.py fleet --help"""
    environment.install_fleet()
    python, env = Path(sys.executable), environment.variables()
    if arguments[:1] == ("study",):  # its cells run in the Python of a ComfyUI
        host = hosts.ready(choice)
        python = host.python
        env["COMFYUI_PATH"] = str(host.folder)
        if not host.version and not host.python_gives("import click, ray, requests, rich, websocket; print(1)"):
            files = f"-r {ROOT / 'tools/requirements.txt'} -r {ROOT / 'requirements-fleet.txt'}"
            raise Failure(
                f"The Python {python} lacks packages of the fleet: install them with  {python} -m pip install {files}"
            )
    sys.exit(wait(spawn([python, "-m", "tools.fleet", os.getcwd(), json.dumps(asdict(choice)), *arguments], env=env)))


@commands.command()
@with_host
@click.option("--port", type=int, default=0, help="0 takes a free one.")
def serve(choice: Choice, port: int):
    """Run ComfyUI with this pack, for the browser, until Ctrl-C."""
    host = hosts.ready(choice)
    with running(host, choice.gpu, keep=True, port=port) as server:
        say(f"{host.name} is at {server.url} - stop it with Ctrl-C.")
        while True:
            server.check_alive()
            time.sleep(0.3)


@commands.command()
@with_host
@click.argument("workflow", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="NODE.INPUT=VALUE", help="NODE is an id, a class or a title.")
@click.option("--seed", type=int, help="The seed of every sampler.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the pictures go; output/NAME without it.")
@click.option("--server", "url", help="A ComfyUI that runs already.")
def run(choice: Choice, workflow: Path, settings: tuple[str, ...], seed: int | None, out: Path | None, url: str | None):
    """Run a workflow in the API format and save its pictures.

    For example: python dev.py run WORKFLOW.json --set 5.scale=2.5 --set KSampler.steps=8 --seed 3
    """
    graph = workflows.load(workflow)
    for nodes, key, value in [workflows.parse_setting(graph, setting) for setting in settings]:
        for node in nodes:
            graph[node]["inputs"][key] = value
    if seed is not None:
        workflows.set_seed(graph, seed)
    if url:
        pictures = _run(Server(url), workflow, graph)
    else:
        with running(hosts.ready(choice), choice.gpu) as server:
            pictures = _run(server, workflow, graph)
    folder = out or OUTPUT / workflow.stem
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures:
        place = workflows.unused(folder / name)
        place.write_bytes(content)
        say(f"Saved {place}")
    if not pictures:
        say("The workflow ran, but none of its nodes put out a picture.")


def _run(server: Server, path: Path, graph: dict) -> list[tuple[str, bytes]]:
    with busy(f"Running {path.name}") as detail:
        return server.run(graph, detail)


def main(arguments: list[str]) -> int:
    return ended(lambda: commands.main(arguments, prog_name="dev.py", standalone_mode=False))


def ended(command: Callable[[], int | None]) -> int:
    """Run a command to its end, well or not; its exit status. What the user can act on is said in words."""
    listen_to_signals()
    try:
        return command() or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Abort:
        return 1
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    except Stopped as stopped:
        print("\nStopped.", file=sys.stderr)
        return 128 + stopped.number
    except OSError as error:
        print(_in_words(error), file=sys.stderr)
        return 1
    finally:
        stop_everything()


def _in_words(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "The disk is full: free some space and run this again, it carries on."
    if isinstance(error, PermissionError):
        return f"No permission for {error.filename}: make it writable and run this again."
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."


if __name__ == "__main__":
    os.chdir(sys.argv[1])  # where the user stands, whose relative paths the arguments hold
    sys.exit(main(sys.argv[2:]))
