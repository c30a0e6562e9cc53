"""Puts a prefilled prompt into slots; the samples share full pages and own their last page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.engine_records import Prefix
from polaris_jax.rollout.settings import PromptParams


def insert_prefix(
    prefix: Prefix,
    state: DecodeState,
    slots: Sequence[int],
    *,
    params: PromptParams,
    first_sample: int,
    page_size: int,
    move_pages: Callable[[Any, Any, np.ndarray], Any],
    copy_pages: Callable[[list[tuple[int, int]]], None],
) -> None:
    """Puts a sample of the prefix into each slot; if that fails, no slot is filled, no page taken.

    Args:
        prefix: result of `Engine.prefill`.
        state: changed in place; the slots' former pages are released first.
        slots: slots of one data shard, all different.
        params: sampling settings of all samples.
        first_sample: index of the first slot's sample; the others follow.
        page_size: Y.
        move_pages: (pool, the prefix's pages, where each goes) -> the pool.
        copy_pages: copies (from, to) pages of the shard within the pool.

    Raises:
        RuntimeError: the pool has too few free pages for all. The slots are empty then.
    """
    for slot in slots:
        state.free(slot)
    length, allocator = int(prefix.length), state.allocator(slots[0])
    # The prompt's last token is written by the first decode step: each sample has that page alone.
    full = (length - 1) // page_size
    pages = allocator.allocate(full + len(slots))
    if pages is None:
        raise RuntimeError(
            f"slots={list(slots)}: no room for a prefix of {length} tokens, {allocator.num_free} "
            "pages are free; enlarge num_pages"
        )
    shared, own = pages[:full], pages[full:]
    try:
        to_J = np.zeros(state.table_BJ.shape[1], np.int32)
        to_J[: full + 1] = [*shared, own[0]]
        state.pool = move_pages(state.pool, prefix.pages, to_J)
        copy_pages([(own[0], page) for page in own[1:]])
        for sample, (slot, page) in enumerate(zip(slots, own, strict=True), first_sample):
            state.place(
                slot,
                [*shared, page],
                last_token=int(prefix.token),
                length=length,
                prompt_len=length,
                params=params,
                sample=sample,
            )
    except BaseException:
        for slot in slots:
            state.clear(slot)
        allocator.release(pages)
        raise
    for _ in slots[1:]:
        allocator.share(shared)
