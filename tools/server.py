"""A ComfyUI that runs: started for a while, or somebody's that runs already; and what it is asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import requests
import websocket

from . import environment, places, workflows
from .console import Failure, busy
from .hosts import Host, link_pack
from .places import MODELS
from .processes import Stopped, spawn, stop, tail

GUARD = Path(__file__).with_name("guard.py")
LONGEST = 1 << 30  # bytes of an answer
FINDS_GPU = (
    "import torch; b = torch.backends; x = getattr(torch, 'xpu', None); "
    "print(int(torch.cuda.is_available() or b.mps.is_available() or bool(x and x.is_available())))"
)


class TooLong(Failure):
    """A workflow that had not ended at its time limit."""


class Refused(Failure):
    """What the host will not run as it stands: a wrong workflow, or one of which it would run a part only."""


class Server:
    """A host that answers over HTTP: one of ours (with its process and its log) or one that runs already."""

    def __init__(self, url: str, process: subprocess.Popen | None = None, log: Path | None = None):
        self.url = (url if "://" in url else "http://" + url).rstrip("/")
        self.process, self.log = process, log
        self._session = requests.Session()
        local = urllib.parse.urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        self._session.trust_env = not local  # no proxy leads to this computer

    def get(self, path: str, body=None, most: int = LONGEST) -> bytes:
        """The answer to a request, a POST where there is a body, of at most so many bytes. Raises requests' own errors, and
        Failure where the server sends us to another one, which nobody has named."""
        # as the page writes JSON, where NaN and Infinity are allowed
        given = (
            {} if body is None else {"data": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}}
        )
        method = "GET" if body is None else "POST"
        options = {"timeout": 60, "stream": True, "allow_redirects": False}
        with self._session.request(method, self.url + path, **given, **options) as answer:
            if answer.is_redirect:
                place = answer.headers["Location"][:200]
                raise Failure(f"{self.url} sends us on to {place}: name that address, if it is one that you trust.")
            content = bytearray()
            for chunk in answer.iter_content(1 << 16):
                content += chunk
                if len(content) > most:
                    raise Failure(f"{self.url}{path} sends more than {most >> 20} MB.")
            if not answer.ok:
                answer._content = bytes(content)
            answer.raise_for_status()
            return bytes(content)

    def ask(self, path: str, body=None):
        """The same, read as JSON. Raises Failure in words: Refused where the host calls the request wrong."""
        try:
            return json.loads(self.get(path, body) or b"null")
        except requests.HTTPError as error:
            answer = error.response
            if answer is not None and answer.status_code == 400:
                raise Refused(workflows.rejection(answer.text)) from None
            code = answer.status_code if answer is not None else "in an unknown way"
            raise Failure(f"{self.url}{path} answered {code}.") from None
        except (requests.RequestException, ValueError) as error:
            self.check_alive()
            raise Failure(f"No ComfyUI answers at {self.url} ({type(error).__name__}).") from None

    def check_alive(self) -> None:
        """Raises Failure with the end of its log, where this command has started the host and it has ended."""
        if self.process and self.log and self.process.poll() is not None:
            text = tail(self.log, 30)
            raise Failure(f"{text}\nComfyUI ended with code {self.process.returncode}; above is the end of {self.log}.")

    def inputs_of(self, node: str) -> dict:
        """The names of a node's inputs, with their defaults or None."""
        about = self.ask(f"/object_info/{node}").get(node)
        if not about:
            raise Failure(f"ComfyUI has no node {node}: see in its log why this pack was not loaded.")
        inputs = {**about["input"]["required"], **about["input"].get("optional", {})}
        return {name: options.get("default") for name, (_, options) in inputs.items()}

    def record_of(
        self,
        workflow: dict,
        progress: Callable[[str], None] = lambda detail: None,
        limit: float = math.inf,
        whole: bool = False,
    ) -> dict:
        """Run a workflow to its end, well or not; what the host's history says of it. Raises TooLong after `limit` seconds,
        when the workflow is taken back. whole: also raises Failure where the host would leave out an output node with an
        error, and run the others."""
        prompt, client = str(uuid.uuid4()), str(uuid.uuid4())
        address = "ws" + self.url.removeprefix("http") + f"/ws?clientId={client}"
        host = urllib.parse.urlsplit(self.url).hostname
        with contextlib.closing(websocket.create_connection(address, timeout=60, http_no_proxy=[host])) as events:
            events.settimeout(1)  # of each wait for news; a busy host may take longer to greet
            answer = self.ask("/prompt", {"prompt": workflow, "client_id": client, "prompt_id": prompt})
            prompt = answer["prompt_id"]
            try:
                if whole and answer.get("node_errors"):
                    raise Refused(workflows.rejection(json.dumps({"error": "a part of it is wrong", **answer})))
                return self.wait_for(prompt, events, progress, time.monotonic() + limit)
            except (Stopped, TooLong, Refused):
                with contextlib.suppress(Exception):  # do not leave our work to somebody else's server
                    self.get("/queue", {"delete": [prompt]})
                    self.get("/interrupt", {"prompt_id": prompt})
                raise

    def wait_for(
        self,
        prompt: str,
        events=None,
        progress: Callable[[str], None] = lambda detail: None,
        end: float = math.inf,
    ) -> dict:
        """What the history says of a prompt, when it has ended. `events`: a connection that hears of its progress. Raises
        TooLong where the clock passes `end`."""
        missing = 0
        while True:
            if time.monotonic() > end:
                raise TooLong("The workflow takes too long.")
            if record := self.ask(f"/history/{prompt}").get(prompt):
                return record
            missing = 0 if prompt in json.dumps(self.ask("/queue")) else missing + 1
            if missing > 3:
                raise Failure("The workflow vanished from ComfyUI's queue: it was cancelled, or ComfyUI was restarted.")
            if events is None:
                time.sleep(0.2)
            else:
                self._listen(events, prompt, progress, end)

    def _listen(self, events, prompt: str, progress: Callable[[str], None], end: float) -> None:
        """Until the prompt has ended, or nothing was heard for a while."""
        with contextlib.suppress(websocket.WebSocketTimeoutException):
            while time.monotonic() < end:
                message = events.recv()
                if not isinstance(message, str):
                    continue  # a preview
                message = json.loads(message)
                kind, data = message["type"], message["data"]
                if kind == "progress":
                    progress(f"step {data['value']} of {data['max']}")
                if kind == "executing" and data.get("node") is None and data.get("prompt_id") == prompt:
                    return

    def run(self, workflow: dict, progress: Callable[[str], None] = lambda detail: None) -> list[tuple[str, bytes]]:
        """Run a workflow to its end: (file name, content) of every picture. Raises Failure with the host's error."""
        record = self.record_of(workflow, progress)
        if record["status"]["status_str"] != "success":
            raise Failure(workflows.execution_error(record["status"].get("messages") or []))
        images = [image for output in record["outputs"].values() for image in output.get("images") or []]
        return [(PurePosixPath(image["filename"]).name, self.picture(image)) for image in images]

    def picture(self, image: dict, most: int = LONGEST) -> bytes:
        """The content of a picture that a history names. Raises Failure."""
        query = urllib.parse.urlencode({key: image.get(key, "") for key in ("filename", "subfolder", "type")})
        try:
            return self.get("/view?" + query, most=most)
        except requests.RequestException as error:
            raise Failure(f"ComfyUI does not give out the picture {image['filename']} ({error}).") from None


def command_of(host: Host, port: int, cpu: bool, scratch: str | None) -> list:
    """How a host is started. scratch: a folder for what it writes; None when it is served to a user, who wants to keep
    the pictures."""
    command = [host.python, host.folder / "main.py", "--port", port, "--listen", "127.0.0.1", "--disable-auto-launch"]
    command += ["--cpu"] if cpu else []
    command += ["--extra-model-paths-config", MODELS / "extra_model_paths.yaml"]
    if host.version:
        pack = link_pack(host.folder)
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", pack, "--disable-api-nodes"]
        command += ["--preview-method", "none"]
    if host.version or scratch:
        command += ["--output-directory", scratch or places.OUTPUT, "--database-url", "sqlite:///:memory:"]
    if scratch:
        # The default temporary folder is emptied by every host that starts; a user's settings are not ours to change.
        command += ["--temp-directory", scratch, "--user-directory", scratch]
    return command


@contextlib.contextmanager
def running(
    host: Host,
    gpu: bool = False,
    keep: bool = False,
    port: int = 0,
    switches: Sequence[str] = (),
    log: Path | None = None,
    tied: bool = False,
) -> Iterator[Server]:
    """Run a host while the context lasts, with further `switches` of its main.py.

    keep: what the host writes stays, in output/ or in the user's own ComfyUI.
    log: where the host's output goes; output/host.log without it.
    tied: the host ends even where this process is killed.
    """
    cpu = not gpu and (bool(host.version) or host.python_gives(FINDS_GPU) == "0")
    log = log or places.OUTPUT / "host.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        scratch = None if keep else stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        command = command_of(host, port or free_port(), cpu, scratch)
        guard, stdin = ([sys.executable, GUARD], subprocess.PIPE) if tied else ([], subprocess.DEVNULL)
        with log.open("wb") as out:
            process = spawn(
                [*guard, *command, *switches], cwd=host.folder, env=environment.variables(), stdin=stdin, stdout=out,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        if process.stdin:
            stack.callback(process.stdin.close)
        stack.callback(stop, process)
        server = Server(f"http://127.0.0.1:{command[command.index('--port') + 1]}", process, log)
        with busy(f"Starting {host.name}") as detail:
            while True:
                server.check_alive()
                try:
                    server.get("/system_stats")
                    break
                except requests.RequestException:
                    detail(tail(log, 1))
                    time.sleep(0.2)
        yield server


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
