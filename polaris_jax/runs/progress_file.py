"""Rows that a long command has finished, so that a rerun goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class ProgressFile:
    """A JSON-lines file whose first line says what it belongs to.

    A file of other settings, or with a torn last line, never mixes with new rows: the former is
    set aside whole, the latter is cut off.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, writes: bool) -> None:
        """Opens or starts the file.

        Args:
            path: of the file.
            identity: the settings that its rows depend on.
            writes: False in processes that only read.
        """
        self.path, self._writes = path, writes
        self.rows: list[dict[str, Any]] = []
        head = json.dumps({"identity": json.loads(json.dumps(identity))}, sort_keys=True)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        if lines and lines[0].decode() == head:
            self.rows = [json.loads(line) for line in lines[1:]]
            if writes:
                _write(path, b"\n".join(lines) + b"\n")
        elif writes:
            if lines:
                os.replace(path, path.with_name(path.name + ".other-settings"))
            _write(path, head.encode() + b"\n")

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Adds finished rows, on disk before it returns."""
        self.rows += rows
        if self._writes:
            with self.path.open("a") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
