"""Checks for direct calls of the engine's verbs, which no request's checks precede."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np


def checked_tokens(
    padded_tokens: Any, true_length: int, *, room: int, vocab_size: int
) -> list[int]:
    """The token ids of a prompt, or of the continuation of a prefix.

    Args:
        padded_tokens: [T] token ids.
        true_length: number of tokens used.
        room: number of tokens that `max_len` leaves after the existing prefix.
        vocab_size: V.

    Raises:
        ValueError: `true_length` is below 1, above T or above `room`, or an id is outside of the
            vocabulary.
    """
    token_T = np.asarray(padded_tokens)
    most = min(len(token_T), room)
    if not 1 <= operator.index(true_length) <= most:
        raise ValueError(
            f"true_length={true_length}: must be in [1, {most}]: there are {len(token_T)} padded "
            f"tokens, and max_len leaves room for {room}; give fewer tokens or enlarge max_len"
        )
    tokens = [int(token) for token in token_T[:true_length]]
    bad = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise ValueError(
            f"padded_tokens: token id {bad} is outside of [0, {vocab_size}); encode the prompt "
            "with this model's tokenizer"
        )
    return tokens


def check_slots(slots: Sequence[int], *, num_slots: int, slots_a_shard: int) -> None:
    """Checks that the slots can take samples of one prefix.

    Args:
        slots: slot indices, numbered over all data shards.
        num_slots: number of slots of all data shards.
        slots_a_shard: number of slots of each data shard.

    Raises:
        ValueError: no slots, unknown or repeated slots, or slots on several data shards.
    """
    if not slots or min(slots) < 0 or max(slots) >= num_slots:
        raise ValueError(
            f"slots={list(slots)}: must be one or more of [0, {num_slots}); choose others or "
            "enlarge SamplerConfig.slots"
        )
    shards = {slot // slots_a_shard for slot in slots}
    if len(set(slots)) < len(slots) or len(shards) > 1:
        raise ValueError(
            f"slots={list(slots)}: must differ and lie on one data shard, which has "
            f"{slots_a_shard} in turn; choose others"
        )
