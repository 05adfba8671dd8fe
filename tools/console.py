"""What the commands tell their user."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console

console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


class Failure(Exception):
    """Something the user can act on; its text is all that is shown."""


def say(text: str) -> None:
    console.print(text)


@contextlib.contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Says `what` while the context lasts: a line that moves on a terminal, elsewhere one plain line.

    Yields a function that takes a detail to show behind it, such as how far the work is.
    """
    if not console.is_terminal:
        say(f"{what} ...")
        yield lambda detail: None
        return
    with console.status(what) as status:
        yield lambda detail: status.update(f"{what}  {detail}")
