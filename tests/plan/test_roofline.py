"""Closed forms of the estimates."""

import dataclasses
import math

import numpy as np
import pytest

from polaris_jax.models.presets import preset
from polaris_jax.plan.roofline import (
    Efficiency,
    Lengths,
    UpdateWork,
    estimate_step,
    live_context,
    truncated_exponential,
    update_model_flops,
)
from polaris_jax.plan.topologies import CHIPS

MODEL = preset("qwen3-4b")
CHIP = dataclasses.replace(
    CHIPS["v5p"], peak_flops=1e15, hbm_bytes_per_s=1e12, link_bytes_per_s=1e11
)


@pytest.mark.parametrize("mean", [500.0, 20_000.0, 40_000.0])
def test_moments_of_the_cut_exponential(mean):
    longest = 52_224
    lengths = truncated_exponential(mean, longest)
    x = (np.arange(4_000) + 0.5) / 4_000
    # The rate is not given out: find it from the density's mean, independently.
    low, high = -600.0, 600.0
    for _ in range(60):
        rate = (low + high) / 2
        weight = np.exp(-rate * (x - (rate < 0)))
        low, high = (rate, high) if (weight @ x) / weight.sum() > mean / longest else (low, rate)
    square = (weight @ x**2) / weight.sum() * longest**2
    assert lengths.mean == mean
    assert math.isclose(lengths.square, square, rel_tol=1e-3)


def test_all_at_the_budget():
    assert truncated_exponential(100, 100) == Lengths(100.0, 10_000.0, 100)


def test_model_flops_of_equal_lengths():
    """6 a weight and token, and 6 L N H T^2 of causal attention (and the diagonal's half)."""
    length, responses = 1000, 7
    flops = update_model_flops(
        MODEL, Lengths(length, length**2, length), responses=responses, prompt_tokens=0
    )
    attention = 6 * MODEL.num_layers * MODEL.num_heads * MODEL.head_dim * length * (length + 1)
    assert math.isclose(
        flops, responses * (6 * MODEL.num_parameters * length + attention), rel_tol=1e-12
    )


def test_a_live_sequence_of_equal_lengths_is_half_grown():
    assert live_context(Lengths(1000, 1000**2, 1000), 300) == 300 + 500


def estimate(**kwargs):
    lengths = Lengths(1000.0, 1000.0**2, 1000)
    given = {
        "devices": 4,
        "responses": 64,
        "prompts": 8,
        "prompt_tokens": 0.0,
        "update": UpdateWork(0.0, 0.0, False),
        "weights_bytes": 1e9,
        "kv_token_bytes": 1e5,
        "sequences": 32,
        "room_for": 32,
        "step_collective_s": 0.0,
        "sync_s": 0.5,
        "efficiency": Efficiency(mfu=0.5, bandwidth=0.5),
    } | kwargs
    return estimate_step(MODEL, CHIP, lengths, **given)


def test_decode_reads_weights_once_a_step_and_every_live_key_once_a_token():
    found = estimate()
    assert found.decode_steps == 2000  # 64 responses, 32 at once
    assert math.isclose(found.weights_s, 2000 * 1e9 / 0.5e12)
    assert math.isclose(found.kv_s, 64_000 * 500 * 1e5 / 4 / 0.5e12)
    assert math.isclose(found.rollout_s, max(found.weights_s + found.kv_s, found.decode_compute_s))


def test_the_longest_response_sets_a_floor():
    assert estimate(sequences=1000).decode_steps == 1000


@pytest.mark.parametrize(
    ("update", "bound"),
    [
        (UpdateWork(0.0, 0.0, False), "update_compute_s"),
        (UpdateWork(1e15, 0.0, False), "update_hbm_s"),
        (UpdateWork(0.0, 1e3, False), "update_collective_s"),
    ],
)
def test_an_update_takes_as_long_as_its_slowest_bound(update, bound):
    found = estimate(update=update)
    assert found.update_s == getattr(found, bound) > 0
    assert math.isclose(found.step_s, found.rollout_s + found.update_s + 0.5)


def test_recomputed_log_probs_cost_a_third_more():
    more = estimate(update=UpdateWork(0.0, 0.0, True)).update_compute_s
    assert math.isclose(more, 4 / 3 * estimate().update_compute_s)


def test_mfu_is_what_was_assumed_where_arithmetic_binds():
    assert math.isclose(estimate().update_mfu, 0.5)
