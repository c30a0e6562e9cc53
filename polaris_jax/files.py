"""Files that are whole or absent: written beside their place, synced, then renamed.

A kill at any moment, or a full disk, leaves the old content or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

PARTIAL = ".partial"


def write_bytes(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, durably and in one step.

    Raises:
        OSError: the disk is full or the directory not writable; what was at `path` stays.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Puts `value` at `path` as JSON with sorted keys: equal values give equal bytes.

    Raises:
        ValueError: a NaN or an infinity, which JSON does not know.
        TypeError: something that is no JSON.
        OSError: as in `write_bytes`.
    """
    text = json.dumps(value, sort_keys=True, indent=indent, allow_nan=False)
    write_bytes(Path(path), (text + "\n").encode())


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable: a rename alone may be lost with the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
