"""Rewards of responses: reward functions, equality of answers, and a pool of killable workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polaris_jax.reward.math.equivalence import answers_match
from polaris_jax.reward.protocol import RewardInput, math_reward, score_response

if TYPE_CHECKING:
    from polaris_jax.reward.grader import Grader

__all__ = ["Grader", "RewardInput", "answers_match", "math_reward", "score_response"]


def __getattr__(name: str) -> Any:
    # Late, so that a worker process, which imports this package, does without numpy.
    if name == "Grader":
        from polaris_jax.reward.grader import Grader

        return Grader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
