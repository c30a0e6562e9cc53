"""Reader of the accuracy log that the original's training scripts write."""

from __future__ import annotations

import dataclasses
from typing import Any

from polaris_jax.system.files import AnyPath, as_place
from polaris_jax.system.foreign import (
    ForeignFileError,
    bounded_lines,
    open_regular,
    parse_json,
)


@dataclasses.dataclass(frozen=True)
class SkippedLine:
    """A line that could not be used.

    Attributes:
        line: number of the line, from 1.
        reason: what is wrong with the line.
    """

    line: int
    reason: str


@dataclasses.dataclass(frozen=True)
class AccuracyLog:
    """The content of an accuracy log.

    Attributes:
        scores: problem index -> accuracy of each visit in [0, 1], in the log's order.
        skipped: lines that could not be used.
        lines: number of lines used.
    """

    scores: dict[int, tuple[float, ...]]
    skipped: tuple[SkippedLine, ...]
    lines: int


def read_accuracy_log(path: AnyPath) -> AccuracyLog:
    """The visits of a log of lines `{"index": [...], "score": [...]}`, one line a step.

    A malformed line is left out and named in `skipped`. Empty lines are ignored.

    Raises:
        OSError: the file cannot be read.
    """
    scores: dict[int, list[float]] = {}
    skipped: list[SkippedLine] = []
    lines = 0
    with open_regular(as_place(path)) as file:
        for number, line in bounded_lines(file):
            visits = "too long" if line is None else _parse(line)
            if isinstance(visits, str):
                skipped.append(SkippedLine(number, visits))
                continue
            lines += 1
            for index, score in visits:
                scores.setdefault(index, []).append(score)
    return AccuracyLog({i: tuple(s) for i, s in scores.items()}, tuple(skipped), lines)


def _parse(line: bytes) -> list[tuple[int, float]] | str:
    """The visits of a line, or a text that says what is wrong with the line."""
    try:
        record = parse_json(line, where="line", kind=object, strict=False, remedy="")
    except ForeignFileError as error:
        return str(error).removeprefix("line: ")
    if not isinstance(record, dict) or not {"index", "score"} <= record.keys():
        return 'not an object with "index" and "score"'
    indices, scores = record["index"], record["score"]
    if not isinstance(indices, list) or not isinstance(scores, list):
        return '"index" and "score" must be lists'
    if len(indices) != len(scores):
        return f"{len(indices)} indices and {len(scores)} scores"
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in indices):
        return "an index is not an integer"
    if not all(_is_rate(score) for score in scores):
        return "a score is not a number in [0, 1]"
    return [(i, float(score)) for i, score in zip(indices, scores, strict=True)]


def _is_rate(score: Any) -> bool:
    return isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1
