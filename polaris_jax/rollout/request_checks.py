"""What a sampler can serve: every refusal of a prompt, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polaris_jax.rollout.engine import pad_stop_ids
from polaris_jax.rollout.sampling import PromptParams


def checked_prompt(
    index: int,
    prompt: Sequence[Any] | np.ndarray,
    row: PromptParams,
    *,
    vocab_size: int,
    max_len: int,
    page_size: int,
    num_pages: int,
    shards: int,
) -> tuple[int, ...]:
    """The prompt's token ids.

    Args:
        index: its place in the caller's list.
        prompt: token ids.
        row: its settings.
        vocab_size: V.
        max_len: tokens of a sequence at most.
        page_size: tokens of a page.
        num_pages: pages of all data shards.
        shards: data shards.

    Raises:
        ValueError: it is empty, holds no token ids, or is too long for `max_len` or the pool.
    """
    tokens = np.asarray(prompt)
    if tokens.size == 0:
        raise ValueError(f"prompt {index}: empty; give it at least one token")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"prompt {index}: must be a flat sequence of integer token ids")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        bad = int(tokens[(tokens < 0) | (tokens >= vocab_size)][0])
        raise ValueError(f"prompt {index}: token id {bad} is outside of [0, {vocab_size})")
    needed = tokens.size + row.max_tokens
    numbers = f"prompt {index}: {tokens.size} prompt tokens + max_tokens={row.max_tokens}"
    if needed > max_len:
        raise ValueError(f"{numbers} = {needed}, over max_len={max_len}")
    room = (num_pages // shards - 1) * page_size
    if needed > room:
        raise ValueError(
            f"{numbers} = {needed}, over the pool's {room} tokens ({num_pages} pages of "
            f"{page_size} over {shards} data shards, page 0 of each not usable); enlarge num_pages"
        )
    return tuple(tokens.tolist())


def checked_stop_ids(stop_token_ids: Sequence[int], *, vocab_size: int) -> tuple[int, ...]:
    """The stop ids.

    Raises:
        ValueError: an id outside of the vocabulary, or too many.
    """
    stop_ids = tuple(int(i) for i in stop_token_ids)
    for i in stop_ids:
        if not 0 <= i < vocab_size:
            raise ValueError(f"stop_token_ids: id {i} is outside of [0, {vocab_size})")
    pad_stop_ids(stop_ids)
    return stop_ids


def checked_expected(expected_tokens: Sequence[float] | None, num_prompts: int) -> None:
    """Returns when the expectations are usable.

    Raises:
        ValueError: not one a prompt, or not a finite number >= 0.
    """
    if expected_tokens is None:
        return
    if len(expected_tokens) != num_prompts:
        raise ValueError(
            f"expected_tokens: {len(expected_tokens)} values for {num_prompts} prompts; give one a "
            "prompt, or None"
        )
    for index, value in enumerate(expected_tokens):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"prompt {index}: expected_tokens={value}: must be finite and at least 0"
            )
