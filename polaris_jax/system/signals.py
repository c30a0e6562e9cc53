"""Ctrl-C, SIGTERM and a lost terminal: an immediate end, or a request that the loop answers.

While a command has nothing to save, Ctrl-C ends the process at once. Python's own handler would
raise KeyboardInterrupt at any place. During the imports at start this gives pages of traceback and
sometimes a segmentation fault. In a callback of the garbage collector the exception is printed and
the program continues. Later a signal is a request, which the loop answers at the next safe point.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

from polaris_jax.system.progress import say

INTERRUPTED = "interrupted; rerun the same command to continue"
INTERRUPTED_STATUS = 130
# jax's callback of the garbage collector. An exception raised inside is printed and dropped.
SWALLOWS = "_xla_gc_callback"
LATER_S = 0.05


def end_at_once() -> None:
    """Makes Ctrl-C end this process with one line and status 130.

    Does nothing if the handler is not Python's default (for example, nohup ignores Ctrl-C).
    """
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _raise):
        signal.signal(signal.SIGINT, _end)


def begin_work() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt. Does nothing unless `end_at_once` was called."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _raise)


def raise_interrupt(frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, or sends Ctrl-C again a moment later if it would be dropped here.

    Handlers of SIGINT call this.

    Args:
        frame: the interrupted frame, an argument of the handler.
    """
    while frame is not None:
        if frame.f_code.co_name == SWALLOWS:
            main = threading.main_thread().ident
            assert main is not None
            again = threading.Timer(LATER_S, signal.pthread_kill, (main, signal.SIGINT))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _raise(_: int, frame: FrameType | None) -> None:
    raise_interrupt(frame)


def _end(_: int, __: FrameType | None) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a write is in progress, or the reader is gone
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(INTERRUPTED_STATUS)


# Names the launch of this process: the same when a scheduler repeats its line.
LAUNCH = "POLARIS_LAUNCH"
STOPPED_STATUS = "POLARIS_STOPPED_STATUS"
# A lost terminal, what schedulers send ahead of a time limit (USR1, USR2), Ctrl-\\, and the soft
# limit of CPU time. Each would end a process that does not handle it.
LIKE_SIGTERM = (
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGQUIT,
    signal.SIGXCPU,
)


def stopped_status() -> int:
    """The exit status of a run that a signal stopped before its end: 0, or POLARIS_STOPPED_STATUS.

    Raises:
        ConfigError: the variable holds no whole number from 0 to 255.
    """
    value = os.environ.get(STOPPED_STATUS, "0")
    from polaris_jax.config import ConfigError  # here, because this module is imported before all

    if not (value.isascii() and value.isdigit() and int(value) <= 255):
        raise ConfigError(
            f"{STOPPED_STATUS}={value!r}: an exit status is a whole number from 0 to 255; unset it "
            "for 0, or set 143 for schedulers that restart only what has failed"
        )
    return int(value)


class StopRequest:
    """Records whether a signal has asked this process to stop, and which one.

    The first signal sets `requested`; the loop then saves a resumable checkpoint. A later Ctrl-C
    ends the process at once. Any other later signal changes nothing. The signals of `LIKE_SIGTERM`
    count as SIGTERM; one that the process ignored before (SIGHUP under nohup) stays ignored.
    Install it after `jax.distributed.initialize`, whose own handler would otherwise replace this
    one for SIGTERM.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked_at_s = 0.0
        self._former: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """True after the first signal."""
        return self.signal is not None

    @property
    def waited_s(self) -> float:
        """Seconds since the first signal; 0 if there was none."""
        return time.monotonic() - self._asked_at_s if self.requested else 0.0

    @property
    def interrupted(self) -> bool:
        """True if Ctrl-C was the first signal."""
        return self.signal == signal.SIGINT

    def __enter__(self) -> StopRequest:
        others = [n for n in LIKE_SIGTERM if signal.getsignal(n) != signal.SIG_IGN]
        for number in (signal.SIGTERM, signal.SIGINT, *others):
            self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise_interrupt(frame)
            return
        self.signal = signal.Signals(number)
        self._asked_at_s = time.monotonic()
        said = f"{self.signal.name}: stopping at the next safe point with a checkpoint"
        # What is raised here comes out of whatever the main thread does, such as a save. A stream
        # that it is writing to refuses a second writer (RuntimeError: reentrant call).
        with contextlib.suppress(Exception):
            say(said, sys.stderr)
