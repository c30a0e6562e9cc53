"""The budget curve ends at the plain score, and never falls where a cut response is wrong."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.evaluate.budget_curve import budget_curve, default_budgets
from polaris_jax.evaluate.estimators import avg_at_k


def rollouts(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 100, (6, 4)), rng.integers(0, 2, (6, 4)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999))
def test_against_truncation_by_hand(seed):
    length_PR, reward_PR = rollouts(seed)
    budgets = default_budgets(100)
    points = budget_curve(length_PR, reward_PR, budgets=budgets)
    for point, budget in zip(points, budgets, strict=True):
        fits = [
            [r if n <= budget else 0 for n, r in zip(*row, strict=True)]
            for row in zip(length_PR, reward_PR, strict=True)
        ]
        assert point.budget == budget
        assert point.accuracy == avg_at_k(np.array(fits)).value
        assert point.stderr == avg_at_k(np.array(fits)).stderr
        assert point.cut_share == (length_PR > budget).mean()
    assert points[-1].accuracy == avg_at_k(reward_PR).value
    assert points[-1].cut_share == 0
    assert all(a.accuracy <= b.accuracy for a, b in itertools.pairwise(points))


def test_regrade_sees_exactly_the_cut_responses():
    length_PR, reward_PR = rollouts(0)
    seen = []

    def regrade(p, r, budget):
        seen.append((p, r, budget))
        return 1.0

    (point,) = budget_curve(length_PR, reward_PR, budgets=[50], regrade=regrade)
    assert seen == [(p, r, 50) for p, r in np.argwhere(length_PR > 50).tolist()]
    assert point.accuracy == np.where(length_PR > 50, 1.0, reward_PR).mean()
    seen.clear()
    budget_curve(length_PR, reward_PR, budgets=[100], regrade=regrade)
    assert not seen


@pytest.mark.parametrize("full", [1, 2, 5, 64, 90_000])
def test_default_budgets_ascend_to_the_full_one(full):
    budgets = default_budgets(full)
    assert budgets[-1] == full
    assert len(budgets) <= 7
    assert list(budgets) == sorted(set(budgets))
    assert all(b & (b - 1) == 0 for b in budgets[:-1])


def test_bad_arguments():
    with pytest.raises(ValueError, match="0 is no budget"):
        budget_curve(np.ones((1, 1)), np.ones((1, 1)), budgets=[0])
    with pytest.raises(ValueError, match="one shape"):
        budget_curve(np.ones((1, 2)), np.ones((1, 1)), budgets=[1])
    with pytest.raises(ValueError, match="max_response_tokens=0"):
        default_budgets(0)
