"""Candidates, their measurement, and the choice at a stage's end."""

import copy

import numpy as np
import pytest

from polaris_jax.explore import (
    Candidate,
    candidate_temperatures,
    measure_candidate,
    next_temperature,
)


def curve(*points):
    return [Candidate(*point) for point in points]


BASE = curve(
    (1.0, 0.60, 0.30), (1.05, 0.60, 0.34), (1.1, 0.59, 0.38), (1.15, 0.56, 0.42), (1.2, 0.2, 0.7)
)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param(0.33, 1.05, id="lowest-that-reaches"),
        pytest.param(0.38, 1.1, id="equal-reaches"),
        pytest.param(0.41, 1.15, id="in-the-cez-is-fine"),
        pytest.param(0.60, 1.15, id="none-but-collapse-reaches"),
        pytest.param(0.90, 1.15, id="none-reaches"),
        pytest.param(0.10, 1.05, id="never-stays-when-one-above-will-do"),
    ],
)
def test_lowest_candidate_that_reaches_the_target(target, expected):
    before = copy.deepcopy(BASE)
    for candidates in (BASE, BASE[::-1], tuple(BASE)):
        decision = next_temperature(candidates, current=1.0, target_diversity=target)
        assert decision.temperature == expected
        assert decision.reason
    assert before == BASE


def test_current_is_not_a_choice_though_it_reaches_the_target():
    candidates = curve((1.0, 0.6, 0.9), (1.1, 0.6, 0.5), (1.2, 0.6, 0.8))
    assert next_temperature(candidates, current=1.0, target_diversity=0.7).temperature == 1.2


@pytest.mark.parametrize(
    "candidates",
    [
        pytest.param(curve((1.0, 0.6, 0.3), (1.05, 0.2, 0.8), (1.1, 0.1, 0.9)), id="three"),
        pytest.param(curve((1.0, 0.6, 0.3), (1.05, 0.4, 0.8)), id="two"),
        pytest.param(curve((1.0, 0.6, 0.3)), id="only-current"),
        pytest.param([], id="none"),
    ],
)
def test_stays_when_everything_above_collapses(candidates):
    decision = next_temperature(candidates, current=1.0, target_diversity=0.5)
    assert decision.temperature == 1.0
    assert "stays" in decision.reason


def test_stays_where_no_response_was_long_enough_for_a_4_gram():
    candidates = curve((1.0, 0.6, 0.0), (1.05, 0.6, 0.0), (1.1, 0.6, 0.01))
    decision = next_temperature(candidates, current=1.0, target_diversity=0.0)
    assert decision.temperature == 1.0
    assert "target diversity is 0" in decision.reason
    assert len(decision.table) == 3


def test_stays_where_there_is_no_right_answer():
    candidates = curve((1.0, 0.0, 0.3), (1.05, 0.0, 0.8))
    decision = next_temperature(candidates, current=1.0, target_diversity=0.5)
    assert decision.temperature == 1.0
    assert "no right answer" in decision.reason


def test_cold_candidate_is_not_collapse():
    candidates = curve((0.5, 0.3, 0.1), (0.6, 0.45, 0.3), (0.7, 0.6, 0.4), (0.8, 0.6, 0.5))
    assert next_temperature(candidates, current=0.5, target_diversity=0.3).temperature == 0.6


def test_standard_error_keeps_a_noisy_candidate():
    exact = curve((1.0, 0.6, 0.3), (1.05, 0.45, 0.6))
    noisy = curve((1.0, 0.6, 0.3, 0.2), (1.05, 0.45, 0.6, 0.2))
    assert next_temperature(exact, current=1.0, target_diversity=0.5).temperature == 1.0
    assert next_temperature(noisy, current=1.0, target_diversity=0.5).temperature == 1.05


def test_a_further_collapsed_candidate_makes_no_collapsed_one_usable():
    falling = curve((1.0, 0.70, 0.30), (1.05, 0.58, 0.45), (1.1, 0.50, 0.60))
    for known in (falling[:2], falling):
        decision = next_temperature(known, current=1.0, target_diversity=0.4)
        assert decision.temperature == 1.0
        assert [row["zone"] for row in decision.table][:2] == ["rgz", "pcz"]


def test_table_holds_every_candidate_with_its_zone():
    decision = next_temperature(BASE[::-1], current=1.0, target_diversity=0.33)
    assert [row["temperature"] for row in decision.table] == [1.0, 1.05, 1.1, 1.15, 1.2]
    assert [row["zone"] for row in decision.table] == ["rgz", "rgz", "rgz", "cez", "pcz"]


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        pytest.param(curve((1.1, 0.5, 0.5), (1.1, 0.5, 0.5)), "once", id="repeated"),
        pytest.param(curve((1.1, float("nan"), 0.5)), "accuracy", id="nan"),
    ],
)
def test_clear_refusals(candidates, message):
    with pytest.raises(ValueError, match=message):
        next_temperature(candidates, current=1.0, target_diversity=0.5)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        pytest.param(1.0, 0.91, (1.05, 1.1, 1.15), id="slight-fall"),
        pytest.param(1.0, 0.9, (1.1, 1.2, 1.3), id="exactly-a-tenth"),
        pytest.param(0.3, 0.27, (1.1, 1.2, 1.3), id="exactly-a-tenth-in-binary"),
        pytest.param(1.0, 0.2, (1.1, 1.2, 1.3), id="large-fall"),
        pytest.param(1.0, 1.5, (1.05, 1.1, 1.15), id="rise"),
        pytest.param(None, 0.5, (1.05, 1.1, 1.15), id="unknown"),
        pytest.param(0.0, 0.0, (1.05, 1.1, 1.15), id="zero"),
    ],
)
def test_interval_follows_the_fall_of_entropy(first, last, expected):
    assert candidate_temperatures(1.0, first, last, 3) == expected


def test_candidates_need_a_count():
    with pytest.raises(ValueError, match="max_candidates=0"):
        candidate_temperatures(1.0, None, None, 0)


def test_measured_candidate_counts_noise_inside_problems_only():
    rng = np.random.default_rng(0)
    solve_P = np.array([0.0, 1.0, 0.5, 0.8])
    reward_NPR = rng.random((4_000, 4, 8)) < solve_P[:, None]
    texts = [["a b c d"] * 8] * 4
    measured = [measure_candidate(1.2, texts, reward_PR) for reward_PR in reward_NPR[:400]]
    spread = reward_NPR.mean(axis=(1, 2)).std()
    assert measured[0].diversity == 1 / 8
    assert measured[0].accuracy == reward_NPR[0].mean()
    assert np.mean([m.stderr**2 for m in measured]) == pytest.approx(spread**2, rel=0.1)


def test_single_responses_measure_noise_between_problems():
    rewards = np.array([[1.0], [0.0], [1.0], [0.0]])
    assert measure_candidate(1.0, [["a"]] * 4, rewards).stderr == pytest.approx(
        rewards.std(ddof=1) / 2
    )
    assert measure_candidate(1.0, [["a"]], rewards[:1]).stderr == 0.0


def test_reset_on_a_policy_whose_entropy_falls():
    """A policy over 12 words a slot; training scales its logits, which heat undoes exactly."""
    words = np.array(list("abcdefghijkl"))
    logit_TV = np.random.default_rng(7).normal(size=(10, len(words))) * 5

    def rollouts(sharpness, temperature, seed):
        rng = np.random.default_rng(seed)
        weight_TV = np.exp(logit_TV * sharpness / temperature)
        p_TV = weight_TV / weight_TV.sum(axis=1, keepdims=True)
        groups = [
            [" ".join(words[rng.choice(len(words), p=p_V)] for p_V in p_TV) for _ in range(8)]
            for _ in range(48)
        ]
        entropy = float(-(p_TV * np.log(p_TV)).sum(axis=1).mean())
        accuracy = 0.6 if temperature / sharpness <= 1.35 else 0.1
        reward_PR = (np.arange(48 * 8).reshape(48, 8) % 100 < accuracy * 100).astype(float)
        return groups, reward_PR, entropy

    current = 1.0
    start = rollouts(1.0, current, seed=0)
    target = measure_candidate(current, start[0], start[1]).diversity
    for sharpness, known in ((1.2, 1.2), (1.3, 1.3)):
        end = rollouts(sharpness, current, seed=0)
        assert end[2] < start[2]
        grid = (current, *candidate_temperatures(current, start[2], end[2], 5))
        measured = [measure_candidate(t, *rollouts(sharpness, t, seed=0)[:2]) for t in grid]
        decision = next_temperature(measured, current=current, target_diversity=target)
        assert decision.temperature == known
