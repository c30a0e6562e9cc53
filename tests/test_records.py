"""The records hold what they say, or are not made."""

import numpy as np
import pytest

from polaris_jax.records import Graded


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused_with_its_problem(reward):
    fields = {"prompts": [(1,)] * 2, "golds": ["1"] * 2, "logprobs": [[(-1.0,)] * 2] * 2}
    nested = {"token_ids": [[(2,)] * 2] * 2, "texts": [["x"] * 2] * 2}
    reward_PR = np.array([[0.0, 1.0], [0.0, reward]])
    with pytest.raises(ValueError, match=r"reward_PR\[1, 1\]=(nan|inf) \(problem 'b'\): .*finite"):
        Graded(
            problem_ids=["a", "b"],
            finish_reasons=[["stop"] * 2] * 2,
            reward_PR=reward_PR,
            **fields,
            **nested,
        )
