"""Which shard decodes which sample: dealt apart, met at long prompts, moved when a move pays."""

import math
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from polaris_jax.rollout.balance import deal, even_steps
from polaris_jax.rollout.settings import SamplerConfig
from tests.support.rollout.fake_engine import FakeSampler, settings

SIZES = SamplerConfig(
    slots=16, page_size=4, num_pages=2000, max_len=512, decode_steps=4, prefix_cache=False
)


def test_the_samples_of_a_short_prompt_go_to_different_shards():
    loads = [0] * 8
    assert deal([(250, [20_000.0] * 8)] * 4, loads) == [list(range(8))] * 4
    assert loads == [4 * 20_250] * 8


def test_the_samples_of_a_long_prompt_with_short_responses_meet():
    loads = [0] * 4
    dealt = deal([(10_000, [100.0] * 8)] * 8, loads)
    assert all(len(set(shards)) == 1 for shards in dealt)
    assert loads == [2 * (10_000 + 800)] * 4  # each prompt is prefilled once


def test_a_prompt_alone_uses_every_shard():
    assert len(set(deal([(10_000, [100.0] * 8)], [0] * 4, at_least=4)[0])) == 4


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    st.lists(
        st.tuples(st.integers(1, 300), st.lists(st.integers(0, 300), min_size=1, max_size=6)),
        max_size=12,
    ),
    st.lists(st.integers(0, 500), min_size=1, max_size=5),
)
def test_no_shard_ends_more_than_one_part_above_another(prompts, before):
    loads = list(before)
    dealt = deal(prompts, loads)
    assert [len(shards) for shards in dealt] == [len(costs) for _, costs in prompts]
    for k in range(len(loads)):
        given_k = sum(
            prompt * (k in shards) + sum(c for c, s in zip(costs, shards, strict=True) if s == k)
            for (prompt, costs), shards in zip(prompts, dealt, strict=True)
        )
        assert loads[k] == before[k] + given_k
    part = max((prompt + sum(costs) for prompt, costs in prompts), default=0)
    raised = [load for load, had in zip(loads, before, strict=True) if load > had]
    assert max(raised, default=0) <= min(loads) + part


def shards_with(*rows: list[int]) -> list[SimpleNamespace]:
    """Schedulers whose live rows have these lengths."""
    return [SimpleNamespace(decoding=[SimpleNamespace(length=n) for n in own]) for own in rows]


def plans_of(*prefilled: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(parts=[SimpleNamespace(start=10, stop=10 + n)]) for n in prefilled]


EVEN = {"most": 16, "weights": 100, "recompute": 2.0}


def test_a_shard_with_many_tokens_takes_fewer_steps_of_a_call():
    assert even_steps(shards_with([50, 50], [300], [0, 100], []), **EVEN) == [16, 8, 16, 16]
    assert even_steps(shards_with([]), **EVEN) == [16]
    assert even_steps(shards_with([100_000], [1]), **EVEN) == [1, 16]
    assert even_steps(shards_with([100_000]), **EVEN) == [16]


def test_prefill_before_a_call_counts_as_part_of_it():
    shards = shards_with([100], [100], [])
    # 16 steps of 200 tokens; 400 tokens of prefill take the time of four steps.
    assert even_steps(shards, plans_of(0, 400, 0), **EVEN) == [16, 12, 16]
    assert even_steps(shards, plans_of(0, 10**9, 0), **EVEN) == [16, 1, 16]
    # A shard that only prefills is waited for.
    assert even_steps(shards_with([100], []), plans_of(0, 400), **EVEN) == [16, 16]
    assert even_steps(shards, plans_of(0, 1, 1), **EVEN | {"recompute": math.inf}) == [16, 1, 16]


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    st.lists(st.lists(st.integers(1, 50_000), max_size=8), min_size=1, max_size=8),
    st.lists(st.integers(0, 2_000), min_size=8, max_size=8),
    st.integers(1, 64),
    st.integers(1, 10**6),
)
def test_shards_of_a_call_end_within_half_a_step(rows, prefilled, most, weights):
    plans = plans_of(*prefilled[: len(rows)])
    found = even_steps(shards_with(*rows), plans, most=most, weights=weights, recompute=1.0)
    cost = [weights + sum(own) for own in rows if own]
    steps = [n for n, own in zip(found, rows, strict=True) if own]
    begun = [n for n, own in zip(prefilled, rows, strict=False) if own]
    ends = [b + n * c for b, n, c in zip(begun, steps, cost, strict=True)]
    assert all(1 <= n <= most for n in found)
    for end, n, c in zip(ends, steps, cost, strict=True):
        if 1 < n < most:
            assert end <= min(b + most * c for b, c in zip(begun, cost, strict=True)) + c / 2 or (
                end <= max(prefilled[: len(rows)]) + c / 2
            )


@pytest.mark.parametrize(("reads", "moved"), [(0.01, True), (1e9, False)])
def test_a_live_row_moves_to_an_emptier_shard_if_that_pays(reads, moved):
    """Every token of every response is checked by the fake sampler, moved or not."""
    sampler = FakeSampler(SIZES, shards=2)
    sampler.engine.recompute_reads = reads
    # The even prompts end soon; they all lie on the first shard.
    rows = [settings(8 if i % 2 == 0 else 200) for i in range(8)]
    sampler.submit([(i, 1) for i in range(8)], rows, expected=[200] * 8)
    apart = []
    while sampler.driver.busy:
        sampler.step()
        live = [len(s.live) for s in sampler.driver.schedulers]
        apart.append(max(live) - min(live))
    sampler.run()
    assert (sampler.driver.moves > 0) == moved
    assert (apart[10] <= 1) == moved


def test_no_row_moves_while_another_waits_for_a_slot():
    sampler = FakeSampler(SIZES, shards=2)
    sampler.engine.recompute_reads = 0.0
    rows = [settings(8 if i % 2 == 0 else 200) for i in range(40)]
    sampler.submit([(i, 1) for i in range(40)], rows, expected=[200] * 40)
    while sampler.driver.busy:
        waiting = any(s.oldest_without_slot() is not None for s in sampler.driver.schedulers)
        before = sampler.driver.moves
        sampler.step()
        still = any(s.oldest_without_slot() is not None for s in sampler.driver.schedulers)
        assert not (waiting and still) or sampler.driver.moves == before
    sampler.run()
    tokens = np.array([len(t) for answers in sampler.answers for t in answers.values()])
    assert sampler.driver.response_tokens == tokens.sum()
