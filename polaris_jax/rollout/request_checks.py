"""What a sampler can serve: every refusal of a request, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polaris_jax.rollout.decode_state import SamplerConfig
from polaris_jax.rollout.run import OnProgress, OnTokens, Request
from polaris_jax.rollout.sampling import PromptParams, SamplingParams, pad_stop_ids, per_prompt

Prompts = Sequence[Sequence[Any] | np.ndarray]


def checked_request(
    prompts: Prompts,
    params: SamplingParams,
    *,
    expected_tokens: Sequence[float] | None,
    on_progress: OnProgress | None,
    on_tokens: OnTokens | None,
    config: SamplerConfig,
    vocab_size: int,
    num_pages: int,
    shards: int,
) -> Request:
    """A request that can be served.

    Args:
        prompts: token ids.
        params: how to sample.
        expected_tokens: see `Sampler.generate`, and the callbacks too.
        on_progress: see there.
        on_tokens: see there.
        config: the sampler's sizes.
        vocab_size: V.
        num_pages: pages of all data shards.
        shards: data shards.

    Raises:
        ValueError: a prompt or setting that cannot be served, with the prompt's index.
    """
    rows = per_prompt(params, len(prompts))
    stop_ids = checked_stop_ids(params.stop_token_ids, vocab_size=vocab_size)
    strings = checked_stop_strings(params.stop_strings, params.decode)
    checked_expected(expected_tokens, len(prompts))
    tokens = [
        checked_prompt(
            index,
            prompt,
            row,
            vocab_size=vocab_size,
            config=config,
            num_pages=num_pages,
            shards=shards,
        )
        for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
    ]
    return Request(
        tokens,
        rows,
        params.n,
        stop_ids,
        stop_strings=strings,
        decode=params.decode,
        scores_prompts=params.prompt_logprobs,
        expected_tokens=expected_tokens,
        shards=shards,
        on_progress=on_progress,
        on_tokens=on_tokens,
    )


def checked_prompt(
    index: int,
    prompt: Sequence[Any] | np.ndarray,
    row: PromptParams,
    *,
    vocab_size: int,
    config: SamplerConfig,
    num_pages: int,
    shards: int,
) -> tuple[int, ...]:
    """The prompt's token ids.

    Args:
        index: its place in the caller's list.
        prompt: token ids.
        row: its settings.
        vocab_size: V.
        config: the sampler's sizes.
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
    if needed > config.max_len:
        raise ValueError(f"{numbers} = {needed}, over max_len={config.max_len}")
    room = (num_pages // shards - 1) * config.page_size
    if needed > room:
        raise ValueError(
            f"{numbers} = {needed}, over the pool's {room} tokens ({num_pages} pages of "
            f"{config.page_size} over {shards} data shards, page 0 of each not usable); "
            "enlarge num_pages"
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


def checked_stop_strings(
    stop_strings: Sequence[str] | None, decode: Callable[[list[int]], str] | None
) -> tuple[str, ...]:
    """The stop strings.

    Raises:
        ValueError: one string in place of several, an empty one, or nothing to decode with.
    """
    strings = () if stop_strings is None else tuple(stop_strings)
    if isinstance(stop_strings, str) or not all(isinstance(s, str) and s for s in strings):
        raise ValueError(
            f"stop_strings={stop_strings!r}: must be a sequence of non-empty strings, such as "
            "('</answer>',)"
        )
    if strings and decode is None:
        raise ValueError(
            f"stop_strings={strings}: need decode=, the text of token ids; give tokenizer.decode"
        )
    return strings


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
