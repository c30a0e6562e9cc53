"""Prefill, insert, generate: the sampler's device programs behind JetStream's verbs.

As in JetStream, prefill returns a prompt's keys and values and no token. The first `generate` takes
the prompt's last token as its input, so one program draws every token. `generate` runs up to K
steps in one device call. Stop tokens and limits end rows on the device.

JetStream's Driver calls `prefill`, `insert`, `generate` (see rollout/jetstream.py). Our driver
calls `prefill_rows` (many prompts at once, written directly into pool pages), `copy_pages`,
`launch` and `collect`; our scheduler reserves the pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from polaris_jax import sharding
from polaris_jax.models import ModelConfig
from polaris_jax.rollout import programs
from polaris_jax.rollout.decode_state import DecodeState, SamplerConfig, compact
from polaris_jax.rollout.engine_checks import check_slots, checked_tokens
from polaris_jax.rollout.engine_records import Flight, PrefillJob, Prefix, ResultTokens
from polaris_jax.rollout.prefill_calls import prefill_call, prefill_calls
from polaris_jax.rollout.programs import Model, Packed, Programs
from polaris_jax.rollout.programs.spec import prefill_shape, program_spec
from polaris_jax.rollout.settings import PromptParams, pad_stop_ids
from polaris_jax.rollout.verbs import insert_prefix


class Engine:
    """Compiled prefill and decode for one architecture, one set of sizes and one mesh.

    Weights are an argument of every call. New weights of the same shapes need no compilation.
    """

    def __init__(self, model_config: ModelConfig, config: SamplerConfig, mesh: Mesh | None = None):
        self.config = config
        self.model_config = model_config
        self.data = sharding.slot_shards(mesh)
        self.spec = program_spec(model_config, config, mesh)
        self.slots_a_shard = config.slots // self.data
        self.prefill_shape = prefill_shape(config.prefill_chunk, fine=self.spec.staged)
        device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
        on_accelerator = device.platform != "cpu"
        asked = config.dispatch_ahead
        self.dispatches_ahead = on_accelerator if asked is None else asked
        made = programs.compiled(self.spec)
        self._programs = Programs(*(partial(sharding.from_host, program) for program in made))

    def init_decode_state(self, dtype: Any = jnp.float32) -> DecodeState:
        """An empty pool and empty slots; pages have dtype `dtype`."""
        pages = self.config.num_pages
        pool = self.new_pool(pages, dtype)
        return DecodeState(pool, self.config, num_pages=pages, data=self.data)

    def new_pool(self, num_pages: int, dtype: Any) -> Any:
        """A pool of zeros, `num_pages` over all data shards."""
        abstract = self.spec.layout.abstract_pool(
            self.model_config,
            num_pages=num_pages // self.data * self.data,
            page_size=self.config.page_size,
            dtype=dtype,
        )
        where = None if self.spec.mesh is None else programs.pool_sharding(self.spec)
        zeros = partial(programs.zeros, where=where, by_native=self.spec.native)
        return jax.tree.map(lambda x: zeros(x.shape, x.dtype)(), abstract)

    def _up(self, tree: Any, *, axis: int | None = 0) -> Any:
        """Host arrays, placed for the programs."""
        return sharding.on_members(tree, self.spec.mesh, axis=axis)

    # --- JetStream's verbs ---

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
            move_pages=self._programs.move_pages,
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
        flight = self.launch(params, decode_state, stop_token_ids=stop_token_ids, exit_below=None)
        return decode_state, self.collect(decode_state, flight)

    def launch(
        self,
        params: Model,
        state: DecodeState,
        *,
        stop_token_ids: Sequence[int] = (),
        exit_below: int | Sequence[int] | None = 1,
    ) -> Flight:
        """Dispatches the decode call of `generate`; the host is free while the device works.

        Args:
            params: weights.
            state: the slots and the pool; changed in place.
            stop_token_ids: ids that end a row.
            exit_below: a data shard ends the call early if fewer of its rows are alive, or once
                its rows fit a smaller bucket; one number for all shards, or one a shard. A shard
                that begins below the number runs until no row is alive. None: every shard does.
        """
        live = np.flatnonzero(state.rows.alive_B)
        for slot in live:
            state.reserve(int(slot), self.config.decode_steps)
        parts = np.split(live, np.searchsorted(live, self.slots_a_shard * np.arange(1, self.data)))
        # Longest first: neighbours of similar length share a tile in `kv.staged`.
        parts = [p[np.argsort(-state.rows.position_B[p], kind="stable")] for p in parts]
        bucket = self._bucket(max(map(len, parts)))
        index_B = np.full(self.data * bucket, -1)
        for shard, part in enumerate(parts):
            index_B[shard * bucket :][: len(part)] = part
        return self._fly(params, state, index_B, stop_token_ids, exit_below)

    def launch_behind(
        self,
        params: Model,
        state: DecodeState,
        flight: Flight,
        *,
        stop_token_ids: Sequence[int] = (),
    ) -> Flight:
        """Dispatches a call that continues where `flight` ends, before `flight` is collected.

        Slots must hold pages for both calls. A row whose slot was cleared is dead in the new call.
        """
        return self._fly(params, state, flight.index_B, stop_token_ids, 1, behind=flight)

    def outgrows(self, flight: Flight, rows: int) -> bool:
        """True if the call's bucket is larger than `rows` rows of a data shard need."""
        return len(flight.index_B) > self.data * self._bucket(rows)

    def _bucket(self, rows: int) -> int:
        return next(b for b in self.spec.row_buckets if b >= rows)

    def _fly(
        self,
        params: Model,
        state: DecodeState,
        index_B: np.ndarray,
        stop_token_ids: Sequence[int],
        exit_below: int | Sequence[int] | None,
        *,
        behind: Flight | None = None,
    ) -> Flight:
        exit_below_D = np.array(1, np.int32)
        if exit_below is not None:
            bucket = len(index_B) // self.data
            smaller = max((b for b in self.spec.row_buckets if b < bucket), default=0)
            # A shard's call ends once its rows fit the next smaller bucket, to continue there.
            exit_below_D = np.maximum(np.array(exit_below, np.int32), smaller + 1)
        stop_X = pad_stop_ids(stop_token_ids)
        state.pool, packed = self._decode(params, state, index_B, stop_X, exit_below_D, behind)
        return Flight(index_B, packed)

    def collect(self, state: DecodeState, flight: Flight) -> ResultTokens:
        """Waits for the tokens of a dispatched call, and updates the slots."""
        steps = self.config.decode_steps
        packed = sharding.to_host(flight.packed)
        slots, rows = self.config.slots, state.rows
        # Skip rows that were dead when the call began, and slots cleared since.
        ran_B = (packed.count_B > 0) | packed.alive_B
        held_B = [slot >= 0 and bool(state.pages[slot]) for slot in flight.index_B]
        at_B = np.flatnonzero(ran_B & np.array(held_B))
        live = flight.index_B[at_B]
        data = np.zeros((slots, 2 * steps + 1), np.int32)
        logprobs = np.zeros((slots, steps), np.float32)
        counts = np.zeros(slots, np.int32)
        counts[live] = packed.count_B[at_B]
        data[live, :steps] = packed.token_BK[at_B]
        data[live, steps : 2 * steps] = np.arange(steps)[None] < counts[live][:, None]
        logprobs[live] = packed.logp_BK[at_B]
        rows.position_B[live] += counts[live]
        rows.token_B[live] = packed.token_B[at_B]
        rows.alive_B[live] = packed.alive_B[at_B]
        data[live, -1] = rows.position_B[live] + 1 - rows.prompt_len_B[live]
        return ResultTokens(
            data=data,
            tokens_idx=(0, steps),
            valid_idx=(steps, 2 * steps),
            length_idx=(2 * steps, 2 * steps + 1),
            samples_per_slot=1,
            logprobs=logprobs,
            count=counts,
            alive=rows.alive_B.copy(),
            steps=int(packed.steps.max()),
            rows=len(flight.index_B),
        )

    # --- what JetStream's contract lacks ---

    def prefill_rows(
        self,
        params: Model,
        state: DecodeState,
        jobs_by_shard: Sequence[Sequence[PrefillJob]],
    ) -> None:
        """Writes the keys and values of several token sequences into their pages of the pool.

        A job may read pages that an earlier job writes.

        Args:
            params: weights.
            state: the state, whose pool is changed in place.
            jobs_by_shard: the sequences of each data shard.
        """
        state.pool = self._run_prefill(params, state.pool, jobs_by_shard)

    def copy_pages(
        self, state: DecodeState, pairs_by_shard: Sequence[Sequence[tuple[int, int]]]
    ) -> None:
        """Copies pages (from, to) of each data shard in every layer."""
        width = self.slots_a_shard
        for start in range(0, max(map(len, pairs_by_shard)), width):
            from_to = np.zeros((2, self.data, width), np.int32)
            for shard, pairs in enumerate(pairs_by_shard):
                part = pairs[start : start + width]
                if part:
                    from_to[:, shard, : len(part)] = np.array(part, np.int32).T
            pairs = self._up(tuple(from_to.reshape(2, -1)))
            state.pool = self._programs.copy_pages(state.pool, *pairs)

    def warm(self, params: Model, state: DecodeState) -> None:
        """Compiles decode and prefill for every number of rows; no later call compiles them."""
        chunk, width = self.prefill_shape.chunk, self.config.pages_of_a_row
        for rows in self.prefill_shape.row_buckets:
            call = prefill_call([[]] * self.data, rows=rows, chunk=chunk, pages_of_a_row=width)
            state.pool = self._programs.prefill(params, state.pool, *self._up(call))
        for bucket in self.spec.row_buckets:
            nobody = np.full(self.data * bucket, -1)
            state.pool, _ = self._decode(params, state, nobody, pad_stop_ids(()), 1)

    def _decode(
        self,
        params: Model,
        state: DecodeState,
        index_B: np.ndarray,
        stop_X: np.ndarray,
        exit_below: int | np.ndarray,
        behind: Flight | None = None,
    ) -> tuple[Any, Packed]:
        rows, table_BJ = compact(state, index_B)
        exit_below_D = np.broadcast_to(np.asarray(exit_below, np.int32), (self.data,))
        rows, table_BJ, exit_below_D = self._up((rows, table_BJ, exit_below_D))
        if behind is not None:
            last = behind.packed
            rows = rows._replace(
                token_B=last.token_B, position_B=last.position_B, alive_B=last.alive_B
            )
        if self.dispatches_ahead:
            rows = sharding.on_slots(rows, self.spec.mesh)
        stop_X = self._up(stop_X, axis=None)
        return self._programs.decode(params, state.pool, rows, table_BJ, stop_X, exit_below_D)

    def _run_prefill(
        self, params: Model, pool: Any, jobs_by_shard: Sequence[Sequence[PrefillJob]]
    ) -> Any:
        width = self.config.pages_of_a_row
        for call in prefill_calls(jobs_by_shard, self.prefill_shape, pages_of_a_row=width):
            pool = self._programs.prefill(params, pool, *self._up(call))
        return pool
