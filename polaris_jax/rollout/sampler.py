"""`Sampler`: prompts in, sampled responses with log-probs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polaris_jax.models import Qwen
from polaris_jax.records import Response
from polaris_jax.rollout.compile_counter import CompileCounter
from polaris_jax.rollout.decode_state import DecodeState, SamplerConfig
from polaris_jax.rollout.engine import Engine, PrefillJob, ResultTokens, pad_stop_ids
from polaris_jax.rollout.pool_size import pool_pages
from polaris_jax.rollout.programs import Model
from polaris_jax.rollout.run import OnProgress, OnTokens, Run
from polaris_jax.rollout.sampling import PromptParams, SamplingParams, per_prompt
from polaris_jax.rollout.scheduler import Admission, Plan, Scheduler
from polaris_jax.rollout.weight_sync import SyncReport, sync_weights


class RolloutAborted(RuntimeError):
    """`should_abort` said so; every page has been released."""


class Sampler:
    """A paged, continuously batching sampler over one set of weights.

    Tokens are a function of weights, prompts and sampling settings alone: not of slots, page size,
    order, company or preemption.
    """

    def __init__(
        self, model: Qwen, config: SamplerConfig | None = None, *, mesh: Mesh | None = None
    ):
        """A sampler with a copy of `model`'s weights.

        Args:
            model: sharded in any way, over other processes too.
            config: sizes.
            mesh: of `sharding.make_sampler_mesh` over devices of this process; None: one device.

        Raises:
            ValueError: sizes that mesh, model or platform do not allow.
        """
        self.config = config or SamplerConfig()
        default = mesh is not None and list(mesh.devices.flat) == jax.local_devices()[:1]
        self._mesh = None if default else mesh
        self._dtype = self.config.dtype or model.embed_VD[...].dtype
        self._engine = Engine(model.config, self.config, self._mesh)
        self._model_config = model.config
        self._model: Model | None = None
        self._state: DecodeState | None = None
        self._compiles = CompileCounter()
        self._warm = False
        self._busy = False
        self.reset_stats()
        self._take(model)

    def generate(
        self,
        prompts: Sequence[Sequence[Any] | np.ndarray],
        params: SamplingParams | None = None,
        *,
        on_progress: OnProgress | None = None,
        on_tokens: OnTokens | None = None,
        should_abort: Callable[[], bool] | None = None,
    ) -> list[list[Response]]:
        """`params.n` responses for each prompt, in the order of the prompts.

        Args:
            prompts: token ids.
            params: how to sample.
            on_progress: called between device calls with (responses done, responses in all,
                response tokens so far).
            on_tokens: called with (prompt index, sample index, new token ids) as they come.
            should_abort: polled between device calls.

        Raises:
            ValueError: a prompt or setting that cannot be served, before anything runs.
            RolloutAborted: `should_abort` returned True; all pages are released.
            RuntimeError: called from one of its own callbacks.
        """
        if self._busy:
            raise RuntimeError("this sampler is generating already; use another one")
        if self._model is None:
            raise RuntimeError("this sampler has no weights: call update_weights first")
        params = params or SamplingParams()
        rows = per_prompt(params, len(prompts))
        stop_ids = self._checked_stop_ids(params.stop_token_ids)
        state = self._ready_state()
        tokens = [
            self._checked(i, p, row) for i, (p, row) in enumerate(zip(prompts, rows, strict=True))
        ]
        run = Run(
            tokens,
            rows,
            params.n,
            frozenset(stop_ids),
            shards=self._engine.data,
            on_progress=on_progress,
            on_tokens=on_tokens,
        )
        schedulers = [
            Scheduler(
                allocator,
                slots=self._engine.slots_a_shard,
                page_size=self.config.page_size,
                decode_steps=self.config.decode_steps,
                first_slot=shard * self._engine.slots_a_shard,
            )
            for shard, allocator in enumerate(state.allocators)
        ]
        for shard, prompt, samples in run.requests:
            schedulers[shard].add(prompt, samples)
        began = time.perf_counter()
        self._busy = True
        try:
            self._drive(self._model, state, schedulers, run, stop_ids, should_abort)
        finally:
            self._busy = False
            for slot in range(self.config.slots):
                state.clear(slot)
            self._seconds += time.perf_counter() - began
            for scheduler in schedulers:
                scheduler.drop_all()
                self._preemptions += scheduler.preemptions
                self._prefix_hits += scheduler.prefix_hits
            self._response_tokens += run.num_tokens
        self._prompt_tokens += sum(len(t) for t in tokens)
        return run.responses()

    def update_weights(self, model: Qwen) -> None:
        """Takes new weights of the same shapes; nothing cached from the old ones survives.

        Args:
            model: sharded in any way, over other processes too (all of them must call then).

        Raises:
            RuntimeError: requests are live.
            ValueError: a model of another architecture.
        """
        if self._busy:
            raise RuntimeError("weights cannot change while requests are live; wait for generate")
        if model.config != self._model_config:
            raise ValueError(
                f"model.config={model.config}: this sampler was built for {self._model_config}; "
                "build a new Sampler for another architecture or rope_scaling"
            )
        self._take(model)

    def _take(self, model: Qwen) -> None:
        self._model, report = sync_weights(
            model, self._dtype, self._mesh, old=self._model, fused=self._engine.spec.fused
        )
        self._synced += report

    def release_pool(self) -> None:
        """Frees the memory of the KV pages; the next `generate` makes them anew.

        Raises:
            RuntimeError: requests are live.
        """
        if self._busy:
            raise RuntimeError("the pool is in use while requests are live; wait for generate")
        if self._state is not None and self._state.pool is not None:
            for leaf in jax.tree.leaves(self._state.pool):
                leaf.delete()
            self._state.pool = None

    def release(self) -> None:
        """Frees pool and weights; `update_weights` makes it usable again.

        Raises:
            RuntimeError: requests are live.
        """
        self.release_pool()
        for leaf in jax.tree.leaves(self._model):
            leaf.delete()
        self._model = None

    def _ready_state(self) -> DecodeState:
        """The slots, with a pool; its size is chosen once, so that a new one compiles nothing."""
        if self._state is None:
            pages = pool_pages(self._model_config, self.config, self._mesh, self._dtype)
            self._state = DecodeState(None, self.config, num_pages=pages, data=self._engine.data)
        if self._state.pool is None:
            self._state.pool = self._engine.new_pool(self._state.num_pages, self._dtype)
        return self._state

    def stats(self) -> dict[str, int | float]:
        """What happened since the last `reset_stats`.

        prompt_tokens, response_tokens; tokens_per_s: response tokens over seconds in `generate`;
        slot_occupancy: share of slot-steps that made a token, in [0, 1]; pages_used now and
        pages_peak; preemptions; prefix_hits: samples that took a prefilled prompt over; compiles:
        XLA compilations in `generate`; weight_sync_bytes written to this process's devices and
        weight_sync_s that it took.
        """
        allocators = [] if self._state is None else self._state.allocators
        slot_steps = self._steps * self.config.slots
        return {
            "prompt_tokens": self._prompt_tokens,
            "response_tokens": self._response_tokens,
            "tokens_per_s": self._response_tokens / self._seconds if self._seconds else 0.0,
            "slot_occupancy": self._response_tokens / slot_steps if slot_steps else 0.0,
            "pages_used": sum(a.num_used for a in allocators),
            "pages_peak": sum(a.peak_used for a in allocators),
            "preemptions": self._preemptions,
            "prefix_hits": self._prefix_hits,
            "compiles": self._compiles.count,
            "weight_sync_bytes": self._synced.bytes,
            "weight_sync_s": self._synced.seconds,
        }

    def reset_stats(self) -> None:
        """Sets every count of `stats` to 0."""
        self._prompt_tokens = self._response_tokens = self._steps = 0
        self._preemptions = self._prefix_hits = 0
        self._seconds = 0.0
        self._compiles.count = 0
        self._synced = SyncReport()
        for allocator in [] if self._state is None else self._state.allocators:
            allocator.peak_used = allocator.num_used

    def _drive(
        self,
        model: Model,
        state: DecodeState,
        schedulers: list[Scheduler],
        run: Run,
        stop_ids: tuple[int, ...],
        should_abort: Callable[[], bool] | None,
    ) -> None:
        engine = self._engine
        chunk = engine.prefill_chunk(run.longest_prompt - 1)
        with self._compiles:
            if not self._warm:
                engine.warm(model, state)
                self._warm = True
        while any(scheduler.busy for scheduler in schedulers):
            if should_abort is not None and should_abort():
                raise RolloutAborted(
                    f"rollout aborted with {run.num_done} of {run.num_total} responses done"
                )
            with self._compiles:
                plans = [scheduler.schedule() for scheduler in schedulers]
                self._apply(model, state, plans, chunk)
                flight = engine.launch(
                    model,
                    state,
                    stop_token_ids=stop_ids,
                    exit_below=[self._exit_below(scheduler) for scheduler in schedulers],
                )
            # The device works on; the tokens of the call before go to the caller meanwhile.
            run.deliver()
            result = engine.collect(state, flight)
            self._steps += result.steps
            for scheduler in schedulers:
                self._absorb(state, scheduler, run, result)
        run.deliver()

    def _exit_below(self, scheduler: Scheduler) -> int:
        """When sequences wait, a call ends early once a quarter of the slots is free."""
        if not scheduler.waiting:
            return 1
        return max(1, len(scheduler.live) - max(1, self._engine.slots_a_shard // 4) + 1)

    def _apply(self, model: Model, state: DecodeState, plans: list[Plan], chunk: int) -> None:
        """Brings the device's slots and pages to the plans, one a data shard."""
        for plan in plans:
            for slot, _ in plan.preempted:
                state.clear(slot)
            for sample in plan.grown:
                assert sample.slot is not None
                state.set_pages(sample.slot, sample.pages)
            for admission in plan.admitted:
                _place(state, admission)

        def prefill(shared: bool) -> None:
            jobs = [
                [_prefill_job(a) for a in plan.admitted if (a.start > 0) == shared]
                for plan in plans
            ]
            self._engine.prefill_rows(model, state, jobs, chunk=chunk)

        # First whole prompts, then copies of their last pages, then what follows shared pages.
        prefill(False)
        self._engine.copy_pages(state, [[a.copy for a in p.admitted if a.copy] for p in plans])
        prefill(True)

    def _absorb(
        self, state: DecodeState, scheduler: Scheduler, run: Run, result: ResultTokens
    ) -> None:
        for sample in scheduler.live:
            slot = sample.slot
            assert slot is not None
            count = result.count[slot]
            new = result.data[slot, :count].tolist()
            sample.tokens += new
            sample.logprobs += result.logprobs[slot, :count].tolist()
            ended = not result.alive[slot]
            run.note(sample, new, ended)
            if ended:
                scheduler.finish(sample)
                state.clear(slot)

    def _checked(
        self, index: int, prompt: Sequence[Any] | np.ndarray, row: PromptParams
    ) -> tuple[int, ...]:
        tokens = np.asarray(prompt)
        vocab = self._model_config.vocab_size
        if tokens.size == 0:
            raise ValueError(f"prompt {index}: empty; give it at least one token")
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"prompt {index}: must be a flat sequence of integer token ids")
        if tokens.min() < 0 or tokens.max() >= vocab:
            bad = int(tokens[(tokens < 0) | (tokens >= vocab)][0])
            raise ValueError(f"prompt {index}: token id {bad} is outside of [0, {vocab})")
        needed = tokens.size + row.max_tokens
        numbers = f"prompt {index}: {tokens.size} prompt tokens + max_tokens={row.max_tokens}"
        if needed > self.config.max_len:
            raise ValueError(f"{numbers} = {needed}, over max_len={self.config.max_len}")
        state = self._ready_state()
        room = state.allocators[0].num_usable * self.config.page_size
        if needed > room:
            raise ValueError(
                f"{numbers} = {needed}, over the pool's {room} tokens ({state.num_pages} "
                f"pages of {self.config.page_size} over {self._engine.data} data shards, page 0 of "
                "each not usable); enlarge num_pages"
            )
        return tuple(tokens.tolist())

    def _checked_stop_ids(self, stop_token_ids: Sequence[int]) -> tuple[int, ...]:
        vocab = self._model_config.vocab_size
        stop_ids = tuple(int(i) for i in stop_token_ids)
        for i in stop_ids:
            if not 0 <= i < vocab:
                raise ValueError(f"stop_token_ids: id {i} is outside of [0, {vocab})")
        pad_stop_ids(stop_ids)
        return stop_ids


def _place(state: DecodeState, admission: Admission) -> None:
    sample = admission.sequence
    prompt = sample.prompt
    assert sample.slot is not None
    state.place(
        sample.slot,
        sample.pages,
        last_token=(sample.tokens or prompt.tokens)[-1],
        length=sample.length,
        prompt_len=len(prompt.tokens),
        params=prompt.params,
        sample=sample.sample,
    )


def _prefill_job(admission: Admission) -> PrefillJob:
    sample = admission.sequence
    cached = [*sample.prompt.tokens, *sample.tokens][admission.start : -1]
    return PrefillJob(cached, sample.pages, admission.start)
