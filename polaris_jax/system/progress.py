"""Shows the progress of a command: bars on a terminal, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from polaris_jax.system.foreign import printable

# In a pipe a phase prints at most this often: a log of weeks stays readable.
PLAIN_INTERVAL_S = 10.0
_NOBODY_READS = (errno.EPIPE, errno.EIO)  # at the other end of a pipe, or of a terminal


def say(text: str, stream: TextIO) -> None:
    """Prints a line. If the reader of the stream is gone, all later output is dropped.

    Ctrl-C also ends `| tee`, and a lost connection closes its terminal, but the run must still
    save.
    """
    try:
        print(printable(text, lines=True), file=stream, flush=True)
    except OSError as error:
        if error.errno not in _NOBODY_READS:
            raise
        with contextlib.suppress(OSError):  # a stream without a file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class Phase:
    """One counted piece of work. `advance_to` may be called at any rate."""

    def __init__(self, console: Progress, name: str, total: int) -> None:
        self._console, self._name, self._total = console, name, total
        self._shown_at_s = time.monotonic()
        self._bar = None

    def advance_to(self, done: int, note: str = "") -> None:
        """Shows that `done` of the total is done."""
        if self._console.rich is not None:
            self._console.rich.update(self._console.task, completed=done, note=note)
            return
        now_s = time.monotonic()
        if self._console.enabled and now_s - self._shown_at_s >= PLAIN_INTERVAL_S:
            self._shown_at_s = now_s
            self._console.line(f"{self._name}: {done}/{self._total} {note}".rstrip())


class Progress:
    """Prints lines and phases; silent in all processes except the first.

    Args:
        enabled: False prints nothing.
        stream: where lines go, stdout by default.
    """

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        self.enabled = enabled
        self._stream = stream or sys.stdout
        self.rich: Any = None
        self.task: Any = None

    def line(self, text: str) -> None:
        """Prints one line, above a live bar if there is one."""
        if not self.enabled:
            return
        if self.rich is not None:
            self.rich.console.print(printable(text, lines=True), markup=False, highlight=False)
        else:
            say(text, self._stream)

    @contextlib.contextmanager
    def phase(self, name: str, total: int) -> Iterator[Phase]:
        """A bar (or rare plain lines) for `total` pieces of work."""
        if self.enabled and self._stream.isatty() and self.rich is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with RichProgress(
                *columns, console=Console(file=self._stream), transient=True
            ) as self.rich:
                self.task = self.rich.add_task(name, total=total, note="")
                try:
                    yield Phase(self, name, total)
                finally:
                    self.rich = self.task = None
        else:
            yield Phase(self, name, total)
