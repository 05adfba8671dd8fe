"""What the pack warns of while prompts run: each warning goes to the page whose prompt it is, and is kept for those who
ask by the prompt's id."""

from __future__ import annotations

from typing import Any

EVENT = "beyond_cfg_warning"
KEPT = 500  # prompts


class Warnings:
    """The warnings of the last prompts, by prompt, each once. `server`: the host's PromptServer."""

    def __init__(self, server: Any):
        self._server = server
        self._of: dict[str, list[dict]] = {}

    def hear(self, message: str) -> None:
        """Keep a warning of the prompt that runs now, and send it to its page."""
        prompt = getattr(self._server, "last_prompt_id", None)
        if prompt is None:  # nothing was queued yet
            return
        about = {"node": self._server.last_node_id, "text": message}  # the node that runs, such as a sampler
        heard = self._of.setdefault(prompt, [])
        if about in heard:
            return
        heard.append(about)
        if len(self._of) > KEPT:
            self._of.pop(next(iter(self._of)))
        if self._server.client_id is not None:
            self._server.send_sync(EVENT, about, self._server.client_id)

    def of(self, prompt: str) -> list[str]:
        """What was warned of in a prompt; nothing for one that is not known."""
        return list(dict.fromkeys(about["text"] for about in self._of.get(prompt, ())))
