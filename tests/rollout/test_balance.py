"""Which shard decodes which sample: dealt apart, met at long prompts, moved when a move pays."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from polaris_jax.rollout.balance import deal
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
