"""Ctrl-C of a command: it ends at once while there is nothing to save, and unwinds after that.

Python's own handler raises KeyboardInterrupt wherever it is: inside the imports of a start (pages
of traceback, now and then a segmentation fault), or inside a callback of the garbage collector,
which prints the exception and goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

LINE = "interrupted; rerun the same command to go on"
EXIT_STATUS = 130
# jax's callback of the garbage collector: what is raised inside it is printed and forgotten.
SWALLOWS = "_xla_gc_callback"
LATER_S = 0.05


def end_at_once() -> None:
    """From here on Ctrl-C ends this process with one line and status 130.

    Where something else than Python's default is set (nohup ignores Ctrl-C) it does nothing.
    """
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _raise):
        signal.signal(signal.SIGINT, _end)


def begin_work() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt; does nothing without `end_at_once` before."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _raise)


def raise_interrupt(frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; where it would be swallowed, sends Ctrl-C again a moment later.

    For handlers of SIGINT.

    Args:
        frame: where the signal came, as the handler gets it.
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
        with contextlib.suppress(Exception):  # in the midst of a write, or nobody reads
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{LINE}\n".encode())
    os._exit(EXIT_STATUS)
