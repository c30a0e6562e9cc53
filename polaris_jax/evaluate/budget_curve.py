"""Accuracy against the token budget, from one set of rollouts cut at each budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from polaris_jax.evaluate.estimators import avg_at_k


@dataclasses.dataclass(frozen=True)
class BudgetPoint:
    """The score at one budget.

    Attributes:
        budget: response tokens allowed.
        accuracy: avg@k of the cut rollouts.
        stderr: its standard error over problems; None for one problem.
        cut_share: share of responses that the budget cut, in [0, 1].
    """

    budget: int
    accuracy: float
    stderr: float | None
    cut_share: float


def default_budgets(max_response_tokens: int, *, points: int = 7) -> tuple[int, ...]:
    """Powers of two below the full budget, at most `points - 1` of them, and the full budget."""
    if max_response_tokens < 1:
        raise ValueError(f"max_response_tokens={max_response_tokens}: must be at least 1")
    powers = [1 << i for i in range((max_response_tokens - 1).bit_length())]
    return (*powers[max(0, len(powers) - points + 1) :], max_response_tokens)


def budget_curve(
    length_PR: np.ndarray,
    reward_PR: np.ndarray,
    *,
    budgets: Sequence[int],
    regrade: Callable[[int, int, int], float] | None = None,
) -> list[BudgetPoint]:
    """avg@k at each budget, as if sampling had stopped there.

    A response that is longer than the budget is cut and counts as wrong, one that fits keeps its
    reward; so at the full budget the score is the plain one. What was cut may have held its answer
    already: `regrade` then grades the prefix.

    Args:
        length_PR: response lengths in tokens, stop token included.
        reward_PR: rewards in [0, 1], of the same shape.
        budgets: token budgets, each at least 1, in any order.
        regrade: (problem index, response index, budget) -> reward of the first `budget` tokens.

    Raises:
        ValueError: shapes differ, or a budget below 1.
    """
    length_PR, reward_PR = np.asarray(length_PR), np.asarray(reward_PR, np.float64)
    if length_PR.shape != reward_PR.shape:
        raise ValueError(
            f"length_PR {length_PR.shape} and reward_PR {reward_PR.shape} must be of one shape"
        )
    points = []
    for budget in budgets:
        if budget < 1:
            raise ValueError(f"evaluate.budgets: {budget} is no budget; each must be at least 1")
        cut_PR = length_PR > budget
        score_PR = np.where(cut_PR, 0.0, reward_PR)
        if regrade is not None:
            for p, r in np.argwhere(cut_PR):
                score_PR[p, r] = regrade(int(p), int(r), budget)
        estimate = avg_at_k(score_PR)
        points.append(BudgetPoint(budget, estimate.value, estimate.stderr, float(cut_PR.mean())))
    return points
