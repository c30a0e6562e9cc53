"""Group advantages by hand and by property."""

import numpy as np
import pytest

from polaris_jax.batch import group_advantages
from tests.tolerances import ADVANTAGE_ATOL


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, [0.75 / 0.5, -0.25 / 0.5], id="unbiased-deviation"),
        pytest.param({"scale": "off"}, [0.75, -0.25], id="dr-grpo"),
        pytest.param({"scale": "off", "baseline": "leave_one_out"}, [1.0, -1 / 3], id="rloo"),
        pytest.param({"baseline": "leave_one_out"}, [1.0 / 0.5, -1 / 3 / 0.5], id="rloo-scaled"),
        pytest.param({"eps": 0.5}, [0.75, -0.25], id="eps-joins-the-deviation"),
    ],
)
def test_one_right_of_four(options, expected):
    advantage_PR = group_advantages([[0, 1, 0, 0]], **{"eps": 0.0, **options})
    right, wrong = expected
    np.testing.assert_allclose(
        advantage_PR, [[wrong, right, wrong, wrong]], rtol=0, atol=ADVANTAGE_ATOL
    )
    assert advantage_PR.dtype == np.float32


@pytest.mark.parametrize("scale", ["std", "off"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_give_exact_zeros(scale, baseline, reward):
    advantage_PR = group_advantages(np.full((2, 7), reward), scale=scale, baseline=baseline)
    np.testing.assert_array_equal(advantage_PR, np.zeros((2, 7)))


def test_groups_do_not_see_one_another():
    rng = np.random.default_rng(0)
    reward_PR = rng.integers(0, 2, (6, 8)).astype(np.float32)
    together = group_advantages(reward_PR)
    for p in range(6):
        np.testing.assert_array_equal(together[p : p + 1], group_advantages(reward_PR[p : p + 1]))


def test_zero_mean_unit_deviation_and_leave_one_out_is_a_multiple():
    reward_PR = np.array([[0, 1, 1, 0, 0, 0, 0, 1]], np.float32)
    advantage_PR = group_advantages(reward_PR).astype(np.float64)
    assert abs(advantage_PR.sum()) < 8 * ADVANTAGE_ATOL
    assert advantage_PR.std(ddof=1) == pytest.approx(1.0, abs=1e-5)  # eps is 1e-6 of about 0.5
    np.testing.assert_allclose(
        group_advantages(reward_PR, scale="off", baseline="leave_one_out"),
        group_advantages(reward_PR, scale="off") * 8 / 7,
        rtol=0,
        atol=ADVANTAGE_ATOL,
    )


def test_input_is_not_changed_and_no_group_is_fine():
    reward_PR = np.array([[0.0, 1.0]])
    group_advantages(reward_PR)
    np.testing.assert_array_equal(reward_PR, [[0.0, 1.0]])
    assert group_advantages(np.zeros((0, 4))).shape == (0, 4)


def test_without_eps_groups_that_agree_still_get_zeros():
    advantage_PR = group_advantages(np.array([[0.0, 1.0], [1.0, 1.0]]), eps=0.0)
    np.testing.assert_allclose(
        advantage_PR, [[-(0.5**0.5), 0.5**0.5], [0.0, 0.0]], atol=ADVANTAGE_ATOL
    )


@pytest.mark.parametrize(
    ("reward_PR", "options", "message"),
    [
        pytest.param([[1.0]], {}, "at least 2 responses", id="one-response"),
        pytest.param([1.0, 0.0], {}, "P, R", id="one-axis"),
        pytest.param([[1.0, np.nan]], {}, "not finite", id="nan"),
        pytest.param([[1.0, 0.0]], {"scale": "mad"}, "scale='mad'", id="scale"),
        pytest.param([[1.0, 0.0]], {"baseline": "best"}, "baseline='best'", id="baseline"),
        pytest.param([[1.0, 0.0]], {"eps": -1.0}, "eps=-1.0: .*not negative", id="negative-eps"),
        pytest.param([[1.0, 0.0]], {"eps": np.nan}, "eps=nan", id="nan-eps"),
    ],
)
def test_clear_refusals(reward_PR, options, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(np.array(reward_PR), **options)
