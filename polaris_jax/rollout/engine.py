"""The sampler's device calls: prefill prompts, dispatch decode and verify calls, collect tokens.

A prefill writes keys and values directly into pool pages and returns no token. The first decode
step takes the prompt's last token as its input, so one program draws every token. A decode call
runs up to K = `decode_steps` steps, each of which draws one token for every live row. The device
ends a row at a stop token or at the row's length limit. A verify call takes one step in which each
row may have several drafted tokens, and keeps those that its draws agree with. The driver calls the
engine; the scheduler reserves the pages. JetStream's methods (prefill, insert, generate) are in
`verbs`.

In each layer a prefill call writes the keys and values of all its rows before any row attends. So a
sequence may continue in the next row, and a row may read pages that an earlier row writes. Only a
sequence's last row is padded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from polaris_jax import sharding
from polaris_jax.models import ModelConfig
from polaris_jax.rollout import programs
from polaris_jax.rollout.balance import recompute_reads
from polaris_jax.rollout.decode_state import DecodeState, compact
from polaris_jax.rollout.draft_costs import call_costs, verify_rows
from polaris_jax.rollout.fused_weights import Model
from polaris_jax.rollout.kv.bits import held_dtype
from polaris_jax.rollout.prefill import PrefillJob, prefill_call, prefill_calls
from polaris_jax.rollout.programs import Packed, Programs
from polaris_jax.rollout.programs.spec import exact_rows, prefill_shape, program_spec
from polaris_jax.rollout.settings import SamplerConfig, pad_stop_ids


@dataclasses.dataclass(frozen=True)
class ResultTokens:
    """The tokens of one decode call, in JetStream's layout, with their log-probs.

    Attributes:
        data: int32 [slots, 2K + 1]: K tokens, K validity flags, the response length so far.
        tokens_idx: (first, end) of the columns of `data` with tokens.
        valid_idx: (first, end) of the columns with validity flags. A flag is 1 if the step drew a
            token for the slot.
        length_idx: (first, end) of the column with the response length, in tokens.
        samples_per_slot: always 1.
        logprobs: float32 [slots, K], nats; see `programs.draw.draw_tokens`.
        count: int32 [slots], number of new tokens of each slot.
        alive: bool [slots], False for slots that are empty or whose row has ended.
        steps: decode steps that ran, on the data shard that ran longest; a verify call counts a
            row's positions.
        row_steps: rows that the devices computed, summed over the steps, dead ones included.
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
    row_steps: int


@dataclasses.dataclass(frozen=True)
class DispatchedCall:
    """A decode or verify call whose results the host has not read yet."""

    index_B: np.ndarray  # slot of each row; -1 for a padding row
    packed: Packed  # device arrays with the results


class Engine:
    """Compiled prefill and decode for one architecture, one set of sizes and one mesh.

    Weights are an argument of every call. New weights of the same shapes need no compilation.

    Args:
        model_config: architecture of the model.
        config: sizes and settings of the sampler.
        mesh: the sampler's mesh; None: jax's default device.

    Raises:
        ConfigError: the programs cannot be compiled for these sizes; see `program_spec`.
    """

    def __init__(self, model_config: ModelConfig, config: SamplerConfig, mesh: Mesh | None = None):
        self.config = config
        self.model_config = model_config
        self.data = sharding.slot_shards(mesh)
        self.spec = program_spec(model_config, config, mesh)
        self.slots_a_shard = config.slots // self.data
        dtype = jnp.dtype(config.dtype or jnp.float32)
        token_bytes = self.spec.layout.token_bytes(model_config, dtype)
        self.recompute_reads = recompute_reads(
            model_config, max_len=config.max_len, kv_token_bytes=token_bytes
        )
        self.weight_reads = model_config.num_parameters * dtype.itemsize / token_bytes
        self.prefill_shape = prefill_shape(config.prefill_chunk, fine=self.spec.staged)
        device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
        on_accelerator = device.platform != "cpu"
        asked = config.dispatch_ahead
        self.dispatches_ahead = on_accelerator if asked is None else asked
        self.draft_costs = call_costs(
            on_cpu=not on_accelerator,
            weight_bytes=model_config.num_parameters * dtype.itemsize / sharding.head_shards(mesh),
            listed=self.spec.native,
        )
        least = self.spec.row_buckets[0]
        self.verify_rows = verify_rows(
            config,
            self.data,
            min_rows=least,
            on_cpu=not on_accelerator,
            exact_rows=exact_rows(config, native=self.spec.native),
        )
        made = programs.compiled(self.spec)
        self.programs = Programs(*(partial(sharding.from_host, program) for program in made))

    def init_decode_state(self, dtype: Any = jnp.float32) -> DecodeState:
        """An empty pool and empty slots; pages have dtype `dtype`."""
        pages = self.config.num_pages
        pool = self.new_pool(pages, dtype)
        return DecodeState(pool, self.config, num_pages=pages, data=self.data)

    def new_pool(self, num_pages: int, dtype: Any) -> Any:
        """A pool of zeros with `num_pages` pages in total, rounded down to equal data shards."""
        abstract = self.spec.layout.abstract_pool(
            self.model_config,
            num_pages=num_pages // self.data * self.data,
            page_size=self.config.page_size,
            dtype=held_dtype(dtype) if self.spec.native else dtype,
        )
        where = None if self.spec.mesh is None else programs.pool_sharding(self.spec)
        zeros = partial(programs.zeros, where=where, by_native=self.spec.native)
        return jax.tree.map(lambda x: zeros(x.shape, x.dtype)(), abstract)

    def _to_device(self, tree: Any, *, axis: int | None = 0) -> Any:
        """Host arrays in the form that the programs take; see `sharding.on_members`."""
        return sharding.on_members(tree, self.spec.mesh, axis=axis)

    def dispatch(
        self,
        params: Model,
        state: DecodeState,
        *,
        stop_token_ids: Sequence[int] = (),
        exit_below: int | Sequence[int] | None = 1,
        steps: Sequence[int] | None = None,
    ) -> DispatchedCall:
        """Dispatches a decode call for all live slots and returns at once.

        The device works while the host continues. `collect` waits for the tokens.

        Args:
            params: weights.
            state: the slots and the pool; changed in place.
            stop_token_ids: ids that end a row.
            exit_below: smallest number of live rows with which a data shard continues the call; one
                number for all shards, or one a shard. With fewer live rows, or once its rows fit a
                smaller bucket, the shard ends the call before `decode_steps` steps. A shard that
                begins with fewer rows continues until no row is alive. None: all shards continue
                until no row is alive.
            steps: most steps of each data shard, of at most `decode_steps`; None: `decode_steps`.

        Raises:
            RuntimeError: the pool has too few free pages for `decode_steps` more tokens a slot.
        """
        for slot in np.flatnonzero(state.rows.alive_B):
            state.reserve(int(slot), self.config.decode_steps)
        index_B = self._index_of_live(state, self.spec.row_buckets)
        return self._dispatch(params, state, index_B, stop_token_ids, exit_below, steps)

    def dispatch_behind(
        self,
        params: Model,
        state: DecodeState,
        call: DispatchedCall,
        *,
        stop_token_ids: Sequence[int] = (),
        steps: Sequence[int] | None = None,
    ) -> DispatchedCall:
        """Dispatches a call that continues where `call` ends, before `call` is collected.

        The new call has the same rows. A row whose slot was cleared is dead in the new call.

        Slots must hold pages for both calls. For the arguments see `dispatch`.
        """
        return self._dispatch(params, state, call.index_B, stop_token_ids, 1, steps, behind=call)

    def verify(
        self,
        params: Model,
        state: DecodeState,
        drafts: Mapping[int, Sequence[int]],
        *,
        stop_token_ids: Sequence[int] = (),
    ) -> DispatchedCall:
        """Dispatches a verify call for all live slots and returns at once.

        Each row gets the drafted tokens that it would have drawn, and one more; see
        `programs.drafted`.

        Args:
            params: weights.
            state: the slots and the pool; changed in place.
            drafts: tokens that may follow a slot's last token, up to `draft_tokens`.
            stop_token_ids: ids that end a row.

        Raises:
            RuntimeError: the pool has too few free pages for a draft.
        """
        for slot in np.flatnonzero(state.rows.alive_B):
            state.reserve(int(slot), 1 + len(drafts.get(int(slot), ())))
        index_B = self._index_of_live(state, self.verify_rows)
        stop_X = pad_stop_ids(stop_token_ids)
        state.pool, packed = self._verify(params, state, index_B, drafts, stop_X)
        return DispatchedCall(index_B, packed)

    def _index_of_live(self, state: DecodeState, buckets: Sequence[int]) -> np.ndarray:
        """The slot of each row of a call for all live slots; -1 for a padding row."""
        live = np.flatnonzero(state.rows.alive_B)
        parts = np.split(live, np.searchsorted(live, self.slots_a_shard * np.arange(1, self.data)))
        # Longest first: neighbours of similar length share a tile in `kv.staged`.
        parts = [p[np.argsort(-state.rows.position_B[p], kind="stable")] for p in parts]
        bucket = next(b for b in buckets if b >= max(map(len, parts)))
        index_B = np.full(self.data * bucket, -1)
        for shard, part in enumerate(parts):
            index_B[shard * bucket :][: len(part)] = part
        return index_B

    def fits_smaller_bucket(self, call: DispatchedCall, rows: int) -> bool:
        """True if a smaller bucket (`ProgramSpec.row_buckets`) holds `rows` rows a data shard."""
        return len(call.index_B) > self.data * next(b for b in self.spec.row_buckets if b >= rows)

    def _dispatch(
        self,
        params: Model,
        state: DecodeState,
        index_B: np.ndarray,
        stop_token_ids: Sequence[int],
        exit_below: int | Sequence[int] | None,
        steps: Sequence[int] | None,
        *,
        behind: DispatchedCall | None = None,
    ) -> DispatchedCall:
        exit_below_D = np.array(1, np.int32)
        if exit_below is not None:
            bucket = len(index_B) // self.data
            smaller = max((b for b in self.spec.row_buckets if b < bucket), default=0)
            # A shard ends the call once its rows fit the next smaller bucket. The next call then
            # uses that bucket's program.
            exit_below_D = np.maximum(np.array(exit_below, np.int32), smaller + 1)
        stop_X = pad_stop_ids(stop_token_ids)
        most_D = np.array(self.config.decode_steps if steps is None else steps, np.int32)
        state.pool, packed = self._decode(
            params, state, index_B, stop_X, exit_below_D, most_D, behind
        )
        return DispatchedCall(index_B, packed)

    def collect(self, state: DecodeState, call: DispatchedCall) -> ResultTokens:
        """Waits for the tokens of a dispatched call, and updates the slots.

        Slots that were cleared after the dispatch get no tokens.
        """
        packed = sharding.to_host(call.packed)
        steps = packed.token_BK.shape[1]
        slots, rows = self.config.slots, state.rows
        # Skip rows that were dead when the call began, and slots cleared since.
        ran_B = (packed.count_B > 0) | packed.alive_B
        held_B = [slot >= 0 and bool(state.pages[slot]) for slot in call.index_B]
        at_B = np.flatnonzero(ran_B & np.array(held_B))
        live = call.index_B[at_B]
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
            row_steps=len(call.index_B) // self.data * int(packed.steps.sum()),
        )

    def prefill_rows(
        self,
        params: Model,
        state: DecodeState,
        jobs_by_shard: Sequence[Sequence[PrefillJob]],
    ) -> None:
        """Writes the keys and values of several token sequences into their pages of the pool.

        A job may read pages that an earlier job of its data shard writes.

        Args:
            params: weights.
            state: the slots and the pool; the pool is changed in place.
            jobs_by_shard: the sequences of each data shard.
        """
        state.pool = self._run_prefill(params, state.pool, jobs_by_shard)

    def copy_pages(
        self, state: DecodeState, pairs_by_shard: Sequence[Sequence[tuple[int, int]]]
    ) -> None:
        """Copies pages in every layer, by the (source, target) page ids of each data shard."""
        width = self.slots_a_shard
        for start in range(0, max(map(len, pairs_by_shard)), width):
            from_to = np.zeros((2, self.data, width), np.int32)
            for shard, pairs in enumerate(pairs_by_shard):
                part = pairs[start : start + width]
                if part:
                    from_to[:, shard, : len(part)] = np.array(part, np.int32).T
            pairs = self._to_device(tuple(from_to.reshape(2, -1)))
            state.pool = self.programs.copy_pages(state.pool, *pairs)

    def warm(self, params: Model, state: DecodeState) -> None:
        """Compiles all programs for every bucket of rows, so that no later call compiles."""
        chunk, width = self.prefill_shape.chunk, self.config.pages_of_a_row
        for rows in self.prefill_shape.row_buckets:
            call = prefill_call([[]] * self.data, rows=rows, chunk=chunk, pages_of_a_row=width)
            state.pool = self.programs.prefill(params, state.pool, *self._to_device(call))
        for bucket in self.spec.row_buckets:
            nobody = np.full(self.data * bucket, -1)
            state.pool, _ = self._decode(params, state, nobody, pad_stop_ids(()), 1, 1)
        for bucket in self.verify_rows:
            nobody = np.full(self.data * bucket, -1)
            state.pool, _ = self._verify(params, state, nobody, {}, pad_stop_ids(()))

    def _decode(
        self,
        params: Model,
        state: DecodeState,
        index_B: np.ndarray,
        stop_X: np.ndarray,
        exit_below: int | np.ndarray,
        steps: int | np.ndarray,
        behind: DispatchedCall | None = None,
    ) -> tuple[Any, Packed]:
        rows, table_BJ = compact(state, index_B)
        by_shard = [
            np.broadcast_to(np.asarray(x, np.int32), self.data) for x in (exit_below, steps)
        ]
        rows, table_BJ, *by_shard = self._to_device((rows, table_BJ, *by_shard))
        if behind is not None:
            last = behind.packed
            rows = rows._replace(
                token_B=last.token_B, position_B=last.position_B, alive_B=last.alive_B
            )
        if self.dispatches_ahead:
            rows = sharding.on_slots(rows, self.spec.mesh)
        stop_X = self._to_device(stop_X, axis=None)
        return self.programs.decode(params, state.pool, rows, table_BJ, stop_X, *by_shard)

    def _verify(
        self,
        params: Model,
        state: DecodeState,
        index_B: np.ndarray,
        drafts: Mapping[int, Sequence[int]],
        stop_X: np.ndarray,
    ) -> tuple[Any, Packed]:
        draft_BX = np.zeros((len(index_B), self.config.draft_tokens), np.int32)
        drafted_B = np.zeros(len(index_B), np.int32)
        for row, slot in enumerate(index_B):
            draft = drafts.get(int(slot), ())
            draft_BX[row, : len(draft)], drafted_B[row] = draft, len(draft)
        rows, table_BJ = compact(state, index_B)
        args = self._to_device((rows, draft_BX, drafted_B, table_BJ))
        stop_X = self._to_device(stop_X, axis=None)
        return self.programs.verify(params, state.pool, *args, stop_X)

    def _run_prefill(
        self, params: Model, pool: Any, jobs_by_shard: Sequence[Sequence[PrefillJob]]
    ) -> Any:
        width = self.config.pages_of_a_row
        for call in prefill_calls(jobs_by_shard, self.prefill_shape, pages_of_a_row=width):
            pool = self.programs.prefill(params, pool, *self._to_device(call))
        return pool
