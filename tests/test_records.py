"""The records hold what they say, or are not made."""

import numpy as np
import pytest

from polaris_jax.records import Graded


def graded(**fields):
    """Two problems of two responses, with `fields` in place of these."""
    return Graded(
        **{
            "problem_ids": ["a", "b"],
            "prompts": [(1,)] * 2,
            "golds": ["1"] * 2,
            "token_ids": [[(2,)] * 2] * 2,
            "logprobs": [[(-1.0,)] * 2] * 2,
            "texts": [["x"] * 2] * 2,
            "finish_reasons": [["stop"] * 2] * 2,
            "reward_PR": np.array([[0.0, 1.0], [0.0, 1.0]]),
        }
        | fields
    )


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -1.0, 2.0])
def test_a_reward_outside_0_to_1_is_refused_with_its_problem(reward):
    reward_PR = np.array([[0.0, 1.0], [0.0, reward]])
    message = r"reward_PR\[1, 1\]=(nan|inf|-1.0|2.0) \(problem 'b'\): .*finite, in \[0, 1\]"
    with pytest.raises(ValueError, match=message):
        graded(reward_PR=reward_PR)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward_PR": np.zeros((2, 3))}, r"groups of \[2, 2\] responses, .* shape \(2, 3\)"),
        ({"reward_PR": np.zeros((3, 2))}, r"shape \(3, 2\) for 2 problem ids"),
        ({"reward_PR": np.zeros(2)}, r"shape \(2,\) for 2 problem ids"),
        ({"golds": ["1"]}, "golds holds 1 of 2 prompts"),
        ({"texts": [["x"] * 2, ["x"]]}, r"texts holds groups of \[2, 1\]"),
        ({"versions": [[()] * 2]}, r"versions holds groups of \[2\]"),
        ({"parts": [[{}] * 2, [{}]]}, r"parts holds groups of \[2, 1\]"),
        ({"rescued_PR": np.zeros((2, 1), bool)}, r"rescued_PR has shape \(2, 1\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_fields_of_other_sizes_than_the_rewards_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        graded(**fields)


@pytest.mark.parametrize("correct_at", [0.1, 0.3, 0.7, 0.9, 1.0])
def test_a_reward_of_exactly_correct_at_counts_as_correct(correct_at):
    """0.7 in float32, as rewards are kept, is less than the double 0.7."""
    reward_PR = np.array([[correct_at, correct_at - 1e-3], [0.0, 1.0]], np.float32)
    record = graded(reward_PR=reward_PR, correct_at=correct_at)
    assert record.correct_PR.tolist() == [[True, False], [False, True]]
    assert graded(reward_PR=reward_PR).correct_PR.sum() == 1 + (correct_at == 1.0)
