"""How the checkout, and a ComfyUI, become importable: the one place that knows."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

from .places import ROOT


def as_pack(root: Path = ROOT) -> None:
    """From now on `import pack.guiders` and the like work, whatever the checkout's folder `root` is called.

    The pack's own __init__ does not run: only the host calls it. The checkout leaves sys.path, where the pack's `nodes`
    would hide the host's `nodes.py`."""
    if "pack" not in sys.modules:
        pack = types.ModuleType("pack")
        pack.__path__ = [str(root)]
        sys.modules["pack"] = pack
    sys.path[:] = [entry for entry in sys.path if entry not in ("", str(root))]


def with_host(folder: Path | str, *arguments: str) -> str:
    """From now on `import comfy` and the like work, in a host that was started with these arguments; its version.

    Raises FileNotFoundError where the folder holds no ComfyUI."""
    if "comfy" not in sys.modules:
        if not (Path(folder) / "comfy").is_dir():
            raise FileNotFoundError(f"{folder} is no ComfyUI; run  python dev.py setup")
        kept, sys.argv = sys.argv, [sys.argv[0], *arguments]
        sys.path.insert(0, str(folder))
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # reads sys.argv, before anybody else's arguments stand there
        import utils.extra_config  # noqa: F401 (before an older host's nodes.py puts comfy/, which has a utils.py, in front)

        sys.argv = kept
    import comfyui_version

    return comfyui_version.__version__


def file_of_the_user(path: Path) -> types.ModuleType:
    """A Python file that the user has named, run as a module. Raises what it raises."""
    spec = importlib.util.spec_from_file_location("file_of_the_user", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
