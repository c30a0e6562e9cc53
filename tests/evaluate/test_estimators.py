"""avg@k and pass@k against closed forms, by counting subsets, and by their spread."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.evaluate.estimators import (
    avg_at_k,
    budget_curve,
    default_budgets,
    length_groups,
    pass_at_k,
)
from tests.tolerances import CLOSED_FORM_ATOL

GRADES = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32 - 1)).map(
    lambda a: np.random.default_rng(a[2]).integers(0, 2, a[:2]).astype(np.float32)
)


@settings(max_examples=60, deadline=None)
@given(GRADES)
def test_avg_at_k_is_the_mean_over_everything(reward_PR):
    estimate = avg_at_k(reward_PR)
    scores = [sum(row) / len(row) for row in reward_PR.tolist()]
    mean = sum(scores) / len(scores)
    assert estimate.value == pytest.approx(mean, abs=CLOSED_FORM_ATOL)
    assert estimate.problems == len(scores)
    if len(scores) == 1:
        assert estimate.stderr is None
    else:
        variance = sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)
        expected = (variance / len(scores)) ** 0.5
        assert estimate.stderr == pytest.approx(expected, abs=CLOSED_FORM_ATOL)


@settings(max_examples=60, deadline=None)
@given(GRADES, st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_response(reward_PR, data):
    k = data.draw(st.integers(1, reward_PR.shape[1]))
    shares = []
    for row in reward_PR:
        subsets = list(itertools.combinations(row, k))
        shares.append(sum(max(subset) > 0 for subset in subsets) / len(subsets))
    assert pass_at_k(reward_PR, k).value == pytest.approx(np.mean(shares), abs=CLOSED_FORM_ATOL)


@settings(max_examples=30, deadline=None)
@given(GRADES)
def test_pass_at_k_from_avg_to_any(reward_PR):
    R = reward_PR.shape[1]
    curve = [pass_at_k(reward_PR, k).value for k in range(1, R + 1)]
    assert curve[0] == pytest.approx(avg_at_k(reward_PR).value, abs=CLOSED_FORM_ATOL)
    assert curve[-1] == pytest.approx((reward_PR.max(axis=1) > 0).mean(), abs=CLOSED_FORM_ATOL)
    assert all(a <= b + CLOSED_FORM_ATOL for a, b in itertools.pairwise(curve))


def test_pass_at_k_is_unbiased():
    """Over draws of n = 6 responses its mean is 1 - (1 - p)^k, whatever n is."""
    p, k = 0.3, 4
    reward_PR = (np.random.default_rng(0).random((4000, 6)) < p).astype(np.float32)
    estimate = pass_at_k(reward_PR, k)
    assert estimate.stderr is not None
    assert abs(estimate.value - (1 - (1 - p) ** k)) < 4 * estimate.stderr
    assert 0 < estimate.stderr < 0.01


def test_pass_at_k_stays_exact_for_many_responses():
    reward_PR = np.zeros((1, 1000))
    reward_PR[0, 0] = 1
    assert pass_at_k(reward_PR, 500).value == 0.5


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=r"needs 1 <= k <= 3"):
        pass_at_k(np.zeros((2, 3)), k)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match="expected"):
        avg_at_k(np.zeros(shape))


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -0.5, 5.0])
@pytest.mark.parametrize("estimate", [avg_at_k, lambda reward_PR: pass_at_k(reward_PR, 1)])
def test_rewards_outside_0_to_1(estimate, reward):
    with pytest.raises(ValueError, match=rf"reward_PR\[0, 1\]={reward}: .*in \[0, 1\]"):
        estimate(np.array([[1.0, reward], [1.0, 0.0]]))


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


def test_the_blog_groups_at_their_edges():
    K = 1024
    length_PR = np.array([[1, 16 * K - 1, 16 * K], [32 * K, 32 * K + 1, 90_000]])
    reward_PR = np.array([[1, 0, 1], [0, 1, 1]], np.float32)
    groups = length_groups(length_PR, reward_PR)
    assert [(g.name, g.responses, g.accuracy) for g in groups] == [
        ("<16K", 2, 0.5),
        ("16K-32K", 2, 0.5),
        (">32K", 2, 1.0),
    ]


def test_empty_group_has_no_accuracy():
    first, last = length_groups(np.array([[5, 10]]), np.array([[0.0, 1.0]]), edges=(10,))
    assert (first.name, first.responses, first.accuracy) == ("<=10", 2, 0.5)
    assert (last.name, last.responses, last.accuracy) == (">10", 0, None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5, unique=True), st.integers(0, 9999))
def test_groups_part_the_responses_and_average_to_the_score(edges, seed):
    rng = np.random.default_rng(seed)
    length_PR = rng.integers(1, 60, (7, 4))
    reward_PR = rng.integers(0, 2, (7, 4)).astype(np.float32)
    groups = length_groups(length_PR, reward_PR, edges=sorted(edges))
    assert len(groups) == len(edges) + 1
    assert sum(g.responses for g in groups) == 28
    total = sum(g.share * g.accuracy for g in groups if g.accuracy is not None)
    assert total == pytest.approx(reward_PR.mean(), abs=CLOSED_FORM_ATOL)


@pytest.mark.parametrize("edges", [(), (2, 1), (1, 1)])
def test_bad_edges(edges):
    with pytest.raises(ValueError, match="length_edges"):
        length_groups(np.ones((1, 1)), np.ones((1, 1)), edges=edges)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        length_groups(np.ones((1, 2)), np.ones((2, 1)))
