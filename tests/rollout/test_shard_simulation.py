"""Many data shards under a roofline clock, against one queue that wastes nothing.

The driver and its schedulers are the product's; the engine only counts. A decode step of a shard
costs the time to read the weights plus that to read its live rows' keys and values, and a call
lasts as long as its slowest shard. The ideal refills every slot at once, from one queue, and
spreads the live rows evenly over the shards at every step.

Lengths have the recipe's proportions (128 problems x 8 samples; a problem's mean is lognormal, its
samples scatter around it, all are cut at the budget) at a 32nd of their size, in calls of 4 steps.
"""

import heapq
from typing import Any

import numpy as np
import pytest

from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.driver import Driver
from polaris_jax.rollout.engine import ResultTokens
from polaris_jax.rollout.live import CompileCounter
from polaris_jax.rollout.request import Request
from polaris_jax.rollout.settings import SamplerConfig
from tests.support.rollout.fake_engine import settings

PROBLEMS, SAMPLES = 128, 8
BUDGET, MEDIAN = 1248, 300  # tokens: 39,936 and about 9,600 at full size
SCATTER_BETWEEN, SCATTER_WITHIN = 0.5, 0.35
STEPS, PAGE_SIZE = 4, 16
# Time units: a step reads the weights in 1, and a full shard's keys and values in 1.
WEIGHTS, FULL_SHARD = 1.0, 1.0
LARGEST_WASTE = 0.15


def lengths(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(lengths [problems, samples], each problem's mean as its history would tell it)."""
    rng = np.random.default_rng(seed)
    means = MEDIAN * np.exp(SCATTER_BETWEEN * rng.standard_normal((PROBLEMS, 1)))
    drawn = means * np.exp(SCATTER_WITHIN * rng.standard_normal((PROBLEMS, 2 * SAMPLES)))
    drawn = np.clip(drawn, 16, BUDGET).astype(int)
    # History: other samples of the same problem.
    return drawn[:, :SAMPLES], drawn[:, SAMPLES:].mean(axis=1)


class CountingEngine:
    """Decodes to each row's limit, and keeps the time."""

    def __init__(self, config: SamplerConfig, shards: int):
        self.config, self.data = config, shards
        self.slots_a_shard = config.slots // shards
        self.dispatches_ahead = False
        self.time = 0.0

    def warm(self, model: Any, state: Any) -> None:
        pass

    def prefill_rows(self, model: Any, state: Any, jobs: Any) -> None:
        pass

    def copy_pages(self, state: Any, pairs: Any) -> None:
        pass

    def dispatch(self, model: Any, state: DecodeState, *, stop_token_ids: Any, exit_below: Any):
        rows = state.rows
        left_B = np.where(rows.alive_B, rows.limit_B - 1 - rows.position_B, 0)
        count_B, longest = np.zeros_like(left_B), 0.0
        for shard in range(self.data):
            own = slice(shard * self.slots_a_shard, (shard + 1) * self.slots_a_shard)
            took, step = 0.0, 0
            while step < STEPS:
                live = int((left_B[own] > step).sum())
                if live < max(1, exit_below[shard]):
                    break
                took += WEIGHTS + FULL_SHARD * live / self.slots_a_shard
                step += 1
            count_B[own] = np.minimum(left_B[own], step)
            longest = max(longest, took)
        self.time += longest
        return count_B

    def collect(self, state: DecodeState, count_B: np.ndarray) -> ResultTokens:
        rows, slots = state.rows, self.config.slots
        rows.position_B[:] += count_B
        rows.alive_B[:] &= rows.position_B + 1 < rows.limit_B
        return ResultTokens(
            data=np.ones((slots, 2 * STEPS + 1), np.int32),
            tokens_idx=(0, STEPS),
            valid_idx=(STEPS, 2 * STEPS),
            length_idx=(2 * STEPS, 2 * STEPS + 1),
            samples_per_slot=1,
            logprobs=np.zeros((slots, STEPS), np.float32),
            count=count_B,
            alive=rows.alive_B.copy(),
            steps=STEPS,
            rows=slots,
        )


def sharded_time(shards: int, slots: int, drawn: np.ndarray, expected: np.ndarray | None) -> float:
    """What the product takes; each sample is a prompt of its own, so that its length is known."""
    pages = slots * -(-(BUDGET + 2) // PAGE_SIZE) + 1
    config = SamplerConfig(
        slots=shards * slots,
        page_size=PAGE_SIZE,
        num_pages=shards * pages,
        max_len=BUDGET + 2,
        decode_steps=STEPS,
        prefix_cache=False,
    )
    engine = CountingEngine(config, shards)
    state = DecodeState(None, config, num_pages=config.num_pages, data=shards)
    driver = Driver(engine, state, CompileCounter())
    flat = drawn.ravel()
    request = Request(
        [(1, 2)] * len(flat),
        [settings(int(length)) for length in flat],
        1,
        # Without history: nobody knows more than the budget.
        expected_tokens=[BUDGET] * len(flat)
        if expected is None
        else np.repeat(expected, SAMPLES).tolist(),
        shards=shards,
    )
    driver.submit(request)
    while driver.busy:
        driver.step(None, version=0)
    assert request.num_tokens == flat.sum()
    return engine.time


def ideal_time(shards: int, slots: int, drawn: np.ndarray) -> float:
    """One queue, longest first by true length, every slot refilled at once."""
    ends = [0] * (shards * slots)
    spans = []
    for length in sorted(drawn.ravel().tolist(), reverse=True):
        begin = heapq.heappop(ends)
        spans.append((begin, begin + length))
        heapq.heappush(ends, begin + length)
    changes = np.zeros(max(ends) + 1)
    for begin, end in spans:
        changes[begin] += 1
        changes[end] -= 1
    live = np.cumsum(changes)[:-1]
    return float((WEIGHTS + FULL_SHARD * live / (shards * slots)).sum())


@pytest.mark.parametrize(
    ("shards", "slots"),
    [
        (8, 16),
        pytest.param(8, 64, marks=pytest.mark.slow),
        pytest.param(32, 16, marks=pytest.mark.slow),
        pytest.param(32, 8, marks=pytest.mark.slow),
    ],
)
def test_shards_lose_little_against_one_ideal_queue(shards, slots):
    drawn, expected = lengths(0)
    waste = sharded_time(shards, slots, drawn, expected) / ideal_time(shards, slots, drawn) - 1
    assert 0 <= waste < LARGEST_WASTE


def test_knowing_the_lengths_beforehand_pays():
    drawn, expected = lengths(0)
    known = sharded_time(16, 16, drawn, expected)
    assert 0 <= known / ideal_time(16, 16, drawn) - 1 < LARGEST_WASTE
    assert known < sharded_time(16, 16, drawn, None)
