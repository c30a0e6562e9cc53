"""Shows the progress of a command: bars on a terminal, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO

from polaris_jax.system.text import printable

# In a pipe a phase prints at most this often: a log of weeks stays readable.
PLAIN_INTERVAL_S = 10.0
WARNING = "warning: "  # how a line that the watcher keeps begins
_NOBODY_READS = (errno.EPIPE, errno.EIO)  # at the other end of a pipe, or of a terminal


_DROPPING = threading.RLock()  # two threads must not exchange a stream's file at once


def say(text: str, stream: TextIO) -> None:
    """Prints a line, or drops it if the stream refuses it: a log must not end a run.

    If the reader of the stream is gone, all later output is dropped, too. Ctrl-C also ends `| tee`,
    and a lost connection closes its terminal, but the run must still save. After another error,
    such as a full disk, the stream is tried again with the next line.
    """
    with _dropping_what_is_refused(stream):
        print(printable(text, lines=True), file=stream, flush=True)


@contextlib.contextmanager
def _dropping_what_is_refused(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):  # a stream without a file
            _drop(stream, for_good=error.errno in _NOBODY_READS)


def _drop(stream: TextIO, *, for_good: bool) -> None:
    """Empties the stream's buffer, which keeps what was refused: an exit would fail on it."""
    with _DROPPING, contextlib.ExitStack() as files:

        def opened(descriptor: int) -> int:
            files.callback(os.close, descriptor)
            return descriptor

        number = stream.fileno()
        nowhere, former = opened(os.open(os.devnull, os.O_WRONLY)), opened(os.dup(number))
        os.dup2(nowhere, number)
        try:
            stream.flush()
        finally:
            if not for_good:
                os.dup2(former, number)


class _Steady:
    """The stream that rich writes to; treats its errors as `say` does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _dropping_what_is_refused(self._stream):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _dropping_what_is_refused(self._stream):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Watcher(Protocol):
    """Keeps what a person may ask for later, from another terminal."""

    def doing(self, text: str) -> None:
        """Called, at any rate, with what the process does now."""

    def warned(self, text: str) -> None:
        """Called with the text of each warning."""


class Phase:
    """One counted piece of work. `advance_to` may be called at any rate."""

    def __init__(self, console: Progress, name: str, total: int, before: int) -> None:
        self._console, self._name, self._total, self._before = console, name, total, before
        self._began_s = self._shown_at_s = time.monotonic()
        self._console.doing(name)

    def advance_to(self, done: int, note: str = "") -> None:
        """Shows that `done` of the total is done."""
        self._console.doing(f"{self._name}: {done}/{self._total}")
        if self._console.rich is not None:
            self._console.rich.update(self._console.task, completed=done, note=note)
            return
        now_s = time.monotonic()
        if self._console.enabled and now_s - self._shown_at_s >= PLAIN_INTERVAL_S:
            self._shown_at_s = now_s
            pace = ""
            if (here := done - self._before) > 0:
                left_s = (now_s - self._began_s) / here * (self._total - done)
                pace = f"({here / (now_s - self._began_s):.3g}/s, {left_s:.0f} s left)"
            self._console.line(
                " ".join(f"{self._name}: {done}/{self._total} {note} {pace}".split())
            )

    def sampling(self, before: int, count: int) -> Callable[[int, int, int], None]:
        """An `on_progress` for sampling `count` responses after `before` others.

        It is called with the responses done, the responses in all and the tokens, of this process:
        its share of the `count` stands for all of them.
        """
        return lambda done, total, tokens: self.advance_to(
            before + count * done // max(1, total), f"{tokens:,} tokens"
        )


class Progress:
    """Prints lines and phases; silent in all processes except the first.

    Args:
        enabled: False prints nothing.
        stream: where lines go, stdout by default.
        watcher: gets what the process does, enabled or not, and lines that begin with "warning: ".
        compiling: True while a program is being compiled, which a bar then says.
    """

    def __init__(
        self,
        *,
        enabled: bool = True,
        stream: TextIO | None = None,
        watcher: Watcher | None = None,
        compiling: Callable[[], bool] | None = None,
    ) -> None:
        self.enabled = enabled
        self._stream = stream or sys.stdout
        self._watcher, self._compiling = watcher, compiling
        self.rich: Any = None
        self.task: Any = None

    def line(self, text: str) -> None:
        """Prints one line, above a live bar if there is one."""
        if self._watcher is not None and text.startswith(WARNING):
            self._watcher.warned(text.removeprefix(WARNING))
        if not self.enabled:
            return
        if self.rich is not None:
            self.rich.console.print(printable(text, lines=True), markup=False, highlight=False)
        else:
            say(text, self._stream)

    def doing(self, text: str) -> None:
        """Tells the watcher what this process does; prints nothing."""
        if self._watcher is not None:
            self._watcher.doing(text)

    @contextlib.contextmanager
    def phase(self, name: str, total: int, *, before: int = 0) -> Iterator[Phase]:
        """A bar (or rare plain lines) for `total` pieces of work.

        Args:
            name: what is done.
            total: number of pieces.
            before: pieces that an earlier call has done: the rate leaves them out.
        """
        if self.enabled and self._stream.isatty() and self.rich is None:
            with _rich_bars(self._stream, self._compiling or (lambda: False)) as self.rich:
                self.task = self.rich.add_task(name, total=total, completed=before, note="")
                try:
                    yield Phase(self, name, total, before)
                finally:
                    self.rich = self.task = None
        else:
            yield Phase(self, name, total, before)


def _rich_bars(stream: TextIO, compiling: Callable[[], bool]) -> Any:
    """Bars with count, rate, time left and note; "compiling" while that is so."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    file: Any = _Steady(stream)

    class Pace(ProgressColumn):
        def render(self, task: Any) -> Text:
            if compiling():
                return Text("compiling", style="yellow")
            return Text(f"{task.speed:.3g}/s" if task.speed else "")

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Pace(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=file),
        transient=True,
    )
