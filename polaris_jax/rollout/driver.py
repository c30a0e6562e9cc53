"""The loop of the sampler: plan, prefill, decode, deliver.

`submit` queues a request. `step` runs one decode call for all requests. Between two steps the
caller may submit, abort, or preempt for new weights. Each sample still gets the tokens that it
would have got alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from polaris_jax.rollout.balance import even_steps, next_move
from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.drafting import DraftCounts, Proposal, drafting_of
from polaris_jax.rollout.engine import ResultTokens
from polaris_jax.rollout.pages import PrefixCache
from polaris_jax.rollout.prefill import jobs_of
from polaris_jax.rollout.request import Request
from polaris_jax.rollout.samples import Plan, Sample, Status
from polaris_jax.rollout.scheduler import Scheduler
from polaris_jax.rollout.scores import prompt_logprobs
from polaris_jax.rollout.settings import MAX_STOP_TOKENS


class Driver:
    """The live requests of one engine, and the steps that sample them.

    Args:
        engine: the device programs: `dispatch`, `dispatch_behind`, `fits_smaller_bucket`,
            `collect`, `prefill_rows`, `copy_pages`, `warm`, `recompute_reads`, `weight_reads`; if
            it drafts also `verify`, `verify_rows`, `draft_costs`.
        state: the engine's slots, pages and pool.
        compiles: counts the compilations in steps.

    Attributes:
        schedulers: one scheduler a data shard.
        steps: decode steps that ran.
        row_steps: rows that the devices computed, summed over the steps.
        live_rows: the fewest and the most rows that a data shard had in a decode call; None before
            the first call.
        prompt_tokens: tokens of the submitted prompts, each prompt counted once.
        response_tokens: response tokens that samples were given.
        moves: live samples that moved to another data shard.
        drafting: decides which steps draft.
        failures: requests that ended because their own callback or `decode` raised.
        failed: True if anything but a callback broke off a step. The driver is unusable then.
    """

    def __init__(self, engine: Any, state: DecodeState, compiles: AbstractContextManager[Any]):
        config, shards = engine.config, engine.data
        self._engine = engine
        self._state = state
        self._compiles = compiles
        self._warm = False
        self._caches = [PrefixCache(a) if config.prefix_cache else None for a in state.allocators]
        self.drafting = drafting_of(engine)
        budget = config.prefill_budget and max(1, config.prefill_budget // shards)
        self.schedulers = [
            Scheduler(
                allocator,
                slots=engine.slots_a_shard,
                page_size=config.page_size,
                decode_steps=self.drafting.most_tokens,
                first_slot=shard * engine.slots_a_shard,
                prefill_budget=budget,
                cache=cache,
            )
            for shard, (allocator, cache) in enumerate(
                zip(state.allocators, self._caches, strict=True)
            )
        ]
        self._requests: list[Request] = []
        self._request_of: dict[int, Request] = {}
        self._shard_of: dict[int, int] = {}
        self._next_age = 0
        # A dispatched call that no step has collected yet, and the version of its weights.
        self._dispatched: tuple[Any, int] | None = None
        self._restarted = False  # True if a row is live that the dispatched call takes for dead
        self._in_step = False
        self.failed = False
        self._to_abort: list[Request] = []
        self.reset_counts()

    def reset_counts(self) -> None:
        """Sets every count to 0."""
        self.steps = self.row_steps = self.prompt_tokens = self.response_tokens = 0
        self.failures = self.moves = 0
        self.live_rows: tuple[int, int] | None = None
        self.drafting.counts = DraftCounts()
        for scheduler in self.schedulers:
            scheduler.reset_counts()

    def take_counts(self, former: Driver) -> None:
        """Continues the counts of a driver that this one replaces."""
        counts = ("steps", "row_steps", "live_rows", "prompt_tokens", "response_tokens")
        for name in (*counts, "failures", "moves"):
            setattr(self, name, getattr(former, name))
        self.drafting.counts = former.drafting.counts
        for scheduler, before in zip(self.schedulers, former.schedulers, strict=True):
            scheduler.take_counts(before)

    @property
    def busy(self) -> bool:
        """True while requests are live."""
        return bool(self._requests)

    @property
    def in_step(self) -> bool:
        """True while a `step` runs, that is, if one of its callbacks asks."""
        return self._in_step

    def submit(self, request: Request) -> None:
        """Queues a request behind all others."""
        shards = request.deal([scheduler.load for scheduler in self.schedulers])
        for part, shard in zip(request.parts, shards, strict=True):
            self._request_of[id(part.prompt)] = request
            for sample in part.samples:
                sample.age += self._next_age
            self._shard_of[id(part.prompt)] = shard
            self.schedulers[shard].add(part.prompt, part.samples)
        self._next_age += request.num_total
        self.prompt_tokens += request.num_prompt_tokens
        if not request.done:
            self._requests.append(request)

    def step(self, model: Any, *, version: int) -> None:
        """Makes one plan, runs one decode or verify call, gives the requests their tokens.

        A decode call has at most K steps. An engine that dispatches ahead also gets the next decode
        call before this call's tokens are read, if no sample waits for a slot, pages suffice and no
        draft is likely to pay. The next `step` then makes no plan.
        Callbacks run while the device works and report the tokens of the previous step. The
        callbacks of an ended request run once more at the end of the step. If a callback or
        `decode` of a request raises, the error becomes the request's `failure`, and the request is
        aborted when the step has ended. Other requests are not affected.

        Args:
            model: weights.
            version: version of the weights; recorded with each token.
        """
        engine, state = self._engine, self._state
        self._in_step = self.failed = True
        try:
            with self._compiles:
                if not self._warm:
                    engine.warm(model, state)
                    self._warm = True
                self._score_prompts(model)
                call, self._dispatched = self._dispatched, None
                proposal = None
                if call is None:
                    self._rebalance()
                    plans = [scheduler.schedule() for scheduler in self.schedulers]
                    self._apply(model, plans)
                    proposal = self.drafting.propose(self.schedulers, self._request_of)
                    call = self._dispatch(model, version, plans, proposal)
                else:  # by the tokens known so far, would a draft pay in the next plan?
                    self.drafting.propose(self.schedulers, self._request_of)
                if call is not None and engine.dispatches_ahead and self._reserve_behind(call[0]):
                    asked = {"stop_token_ids": self._stop_ids(), "steps": self._even_steps()}
                    behind = engine.dispatch_behind(model, state, call[0], **asked)
                    self._dispatched = behind, version
            try:
                self._deliver(self._requests)
            finally:
                if call is not None:
                    result = engine.collect(state, call[0])
                    self.drafting.record(proposal, result.count, result.alive)
                    self._give_tokens(result, call[1])
                self.failed = False
                ended = [request for request in self._requests if request.done]
                for request in ended:
                    self._forget(request)
                self._deliver(ended)
        finally:
            self._in_step = False
            aborted, self._to_abort = self._to_abort, []
            for request in aborted:
                self.abort(request)

    def abort(self, request: Request) -> None:
        """Drops the live and waiting samples of a request; during a step, at the step's end."""
        if request.done or request not in self._requests:
            return
        if self._in_step:
            self._to_abort.append(request)
            return
        for part in request.parts:
            shard = self._shard_of[id(part.prompt)]
            for slot in self.schedulers[shard].abort(part.prompt, part.samples):
                self._state.clear(slot)
        request.aborted = True
        self._forget(request)

    def abort_all(self) -> None:
        """Drops every request."""
        for request in self._requests:
            request.aborted = True
        self._requests = []

    def preempt_all(self) -> None:
        """Forgets all keys and values; live samples and prompt log-probs are computed again."""
        self._dispatched = None
        for request in self._requests:
            request.scored = False
        for scheduler in self.schedulers:
            for slot in scheduler.preempt_all():
                self._state.clear(slot)

    def drop_prefixes(self) -> None:
        """Forgets the cached pages of ended samples; live samples keep their pages."""
        for cache in self._caches:
            if cache is not None:
                cache.clear()

    def _forget(self, request: Request) -> None:
        self._requests = [r for r in self._requests if r is not request]
        for part in request.parts:
            del self._request_of[id(part.prompt)], self._shard_of[id(part.prompt)]

    def _dispatch(
        self, model: Any, version: int, plans: list[Plan], proposal: Proposal | None
    ) -> tuple[Any, int] | None:
        """Dispatches a call: (call, version of its weights); None if no sample decodes."""
        self._restarted = False
        if not any(scheduler.decoding for scheduler in self.schedulers):
            return None
        engine, state, stops = self._engine, self._state, self._stop_ids()
        if proposal is not None:
            return engine.verify(model, state, proposal.drafts, stop_token_ids=stops), version
        call = engine.dispatch(
            model,
            state,
            stop_token_ids=stops,
            exit_below=[self._exit_below(s) for s in self.schedulers],
            steps=self._even_steps(plans),
        )
        return call, version

    def _even_steps(self, plans: Sequence[Plan] = ()) -> list[int]:
        engine = self._engine
        reads = {"weights": engine.weight_reads, "recompute": engine.recompute_reads}
        return even_steps(self.schedulers, plans, most=self.drafting.plain_steps(), **reads)

    def _reserve_behind(self, call: Any) -> bool:
        """Gives every row the pages of another call behind `call`; False if none can follow.

        Some row must have tokens left for the second call. If the rows fit a smaller bucket, the
        next plan starts a smaller call instead. If drafts are likely to pay, it waits for tokens.
        """
        if self.drafting.hot or self._next_move() is not None:  # the next plan makes the move
            return False
        steps = self._engine.config.decode_steps
        live = [sample for scheduler in self.schedulers for sample in scheduler.live]
        if self._restarted or not any(s.length + steps < s.limit for s in live):
            return False
        if self._engine.fits_smaller_bucket(call, max(len(s.live) for s in self.schedulers)):
            return False
        for scheduler in self.schedulers:
            grown = scheduler.grow_ahead(2 * steps)
            if grown is None:
                return False
            for sample in grown:
                assert sample.slot is not None
                self._state.set_pages(sample.slot, sample.pages)
        return True

    def _rebalance(self) -> None:
        """Moves samples to emptier shards: the oldest waiting first, then live ones if it pays."""
        while True:
            target = max(self.schedulers, key=lambda s: s.free_slots())
            if not target.free_slots():
                return
            waiting = [
                (sample.age, shard, sample)
                for shard, scheduler in enumerate(self.schedulers)
                if (sample := scheduler.oldest_without_slot()) is not None
            ]
            if not waiting:
                break
            _, shard, sample = min(waiting)
            self.schedulers[shard].withdraw(sample)
            self._place_in(target, sample)
        while (move := self._next_move()) is not None:
            sample, source, target = move
            self._state.clear(source.release(sample, Status.WAITING))
            self._place_in(target, sample)
            self.moves += 1

    def _next_move(self) -> tuple[Sample, Scheduler, Scheduler] | None:
        return next_move(self.schedulers, self._engine.recompute_reads)

    def _place_in(self, scheduler: Scheduler, sample: Sample) -> None:
        """Queues a sample that left its own shard in another one."""
        request = self._request_of[id(sample.prompt)]
        part = request.split(sample)
        self._request_of[id(part.prompt)] = request
        self._shard_of[id(part.prompt)] = self.schedulers.index(scheduler)
        scheduler.add(part.prompt, part.samples)

    def _score_prompts(self, model: Any) -> None:
        for request in self._requests:
            if request.scores_prompts and not request.scored:
                request.prompt_logprobs = prompt_logprobs(
                    model, request.prompts, request.temperatures, self._engine.spec.mesh
                )
                request.scored = True

    def _deliver(self, requests: Sequence[Request]) -> None:
        """Runs the callbacks of the requests; if a callback raises, its own request alone fails.

        KeyboardInterrupt is re-raised after every request has been notified.
        """
        with ExitStack() as callbacks:
            for request in reversed(requests):
                callbacks.callback(self._notify, request)

    def _notify(self, request: Request) -> None:
        if request.failure is not None:
            return
        try:
            request.deliver()
        except Exception as error:  # noqa: BLE001 - the request's own: poll or drive raises it
            self._fail(request, error)

    def _fail(self, request: Request, error: Exception) -> None:
        if request.failure is None:
            request.failure = error
            self.failures += 1
        self.abort(request)

    def _stop_ids(self) -> list[int]:
        """Stop ids of the live requests, oldest request first, up to the limit of a call.

        The device uses them only to end rows early. `Request.take` decides which token ends a
        response.
        """
        ids = dict.fromkeys(i for request in self._requests for i in sorted(request.stop_ids))
        return list(ids)[:MAX_STOP_TOKENS]

    def _exit_below(self, scheduler: Scheduler) -> int:
        """The number of live rows below which a call ends early.

        If samples wait, a call ends once a quarter of the slots has become free.
        """
        if not scheduler.waiting:
            return 1
        return max(1, len(scheduler.decoding) - max(1, self._engine.slots_a_shard // 4) + 1)

    def _apply(self, model: Any, plans: list[Plan]) -> None:
        """Applies the plans, one a data shard, to the device's slots and pages."""
        engine, state = self._engine, self._state
        for plan in plans:
            state.apply(plan)
        jobs = [jobs_of(plan) for plan in plans]
        if any(jobs):
            engine.prefill_rows(model, state, jobs)
        if any(plan.copies for plan in plans):
            engine.copy_pages(state, [plan.copies for plan in plans])

    def _give_tokens(self, result: ResultTokens, version: int) -> None:
        rows = [len(scheduler.decoding) for scheduler in self.schedulers]
        fewest, most = self.live_rows or (max(rows), 0)
        self.live_rows = min(fewest, *rows), max(most, *rows)
        self.steps += result.steps
        self.row_steps += result.row_steps
        for scheduler in self.schedulers:
            for sample in scheduler.decoding:
                slot = sample.slot
                assert slot is not None
                count = result.count[slot]
                request = self._request_of[id(sample.prompt)]
                before = request.num_tokens
                try:
                    ended = request.take(
                        sample,
                        result.data[slot, :count].tolist(),
                        result.logprobs[slot, :count].tolist(),
                        version=version,
                    )
                except Exception as error:  # noqa: BLE001 - its decode's; the sample is unchanged
                    self._fail(request, error)
                    continue
                self.response_tokens += request.num_tokens - before
                if ended:
                    scheduler.release(sample)
                    self._state.clear(slot)
                elif not result.alive[slot]:  # another request's stop token ended the row
                    self._state.place_sample(sample)
                    self._restarted = True
