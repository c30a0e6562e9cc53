"""The parent's side of a grading process: start it, send one request, read replies, end it.

Workers are programs (`sys.executable -m polaris_jax.reward.worker`) talked to over pipes, not
multiprocessing children: those import the main script again, and JAX with it, and die in scripts
without a `__main__` guard, from stdin and in notebooks.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 60.0  # a loaded machine may take long to start Python

Pair = tuple[str, tuple[str, ...]]  # an answer and its gold alternatives


def worker_command(timeout_s: float, memory_limit_bytes: int, preset: str) -> list[str]:
    """The command line of a worker; -P keeps files of the current directory out of its imports."""
    arguments = [str(timeout_s), str(memory_limit_bytes), preset]
    return [sys.executable, "-P", "-m", "polaris_jax.reward.worker", *arguments]


def worker_environment() -> dict[str, str]:
    """The parent's environment, with this very package importable in the child."""
    import polaris_jax

    root = str(Path(polaris_jax.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = root if not inherited else os.pathsep.join([root, inherited])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class WorkerProcess:
    """One child process: starting, idle, or busy with one pair under a deadline.

    Attributes:
        ready: True once the process has reported that it can grade.
        index: index of the pair that the process grades, or None.
        deadline_s: deadline of the start or of the pair, on the monotonic clock.
        unsent: the rest of a request that the pipe has not taken yet.
    """

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=worker_environment(),
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone
        )
        os.set_blocking(self.input.fileno(), False)  # a stopped worker must not stop the parent
        self.ready = False
        self.index: int | None = None
        self.deadline_s = time.monotonic() + START_TIMEOUT_S
        self.unsent = b""
        self._received = b""

    @property
    def input(self) -> Any:
        return self.process.stdin

    @property
    def output(self) -> Any:
        return self.process.stdout

    def send(self, index: int, pair: Pair, timeout_s: float) -> bool:
        """Begins a request; False if the process is dead."""
        self.unsent = json.dumps([pair[0], list(pair[1])]).encode() + b"\n"
        if not self.send_rest():
            return False
        self.index = index
        self.deadline_s = time.monotonic() + timeout_s
        return True

    def send_rest(self) -> bool:
        """Writes what the pipe takes of the request; False if the process is dead."""
        try:
            while self.unsent:
                self.unsent = self.unsent[os.write(self.input.fileno(), self.unsent) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def receive(self) -> list[Any] | None:
        """Whole replies read so far; None when the process has closed its end."""
        chunk = os.read(self.output.fileno(), 65536)
        if not chunk:
            return None
        *lines, self._received = (self._received + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self, *, gently: bool = False) -> None:
        """Ends and reaps the process and closes both pipes."""
        with contextlib.suppress(OSError):
            self.input.close()
        if gently:
            try:
                self.process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                gently = False
        if not gently:
            self.process.kill()
        self.process.wait()
        self.output.close()
