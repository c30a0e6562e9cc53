"""Checks of a request that continues responses of others, or samples a part of them."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence

import numpy as np

from polaris_jax.records import Response
from polaris_jax.rollout.request import Decode, completing_token
from polaris_jax.rollout.settings import PromptParams, whole_number


def checked_samples(samples: Sequence[Sequence[int]] | None, num_prompts: int, *, n: int) -> None:
    """Checks the indices of the samples that a request samples; None passes.

    Raises:
        ValueError: there is not one sequence a prompt, or it holds anything but different indices
            in [0, n).
    """
    if samples is None:
        return
    if len(samples) != num_prompts:
        raise ValueError(
            f"samples: {len(samples)} entries for {num_prompts} prompts; give the indices of each "
            "prompt's samples, [] for none, or None for all of all prompts"
        )
    for index, asked in enumerate(samples):
        listed = isinstance(asked, Iterable)
        own = [whole_number(f"samples[{index}]: index", i) for i in asked] if listed else []
        if not listed or len(set(own)) < len(own) or not all(0 <= i < n for i in own):
            raise ValueError(
                f"samples[{index}]={reprlib.repr(asked)}: must be different indices in [0, {n}); "
                "leave out what is twice or beyond, or raise n"
            )


def checked_begun(
    begun: Sequence[Sequence[Response]] | None,
    rows: Sequence[PromptParams],
    *,
    n: int,
    stop_ids: Sequence[int],
    stop_strings: Sequence[str],
    decode: Decode | None,
    vocab_size: int,
) -> None:
    """Checks that each response has ended or can continue; None passes.

    Raises:
        ValueError: there are not n responses a prompt, or an unfinished response cannot continue.
    """
    if begun is None:
        return
    if len(begun) != len(rows) or any(len(group) != n for group in begun):
        raise ValueError(
            f"begun: {[len(group) for group in begun]} responses for {len(rows)} prompts of n={n} "
            "samples; give n a prompt, `Response((), (), 'unfinished')` for what has no token yet"
        )
    for index, (row, group) in enumerate(zip(rows, begun, strict=True)):
        for sample, response in enumerate(group):
            if response.ended:
                continue
            where = f"begun[{index}][{sample}]"
            token_T, logprobs = np.asarray(response.token_ids, np.int64), response.logprobs
            told = sum(count for _, count in response.versions)
            if not len(token_T) == len(logprobs) == told:
                raise ValueError(
                    f"{where}: {len(token_T)} tokens, {len(logprobs)} log-probs, versions of "
                    f"{told} tokens: give one of each a token"
                )
            if len(token_T) >= row.max_tokens:
                raise ValueError(
                    f"{where}: unfinished, but {len(token_T)} tokens reach "
                    f"max_tokens={row.max_tokens}"
                )
            outside = (token_T < 0) | (token_T >= vocab_size)
            if (outside | np.isin(token_T, list(stop_ids))).any():
                raise ValueError(
                    f"{where}: unfinished, but it holds a stop token, or an id outside of "
                    f"[0, {vocab_size})"
                )
            if decode is None or not stop_strings or not len(token_T):
                continue
            at = completing_token(token_T.tolist(), 0, stop_strings, decode)
            if at is not None:
                raise ValueError(
                    f"{where}: unfinished, but with token {at} it holds one of "
                    f"stop_strings={tuple(stop_strings)}; cut it there and give it as 'stop'"
                )
