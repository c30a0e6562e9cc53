"""Where each sequence of a batch lies in the packed rows.

Sequences with the same prompt may share it: a segment then holds the prompt once, followed by one
branch for each response. A branch is the prompt's last token and the response, so that a branch
has everything that its own predictions need: the first response token is predicted from the
branch's own copy of the prompt's last token. All before that token is shared. The attention back
end keeps the branches of a segment apart (`models.attention.attend`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Placement:
    """The place of each sequence; all fields are int64 [sequences].

    Attributes:
        row: row of the sequence.
        start: the row's position at which the sequence's tokens begin.
        segment: number of its segment in the row, from 1.
        branch: number of its branch in the segment, from 1.
        skip: tokens of the sequence's beginning that another sequence of the segment has brought.
    """

    row: np.ndarray
    start: np.ndarray
    segment: np.ndarray
    branch: np.ndarray
    skip: np.ndarray


def first_fit_decreasing(
    length: np.ndarray, row_len: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The row, first position and segment number (from 1) of each sequence.

    Sequences are placed by descending length, ties in their order, into the first row with room.
    """
    row, start, segment = (np.zeros(len(length), np.int64) for _ in range(3))
    free = np.full(len(length), row_len, np.int64)  # at most one row a sequence
    placed = np.zeros(len(length), np.int64)
    used = 1
    for i in np.argsort(-length, kind="stable"):
        r = int(np.argmax(free[:used] >= length[i]))
        if free[r] < length[i]:
            r, used = used, used + 1
        row[i], start[i] = r, row_len - free[r]
        free[r] -= length[i]
        placed[r] += 1
        segment[i] = placed[r]
    return row, start, segment


def place_alone(length: np.ndarray, row_len: int) -> Placement:
    """Each sequence as a segment of its own; see `first_fit_decreasing`."""
    row, start, segment = first_fit_decreasing(length, row_len)
    return Placement(row, start, segment, np.ones_like(row), np.zeros_like(row))


def place_shared(
    length: np.ndarray,
    prompt_len: np.ndarray,
    prompts: Sequence[bytes],
    *,
    row_len: int,
    rows: int,
) -> Placement:
    """Sequences with equal prompts as branches of one segment, if they lie in one row.

    Responses to a prompt that do not fit into one row take several, each with the prompt. Two
    orders are tried: prompt by prompt, those with most tokens first, which shares most; and by
    descending length, which fills rows best. The result is that with the fewest microbatches,
    then tokens. It never has more microbatches than sequences without sharing.

    Args:
        length: tokens of each sequence, prompt and response; at most `row_len`.
        prompt_len: tokens of its prompt, at least 1.
        prompts: equal values for sequences with equal prompts.
        row_len: tokens in a row.
        rows: rows in a microbatch.
    """
    numbers: dict[bytes, int] = {}
    prompt = np.array([numbers.setdefault(key, len(numbers)) for key in prompts], np.int64)
    shared = prompt_len - 1
    tokens = np.bincount(prompt, length - shared) + np.bincount(prompt, shared) / np.maximum(
        np.bincount(prompt), 1
    )
    by_prompt = np.lexsort((-length, prompt, -tokens[prompt]))
    by_length = np.argsort(-length, kind="stable")
    tries = [
        *(_first_fit(o, length, shared, prompt, row_len=row_len) for o in (by_prompt, by_length)),
        place_alone(length, row_len),
    ]

    def cost(placement: Placement) -> tuple[int, int]:
        used = int(placement.row.max(initial=-1)) + 1
        return -(-used // rows), int((length - placement.skip).sum())

    return min(tries, key=cost)


def _first_fit(
    order: np.ndarray, length: np.ndarray, shared: np.ndarray, prompt: np.ndarray, *, row_len: int
) -> Placement:
    """Each sequence in the first row that has its prompt and room, else in the first with room."""
    count = len(length)
    row, start, segment, branch, skip = (np.zeros(count, np.int64) for _ in range(5))
    free = np.full(count, row_len, np.int64)  # at most one row a sequence
    holds = np.zeros((int(prompt.max(initial=-1)) + 1, count), bool)  # [prompts, rows]
    members: dict[tuple[int, int], list[int]] = {}  # in the order of placing, as are segments
    used = 1
    for i in order:
        held = holds[prompt[i], :used]
        fits = free[:used] >= length[i] - shared[i] * held
        choices = fits & held
        r = int(np.argmax(choices if choices.any() else fits))
        if not fits[r]:
            r, used = used, used + 1
        skip[i] = shared[i] if holds[prompt[i], r] else 0
        free[r] -= length[i] - skip[i]
        holds[prompt[i], r] = True
        row[i] = r
        members.setdefault((r, int(prompt[i])), []).append(i)
    end, segments = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for (r, _), sequences in members.items():
        segments[r] += 1
        for number, i in enumerate(sequences, 1):
            start[i], segment[i], branch[i] = end[r], segments[r], number
            end[r] += length[i] - skip[i]
    return Placement(row, start, segment, branch, skip)


def balanced(cost: np.ndarray, *, rows: int, shards: int) -> np.ndarray:
    """The new index of every row.

    Rows are sorted by falling cost. The rows of a microbatch are dealt to the shards in alternating
    order (first to last, then last to first).
    """
    order = np.argsort(-cost, kind="stable")
    turn, column = np.divmod(np.arange(len(cost)) % rows, shards)
    column = np.where(turn % 2, shards - 1 - column, column)
    first = np.arange(len(cost)) // rows * rows
    place = np.empty(len(cost), np.int64)
    place[order] = first + column * (rows // shards) + turn
    return place
