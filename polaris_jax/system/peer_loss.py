"""A clean end when another process of the run has died: one line on stderr and status 1.

A lost process is noticed in two ways. A collective fails in Python (gloo, NCCL), and the text of
the error names the loss. Or the coordination service informs jax's runtime, which logs a page and
aborts (status 134) from its own thread, whatever Python is doing. `Guard` turns this abort, too,
into one line and status 1. jaxlib 0.10 has a callback for the loss but cannot pass the argument
(std::bad_cast), so the abort itself is caught.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from typing import Any, NoReturn

EXIT_STATUS = 1
DRAIN_S = 0.3  # time for the reader to get what was logged just before an abort
MAX_HELD_LINES = 500
MAX_REASON_CHARS = 200
_SIGNS = (
    "gloo",
    "nccl",
    "heartbeat",
    "coordination service",
    "connection closed by peer",
    "connection reset by peer",
)
_ENTRY = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\]")  # absl's log format
_PEER_FILES = ("coordination_service", "preemption_sync_manager", "client.h")
_FATAL = "distributed service detected fatal errors"


def tells_of_peer_loss(error: BaseException) -> bool:
    """True if the text of `error`, or of its cause, reports a lost process."""
    text = f"{error} {error.__cause__ or ''}".lower()
    return any(sign in text for sign in _SIGNS)


class Guard:
    """Filters the runtime's stderr from now to the end of the process.

    File descriptor 2 becomes a pipe. A thread forwards its text, except the runtime's entries about
    lost processes, which it holds back and prints only if an abort has another reason.
    `sys.stderr` still writes to the original file, past the pipe.
    """

    def __init__(self) -> None:
        self._out = os.dup(2)
        read_end, write_end = os.pipe()
        os.dup2(write_end, 2)
        os.close(write_end)
        sys.stderr = os.fdopen(self._out, "w", buffering=1, closefd=False)
        self._reason = ""
        self._held: deque[str] = deque(maxlen=MAX_HELD_LINES)
        self._ending = threading.Lock()
        threading.Thread(target=self._pass_on, args=(read_end,), daemon=True).start()
        # A C handler runs in the thread that aborts. Python's handlers wait for the main thread.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        libc: Any = ctypes.CDLL(None)
        libc.signal(int(signal.SIGABRT), self._handler)

    def end(self, reason: str) -> NoReturn:
        """Writes the first caller's reason in one line and ends the process at once."""
        self._ending.acquire()  # never released: a second caller waits here for the end
        self._write(
            f"error: lost another process of this run ({reason[:MAX_REASON_CHARS]}); "
            "rerun the same command: it resumes from the last checkpoint\n"
        )
        os._exit(EXIT_STATUS)

    def _write(self, text: str) -> None:
        os.write(self._out, text.encode())

    def _aborted(self, _: int) -> None:
        time.sleep(DRAIN_S)
        if self._reason:
            self.end(self._reason)
        self._write("".join(self._held))  # an abort for another reason continues

    def _pass_on(self, read_end: int) -> None:
        holding = False
        with os.fdopen(read_end, errors="replace") as lines:
            for line in lines:
                entry = _ENTRY.match(line)
                if entry:
                    holding = entry[1].startswith(_PEER_FILES)
                if not holding:  # an entry may have several lines
                    self._write(line)
                    continue
                self._held.append(line)
                if _FATAL in line:
                    self._reason = line.split("absl::Status: ")[-1].strip(" :\n")
