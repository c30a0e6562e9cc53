"""Reads rows of responses as rollouts/step_N.jsonl and responses.jsonl hold them, for a person."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from polaris_jax.run.workdir import ROLLOUTS
from polaris_jax.system.files import matching
from polaris_jax.system.foreign import (
    ForeignFileError,
    bounded_lines,
    open_regular,
    parse_json,
    printable,
)

HEAD_SHARE = 3  # a third of a shortened text is its beginning
WORD_CHARS = 300


class ResponseRows:
    """The rows of a JSON-lines file; a torn last line is left out.

    Iterating raises ForeignFileError if the path is no regular file.

    Attributes:
        damaged: lines so far that are no JSON object.
    """

    def __init__(self, path: epath.Path) -> None:
        self._path, self.damaged = path, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with open_regular(self._path) as file:
            for _, line in bounded_lines(file):
                row = None
                if line is not None:
                    if not line.endswith(b"\n"):
                        return  # a kill has torn it, or it is being written
                    with contextlib.suppress(ForeignFileError):
                        row = parse_json(line, where="row", strict=False)
                if row is None:
                    self.damaged += 1
                elif set(row) != {"identity"}:  # versions up to 0.2 began files with their settings
                    yield row


def groups_of(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of a problem together; a row without problem_id is a group of its own."""

    def key(numbered: tuple[int, dict[str, Any]]) -> str:
        number, row = numbered
        named = [row.get(name) for name in ("problem_id", "attempt", "draw")]
        return json.dumps(named if "problem_id" in row else number)

    for _, group in itertools.groupby(enumerate(rows), key=key):
        yield [row for _, row in group]


def rollout_paths(workdir: epath.Path) -> dict[int, epath.Path]:
    """{step: file} of rollouts/, by step."""
    found = {
        int(name[1]): path
        for path in matching(workdir / ROLLOUTS, "step_*.jsonl")
        if (name := re.fullmatch(r"step_(\d+)\.jsonl", path.name))
    }
    return dict(sorted(found.items()))


def number_of(value: Any) -> float | None:
    """A reward or another number of a row; None if it is none that can be shown."""
    known = isinstance(value, int | float) and abs(value) < 1e300
    return float(value) if known else None


def word(value: Any) -> str:
    """A value in one printable line, shortened."""
    text = printable(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= WORD_CHARS else f"{text[:WORD_CHARS]} ..."


def shortened(text: str, chars: int) -> str:
    """A text of at most about `chars` characters: a longer one loses its middle, and says so."""
    if len(text) <= chars:
        return text
    head = chars // HEAD_SHARE
    tail = chars - head
    return f"{text[:head]}\n[... {len(text) - chars:,} characters ...]\n{text[-tail:]}"


def plain_text(value: Any) -> str:
    """A text as it is, several as alternatives, and anything else as JSON."""
    if isinstance(value, list):
        return " or ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)
