"""Closed forms of the estimates."""

import dataclasses
import math

import pytest

from polaris_jax.models.presets import preset
from polaris_jax.plan.lengths import Lengths
from polaris_jax.plan.rollout_clock import Shards, drafted_s
from polaris_jax.plan.roofline import (
    Efficiency,
    UpdateWork,
    estimate_step,
    live_context,
    update_model_flops,
)
from polaris_jax.plan.topologies import CHIPS

MODEL = preset("qwen3-4b")
CHIP = dataclasses.replace(
    CHIPS["v5p"], peak_flops=1e15, hbm_bytes_per_s=1e12, link_bytes_per_s=1e11
)


def test_model_flops_of_equal_lengths():
    """6 a weight and token, and 6 L N H T^2 of causal attention (and the diagonal's half)."""
    length, responses = 1000, 7
    flops = update_model_flops(
        MODEL, Lengths(length, length**2, length, math.inf), responses=responses, prompt_tokens=0
    )
    attention = 6 * MODEL.num_layers * MODEL.num_heads * MODEL.head_dim * length * (length + 1)
    assert math.isclose(
        flops, responses * (6 * MODEL.num_parameters * length + attention), rel_tol=1e-12
    )


def test_a_shared_prompt_is_computed_once():
    lengths = Lengths(900.0, 900.0**2, 900, math.inf)
    flops = {
        sharing: update_model_flops(MODEL, lengths, responses=8, prompt_tokens=100, sharing=sharing)
        for sharing in (1.0, 4.0)
    }
    prompt = update_model_flops(
        MODEL, Lengths(100.0, 100.0**2, 100, math.inf), responses=1, prompt_tokens=0
    )
    assert math.isclose(flops[1.0] - flops[4.0], (8 - 8 / 4) * prompt, rel_tol=1e-9)


def test_a_live_sequence_of_equal_lengths_is_half_grown():
    assert live_context(Lengths(1000, 1000**2, 1000, math.inf), 300) == 300 + 500


def estimate(**kwargs):
    lengths = Lengths(1000.0, 1000.0**2, 1000, math.inf)
    given = {
        "devices": 4,
        "responses": 64,
        "prompts": 8,
        "prompt_tokens": 0.0,
        "update": UpdateWork(0.0, 0.0, 0),
        "weights_bytes": 1e9,
        "kv_token_bytes": 1e5,
        "samplers": 1,
        "sampler": Shards(shards=4, slots=8, pool_tokens=10_000),
        "by_sample": True,
        "step_collective_s": 0.0,
        "sync_s": 0.5,
        "efficiency": Efficiency(mfu=0.5, bandwidth=0.5, host_call_s=0.0),
    } | kwargs
    return estimate_step(MODEL, CHIP, lengths, **given)


def test_decode_reads_weights_once_a_step_and_every_live_key_once_a_token():
    found = estimate()
    assert found.decode_steps == 2000  # 64 responses, 32 at once
    assert math.isclose(found.weights_s, 2000 * 1e9 / 0.5e12)
    assert math.isclose(found.kv_s, 64_000 * 500 * 1e5 / 4 / 0.5e12)
    assert math.isclose(found.balanced_s, max(found.weights_s + found.kv_s, found.decode_compute_s))
    # Equal lengths: no shard waits.
    assert found.balanced_s < found.rollout_s < 1.02 * found.balanced_s


def test_the_host_is_waited_for_where_calls_cannot_be_dispatched_ahead():
    slow = Efficiency(mfu=0.5, bandwidth=0.5, host_call_s=0.01)
    found = estimate(efficiency=slow)  # samples wait for slots, so most calls need a plan
    assert 0.5 * 2000 / 16 * 0.01 < found.host_s <= 2000 / 16 * 0.01
    assert found.rollout_s > estimate().rollout_s + 0.9 * found.host_s


def test_a_pool_too_small_for_the_slots_takes_longer():
    small = estimate(sampler=Shards(shards=4, slots=8, pool_tokens=3_000))
    assert small.preemptions > 0 and small.room_for < 32
    assert small.rollout_s > 1.02 * estimate().rollout_s


def test_the_longest_response_sets_a_floor():
    assert estimate(sampler=Shards(4, 250, 10**6)).decode_steps == 1000


def test_drafts_shorten_the_tail_alone():
    found = estimate()  # 8 rows a shard: all of it is the tail
    assert math.isclose(found.tail_s, found.rollout_s, rel_tol=0.01)
    assert list(found.drafted_s) == ["0.5", "0.7", "0.9"]
    seconds = list(found.drafted_s.values())
    assert found.rollout_s > seconds[0] > seconds[1] > seconds[2]
    a_call = sum(0.5**i for i in range(9))
    assert math.isclose(seconds[0], found.rollout_s / a_call, rel_tol=0.01)
    full = estimate(responses=160, sampler=Shards(4, 40, 10**6))
    assert full.tail_s == 0.0  # equal lengths: all rows end at once
    assert set(full.drafted_s.values()) == {full.rollout_s}


def test_a_host_that_takes_longer_than_it_saves_is_not_waited_for():
    times = {"tail_s": 50.0, "step_s": 0.01, "rate": 0.5, "tokens": 8}
    assert drafted_s(100.0, host_call_s=1.0, **times) == 100.0
    assert 50 < drafted_s(100.0, host_call_s=0.001, **times) < 85


@pytest.mark.parametrize(
    ("update", "bound"),
    [
        (UpdateWork(0.0, 0.0, 0), "update_compute_s"),
        (UpdateWork(1e15, 0.0, 0), "update_hbm_s"),
        (UpdateWork(0.0, 1e3, 0), "update_collective_s"),
    ],
)
def test_an_update_takes_as_long_as_its_slowest_bound(update, bound):
    found = estimate(update=update)
    assert found.update_s == getattr(found, bound) > 0
    assert math.isclose(found.step_s, found.rollout_s + found.update_s + 0.5)


def test_recomputed_log_probs_cost_a_third_more():
    more = estimate(update=UpdateWork(0.0, 0.0, 1)).update_compute_s
    assert math.isclose(more, 4 / 3 * estimate().update_compute_s)


def test_mfu_is_what_was_assumed_where_arithmetic_binds():
    assert math.isclose(estimate().update_mfu, 0.5)
