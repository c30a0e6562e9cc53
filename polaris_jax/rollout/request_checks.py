"""All checks of a request, made before anything runs; those of `begun` are in `begun_checks`."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from polaris_jax.records import Response
from polaris_jax.rollout.begun_checks import checked_begun, checked_samples
from polaris_jax.rollout.request import OnProgress, OnTokens, Request, Tokens
from polaris_jax.rollout.settings import (
    PromptParams,
    SamplerConfig,
    SamplingParams,
    pad_stop_ids,
    per_prompt,
    real_number,
    whole_number,
)

Prompts = Sequence[Sequence[Any] | np.ndarray]


def checked_request(
    prompts: Prompts,
    params: SamplingParams,
    *,
    expected_tokens: Sequence[float] | None = None,
    begun: Sequence[Sequence[Response]] | None = None,
    samples: Sequence[Sequence[int]] | None = None,
    history: Sequence[Sequence[Tokens]] | None = None,
    on_progress: OnProgress | None = None,
    on_tokens: OnTokens | None = None,
    config: SamplerConfig,
    vocab_size: int,
    end_ids: Sequence[int],
    num_pages: int,
    shards: int,
) -> Request:
    """A request that passed all checks.

    Args:
        prompts: token ids of each prompt.
        params: sampling settings.
        expected_tokens: see `Sampler.generate`.
        begun: see `Sampler.submit`.
        samples: see `Sampler.submit`.
        history: see `Sampler.submit`.
        on_progress: see `Sampler.generate`.
        on_tokens: see `Sampler.generate`.
        config: the sampler's sizes.
        vocab_size: V.
        end_ids: the model's end ids, which end a response if `params.stop_token_ids` is None.
        num_pages: number of pages of all data shards.
        shards: number of data shards.

    Raises:
        ValueError: a prompt or setting cannot be served. The message names the prompt's index.
    """
    check_prompts(prompts)
    check_params(params)
    rows = per_prompt(params, len(prompts))
    n = whole_number("n", params.n)
    asked = end_ids if params.stop_token_ids is None else params.stop_token_ids
    stop_ids = checked_stop_ids(asked, vocab_size=vocab_size)
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
    checked_begun(
        begun,
        rows,
        n=n,
        stop_ids=stop_ids,
        stop_strings=strings,
        decode=params.decode,
        vocab_size=vocab_size,
    )
    checked_samples(samples, len(rows), n=n)
    return Request(
        tokens,
        rows,
        n,
        stop_ids,
        stop_strings=strings,
        decode=params.decode,
        scores_prompts=params.prompt_logprobs,
        expected_tokens=expected_tokens,
        begun=begun,
        samples=samples,
        history=checked_history(history, len(prompts), vocab_size=vocab_size),
        on_progress=on_progress,
        on_tokens=on_tokens,
    )


def check_prompts(prompts: Any) -> None:
    """Checks that prompts can be counted and read more than once.

    Raises:
        ValueError: `prompts` is a text, an iterator, or anything else but a sequence.
    """
    sized = hasattr(prompts, "__len__") and hasattr(prompts, "__getitem__")
    if isinstance(prompts, str | bytes | dict) or not sized or getattr(prompts, "ndim", 1) == 0:
        raise ValueError(
            f"prompts={reprlib.repr(prompts)}: must be a sequence of sequences of token ids, not "
            f"{type(prompts).__name__}; encode texts with the tokenizer, make a list of an iterator"
        )


def check_params(params: Any) -> None:
    """Checks the type of `params` and of the field that no other function checks.

    Raises:
        ValueError: `params` is not a `SamplingParams`, or `prompt_logprobs` is not a bool.
    """
    if not isinstance(params, SamplingParams):
        raise ValueError(
            f"params={reprlib.repr(params)}: must be SamplingParams, not {type(params).__name__}; "
            "give SamplingParams(...), or None for the defaults"
        )
    if not isinstance(params.prompt_logprobs, bool | np.bool_):
        raise ValueError(
            f"prompt_logprobs={params.prompt_logprobs!r}: must be True or False; one setting "
            "serves all prompts of a request"
        )


def checked_ids(index: int, prompt: Sequence[Any] | np.ndarray, *, vocab_size: int) -> np.ndarray:
    """The token ids of a prompt, int [tokens].

    Args:
        index: index in the caller's list of prompts.
        prompt: token ids.
        vocab_size: V.

    Raises:
        ValueError: the prompt is empty, or holds anything but token ids of the vocabulary.
    """
    try:
        tokens = np.asarray(prompt)
    except ValueError:  # ragged
        tokens = np.empty((), object)
    if tokens.size == 0:
        raise ValueError(f"prompt {index}: empty; give it at least one token")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"prompt {index}: must be a flat sequence of integer token ids, got "
            f"{reprlib.repr(prompt)}; encode text with the tokenizer, and give one prompt as "
            "[prompt]"
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        bad = int(tokens[(tokens < 0) | (tokens >= vocab_size)][0])
        raise ValueError(
            f"prompt {index}: token id {bad} is outside of [0, {vocab_size}); encode the prompt "
            "with this model's tokenizer"
        )
    return tokens


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
    """The prompt's token ids, checked.

    Args:
        index: index in the caller's list of prompts.
        prompt: token ids.
        row: sampling settings of the prompt.
        vocab_size: V.
        config: the sampler's sizes.
        num_pages: number of pages of all data shards.
        shards: number of data shards.

    Raises:
        ValueError: the prompt is empty, holds anything but token ids of the vocabulary, or is too
            long for `max_len` or the pool.
    """
    tokens = checked_ids(index, prompt, vocab_size=vocab_size)
    needed = tokens.size + row.max_tokens
    numbers = f"prompt {index}: {tokens.size} prompt tokens + max_tokens={row.max_tokens}"
    if needed > config.max_len:
        raise ValueError(
            f"{numbers} = {needed}, over max_len={config.max_len}; ask for fewer tokens or enlarge "
            "SamplerConfig.max_len"
        )
    room = (num_pages // shards - 1) * config.page_size
    if needed > room:
        raise ValueError(
            f"{numbers} = {needed}, over the pool's {room} tokens ({num_pages} pages of "
            f"{config.page_size} over {shards} data shards, page 0 of each not usable); "
            "enlarge num_pages"
        )
    return tuple(tokens.tolist())


def checked_stop_ids(stop_token_ids: Sequence[int], *, vocab_size: int) -> tuple[int, ...]:
    """The stop ids, checked.

    Raises:
        ValueError: `stop_token_ids` is not a sequence of ids, an id is outside of the vocabulary,
            or there are too many ids.
    """
    if isinstance(stop_token_ids, str | bytes) or not isinstance(stop_token_ids, Iterable):
        raise ValueError(
            f"stop_token_ids={stop_token_ids!r}: must be a sequence of token ids; give (id,) for "
            "one, () for none, and texts as stop_strings"
        )
    stop_ids = tuple(whole_number("stop_token_ids: id", i) for i in stop_token_ids)
    for i in stop_ids:
        if not 0 <= i < vocab_size:
            raise ValueError(
                f"stop_token_ids: id {i} is outside of [0, {vocab_size}); take it from this "
                "model's tokenizer, or leave it out"
            )
    pad_stop_ids(stop_ids)
    return stop_ids


def checked_stop_strings(
    stop_strings: Sequence[str] | None, decode: Callable[[list[int]], str] | None
) -> tuple[str, ...]:
    """The stop strings, checked.

    Raises:
        ValueError: `stop_strings` is not a sequence of strings, a string is empty, or `decode` is
            missing.
    """
    strings = tuple(stop_strings) if isinstance(stop_strings, Iterable) else ()
    no_sequence = stop_strings is not None and not isinstance(stop_strings, Iterable)
    if (
        no_sequence
        or isinstance(stop_strings, str)
        or not all(isinstance(s, str) and s for s in strings)
    ):
        raise ValueError(
            f"stop_strings={stop_strings!r}: must be a sequence of non-empty strings, such as "
            "('</answer>',)"
        )
    if strings and not callable(decode):
        raise ValueError(
            f"stop_strings={strings}, decode={decode!r}: need decode=, the text of token ids; give "
            "tokenizer.decode"
        )
    return strings


def checked_expected(expected_tokens: Sequence[float] | None, num_prompts: int) -> None:
    """Checks the expected response tokens; None passes.

    Raises:
        ValueError: there is not one value a prompt, or a value is not a finite number >= 0.
    """
    if expected_tokens is None:
        return
    if not hasattr(expected_tokens, "__len__"):
        raise ValueError(
            f"expected_tokens={expected_tokens!r}: must be a sequence; give one value a prompt, or "
            "None"
        )
    if len(expected_tokens) != num_prompts:
        raise ValueError(
            f"expected_tokens: {len(expected_tokens)} values for {num_prompts} prompts; give one a "
            "prompt, or None"
        )
    for index, value in enumerate(expected_tokens):
        number = real_number(f"prompt {index}: expected_tokens", value)
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(
                f"prompt {index}: expected_tokens={number:g}: must be finite and at least 0; give "
                "max_tokens where nothing is known"
            )


def checked_history(
    history: Sequence[Sequence[Tokens]] | None, num_prompts: int, *, vocab_size: int
) -> list[list[np.ndarray]] | None:
    """The earlier responses to each prompt, each int32 [tokens]; None passes.

    Raises:
        ValueError: there is not one entry a prompt, or a response holds anything but token ids of
            the vocabulary.
    """
    if history is None:
        return None
    if len(history) != num_prompts:
        raise ValueError(
            f"history: {len(history)} entries for {num_prompts} prompts; give one list of "
            "responses a prompt, [] for none"
        )
    found: list[list[np.ndarray]] = []
    for index, texts in enumerate(history):
        found.append([])
        for number, text in enumerate(texts):
            token_T = np.asarray(text)
            whole = token_T.size == 0 or np.issubdtype(token_T.dtype, np.integer)
            inside = whole and not ((token_T < 0) | (token_T >= vocab_size)).any()
            if token_T.ndim != 1 or not inside:
                raise ValueError(
                    f"history[{index}][{number}]: must be a flat sequence of token ids in "
                    f"[0, {vocab_size}); give responses of this model's tokenizer"
                )
            found[-1].append(token_T.astype(np.int32, copy=False))
    return found
