"""avg@k and pass@k against closed forms, by counting subsets, and by their spread."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.evaluate.estimators import avg_at_k, pass_at_k
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
