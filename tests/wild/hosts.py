"""Asking running hosts: a prompt in, all that it gives out."""

from __future__ import annotations

import re
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field

import safetensors.torch
import torch
from pack.tools.console import Failure

OURS = re.compile(
    r"\((BeyondCFG\w+)\): Exception when validating (?:inner )?node: (.*)", re.DOTALL
)  # said before a run
LIMIT = 300  # seconds that a prompt may take, on a machine that is busy with other things


@dataclass
class Answer:
    """What came of a prompt."""

    error: str = ""  # the first line and all others of what the user reads
    kind: str = ""  # of exception
    node: str = ""  # the class of the node where it was raised
    latents: list[torch.Tensor] = field(default_factory=list)
    pictures: int = 0

    @property
    def is_finite(self) -> bool:
        return all(latent.isfinite().all() for latent in self.latents)


def ask(server, prompt: dict) -> Answer:
    """Run a prompt to its end."""
    return wait(server, send(server, prompt))


def send(server, prompt: dict) -> str | Answer:
    """The id that a prompt has from now on, or the answer that it was refused with."""
    body = {"prompt": prompt, "client_id": str(uuid.uuid4()), "prompt_id": str(uuid.uuid4())}
    try:
        return server.ask("/prompt", body)["prompt_id"]
    except Failure as failure:
        ours = OURS.search(str(failure))
        return Answer(ours[2], "ValueError", ours[1]) if ours else Answer(str(failure), "refused")


def wait(server, sent: str | Answer) -> Answer:
    if isinstance(sent, Answer):
        return sent
    end = time.monotonic() + LIMIT
    while not (record := server.ask(f"/history/{sent}").get(sent)):
        assert time.monotonic() < end, f"no answer within {LIMIT} s"
        time.sleep(0.02)
    answer = Answer()
    for event, data in record["status"]["messages"]:
        if event == "execution_error":
            answer.error, answer.node = data["exception_message"].strip(), data["node_type"]
            answer.kind = data["exception_type"].rpartition(".")[2]
    for output in record["outputs"].values():
        answer.pictures += len(output.get("images") or [])
        for file in output.get("latents") or []:
            query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
            tensors = safetensors.torch.load(server.get(f"/view?{query}"))
            answer.latents.append(tensors["latent_tensor"])
    assert answer.error or record["status"]["status_str"] == "success", record["status"]
    return answer
