"""Inputs and results of the engine's programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from polaris_jax.rollout.programs import Packed


@dataclasses.dataclass(frozen=True)
class ResultTokens:
    """The tokens of one `generate` call, JetStream's layout plus log-probs.

    Attributes:
        data: int32 [slots, 2K + 1]: K tokens, K validity flags, the response length so far.
        tokens_idx: columns of the tokens.
        valid_idx: columns of the flags; a flag is 0 if the row had ended.
        length_idx: column of the lengths, in response tokens.
        samples_per_slot: 1.
        logprobs: float32 [slots, K], nats; see `draw_tokens`.
        count: int32 [slots], new tokens of each slot.
        alive: bool [slots], False for rows that have ended.
        steps: decode steps that ran, on the data shard that ran longest.
        rows: rows that the devices computed in each step.
    """

    data: np.ndarray
    tokens_idx: tuple[int, int]
    valid_idx: tuple[int, int]
    length_idx: tuple[int, int]
    samples_per_slot: int
    logprobs: np.ndarray
    count: np.ndarray
    alive: np.ndarray
    steps: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A prefilled prompt outside of the pool; a pytree.

    Attributes:
        pages: a pool of its own with pages 1.. in order.
        token: the prompt's last token, not in `pages` yet.
        length: prompt tokens, the last one included.
    """

    pages: Any
    token: Any
    length: Any


jax.tree_util.register_dataclass(Prefix, ["pages", "token", "length"], [])


@dataclasses.dataclass(frozen=True)
class PrefillJob:
    """Tokens whose keys and values go into `pages`, from position `start` on."""

    tokens: Sequence[int]
    pages: Sequence[int]
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Flight:
    """A decode call whose results the host has not read yet."""

    index_B: np.ndarray  # slot of each row, -1 for none
    packed: Packed
