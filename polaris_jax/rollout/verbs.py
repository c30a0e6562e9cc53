"""JetStream's verbs on our engine: prefill, insert, generate.

As in JetStream, prefill returns a prompt's keys and values and no token, `insert` puts them into a
slot, and `generate` runs one decode call. JetStream's Driver calls them through the adapter in
`jetstream`; the sampler does not use them.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.engine import Engine, ResultTokens
from polaris_jax.rollout.fused_weights import Model
from polaris_jax.rollout.prefill import PrefillJob
from polaris_jax.rollout.settings import PromptParams


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


class VerbEngine(Engine):
    """An `Engine` with JetStream's verbs, on one data shard."""

    def prefill(
        self,
        *,
        params: Model,
        existing_prefix: Prefix | None = None,
        padded_tokens: Array | np.ndarray,
        true_length: int,
    ) -> Prefix:
        """The keys and values of a prompt, appended to those of `existing_prefix` if given.

        Args:
            params: weights.
            existing_prefix: an already prefilled beginning.
            padded_tokens: [T] token ids; only the first `true_length` are used.
            true_length: number of tokens used, at least 1; at most `max_len` together with the
                tokens of `existing_prefix`.

        Returns:
            The prefix, in its own pages.

        Raises:
            ValueError: a length or a token id is out of range, or the mesh has several data shards,
                which prefixes outside of the pool do not support.
        """
        if self.data > 1:
            raise ValueError(
                f"data={self.data}: JetStream's verbs run on one data shard; make the engine "
                "without a mesh, or with data=1"
            )
        before = 0 if existing_prefix is None else int(existing_prefix.length)
        tokens = checked_tokens(
            padded_tokens,
            true_length,
            room=self.config.max_len - before,
            vocab_size=self.model_config.vocab_size,
        )
        width = self.config.pages_of_a_row
        if existing_prefix is None:
            start, pool = 0, self.new_pool(width + 1, params.norm_D[...].dtype)
        else:
            start = before - 1
            tokens = [int(existing_prefix.token), *tokens]
            pool = jax.tree.map(jnp.copy, existing_prefix.pages)
        job = PrefillJob(tokens[:-1], list(range(1, width + 1)), start)
        pool = self._run_prefill(params, pool, [[job]])
        return Prefix(pool, np.int32(tokens[-1]), np.int32(start + len(tokens)))

    def insert(
        self,
        prefix: Prefix,
        decode_state: DecodeState,
        slot: int,
        *,
        params: PromptParams,
        sample: int = 0,
    ) -> DecodeState:
        """The state with the prefix in `slot`; the slot's former pages are released.

        Args:
            prefix: result of `prefill`; a prefix can be inserted again.
            decode_state: changed in place and returned.
            slot: in [0, slots).
            params: sampling settings of the row, which ends at `max_tokens` or `max_len`.
            sample: index of the sample; the sample's noise depends on this index.

        Raises:
            ValueError: the slot does not exist.
            RuntimeError: the pool has too few free pages. The slot is empty then.
        """
        self._insert(prefix, decode_state, [slot], params=params, first_sample=sample)
        return decode_state

    def insert_samples(
        self,
        prefix: Prefix,
        decode_state: DecodeState,
        slots: Sequence[int],
        *,
        params: PromptParams,
    ) -> DecodeState:
        """The state with one sample of the prefix in each of `slots`, all on one data shard.

        Samples share the full pages; each has a copy of the last page, to continue writing there.

        Args:
            prefix: result of `prefill`.
            decode_state: changed in place and returned.
            slots: at least one, all different, in [0, slots). Their former pages are released.
            params: sampling settings of all samples, whose indices count from 0.

        Raises:
            ValueError: no slots, unknown or repeated slots, or slots on several data shards.
            RuntimeError: the pool has too few free pages for all. The slots are empty then.
        """
        self._insert(prefix, decode_state, list(slots), params=params)
        return decode_state

    def _insert(
        self,
        prefix: Prefix,
        state: DecodeState,
        slots: list[int],
        *,
        params: PromptParams,
        first_sample: int = 0,
    ) -> None:
        check_slots(slots, num_slots=self.config.slots, slots_a_shard=self.slots_a_shard)
        shard = slots[0] // self.slots_a_shard
        insert_prefix(
            prefix,
            state,
            slots,
            params=params,
            first_sample=first_sample,
            page_size=self.config.page_size,
            move_pages=self.programs.move_pages,
            copy_pages=lambda pairs: self.copy_pages(
                state, [pairs if d == shard else [] for d in range(self.data)]
            ),
        )

    def generate(
        self,
        params: Model,
        decode_state: DecodeState,
        *,
        stop_token_ids: Sequence[int] = (),
    ) -> tuple[DecodeState, ResultTokens]:
        """K tokens for every live slot, or fewer if its row ends; so JetStream detects an end.
        Ended rows stay in their slots until the slots are freed.

        Args:
            params: weights.
            decode_state: changed in place and returned.
            stop_token_ids: ids that end a row.

        Raises:
            RuntimeError: a live row needs a page and none is free (a scheduler reserves before).
        """
        call = self.dispatch(params, decode_state, stop_token_ids=stop_token_ids, exit_below=None)
        return decode_state, self.collect(decode_state, call)


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
