"""What a prefill call computes: rows of fixed width, cut from the sequences of each data shard.

A sequence may continue in the next row of a call, and a row may read pages that an earlier row
writes (`engine`). Only a sequence's last row is padded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from polaris_jax.rollout.programs.spec import PrefillShape
from polaris_jax.rollout.samples import Plan


@dataclasses.dataclass(frozen=True)
class PrefillJob:
    """Tokens of one sequence whose keys and values a prefill call writes.

    Attributes:
        tokens: token ids.
        pages: page ids of the sequence, in the order of its positions, from position 0.
        start: position of the first token.
    """

    tokens: Sequence[int]
    pages: Sequence[int]
    start: int = 0


class PrefillCall(NamedTuple):
    """Host arrays of one prefill call, with the rows of all data shards.

    Row b has `count_B` tokens, of which the first has position `first_B`; the rest of the row is
    padding. `table_BJ` has the page ids of the row's sequence.
    """

    token_BT: np.ndarray
    first_B: np.ndarray
    count_B: np.ndarray
    table_BJ: np.ndarray


def jobs_of(plan: Plan) -> list[PrefillJob]:
    """The jobs of a data shard's plan, in its order."""
    return [
        PrefillJob(part.sample.history(part.start, part.stop), part.sample.pages, part.start)
        for part in plan.parts
    ]


def prefill_calls(
    jobs_by_shard: Sequence[Sequence[PrefillJob]], shape: PrefillShape, *, pages_of_a_row: int
) -> Iterator[PrefillCall]:
    """The prefill calls for all jobs.

    A job of more tokens than a row is split over several rows. Each call uses the largest compiled
    number of rows that the remaining rows fill, or the smallest one if they fill none.

    Args:
        jobs_by_shard: token sequences of each data shard, in an order in which pages are written
            before they are read.
        shape: tokens of a row, and the numbers of rows that are compiled.
        pages_of_a_row: J.
    """
    chunk, buckets = shape
    waiting = [
        [
            PrefillJob(job.tokens[i : i + chunk], job.pages, job.start + i)
            for job in jobs
            for i in range(0, len(job.tokens), chunk)
        ]
        for jobs in jobs_by_shard
    ]
    while most := max(map(len, waiting)):
        rows = max((b for b in buckets if b <= most), default=buckets[0])
        parts = [queue[:rows] for queue in waiting]
        yield prefill_call(parts, rows=rows, chunk=chunk, pages_of_a_row=pages_of_a_row)
        waiting = [queue[rows:] for queue in waiting]


def prefill_call(
    jobs_by_shard: Sequence[Sequence[PrefillJob]], *, rows: int, chunk: int, pages_of_a_row: int
) -> PrefillCall:
    """The host arrays of a call with one job a row; a row without a job is padding.

    Each data shard has `rows` rows of `chunk` tokens. It may have at most `rows` jobs, each of at
    most `chunk` tokens.
    """
    total = len(jobs_by_shard) * rows
    call = PrefillCall(
        np.zeros((total, chunk), np.int32),
        np.zeros(total, np.int32),
        np.zeros(total, np.int32),
        np.zeros((total, pages_of_a_row), np.int32),
    )
    for shard, jobs in enumerate(jobs_by_shard):
        for row, job in enumerate(jobs, start=shard * rows):
            call.token_BT[row, : len(job.tokens)] = job.tokens
            call.first_B[row], call.count_B[row] = job.start, len(job.tokens)
            call.table_BJ[row, : len(job.pages)] = job.pages
    return call
