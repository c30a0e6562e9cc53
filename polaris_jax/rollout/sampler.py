"""`Sampler`: prompts in, sampled responses with log-probs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polaris_jax.models import Qwen
from polaris_jax.records import Response
from polaris_jax.rollout.compile_counter import CompileCounter
from polaris_jax.rollout.decode_state import SamplerConfig
from polaris_jax.rollout.engine import Engine, PrefillJob, ResultTokens, pad_stop_ids
from polaris_jax.rollout.sampling import PromptParams, SamplingParams, per_prompt
from polaris_jax.rollout.scheduler import Admission, Plan, Prompt, Scheduler
from polaris_jax.rollout.scheduler import Sequence as Sample
from polaris_jax.rollout.weight_sync import sampler_weights

OnProgress = Callable[[int, int, int], None]
OnTokens = Callable[[int, int, list[int]], None]


class RolloutAborted(RuntimeError):
    """`should_abort` said so; every page has been released."""


class Sampler:
    """A paged, continuously batching sampler over one set of weights.

    Tokens are a function of weights, prompts and sampling settings alone: not of slots, page size,
    order, company or preemption.
    """

    def __init__(self, model: Qwen, config: SamplerConfig | None = None):
        self.config = config or SamplerConfig()
        self._dtype = self.config.dtype or model.embed_VD[...].dtype
        self._engine = Engine(model.config, self.config)
        self._model = sampler_weights(model, self._dtype)
        self._state = self._engine.init_decode_state(self._dtype)
        self._compiles = CompileCounter()
        self._warm = False
        self._busy = False
        self.reset_stats()

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
        params = params or SamplingParams()
        rows = per_prompt(params, len(prompts))
        stop_ids = self._checked_stop_ids(params.stop_token_ids)
        tokens = [
            self._checked(i, p, row) for i, (p, row) in enumerate(zip(prompts, rows, strict=True))
        ]
        run = _Run(tokens, rows, params.n, frozenset(stop_ids), on_progress, on_tokens)
        scheduler = Scheduler(
            self._state.allocator,
            slots=self.config.slots,
            page_size=self.config.page_size,
            decode_steps=self.config.decode_steps,
        )
        for prompt, samples in run.requests:
            scheduler.add(prompt, samples)
        began = time.perf_counter()
        self._busy = True
        try:
            self._drive(scheduler, run, stop_ids, should_abort)
        finally:
            self._busy = False
            scheduler.drop_all()
            for slot in range(self.config.slots):
                self._state.clear(slot)
            self._seconds += time.perf_counter() - began
            self._preemptions += scheduler.preemptions
            self._prefix_hits += scheduler.prefix_hits
            self._response_tokens += run.num_tokens
        self._prompt_tokens += sum(len(t) for t in tokens)
        return run.responses()

    def update_weights(self, model: Qwen) -> None:
        """Takes new weights of the same shapes; nothing cached from the old ones survives.

        Raises:
            RuntimeError: requests are live.
            ValueError: a model of another architecture.
        """
        if self._busy:
            raise RuntimeError("weights cannot change while requests are live; wait for generate")
        if model.config != self._model.config:
            raise ValueError(
                f"model.config={model.config}: this sampler was built for {self._model.config}; "
                "build a new Sampler for another architecture or rope_scaling"
            )
        self._model = sampler_weights(model, self._dtype)

    def stats(self) -> dict[str, int | float]:
        """What happened since the last `reset_stats`.

        prompt_tokens, response_tokens; tokens_per_s: response tokens over seconds in `generate`;
        slot_occupancy: share of slot-steps that made a token, in [0, 1]; pages_used now and
        pages_peak; preemptions; prefix_hits: samples that took a prefilled prompt over; compiles:
        XLA compilations in `generate`.
        """
        slot_steps = self._steps * self.config.slots
        return {
            "prompt_tokens": self._prompt_tokens,
            "response_tokens": self._response_tokens,
            "tokens_per_s": self._response_tokens / self._seconds if self._seconds else 0.0,
            "slot_occupancy": self._response_tokens / slot_steps if slot_steps else 0.0,
            "pages_used": self._state.allocator.num_used,
            "pages_peak": self._state.allocator.peak_used,
            "preemptions": self._preemptions,
            "prefix_hits": self._prefix_hits,
            "compiles": self._compiles.count,
        }

    def reset_stats(self) -> None:
        """Sets every count of `stats` to 0."""
        self._prompt_tokens = self._response_tokens = self._steps = 0
        self._preemptions = self._prefix_hits = 0
        self._seconds = 0.0
        self._compiles.count = 0
        self._state.allocator.peak_used = self._state.allocator.num_used

    def _drive(
        self,
        scheduler: Scheduler,
        run: _Run,
        stop_ids: tuple[int, ...],
        should_abort: Callable[[], bool] | None,
    ) -> None:
        engine, state = self._engine, self._state
        chunk = engine.prefill_chunk(run.longest_prompt - 1)
        with self._compiles:
            if not self._warm:
                engine.warm(self._model, state)
                self._warm = True
        while scheduler.busy:
            if should_abort is not None and should_abort():
                raise RolloutAborted(
                    f"rollout aborted with {run.num_done} of {run.num_total} responses done"
                )
            with self._compiles:
                self._apply(scheduler.schedule(), chunk)
                flight = engine.launch(
                    self._model,
                    state,
                    stop_token_ids=stop_ids,
                    exit_below=self._exit_below(scheduler),
                )
            # The device works on; the tokens of the call before go to the caller meanwhile.
            run.deliver()
            result = engine.collect(state, flight)
            self._steps += result.steps
            self._absorb(scheduler, run, result)
        run.deliver()

    def _exit_below(self, scheduler: Scheduler) -> int:
        """When sequences wait, a call ends early once a quarter of the slots is free."""
        if not scheduler.waiting:
            return 1
        return max(1, len(scheduler.live) - max(1, self.config.slots // 4) + 1)

    def _apply(self, plan: Plan, chunk: int) -> None:
        """Brings the device's slots and pages to the plan."""
        for slot, _ in plan.preempted:
            self._state.clear(slot)
        for sample in plan.grown:
            assert sample.slot is not None
            self._state.set_pages(sample.slot, sample.pages)
        for admission in plan.admitted:
            self._place(admission)
        # First whole prompts, then copies of their last pages, then what follows shared pages.
        self._prefill([a for a in plan.admitted if a.start == 0], chunk)
        self._engine.copy_pages(self._state, [a.copy for a in plan.admitted if a.copy])
        self._prefill([a for a in plan.admitted if a.start > 0], chunk)

    def _place(self, admission: Admission) -> None:
        sample = admission.sequence
        prompt = sample.prompt
        assert sample.slot is not None
        self._state.place(
            sample.slot,
            sample.pages,
            last_token=(sample.tokens or prompt.tokens)[-1],
            length=sample.length,
            prompt_len=len(prompt.tokens),
            params=prompt.params,
            sample=sample.sample,
        )

    def _prefill(self, admissions: Sequence[Admission], chunk: int) -> None:
        jobs = []
        for admission in admissions:
            sample = admission.sequence
            cached = [*sample.prompt.tokens, *sample.tokens][admission.start : -1]
            jobs.append(PrefillJob(cached, sample.pages, admission.start))
        self._engine.prefill_rows(self._model, self._state, jobs, chunk=chunk)

    def _absorb(self, scheduler: Scheduler, run: _Run, result: ResultTokens) -> None:
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
                self._state.clear(slot)

    def _checked(
        self, index: int, prompt: Sequence[Any] | np.ndarray, row: PromptParams
    ) -> tuple[int, ...]:
        tokens = np.asarray(prompt)
        vocab = self._model.config.vocab_size
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
        room = self._state.allocator.num_usable * self.config.page_size
        if needed > room:
            raise ValueError(
                f"{numbers} = {needed}, over the pool's {room} tokens ({self.config.num_pages} "
                f"pages of {self.config.page_size}, page 0 not usable); enlarge num_pages"
            )
        return tuple(tokens.tolist())

    def _checked_stop_ids(self, stop_token_ids: Sequence[int]) -> tuple[int, ...]:
        vocab = self._model.config.vocab_size
        stop_ids = tuple(int(i) for i in stop_token_ids)
        for i in stop_ids:
            if not 0 <= i < vocab:
                raise ValueError(f"stop_token_ids: id {i} is outside of [0, {vocab})")
        pad_stop_ids(stop_ids)
        return stop_ids


class _Run:
    """The requests of one `generate` call and what has come of them."""

    def __init__(
        self,
        prompts: list[tuple[int, ...]],
        rows: list[PromptParams],
        n: int,
        stop_ids: frozenset[int],
        on_progress: OnProgress | None,
        on_tokens: OnTokens | None,
    ):
        self.requests: list[tuple[Prompt, list[Sample]]] = []
        for index, (tokens, row) in enumerate(zip(prompts, rows, strict=True)):
            prompt = Prompt(index, tokens, row, to_begin=n)
            samples = [Sample(prompt, sample, age=index * n + sample) for sample in range(n)]
            self.requests.append((prompt, samples))
        self.longest_prompt = max((len(p) for p in prompts), default=1)
        self.num_total = n * len(prompts)
        self.num_done = 0
        self.num_tokens = 0
        self._stop_ids = stop_ids
        self._on_progress = on_progress
        self._on_tokens = on_tokens
        self._news: list[tuple[int, int, list[int]]] = []

    def note(self, sample: Sample, new: list[int], ended: bool) -> None:
        """Counts new tokens and keeps them for the caller."""
        self.num_tokens += len(new)
        self.num_done += ended
        if self._on_tokens is not None:
            self._news.append((sample.prompt.index, sample.sample, new))

    def deliver(self) -> None:
        """Tells the caller what has come since the last time."""
        news, self._news = self._news, []
        if self._on_tokens is not None:
            for prompt_index, sample_index, new in news:
                self._on_tokens(prompt_index, sample_index, new)
        if self._on_progress is not None:
            self._on_progress(self.num_done, self.num_total, self.num_tokens)

    def responses(self) -> list[list[Response]]:
        """All responses, [prompt][sample]."""
        return [[self._response(s) for s in samples] for _, samples in self.requests]

    def _response(self, sample: Sample) -> Response:
        stopped = sample.tokens[-1] in self._stop_ids
        return Response(
            tuple(sample.tokens), tuple(sample.logprobs), "stop" if stopped else "length"
        )
