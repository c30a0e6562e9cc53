"""The rows of a set on disk, one after the other: a million texts do not stay in memory.

A row is a problem, or the reason why there is none. Later passes read all of them in order, or one
by its number.
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Iterator
from pathlib import Path

from polaris_jax.records import Problem


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row that was read.

    Attributes:
        source: number of its source.
        place: where it stands there, for people.
        problem: its problem; None if it has none.
        reason: why it is left out already; "" if it is not.
        detail: what that was seen by.
    """

    source: int
    place: str
    problem: Problem | None
    reason: str = ""
    detail: str = ""


class Spool:
    """Entries in a file that is only added to.

    Args:
        path: path of the file; it is made anew.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=1 << 20)  # noqa: SIM115
        self._starts = array("q", [0])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def append(self, entry: Entry) -> None:
        """Adds an entry. Not after the first read."""
        p = entry.problem
        head = [entry.source, entry.place, entry.reason, entry.detail]
        fields = (
            [p.id, p.problem, p.answer, p.source, p.pass_rate, p.response_tokens, p.extra, p.turns]
            if p is not None
            else []
        )
        line = json.dumps([head, fields], separators=(",", ":"), default=dict).encode() + b"\n"
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))

    def __getitem__(self, number: int) -> Entry:
        start = self._starts[number]
        self._file.seek(start)
        return _entry(self._file.read(self._starts[number + 1] - start))

    def entries(self) -> Iterator[Entry]:
        """Every entry, in order. Others may be read in between."""
        for number in range(0, len(self), _BLOCK):
            end = min(len(self), number + _BLOCK)
            self._file.seek(self._starts[number])
            block = self._file.read(self._starts[end] - self._starts[number])
            yield from map(_entry, block.splitlines())


_BLOCK = 500


def _entry(line: bytes) -> Entry:
    head, fields = json.loads(line)
    if not fields:
        return Entry(head[0], head[1], None, *head[2:])
    *fields, turns = fields
    return Entry(head[0], head[1], Problem(*fields, turns=tuple(map(tuple, turns))), *head[2:])
