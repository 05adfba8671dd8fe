"""The page that asks a person which of two pictures is better.

A server of this process, on this computer alone, with a word in its address that only the printed address has. It shows
nothing but the two pictures that it is given, and takes nothing but the answers left, right and same, each once.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Answer = Literal["left", "right", "same"]
ANSWERS: tuple[Answer, ...] = ("left", "right", "same")
PAGE = Path(__file__).with_name("page.html")
LARGEST = 1000  # bytes of an answer
OWN = "img-src 'self' data:; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
POLICY = f"default-src 'none'; {OWN}"
THANKS = 2  # seconds that the page has to hear that it is over


@dataclass(frozen=True)
class Question:
    """Two pictures, as PNG files, and which question of how many it is."""

    number: int
    total: int
    left: bytes
    right: bytes


class AskingPage:
    """A person who answers in a browser. Used as a context manager; `url` is where the page is."""

    def __init__(self, port: int = 0):
        self._word = secrets.token_urlsafe(12)
        self._question: Question | None = None
        self._is_over, self._heard = False, threading.Event()
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{self._word}/"

    def __enter__(self) -> AskingPage:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.finish()
        self._server.shutdown()
        self._server.server_close()

    def ask(self, question: Question, wait: float | None = None) -> Answer:
        """Show a question and wait for its answer. Raises queue.Empty after `wait` seconds."""
        with self._lock:
            self._question = question
        return self._answers.get(timeout=wait)

    def answer(self, number: int, answer: Answer) -> bool:
        """Take an answer; whether it was to the question that is asked, which then is over."""
        with self._lock:
            if self._question is None or self._question.number != number:
                return False
            self._question = None
        self._answers.put(answer)
        return True

    def state(self) -> dict:
        """What the page shows: the number of the question, 0 while the next two pictures are made."""
        question = self._question
        if self._is_over:
            self._heard.set()
        if question is None:
            return {"number": 0, "over": self._is_over}
        return {"number": question.number, "total": question.total, "over": False}

    def finish(self) -> None:
        """Tell the page that there are no more questions, and wait a little until it has heard so."""
        if not self._is_over:
            self._is_over = True
            self._heard.wait(THANKS)


def _handler(page: AskingPage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, number = self.path.partition("?")
            path, question = self._within(path), page._question
            if path == "":
                self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
            elif path == "state":
                self._send(json.dumps(page.state()).encode(), "application/json")
            elif path in ("left", "right") and question is not None and number == str(question.number):
                self._send(question.left if path == "left" else question.right, "image/png")
            else:
                self.send_error(404)

        def do_POST(self):
            number, answer = 0, ""
            with contextlib.suppress(ValueError, TypeError, KeyError):
                length = int(self.headers.get("Content-Length", "0"))
                given = json.loads(self.rfile.read(length) if 0 < length <= LARGEST else b"{}")
                number, answer = given["number"], given["answer"]
            if self._within(self.path) != "answer":
                self.send_error(404)
            elif answer not in ANSWERS or not isinstance(number, int):
                self.send_error(400)
            else:
                self._send(json.dumps({"taken": page.answer(number, answer)}).encode(), "application/json")

        def _within(self, path: str) -> str | None:
            """What stands after the word; None for another path."""
            start = f"/{page._word}/"
            return path[len(start) :] if path.startswith(start) else None

        def _send(self, content: bytes, kind: str):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Content-Security-Policy", POLICY)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_about):
            """Nothing."""

    return Handler
