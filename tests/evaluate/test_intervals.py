"""Intervals, paired differences and gains by difficulty against closed forms and enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.evaluate.intervals import (
    DRAWS,
    LEVEL,
    _resamples,
    bootstrap_interval,
    gain_by_difficulty,
    paired_difference,
    sampling_error,
)
from tests.tolerances import CLOSED_FORM_ATOL

# The share of resamples below a quantile is off by its own error; six of them never happen.
QUANTILE_ATOL = 6 * math.sqrt(0.025 * 0.975 / DRAWS)
SCORES = (
    st.tuples(st.integers(2, 5), st.integers(0, 2**32 - 1))
    .map(lambda a: np.random.default_rng(a[1]).integers(0, 9, a[0]) / 8)
    .filter(lambda score_P: len(set(score_P)) > 1)
)


@settings(max_examples=40, deadline=None)
@given(SCORES)
def test_the_interval_has_the_quantiles_of_all_resamples(score_P):
    """Every resample of up to 5 problems, counted, in place of draws."""
    means = [np.mean(x) for x in itertools.product(score_P, repeat=len(score_P))]
    interval = bootstrap_interval(score_P)
    assert interval is not None
    for value, share in zip(interval, (0.025, 0.975), strict=True):
        below = np.mean([m < value - CLOSED_FORM_ATOL for m in means])
        up_to = np.mean([m <= value + CLOSED_FORM_ATOL for m in means])
        assert below <= share + QUANTILE_ATOL
        assert up_to >= share - QUANTILE_ATOL


def test_the_interval_of_many_problems_is_the_normal_one():
    score_P = np.random.default_rng(0).random(400)
    interval = bootstrap_interval(score_P)
    assert interval is not None
    stderr = score_P.std() / math.sqrt(len(score_P))  # of the resampled: divisor P
    low, high = (score_P.mean() + sign * 1.96 * stderr for sign in (-1, 1))
    assert interval == pytest.approx((low, high), abs=0.1 * stderr)  # 10,000 draws: 3% of it


def test_weights_count_as_copies():
    """A problem of weight 0 is never there."""
    score_P, weight_P = np.array([0.2, 0.9, 0.4, 0.7]), np.array([1.0, 0.0, 1.0, 1.0])
    interval = bootstrap_interval(score_P, weight_P)
    assert interval is not None and 0.2 <= interval[0] < interval[1] <= 0.7
    assert bootstrap_interval(score_P, np.ones(4)) == bootstrap_interval(score_P)
    assert bootstrap_interval(score_P, np.zeros(4)) is None
    assert bootstrap_interval(score_P[:1]) is None


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_problems_that_all_agree_say_nothing_of_others(score):
    """0 of 30 solved is no proof that none ever is: the interval would be 0% to 0%."""
    assert bootstrap_interval(np.full(30, score)) is None
    assert bootstrap_interval(np.array([score, score, 0.7]), np.array([1.0, 2.0, 0.0])) is None
    found = paired_difference(np.full(30, score), np.full(30, score))
    assert (found.value, found.interval) == (0.0, None)


def test_a_paired_difference_in_closed_form():
    first_P, second_P = np.array([0.0, 0.5, 1.0, 0.25]), np.array([0.5, 0.5, 1.0, 0.75])
    found = paired_difference(first_P, second_P)
    assert (found.value, found.problems) == (0.25, 4)
    assert found.stderr == pytest.approx(math.sqrt(0.25 / 3) / 2, abs=CLOSED_FORM_ATOL)
    spread = (first_P.var(ddof=1) + second_P.var(ddof=1)) / 4
    assert found.unpaired_stderr == pytest.approx(math.sqrt(spread), abs=CLOSED_FORM_ATOL)
    assert found.interval == bootstrap_interval(second_P - first_P)
    swapped = paired_difference(second_P, first_P)
    assert swapped.value == -found.value and swapped.stderr == found.stderr


def test_pairing_takes_out_what_problems_share():
    rng = np.random.default_rng(1)
    hard_P = rng.random(200)
    first_P, second_P = hard_P, hard_P + 0.05 + 0.01 * rng.standard_normal(200)
    found = paired_difference(first_P, second_P)
    assert found.stderr is not None and found.unpaired_stderr is not None
    assert found.stderr < 0.1 * found.unpaired_stderr


@pytest.mark.parametrize(("first", "second"), [([0.5], [0.5, 1.0]), ([], [])])
def test_other_problems_cannot_be_paired(first, second):
    with pytest.raises(ValueError, match="the same problems"):
        paired_difference(np.array(first), np.array(second))


def test_the_sampling_error_is_that_of_repeated_sampling():
    rng = np.random.default_rng(2)
    rate_P = np.array([0.1, 0.5, 0.9, 1.0])
    draws_SPR = rng.random((4000, 4, 6)) < rate_P[:, None]
    spread = draws_SPR.mean(axis=(1, 2)).std()
    errors = [sampling_error(x) for x in draws_SPR.astype(float)]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.05)
    assert sampling_error(np.array([[1.0], [0.0]])) is None


def test_gains_by_difficulty_of_known_problems():
    """Whose halves agree, so each problem is in one bin."""
    first_PR = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], float)
    second_PR = np.array([[1, 0], [1, 1], [0, 1], [1, 1]], float)
    found = gain_by_difficulty(first_PR, second_PR)
    assert [(g.bin, g.problems, g.gain) for g in found] == [(0, 1, 0.5), (4, 2, 0.25), (8, 1, 0)]


def test_two_samples_of_one_model_gain_nothing_anywhere():
    """Sorted by the very responses that measure, bin 0 would gain about 0.1 here."""
    rng = np.random.default_rng(3)
    rate_P = rng.random(4000)
    first_PR, second_PR = (
        (rng.random((4000, 8)) < rate_P[:, None]).astype(float) for _ in range(2)
    )
    for gain in gain_by_difficulty(first_PR, second_PR):
        assert gain.interval is not None
        assert abs(gain.gain) < 0.03
        assert gain.interval[0] < gain.gain < gain.interval[1]
    total = sum(g.problems * g.gain for g in gain_by_difficulty(first_PR, second_PR)) / 4000
    assert total == pytest.approx((second_PR - first_PR).mean(), abs=CLOSED_FORM_ATOL)


def test_a_model_that_keeps_its_seeds_gains_nothing_over_itself():
    """Equal noise in the half that sorts must not count: these gains would be -0.2 to +0.2."""
    first_PR = (np.random.default_rng(4).random((50, 4)) < 0.5).astype(float)
    assert {gain.gain for gain in gain_by_difficulty(first_PR, first_PR)} == {0.0}


def test_one_response_cannot_both_sort_and_measure():
    with pytest.raises(ValueError, match=r"at least 2 responses to each; set evaluate.n"):
        gain_by_difficulty(np.ones((3, 1)), np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"at least 2 responses to each; set evaluate.n"):
        gain_by_difficulty(np.ones((3, 2)), np.ones((3, 1)))


def test_the_level_is_that_of_the_text():
    assert LEVEL == 0.95


def test_of_many_problems_fewer_resamples_are_drawn():
    """53,000 problems would take 2 GB at 10,000 resamples; the interval is the normal one."""
    score_P = np.arange(20_000) % 2
    low, high = bootstrap_interval(score_P)
    half = 1.96 * 0.5 / math.sqrt(len(score_P))
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.1 * half)
    assert _resamples(20_000).shape == (1_000, 20_000)
    assert _resamples(2_000).shape == (DRAWS, 2_000)
