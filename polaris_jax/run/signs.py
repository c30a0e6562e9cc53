"""Signs of life: what each process of a run does, when it last did something, and its warnings.

`polaris status` reads them from another terminal. Process K writes alive/K.json, at most once a
minute, so that a run of weeks costs an object store a small put a minute and process. The first
process keeps the newest warnings in warnings.json. Nothing depends on these files: if one cannot be
written, the run continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from typing import Any

from etils import epath

from polaris_jax.system.files import matching, write_json
from polaris_jax.system.foreign import ForeignFileError, read_json

ALIVE = "alive"
WARNINGS = "warnings.json"
BEAT_S = 60.0
MOST_WARNINGS = 50
MOST_CHARS = 1000


@dataclasses.dataclass(frozen=True)
class Sign:
    """The newest sign of a process.

    Attributes:
        process: number of the process, from 0.
        host: name of its machine.
        pid: its process id there.
        time_s: when, in seconds since 1970, by the clock of that machine.
        doing: what it does.
    """

    process: int
    host: str
    pid: int
    time_s: float
    doing: str


class Signs:
    """Writes the signs of one process; a `Watcher` of `Progress`.

    Args:
        workdir: directory of the run.
        process: number of this process, from 0.

    Warnings wait for the first sign of life: before it the workdir may still be another run's.
    """

    def __init__(self, workdir: epath.Path, *, process: int) -> None:
        self._workdir, self._process = workdir, process
        self._beat_at_s: float | None = None
        self._waiting: list[str] = []

    def doing(self, text: str) -> None:
        """Writes what the process does, unless it has done so within the last minute."""
        now_s = time.monotonic()
        if self._beat_at_s is not None and now_s - self._beat_at_s < BEAT_S:
            return
        self._beat_at_s = now_s
        sign = Sign(self._process, socket.gethostname(), os.getpid(), time.time(), text)
        with contextlib.suppress(OSError):
            (self._workdir / ALIVE).mkdir(exist_ok=True)
            write_json(self._workdir / ALIVE / f"{self._process}.json", dataclasses.asdict(sign))
        if self._waiting:
            self._write_warnings()

    def warned(self, text: str) -> None:
        """Keeps a warning of the first process; equal texts once, with their number."""
        if self._process == 0:
            self._waiting.append(text[:MOST_CHARS])
            if self._beat_at_s is not None:
                self._write_warnings()

    def _write_warnings(self) -> None:
        known = {warning["text"]: warning for warning in read_warnings(self._workdir)}
        now_s = time.time()
        for text in self._waiting:
            former = known.pop(text, {"text": text, "count": 0, "first_s": now_s})
            known[text] = {**former, "count": former["count"] + 1, "last_s": now_s}
        self._waiting = []
        with contextlib.suppress(OSError):
            write_json(self._workdir / WARNINGS, list(known.values())[-MOST_WARNINGS:])


def read_signs(workdir: epath.Path) -> list[Sign]:
    """The newest sign of each process, by its number; a damaged one is left out."""
    found = []
    for path in matching(workdir / ALIVE, "*.json"):
        with contextlib.suppress(OSError, ForeignFileError, TypeError):
            found.append(_checked(Sign(**read_json(path))))
    return sorted(found, key=lambda sign: sign.process)


def read_warnings(workdir: epath.Path) -> list[dict[str, Any]]:
    """The run's newest warnings, oldest first: text, count, first_s and last_s of each."""
    try:
        rows = read_json(workdir / WARNINGS, kind=list)
    except (OSError, ForeignFileError):
        return []
    kinds = {"text": str, "count": int, "first_s": (int, float), "last_s": (int, float)}
    return [
        row
        for row in rows
        if isinstance(row, dict) and all(isinstance(row.get(n), k) for n, k in kinds.items())
    ]


def _checked(sign: Sign) -> Sign:
    """The sign, if its fields have the right types.

    Raises:
        TypeError: one has not.
    """
    texts = isinstance(sign.host, str) and isinstance(sign.doing, str)
    numbers = isinstance(sign.process, int) and isinstance(sign.pid, int)
    if not (texts and numbers and isinstance(sign.time_s, int | float)):
        raise TypeError("no sign of life")
    return sign
