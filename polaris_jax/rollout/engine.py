"""Prefill, insert, generate: the sampler's device programs behind JetStream's verbs.

As in JetStream, prefill yields a prompt's keys and values and no token: the first `generate` takes
the prompt's last token as its input, so that every token is drawn by the same program. `generate`
runs up to K steps in one device call; stop tokens and limits end rows on the device.

JetStream's Driver calls `prefill`, `insert`, `generate` (see rollout/jetstream.py). Our scheduler
calls `prefill_rows` (many prompts at once, straight into pool pages), `copy_pages`, `place` and
the same `generate`, and reserves the pages itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polaris_jax.models import ModelConfig, Qwen
from polaris_jax.rollout import paged_kv, programs
from polaris_jax.rollout.decode_state import DecodeState, SamplerConfig, compact
from polaris_jax.rollout.paged_kv import Pool, pages_for
from polaris_jax.rollout.programs import NO_TOKEN, Packed
from polaris_jax.rollout.sampling import MAX_STOP_TOKENS, PromptParams

# Matmul rows of CPU XLA agree bit for bit between 2 and 32 rows, not with 1 or above.
MIN_ROWS = 2
MIN_BUCKET_ROWS = 32
# Prompt tokens of one prefill call: enough to fill matmuls, few enough that padding stays small.
PREFILL_CALL_TOKENS = 512
MIN_PREFILL_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class ResultTokens:
    """The tokens of one `generate` call, JetStream's layout plus log-probs.

    Attributes:
        data: int32 [slots, 2K + 1]: K tokens, K validity flags, the response length so far.
        tokens_idx: columns of the tokens.
        valid_idx: columns of the flags; 0 where a row had ended.
        length_idx: column of the lengths, in response tokens.
        samples_per_slot: 1.
        logprobs: float32 [slots, K], nats; see `draw_tokens`.
        count: int32 [slots], new tokens of each slot.
        alive: bool [slots], rows that go on.
        steps: decode steps that ran.
        rows: rows that the device computed in each step.
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

    pages: Pool
    token: Any
    length: Any


jax.tree_util.register_dataclass(Prefix, ["pages", "token", "length"], [])


class Engine:
    """Compiled prefill and decode for one architecture and one set of sizes.

    Weights are an argument of every call: new ones of the same shapes compile nothing anew.
    """

    def __init__(self, model_config: ModelConfig, config: SamplerConfig):
        on_cpu = jax.default_backend() == "cpu"
        layout = config.layout
        if layout == "auto":
            layout = "window" if on_cpu else "pages"
        self.config = config
        self.model_config = model_config
        self.row_buckets = row_buckets(config.slots)
        # A scan over stacked weights copies each layer's slice on a CPU.
        self._static = {
            "num_layers": model_config.num_layers,
            "unroll": on_cpu or layout == "window",
        }
        self._layout = layout

    def init_decode_state(self, dtype: Any = jnp.float32) -> DecodeState:
        """An empty pool and empty slots; pages are in `dtype`."""
        return DecodeState(self._new_pool(self.config.num_pages, dtype), self.config)

    def _new_pool(self, num_pages: int, dtype: Any) -> Pool:
        return paged_kv.init_pool(
            self.model_config, num_pages=num_pages, page_size=self.config.page_size, dtype=dtype
        )

    # --- JetStream's verbs ---

    def prefill(
        self,
        *,
        params: Qwen,
        existing_prefix: Prefix | None = None,
        padded_tokens: Array | np.ndarray,
        true_length: int,
    ) -> Prefix:
        """The keys and values of a prompt, appended to `existing_prefix` if that is given.

        Args:
            params: weights.
            existing_prefix: an already prefilled beginning.
            padded_tokens: [T] token ids, of which the first `true_length` count.
            true_length: tokens of the prompt, >= 1.
        """
        tokens = [int(t) for t in np.asarray(padded_tokens)[:true_length]]
        width = pages_for(self.config.max_len, self.config.page_size)
        if existing_prefix is None:
            start, pool = 0, self._new_pool(width + 1, params.embed_VD[...].dtype)
        else:
            start = int(existing_prefix.length) - 1
            tokens = [int(existing_prefix.token), *tokens]
            pool = jax.tree.map(jnp.copy, existing_prefix.pages)
        job = PrefillJob(tokens[:-1], list(range(1, width + 1)), start)
        pool = self._run_prefill(params, pool, [job], self.prefill_chunk(len(tokens)))
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
        """The state with the prefix in `slot`; what was there is released.

        Raises:
            RuntimeError: the pool has too few free pages.
        """
        decode_state.free(slot)
        length = int(prefix.length)
        pages = decode_state.allocator.allocate(pages_for(length, self.config.page_size))
        if pages is None:
            raise RuntimeError(
                f"slot {slot}: no room for a prefix of {length} tokens, "
                f"{decode_state.allocator.num_free} pages are free; enlarge num_pages"
            )
        to_J = np.zeros(decode_state.table_BJ.shape[1], np.int32)
        to_J[: len(pages)] = pages
        decode_state.pool = programs.move_pages(
            decode_state.pool, prefix.pages, to_J, num_layers=self.model_config.num_layers
        )
        decode_state.place(
            slot,
            pages,
            last_token=int(prefix.token),
            length=length,
            prompt_len=length,
            params=params,
            sample=sample,
        )
        return decode_state

    def generate(
        self,
        params: Qwen,
        decode_state: DecodeState,
        *,
        stop_token_ids: Sequence[int] = (),
        exit_below: int = 1,
    ) -> tuple[DecodeState, ResultTokens]:
        """Up to K tokens for every live slot; ended rows stay in their slots until freed.

        Args:
            params: weights.
            decode_state: changed in place and returned.
            stop_token_ids: ids that end a row.
            exit_below: the call ends early when fewer rows than this are alive.

        Raises:
            RuntimeError: a live row needs a page and none is free (a scheduler reserves before).
        """
        flight = self.launch(
            params, decode_state, stop_token_ids=stop_token_ids, exit_below=exit_below
        )
        return decode_state, self.collect(decode_state, flight)

    def launch(
        self,
        params: Qwen,
        state: DecodeState,
        *,
        stop_token_ids: Sequence[int] = (),
        exit_below: int = 1,
    ) -> Flight:
        """`generate`'s first half: the device works while the host does something else."""
        live = np.flatnonzero(state.rows.alive_B)
        for slot in live:
            self.reserve(state, int(slot))
        bucket = next(b for b in self.row_buckets if b >= len(live))
        stop_X = pad_stop_ids(stop_token_ids)
        state.pool, packed = self._decode(params, state, live, bucket, stop_X, exit_below)
        return Flight(live, bucket, packed)

    def reserve(self, state: DecodeState, slot: int) -> None:
        """Takes the pages that the slot needs for one `generate` call.

        Raises:
            RuntimeError: none is free.
        """
        wanted = pages_for(
            state.tokens_after(slot, self.config.decode_steps), self.config.page_size
        )
        missing = wanted - len(state.pages[slot])
        if missing <= 0:
            return
        pages = state.allocator.allocate(missing)
        if pages is None:
            raise RuntimeError(
                f"slot {slot}: needs {missing} more pages, {state.allocator.num_free} are free; "
                "enlarge num_pages or use the scheduler, which preempts"
            )
        state.set_pages(slot, [*state.pages[slot], *pages])

    def collect(self, state: DecodeState, flight: Flight) -> ResultTokens:
        """`generate`'s second half: waits for the tokens and brings the slots up to date."""
        live, steps = flight.live, self.config.decode_steps
        packed = jax.device_get(flight.packed)
        slots, rows, count = self.config.slots, state.rows, len(live)
        data = np.zeros((slots, 2 * steps + 1), np.int32)
        logprobs = np.zeros((slots, steps), np.float32)
        counts = np.zeros(slots, np.int32)
        token_BK = packed.token_BK[:count]
        counts[live] = packed.count_B[:count]
        data[live, :steps] = token_BK
        data[live, steps : 2 * steps] = np.arange(steps)[None] < counts[live][:, None]
        logprobs[live] = packed.logp_BK[:count]
        rows.position_B[live] += counts[live]
        last = np.maximum(counts[live] - 1, 0)[:, None]
        rows.token_B[live] = np.take_along_axis(token_BK, last, axis=1)[:, 0]
        rows.alive_B[live] = packed.alive_B[:count]
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
            steps=int(packed.steps),
            rows=flight.rows,
        )

    # --- what JetStream's contract lacks ---

    def prefill_chunk(self, longest: int) -> int:
        """Tokens of a prefill call's rows when the longest prompt has so many."""
        chunk = min(MIN_PREFILL_CHUNK, self.config.prefill_chunk)
        while chunk < min(longest, self.config.prefill_chunk):
            chunk = min(2 * chunk, self.config.prefill_chunk)
        return chunk

    def prefill_rows(
        self, params: Qwen, state: DecodeState, jobs: Sequence[PrefillJob], *, chunk: int
    ) -> None:
        """Writes the keys and values of several token sequences into their pages of the pool.

        Args:
            params: weights.
            state: its pool is changed.
            jobs: the sequences.
            chunk: from `prefill_chunk`; one compiled program for each.
        """
        state.pool = self._run_prefill(params, state.pool, jobs, chunk)

    def copy_pages(self, state: DecodeState, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies pages (from, to) in every layer."""
        width = self.config.slots
        for start in range(0, len(pairs), width):
            part = pairs[start : start + width]
            from_to = np.zeros((2, width), np.int32)
            from_to[:, : len(part)] = np.array(part, np.int32).T
            state.pool = programs.copy_pages(
                state.pool, *from_to, num_layers=self.model_config.num_layers
            )

    def warm(self, params: Qwen, state: DecodeState) -> None:
        """Compiles decode for every row bucket, so that no later call has to."""
        nobody, stop_X = np.zeros(0, np.int64), pad_stop_ids(())
        for bucket in self.row_buckets:
            state.pool, _ = self._decode(params, state, nobody, bucket, stop_X, 1)

    def _decode(
        self,
        params: Qwen,
        state: DecodeState,
        live: np.ndarray,
        bucket: int,
        stop_X: np.ndarray,
        exit_below: int,
    ) -> tuple[Pool, Packed]:
        rows, table_BJ = compact(state, live, bucket)
        return programs.decode(
            params,
            state.pool,
            rows,
            table_BJ,
            stop_X,
            np.int32(exit_below),
            steps=self.config.decode_steps,
            layout=self._layout,
            **self._static,
        )

    def _run_prefill(
        self, params: Qwen, pool: Pool, jobs: Sequence[PrefillJob], chunk: int
    ) -> Pool:
        batch = max(1, PREFILL_CALL_TOKENS // chunk)
        width = pages_for(self.config.max_len, self.config.page_size)
        waiting = [(job, 0) for job in jobs if job.tokens]
        while waiting:
            token_BT = np.zeros((batch, chunk), np.int32)
            first_B, count_B = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
            table_BJ = np.zeros((batch, width), np.int32)
            unfinished = []
            for row, (job, done) in enumerate(waiting[:batch]):
                part = job.tokens[done : done + chunk]
                token_BT[row, : len(part)] = part
                first_B[row], count_B[row] = job.start + done, len(part)
                table_BJ[row, : len(job.pages)] = job.pages
                if done + chunk < len(job.tokens):
                    unfinished.append((job, done + chunk))
            pool = programs.prefill(
                params, pool, token_BT, first_B, count_B, table_BJ, **self._static
            )
            waiting = unfinished + waiting[batch:]
        return pool


@dataclasses.dataclass(frozen=True)
class PrefillJob:
    """Tokens whose keys and values go into `pages`, from position `start` on."""

    tokens: Sequence[int]
    pages: Sequence[int]
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Flight:
    """A decode call whose results the host has not read yet."""

    live: np.ndarray
    rows: int
    packed: Packed


def row_buckets(slots: int) -> tuple[int, ...]:
    """Row counts for which decode is compiled, ascending: slots and its quarters down to 32.

    When only few sequences are left, a step costs what they cost.
    """
    buckets = [max(slots, MIN_ROWS)]
    while buckets[0] >= 4 * MIN_BUCKET_ROWS:
        buckets.insert(0, -(-buckets[0] // 4))
    return tuple(buckets)


def pad_stop_ids(stop_token_ids: Sequence[int]) -> np.ndarray:
    """int32 [16] stop ids, filled up with -1, so that their number compiles nothing anew.

    Raises:
        ValueError: more than 16 ids.
    """
    if len(stop_token_ids) > MAX_STOP_TOKENS:
        raise ValueError(
            f"stop_token_ids: {len(stop_token_ids)} ids, at most {MAX_STOP_TOKENS} are supported"
        )
    padded = np.full(MAX_STOP_TOKENS, NO_TOKEN, np.int32)
    padded[: len(stop_token_ids)] = list(stop_token_ids)
    return padded
