"""Ray, started for a while on this machine, or joined where it runs already."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..tools.console import Failure
from ..tools.imports import as_pack
from ..tools.places import ROOT

OBJECTS = 200 << 20  # bytes for what is under way between workers: pictures of cells, no models
STARTS = 3  # tries
# What Ray's own processes have to start in. By default 15 seconds, which a busy machine may need more of.
PATIENCE = {"agent_register_timeout_ms": 180_000, "worker_register_timeout_seconds": 300}
LOST_AFTER = 5  # seconds without Ray's head until it counts as lost
# The folders of sockets must have short names: a path of a socket has at most 107 letters on Linux.
TOP = Path("/tmp") if os.path.isdir("/tmp") else Path(tempfile.gettempdir())


def ray() -> Any:
    """The library. Raises Failure where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        import ray as found
    except ImportError:
        raise Failure(
            f"Workers need Ray, which {sys.executable} lacks: install it with  "
            f"{sys.executable} -m pip install -r {ROOT / 'requirements-fleet.txt'}"
        ) from None
    return found


@contextlib.contextmanager
def running(address: str = "", cpus: int = 1, gpus: int = 0) -> Iterator[Path]:
    """Ray while the context lasts: on this machine alone, or a cluster that runs already. Yields a folder for logs and
    scratch files, which goes in the end."""
    library = ray()
    if address:
        _knock(address)
    remove_left_over()
    folder = Path(tempfile.mkdtemp(prefix=f"bcf{os.getpid()}-", dir=TOP))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        options |= {"address": address, "runtime_env": {"working_dir": str(ROOT), "excludes": NOT_SENT}}
        host = {name: os.environ[name] for name in ("COMFYUI_PATH",) if name in os.environ}  # of the study
        options["runtime_env"] |= {"env_vars": host} if host else {}
    else:
        options |= {
            "num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False, "object_store_memory": OBJECTS,
            "_temp_dir": str(folder / "ray"),
            "_system_config": {**PATIENCE, "gcs_rpc_server_reconnect_timeout_s": LOST_AFTER},
            "_node_ip_address": "127.0.0.1",
        }  # fmt: skip
    try:
        try:
            for left in reversed(range(STARTS)):
                try:
                    library.init(**options)
                    break
                except Exception as error:
                    library.shutdown()
                    if left and not address:
                        continue
                    where = f"the Ray at {address}" if address else "Ray on this machine"
                    text = " ".join(str(error).split())[:200]
                    cure = " If it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN." if address else ""
                    raise Failure(
                        f"The fleet cannot start with {where} ({type(error).__name__}: {text}).{cure}"
                    ) from None
        finally:
            for number, handler in handlers.items():  # Ray has put its own in their place
                with contextlib.suppress(ValueError, TypeError):  # no signals outside the main thread
                    signal.signal(number, handler)
        yield folder
    finally:
        library.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _knock(address: str) -> None:
    """Raises Failure where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "//" not in address and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, UnicodeError, OverflowError) as error:
            raise Failure(f"No Ray answers at {address} ({getattr(error, 'strerror', None) or error}).") from None


NOT_SENT = [".git", ".venv*", ".host", "output", "benchmarks/models", "benchmarks/results", "web", "**/__pycache__"]


def remove_left_over() -> None:
    """The folders of fleets whose process was killed."""
    for folder in TOP.glob("bcf*-*"):
        number = folder.name[3:].partition("-")[0]
        if number.isdigit() and os.name != "nt":
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
            except PermissionError:
                continue


def actor_class() -> Any:
    """The class of Ray's actors. It goes to the workers by its code, and not by a name that they could not import: there
    it first makes the pack importable."""
    library = ray()
    library.cloudpickle.register_pickle_by_value(sys.modules[as_pack.__module__])
    root = str(ROOT)
    prepare = as_pack

    class Actor:
        """A Doer in a process of its own."""

        def __init__(self, worker: dict, folder: str, kinds: dict):
            import os
            import pathlib

            prepare(pathlib.Path(os.environ.get("RAY_RUNTIME_ENV_CREATE_WORKING_DIR") or root))
            from pack.fleet.kinds.base import Worker  # pyright: ignore[reportMissingImports]
            from pack.fleet.worker import Doer  # pyright: ignore[reportMissingImports]

            self.doer = Doer(Worker(**worker), pathlib.Path(folder), kinds)

        def check(self, needs: dict, rest: float) -> str:

            import time

            time.sleep(rest)
            return self.doer.check(needs)

        def do(self, kind: str, work: dict, limit: float) -> tuple:
            return self.doer.do(kind, work, limit)

        def pid(self) -> int:
            import os

            return os.getpid()

        def close(self) -> None:
            self.doer.close()

    return library.remote(Actor)
