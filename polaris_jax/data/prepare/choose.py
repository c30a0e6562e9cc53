"""Which of several rows stays: of equal texts, of equal ids, of a source with a cap.

Rows are compared by hashes of their content and never by their place, so the rows that stay are the
same in whatever order files and rows are read. Everything here is arrays of a few bytes a row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array

import numpy as np

from polaris_jax.data.filters import _answer_text, normalized_prompt
from polaris_jax.records import Problem


class Facts:
    """What is remembered of each row: hashes of its text, answer, id and of all its content."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def append(self, problem: Problem | None) -> None:
        """Adds the next row; None for a row without a problem."""
        if problem is None:
            self._hashes.extend((0,) * 8)
            return
        extra = [problem.source, problem.pass_rate, problem.response_tokens, problem.turns]
        record = [problem.id, problem.problem, problem.answer, *extra, dict(problem.extra)]
        for text in (
            normalized_prompt(problem),
            json.dumps(record, sort_keys=True),
            problem.id,
            json.dumps(_answer_text(problem)),
        ):
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            self._hashes.frombytes(digest)

    def table(self) -> FactTable:
        """All rows, as arrays."""
        hash_N8 = np.frombuffer(self._hashes, np.uint64).reshape(-1, 8)
        return FactTable(hash_N8[:, 0:2], hash_N8[:, 2:4], hash_N8[:, 4:6], hash_N8[:, 6:8])


@dataclasses.dataclass(frozen=True)
class FactTable:
    """128-bit hashes of N rows, uint64 [N, 2] each.

    Attributes:
        text: hash of the normalised prompt.
        record: hash of all content, which orders rows that compete.
        id: hash of the id.
        answer: hash of the answer.
    """

    text: np.ndarray
    record: np.ndarray
    id: np.ndarray
    answer: np.ndarray

    def ranked(self, rows_N: np.ndarray) -> np.ndarray:
        """Row numbers in the order of their content's hashes."""
        return rows_N[np.lexsort((rows_N, *self.record[rows_N].T))]


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Rows that repeat another row's normalised text.

    Attributes:
        kept_of: row that is left out -> the row that stays.
        other_answer: those of them whose answer differs from that of the row that stays.
    """

    kept_of: dict[int, int]
    other_answer: set[int]


def repeats(facts: FactTable, rows_N: np.ndarray) -> Repeats:
    """The rows to leave out so that each normalised text stays once.

    The answer that most rows of a text give stays; of equally frequent ones, that of the lowest
    hash.

    Args:
        facts: hashes of all rows.
        rows_N: the rows that compete.
    """
    ranked_N = facts.ranked(rows_N)
    order_N = ranked_N[np.lexsort((*facts.answer[ranked_N].T, *facts.text[ranked_N].T))]
    text_N = _runs(facts.text[order_N])
    part_N = _runs(np.concatenate([facts.text[order_N], facts.answer[order_N]], axis=1))
    kept_of: dict[int, int] = {}
    other: set[int] = set()
    size_N = np.bincount(text_N, minlength=1)
    starts = np.cumsum(size_N) - size_N
    for run in np.flatnonzero(size_N > 1).tolist():
        part = slice(starts[run], starts[run] + size_N[run])
        members, parts = order_N[part], part_N[part]
        _, first, count = np.unique(parts, return_index=True, return_counts=True)
        best = int(first[np.argmax(count)])
        kept, answer = int(members[best]), parts[best]
        for member, own in zip(members.tolist(), parts, strict=True):
            if member != kept:
                kept_of[member] = kept
                if own != answer:
                    other.add(member)
    return Repeats(kept_of, other)


def first_of_each_text(facts: FactTable, rows_N: np.ndarray) -> np.ndarray:
    """The rows that come first with their normalised text, in order: what `deduplicate` keeps."""
    order_N = rows_N[np.lexsort((rows_N, *facts.text[rows_N].T))]
    return np.sort(order_N[_firsts(facts.text[order_N])])


def taken_ids(facts: FactTable, rows_N: np.ndarray, *, by_content: bool) -> set[int]:
    """The rows whose id another row has and keeps.

    Args:
        facts: hashes of all rows.
        rows_N: the rows that stay.
        by_content: True if the row of the lowest hash keeps the id; False if the first row does.
    """
    ranked_N = facts.ranked(rows_N) if by_content else np.sort(rows_N)
    order_N = ranked_N[np.lexsort(facts.id[ranked_N].T)]
    return set(order_N[~_firsts(facts.id[order_N])].tolist())


def over_cap(facts: FactTable, rows_N: np.ndarray, cap: int) -> set[int]:
    """The rows of a source that are beyond its cap: a sample by hash stays."""
    return set(facts.ranked(rows_N)[cap:].tolist())


def _firsts(keys: np.ndarray) -> np.ndarray:
    """True for each row of sorted keys that differs from the one before."""
    new_N = np.ones(len(keys), bool)
    new_N[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return new_N


def _runs(keys: np.ndarray) -> np.ndarray:
    """The number of each row's run of equal keys."""
    return np.cumsum(_firsts(keys)) - 1
