"""Assigns tokens to the rows of prefill calls, on the host.

In each layer a call writes the keys and values of all its rows before any row attends. So a
sequence may continue in the next row, and a row may read pages that an earlier row writes. Only a
sequence's last row is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from polaris_jax.rollout.engine_records import PrefillJob
from polaris_jax.rollout.programs.spec import PrefillShape


class PrefillCall(NamedTuple):
    """Host arrays of a call, rows of all data shards: tokens, first position, tokens that count,
    pages."""

    token_BT: np.ndarray
    first_B: np.ndarray
    count_B: np.ndarray
    table_BJ: np.ndarray


def prefill_calls(
    jobs_by_shard: Sequence[Sequence[PrefillJob]], shape: PrefillShape, *, pages_of_a_row: int
) -> Iterator[PrefillCall]:
    """The calls for all jobs; each is the largest that the remaining rows fill, or the smallest.

    Args:
        jobs_by_shard: token sequences of each data shard, in an order in which pages are written
            before they are read.
        shape: shape of the compiled programs.
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
    """One call with `rows` rows a data shard, a job of at most `chunk` tokens in each."""
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
