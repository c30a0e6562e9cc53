"""Ctrl-C ends a command at once while there is nothing to save; later it raises an exception.

Python's own handler raises KeyboardInterrupt at any place. During the imports at start this gives
pages of traceback and sometimes a segmentation fault. In a callback of the garbage collector the
exception is printed and the program continues.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

LINE = "interrupted; rerun the same command to continue"
EXIT_STATUS = 130
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
        os.write(2, f"{LINE}\n".encode())
    os._exit(EXIT_STATUS)
