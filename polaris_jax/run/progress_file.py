"""Rows that a long command has finished, so that a rerun continues where it stopped."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from typing import Any

from etils import epath

from polaris_jax.records import Problem
from polaris_jax.system.files import AnyPath, append_bytes, as_place, write_bytes
from polaris_jax.system.progress import say


def problems_digest(problems: Iterable[Problem]) -> str:
    """A text that depends on each id, problem and answer, but not on their order.

    It is part of a `ProgressFile`'s identity, because a source may be edited under its old name.
    """
    lines = sorted(json.dumps([p.id, p.problem, repr(p.answer)]) for p in problems)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def whole_rows(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The rows of JSON lines before the first damaged line. Later rows count as not done."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: also bytes that are not UTF-8
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def name_aside(name: str, head: bytes) -> str:
    """The name of a file that is set aside. Different settings (`head`) give different names."""
    return f"{name}.settings-{hashlib.sha256(head).hexdigest()[:8]}"


class ProgressFile:
    """A JSON-lines file whose first line records the settings that its rows depend on.

    New rows never mix with rows of other settings or with damaged lines. A file of other settings
    is set aside complete, under its own name. A file with a damaged line is cut off before that
    line. If a run returns to settings whose file was set aside, the rows of that file count again.
    """

    def __init__(
        self, path: AnyPath, identity: dict[str, Any], *, writes: bool, unit: int = 1
    ) -> None:
        """Opens or starts the file.

        Args:
            path: path of the progress file.
            identity: the settings that its rows depend on.
            writes: False in processes that only read.
            unit: number of rows that are useful only together. A kill may tear the last unit, which
                is then cut off like a torn line.
        """
        self.path, self._writes = as_place(path), writes
        self.rows: list[dict[str, Any]] = []
        head = json.dumps({"identity": json.loads(json.dumps(identity))}, sort_keys=True)
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        if lines and lines[0] != head.encode():
            own = self.path.with_name(name_aside(self.path.name, head.encode()))
            if writes:
                _set_aside(self.path, lines)
            # Never deleted: another process may look for its rows when our file is already there.
            lines = own.read_bytes().split(b"\n")[:-1] if own.exists() else []
        if lines and lines[0] == head.encode():
            rows = whole_rows(lines[1:])
            self.rows = rows[: len(rows) // unit * unit]
            lines = lines[: 1 + len(self.rows)]
            if writes:
                write_bytes(self.path, b"\n".join(lines) + b"\n")
        elif writes:
            write_bytes(self.path, head.encode() + b"\n")

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Adds finished rows. They are on the disk when the call returns."""
        self.rows += rows
        if self._writes:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            append_bytes(self.path, "".join(lines).encode())


def _set_aside(path: epath.Path, lines: list[bytes]) -> None:
    """Sets the rows of other settings aside beside the file, and reports the new name."""
    if len(lines) < 2:
        return
    aside = path.with_name(name_aside(path.name, lines[0]))
    write_bytes(aside, path.read_bytes())
    say(f"{len(lines) - 1} rows of other settings set aside as {aside}", sys.stdout)
