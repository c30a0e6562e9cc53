"""A child process that sends lines: it may hang, crash or take too much memory, its parent may not.

What runs there is other people's: a function that yields problems, a chat template. The child sends
its answers one JSON text a line, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO, Literal, Self, cast

_CHUNK_BYTES = 1 << 16


class ChildFailure(Exception):
    """Why a child sends no more lines.

    Attributes:
        kind: "silent" (no line in time), "ended" (with `status`) or "long" (a line over the limit).
        status: exit status; below 0 the number of the signal that ended the process.
    """

    def __init__(self, kind: Literal["silent", "ended", "long"], status: int = 0) -> None:
        super().__init__(kind)
        self.kind, self.status = kind, status


class Child:
    """A Python process that runs `code`, until `close` or the end of a `with` block.

    Args:
        code: what `python -c` gets.
        arguments: the rest of its command line.
        files: open files that it inherits under the same numbers.
        stderr: where its stderr goes; None: where this process's goes.
    """

    def __init__(
        self,
        code: str,
        arguments: Sequence[str] = (),
        *,
        files: Sequence[int] = (),
        stderr: int | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *arguments],
            stdin=subprocess.PIPE,  # its end tells the child that its parent has ended
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(),
            bufsize=0,
            pass_fds=files,
            start_new_session=True,  # so that its own children end with it
        )
        self._lines: deque[bytes] = deque()
        self._rest = bytearray()  # the begin of the next line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process and its own children."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            cast(IO[bytes], pipe).close()

    def send(self, data: bytes) -> None:
        """Writes to the child's stdin. The child must be reading it.

        Raises:
            ChildFailure: the child has ended.
        """
        try:
            while data:  # a raw pipe may take a part
                data = data[cast(IO[bytes], self._process.stdin).write(data) :]
        except BrokenPipeError:
            raise ChildFailure("ended", self._process.wait()) from None

    def line(self, *, silence_s: float, most_bytes: int) -> bytes:
        """The child's next line.

        Args:
            silence_s: longest wait for output, in seconds.
            most_bytes: longest line.

        Raises:
            ChildFailure: there is none.
        """
        output = cast(IO[bytes], self._process.stdout)
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while not self._lines:
                if len(self._rest) > most_bytes:
                    raise ChildFailure("long")
                if not selector.select(silence_s):
                    raise ChildFailure("silent")
                chunk = os.read(output.fileno(), _CHUNK_BYTES)
                if not chunk:
                    raise ChildFailure("ended", self._process.wait())
                first, *others = chunk.split(b"\n")
                self._rest += first
                for other in others:
                    self._lines.append(bytes(self._rest))
                    self._rest = bytearray(other)
        line = self._lines.popleft()
        if len(line) > most_bytes:
            raise ChildFailure("long")
        return line


def importable() -> str:
    """PYTHONPATH for a process that imports this package from where this process has it."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


def _environment() -> dict[str, str]:
    """The environment of the process: this package importable, accelerators left alone."""
    # With an arena for each thread the addresses that a process has say nothing of its memory.
    return os.environ | {
        "PYTHONPATH": importable(),
        "JAX_PLATFORMS": "cpu",
        "MALLOC_ARENA_MAX": "1",
    }


# ---- inside the process


@contextlib.contextmanager
def answers(*, memory_bytes: int = 0, watched: bool = True) -> Iterator[BinaryIO]:
    """Where the child writes its lines. What its code prints goes to stderr instead.

    Args:
        memory_bytes: largest address space of the process; 0: no limit.
        watched: True ends the process as soon as its parent has ended; stdin then says nothing
            else.
    """
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        if watched:
            threading.Thread(target=_end_with_parent, daemon=True).start()
        if memory_bytes:
            limit_memory(memory_bytes)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        yield out


def limit_memory(most_bytes: int) -> None:
    """Limits this process's address space, where the system has such a limit: macOS has none."""
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)
