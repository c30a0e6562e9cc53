"""The seconds of a rollout: the product's own driver and schedulers, under a clock.

The engine here only counts. A decode step of a data shard takes the time to read its weights and
the keys and values of its live tokens, or that of its arithmetic if that is longer. Prefill takes
its arithmetic, on the shard that has it: no shard waits for another until the host reads the tokens
of the call behind it. A call lasts as long as its slowest shard. The host's time for a call is
hidden if the call was dispatched ahead, and waited for otherwise. Pages are as many as the pool
holds, so samples wait and are preempted as in a run.

Time is coarse: one token of the simulation stands for `grain` tokens, and one call for `grain`
calls.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polaris_jax.records import Group, Response
from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.draft_costs import verify_rows
from polaris_jax.rollout.driver import Driver
from polaris_jax.rollout.engine import ResultTokens
from polaris_jax.rollout.groups import places_of
from polaris_jax.rollout.programs import Rows
from polaris_jax.rollout.request import Request
from polaris_jax.rollout.settings import PromptParams, SamplerConfig

STOP, TOKEN = 1, 0
CALLS = 200
DRAFT_RATES = (0.5, 0.7, 0.9)  # for which a plan says what drafts save


@dataclasses.dataclass(frozen=True)
class Clock:
    """What the work of one data shard costs.

    Attributes:
        weights_s: seconds to read the weights once.
        kv_token_s: seconds to read one token's keys and values.
        row_s: seconds of arithmetic of one decoded token.
        prefill_token_s: seconds of arithmetic of one prefilled token.
        host_call_s: the host's seconds for one decode call.
        recompute_reads: see `balance.recompute_reads`; infinite: no live row moves.
    """

    weights_s: float
    kv_token_s: float
    row_s: float
    prefill_token_s: float
    host_call_s: float = 0.0
    recompute_reads: float = math.inf


@dataclasses.dataclass(frozen=True)
class Shards:
    """The sizes of one sampler: that of a host, or of the hosts that share one.

    Attributes:
        shards: number of data shards.
        slots: slots of a data shard.
        pool_tokens: tokens that the pages of a data shard hold.
        page_size: tokens of a page.
        decode_steps: decode steps of a call.
        prefill_budget: see `SamplerConfig`.
        draft_tokens: see `SamplerConfig`; here it only says which calls are the rollout's tail.
    """

    shards: int
    slots: int
    pool_tokens: int
    page_size: int = 64
    decode_steps: int = 16
    prefill_budget: int = 8192
    draft_tokens: int = 8


@dataclasses.dataclass
class _Call:
    position_B: np.ndarray  # after the call
    count_B: np.ndarray
    alive_B: np.ndarray


class CountingEngine:
    """Ends each row at its sample's length, and keeps the time; the part that the driver calls.

    Args:
        sizes: the sampler.
        clock: what work costs.
        token_PR: the tokens of each sample, in grains.
        grain: tokens that one token of the simulation stands for.
        max_len: largest length of a sequence, in grains.
    """

    def __init__(
        self,
        sizes: Shards,
        clock: Clock,
        token_PR: np.ndarray,
        *,
        grain: int,
        max_len: int,
    ):
        page = max(4, sizes.page_size // grain)
        pages = max(sizes.pool_tokens // grain // page, -(-max_len // page)) + 1
        self.config = SamplerConfig(
            slots=sizes.shards * sizes.slots,
            page_size=page,
            num_pages=sizes.shards * pages,
            max_len=max_len,
            decode_steps=sizes.decode_steps,
            prefill_budget=sizes.prefill_budget,
            prefix_cache=False,
        )
        self.data, self.slots_a_shard = sizes.shards, sizes.slots
        drafting = dataclasses.replace(
            self.config, draft="history", draft_tokens=sizes.draft_tokens
        )
        self._tail_rows = verify_rows(drafting, sizes.shards, min_rows=1, on_cpu=False)[-1]
        self.dispatches_ahead = True
        # Of tokens that stand for `grain` tokens each; a step reads each of them once.
        self.weight_reads = clock.weights_s / clock.kv_token_s / grain
        self.recompute_reads = clock.recompute_reads / grain
        self._clock, self._token_PR, self._grain = clock, token_PR, grain
        self.time_s = self.prefill_s = self.host_s = self.tail_s = 0.0
        self.tail_steps = 0
        self.shard_s_D = np.zeros(sizes.shards)  # of each shard, if it waited for no other
        self._prefill_s_D = np.zeros(sizes.shards)  # before the next call

    def warm(self, model: Any, state: Any) -> None:
        """Nothing to compile."""

    def copy_pages(self, state: Any, pairs: Any) -> None:
        """Copies no pages: one page of a prompt takes no time."""

    def prefill_rows(self, model: Any, state: Any, jobs: Sequence[Sequence[Any]]) -> None:
        """Adds the prefill to the next call of the shards that have it."""
        token_D = np.array([sum(len(job.tokens) for job in own) for own in jobs]) * self._grain
        self._prefill_s_D += token_D * self._clock.prefill_token_s
        self.prefill_s += float(token_D.max()) * self._clock.prefill_token_s

    def dispatch(self, model: Any, state: DecodeState, *, steps: Sequence[int], **_: Any) -> _Call:
        """A call; the host's time comes before it."""
        self._wait(self._clock.host_call_s * self._grain)
        rows = state.rows
        return self._run(state, rows.position_B, rows.alive_B, steps)

    def dispatch_behind(
        self, model: Any, state: DecodeState, call: _Call, *, steps: Sequence[int], **_: Any
    ) -> _Call:
        """A call behind another; the host's time runs beside it."""
        before_s = self.time_s
        held_B = np.array([bool(pages) for pages in state.pages])
        behind = self._run(state, call.position_B, call.alive_B & held_B, steps)
        self._wait(max(0.0, self._clock.host_call_s * self._grain - (self.time_s - before_s)))
        return behind

    def fits_smaller_bucket(self, call: Any, rows: int) -> bool:
        """False: rows without a sequence read nothing, so an accelerator has one bucket."""
        return False

    def collect(self, state: DecodeState, call: _Call) -> ResultTokens:
        """The tokens of a call: the last one of a sample stops it."""
        rows, slots, steps = state.rows, self.config.slots, self.config.decode_steps
        held_B = np.array([bool(pages) for pages in state.pages])
        count_B = np.where(held_B, call.count_B, 0)
        rows.position_B[:] += count_B
        rows.alive_B[:] &= np.where(count_B > 0, call.alive_B, rows.alive_B)
        data = np.full((slots, 2 * steps + 1), TOKEN, np.int32)
        ended = np.flatnonzero((count_B > 0) & ~call.alive_B)
        data[ended, count_B[ended] - 1] = STOP
        return ResultTokens(
            data=data,
            tokens_idx=(0, steps),
            valid_idx=(steps, 2 * steps),
            length_idx=(2 * steps, 2 * steps + 1),
            samples_per_slot=1,
            logprobs=np.zeros((slots, steps), np.float32),
            count=count_B,
            alive=rows.alive_B.copy(),
            steps=int(count_B.max()),
            row_steps=int(count_B.sum()),
        )

    def lengths(self, rows: Rows) -> np.ndarray:
        """The response tokens of each slot's sample, in grains; a prompt's seed is its index."""
        return self._token_PR[rows.params.seed_B, rows.params.sample_B]

    def _wait(self, seconds: float) -> None:
        self.host_s += seconds
        self.time_s += seconds

    def _run(
        self,
        state: DecodeState,
        position_B: np.ndarray,
        alive_B: np.ndarray,
        steps: Sequence[int],
    ) -> _Call:
        rows, clock, shape = state.rows, self._clock, (self.data, self.slots_a_shard)
        left_B = rows.prompt_len_B + self.lengths(rows) - 1 - position_B
        steps_B = np.repeat(np.array(steps), self.slots_a_shard)
        count_B = np.where(alive_B, np.minimum(steps_B, left_B), 0).astype(np.int32)
        read_B = count_B * (position_B + 1) + count_B * (count_B - 1) // 2
        read_D = read_B.reshape(shape).sum(1) * self._grain * clock.kv_token_s
        read_D += count_B.reshape(shape).max(1) * clock.weights_s
        took_D = np.maximum(read_D, count_B.reshape(shape).sum(1) * clock.row_s) * self._grain
        took_D += self._prefill_s_D
        self._prefill_s_D = np.zeros(self.data)
        if count_B.any() and (count_B > 0).reshape(shape).sum(1).max() <= self._tail_rows:
            self.tail_s += float(took_D.max())
            self.tail_steps += int(count_B.max()) * self._grain
        self.shard_s_D += took_D
        self.time_s += float(took_D.max())
        return _Call(position_B + count_B, count_B, alive_B & (count_B < left_B))


@dataclasses.dataclass(frozen=True)
class Timed:
    """What a sampler's rollout took.

    Attributes:
        time_s: seconds from the first to the last call.
        prefill_s: seconds of prefill, of prompts and of rows that moved, if all shards had waited
            for the one with the most of each; part of it runs beside other shards' decoding.
        host_s: seconds of them in which devices waited for the host.
        own_s: seconds of the slowest shard if no shard had waited for another.
        preemptions: samples that were preempted because pages ran out.
        moves: live samples that moved to another shard.
        tail_s: seconds of the calls in which no shard had more live rows than a sampler drafts for.
        tail_steps: decode steps of these calls.
    """

    time_s: float
    prefill_s: float
    host_s: float
    own_s: float
    preemptions: int
    moves: int
    tail_s: float
    tail_steps: int


def time_host(
    sizes: Shards,
    clock: Clock,
    token_PR: np.ndarray,
    *,
    prompt_tokens: int,
    longest: int,
    expected_P: np.ndarray | None = None,
    grain: int = 4,
) -> Timed:
    """The time in which one host samples its share of a step.

    Args:
        sizes: the host's sampler.
        clock: what work costs.
        token_PR: response tokens of each sample; 0: another host samples it.
        prompt_tokens: tokens of each prompt.
        longest: the budget in tokens.
        expected_P: expected tokens of each prompt's samples; None: nothing is known.
        grain: tokens that one token of the simulation stands for.
    """
    grain_PR = np.where(token_PR > 0, np.maximum(1, np.rint(token_PR / grain)), 0).astype(int)
    own = [i for i in range(len(token_PR)) if grain_PR[i].any()]
    prompt, budget = max(2, round(prompt_tokens / grain)), -(-longest // grain)
    engine = CountingEngine(sizes, clock, grain_PR, grain=grain, max_len=prompt + budget)
    state = DecodeState(None, engine.config, num_pages=engine.config.num_pages, data=engine.data)
    driver = Driver(engine, state, contextlib.nullcontext())
    request = Request(
        [(TOKEN,) * prompt] * len(own),
        [PromptParams(1.0, 1.0, 0, 0.0, budget, i) for i in own],
        token_PR.shape[1],
        (STOP,),
        expected_tokens=None if expected_P is None else (expected_P[own] / grain).tolist(),
        samples=[np.flatnonzero(grain_PR[i]).tolist() for i in own],
    )
    driver.submit(request)
    while driver.busy:
        driver.step(None, version=0)
    return Timed(
        time_s=engine.time_s,
        prefill_s=engine.prefill_s,
        host_s=engine.host_s,
        own_s=float(engine.shard_s_D.max()),
        preemptions=sum(scheduler.preemptions for scheduler in driver.schedulers),
        moves=driver.moves,
        tail_s=engine.tail_s,
        tail_steps=engine.tail_steps,
    )


def time_pod(
    samplers: int,
    sizes: Shards,
    clock: Clock,
    token_PR: np.ndarray,
    *,
    prompt_tokens: int,
    longest: int,
    expected_P: np.ndarray,
    grain: int = 0,
    by_sample: bool = True,
    heaviest: int = 1,
) -> Timed:
    """The time in which all samplers together sample a step: that of the slowest.

    Only the samplers with the most keys and values to read are simulated.

    Args:
        samplers: number of samplers, all of the same sizes.
        sizes: the sizes of one.
        clock: what work costs.
        token_PR: response tokens of each sample.
        prompt_tokens: tokens of each prompt.
        longest: the budget in tokens.
        expected_P: expected tokens of each prompt's samples.
        grain: tokens that one token of the simulation stands for; 0: chosen so that the longest
            response takes `CALLS` calls.
        by_sample: False: the samples of a prompt stay on one sampler.
        heaviest: number of samplers that are simulated.
    """
    grain = grain or max(1, longest // CALLS // sizes.decode_steps)
    width = token_PR.shape[1]
    unfinished = (Response((), (), "unfinished"),) * width
    groups = [
        Group("", (TOKEN,) * prompt_tokens, "", "", draw=0, epoch=0, responses=unfinished)
        for _ in token_PR
    ]
    places = places_of(
        groups,
        samplers,
        expected_tokens=expected_P.tolist(),
        max_tokens=longest,
        by_sample=by_sample,
    )
    shares = [np.zeros_like(token_PR) for _ in places]
    for own_PR, place in zip(shares, places, strict=True):
        for i, samples in place.items():
            own_PR[i, samples] = token_PR[i, samples]
    shares.sort(key=lambda own_PR: -float((own_PR * (prompt_tokens + own_PR / 2)).sum()))
    times = [
        time_host(
            sizes,
            clock,
            own_PR,
            prompt_tokens=prompt_tokens,
            longest=longest,
            expected_P=expected_P,
            grain=grain,
        )
        for own_PR in shares[:heaviest]
        if own_PR.any()
    ]
    return max(times, key=lambda host: host.time_s)


def drafted_s(
    rollout_s: float,
    *,
    tail_s: float,
    step_s: float,
    rate: float,
    tokens: int,
    host_call_s: float,
) -> float:
    """Seconds of a rollout whose tail drafts.

    A verify call reads as much as a decode step and waits for the host. A drafted token is accepted
    with probability `rate` if those before it were. A call in which that does not pay is plain.

    Args:
        rollout_s: seconds without drafts.
        tail_s: seconds of the part that drafts.
        step_s: seconds of a decode step in that part.
        rate: in [0, 1].
        tokens: tokens of a draft; every row always has one.
        host_call_s: the host's seconds for one call.
    """
    if not tail_s:
        return rollout_s
    a_call = 1 + sum(rate**i for i in range(1, tokens + 1))
    return rollout_s - tail_s + min(tail_s, tail_s / a_call * (1 + host_call_s / step_s))
