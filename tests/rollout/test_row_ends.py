"""When a decode call ends: at its rows' limits, and early where others wait for a slot."""

import numpy as np
import pytest

from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.driver import Driver
from polaris_jax.rollout.live import CompileCounter
from polaris_jax.rollout.pages import pages_for
from polaris_jax.rollout.samples import Prompt, Sample
from polaris_jax.rollout.settings import PromptParams
from polaris_jax.rollout.verbs import VerbEngine
from tests.support.rollout.fake_engine import FakeEngine, FakeSampler, settings
from tests.support.rollout.rollout_cases import CONFIG, small_model

STEPS = 8


class AskedEngine(FakeEngine):
    """Notes what each call is told and how long it goes on."""

    def __init__(self, *args):
        super().__init__(*args)
        self.calls: list[tuple[list[int], int]] = []

    def dispatch(self, model, state, *, exit_below, **asked):
        call = super().dispatch(model, state, exit_below=exit_below, **asked)
        self.calls.append((exit_below, call.steps))
        return call


class AskedSampler(FakeSampler):
    """A sampler over such an engine."""

    def __init__(self, slots: int, *, shards: int = 1, **sizes):
        config = SamplerConfig(
            slots=slots * shards,
            page_size=4,
            num_pages=200 * shards,
            max_len=64,
            decode_steps=STEPS,
            **sizes,
        )
        super().__init__(config, shards)
        self.engine = AskedEngine(config, shards)
        self.driver = Driver(self.engine, self.state, CompileCounter())


@pytest.mark.parametrize(
    ("slots", "exit_below"),
    # Of 8 slots 2 are a quarter: the call goes on while 7 rows are alive and ends with 6.
    [(1, 1), (2, 2), (3, 3), (4, 4), (7, 7), (8, 7), (11, 10), (12, 10), (32, 25)],
)
def test_a_call_ends_once_a_quarter_of_the_slots_is_free_for_those_that_wait(slots, exit_below):
    sampler = AskedSampler(slots)
    # Of a full call a row ends after each step.
    rows = [settings(1 + i % STEPS, seed=i) for i in range(slots)]
    sampler.submit([(i, 1) for i in range(slots)], rows)
    sampler.submit([(90, 1)], [settings(30)])
    sampler.step()
    ((asked, steps),) = sampler.engine.calls
    assert asked == [exit_below]
    free = sum(row.max_tokens <= steps for row in rows)
    before = sum(row.max_tokens <= steps - 1 for row in rows)
    assert free >= max(1, slots // 4) > before
    sampler.run()


def test_rows_that_prefill_free_no_slot():
    sampler = AskedSampler(8, prefill_budget=8)
    sampler.submit([(i, 1) for i in range(6)], [settings(30)] * 6)
    sampler.submit([tuple(range(40))] * 4, [settings(4, seed=i) for i in range(4)])
    sampler.step()
    assert (len(sampler.scheduler.decoding), len(sampler.scheduler.live)) == (6, 7)
    assert sampler.scheduler.waiting == 3
    assert sampler.engine.calls[0][0] == [6 - 2 + 1]
    sampler.run()


def test_where_nobody_waits_a_call_goes_on_to_its_last_row():
    sampler = AskedSampler(8)
    sampler.submit([(i, 1) for i in range(8)], [settings(1 + i) for i in range(8)])
    sampler.step()
    assert sampler.engine.calls[0][0] == [1]
    sampler.run()


def test_each_shard_has_an_exit_of_its_own():
    sampler = AskedSampler(4, shards=2)
    sampler.submit([(i, 1) for i in range(8)], [settings(20)] * 8)
    sampler.submit([(90, 1)], [settings(30)], expected=[1.0])
    sampler.step()
    waiting = [scheduler.waiting for scheduler in sampler.driver.schedulers]
    assert sorted(waiting) == [0, 1]
    assert sampler.engine.calls[0][0] == [4 if count else 1 for count in waiting]
    sampler.run()


# --- near the limit ---


@pytest.mark.parametrize("page_size", [1, 4, 8])
@pytest.mark.parametrize("drawn", range(1, 12))
def test_no_page_is_taken_for_tokens_beyond_a_rows_limit(drawn, page_size):
    prompt = Prompt(0, (1, 2, 3), settings(12), to_admit=1)
    sequence = Sample(prompt, 0, 0, tokens=[5] * drawn)
    # The token of the last position never enters the cache.
    assert sequence.tokens_after(STEPS) == min(3 + drawn - 1 + STEPS, 3 + 12 - 1)
    state = FakeSampler(SamplerConfig(slots=1, page_size=page_size, num_pages=32, max_len=16)).state
    state.place(0, [], last_token=5, length=3 + drawn, prompt_len=3, params=prompt.params, sample=0)
    assert state.tokens_after(0, STEPS) == sequence.tokens_after(STEPS)
    state.reserve(0, STEPS)
    assert len(state.pages[0]) == pages_for(sequence.tokens_after(STEPS), page_size)


def test_a_pool_that_just_holds_the_responses_needs_no_preemption():
    # 11 cached tokens are 3 pages; a second call of 8 steps that knew no limit would want 5.
    config = SamplerConfig(slots=2, page_size=4, num_pages=1 + 7, max_len=12, decode_steps=STEPS)
    sampler = FakeSampler(config)
    sampler.submit([(1, 2), (3, 4)], [settings(10)] * 2)
    sampler.run()
    assert sampler.scheduler.preemptions == 0
    assert sampler.blocks == 2


def decoded(limits, *, exit_below=1):
    """What one call on the device gives rows of these limits."""
    config = SamplerConfig(slots=4, page_size=4, num_pages=33, max_len=32, decode_steps=STEPS)
    engine = VerbEngine(CONFIG, config)
    model, state = small_model(), engine.init_decode_state()
    prefix = engine.prefill(params=model, padded_tokens=np.arange(5), true_length=5)
    for slot, limit in enumerate(limits):
        params = PromptParams(0.0, 1.0, 0, 0.0, max_tokens=limit, seed=0)
        engine.insert(prefix, state, slot, params=params)
    return engine.collect(state, engine.dispatch(model, state, exit_below=exit_below))


@pytest.mark.parametrize(
    ("limits", "exit_below", "steps"),
    [
        pytest.param((2, 3, 5, 5), 1, 5, id="no step beyond the longest row"),
        pytest.param((9, 3, 5, 5), 1, 8, id="K steps at most"),
        pytest.param((2, 3, 5, 7), 3, 3, id="fewer than 3 alive"),
        pytest.param((2, 7), 3, 7, id="fewer from the start go on to their ends"),
    ],
)
def test_the_device_stops_at_limits_and_at_the_exit(limits, exit_below, steps):
    result = decoded(limits, exit_below=exit_below)
    assert result.steps == steps
    assert result.count[: len(limits)].tolist() == [min(limit, steps) for limit in limits]
    assert result.alive[: len(limits)].tolist() == [limit > steps for limit in limits]
