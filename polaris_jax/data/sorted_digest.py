"""The hash of many lines in sorted order, of which few are in memory at a time."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

RUN_CHARS = 64 << 20  # of lines that are sorted in memory; beyond that runs lie on disk


def sorted_digest(lines: Iterable[str]) -> str:
    """32 hex digits of the lines' hash, which does not depend on their order.

    Args:
        lines: ASCII texts without line breaks.
    """
    digest = hashlib.blake2b(digest_size=16)
    with contextlib.ExitStack() as stack:
        runs: list[IO[bytes]] = []
        part: list[bytes] = []
        size = 0
        for line in lines:
            part.append(line.encode())
            size += len(line)
            if size > RUN_CHARS:
                runs.append(stack.enter_context(tempfile.TemporaryFile()))
                runs[-1].writelines(line + b"\n" for line in sorted(part))
                part, size = [], 0
        merged = heapq.merge(*map(_lines, runs), sorted(part))
        for number, line in enumerate(merged):
            digest.update(b"\n" + line if number else line)
    return digest.hexdigest()


def _lines(run: IO[bytes]) -> Iterator[bytes]:
    run.seek(0)
    return (line[:-1] for line in run)
