"""Scores of sampled responses: avg@k, unbiased pass@k, and accuracy by token budget and length."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from polaris_jax.records import require_rewards


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score and its standard error.

    Attributes:
        value: the score, a mean over problems, in [0, 1].
        stderr: standard error of `value`: the problems' sample deviation / sqrt(P). None if P is 1.
        problems: number of problems, P.
    """

    value: float
    stderr: float | None
    problems: int


def _over_problems(score_P: np.ndarray) -> Estimate:
    problems = len(score_P)
    stderr = float(score_P.std(ddof=1) / math.sqrt(problems)) if problems > 1 else None
    return Estimate(value=float(score_P.mean()), stderr=stderr, problems=problems)


def checked_rewards(reward_PR: np.ndarray) -> np.ndarray:
    """The rewards as float64.

    Raises:
        ValueError: there is no problem or no response, or a reward is outside [0, 1].
    """
    reward_PR = np.asarray(reward_PR, np.float64)
    if reward_PR.ndim != 2 or 0 in reward_PR.shape:
        raise ValueError(
            f"reward_PR of shape {reward_PR.shape}: expected [problems, responses], none of them 0"
        )
    require_rewards(reward_PR)
    return reward_PR


def avg_at_k(reward_PR: np.ndarray) -> Estimate:
    """Mean reward over problems and their k = R responses.

    Args:
        reward_PR: rewards in [0, 1].

    Returns:
        The mean and its standard error. The error is computed from one score a problem, the mean of
        the problem's R rewards.

    Raises:
        ValueError: there is no problem or no response, or a reward is outside [0, 1].
    """
    return _over_problems(checked_rewards(reward_PR).mean(axis=1))


def pass_at_k(reward_PR: np.ndarray, k: int) -> Estimate:
    """Chance that at least one of k responses is right, averaged over problems.

    Unbiased for any k up to R: 1 - C(n - c, k) / C(n, k) with n = R responses of which c are right.

    Args:
        reward_PR: rewards in [0, 1]; a response is right when its reward is above 0.5.
        k: number of responses that are tried, from 1 to R.

    Raises:
        ValueError: k is below 1 or above R, or `avg_at_k` refuses the rewards.

    Source: Chen et al. 2021 (arXiv:2107.03374), section 2.1.
    """
    return _over_problems(pass_scores(reward_PR, k))


def pass_scores(reward_PR: np.ndarray, k: int) -> np.ndarray:
    """`pass_at_k` of each problem, float64 [P]; arguments and errors are its own."""
    reward_PR = checked_rewards(reward_PR)
    n = reward_PR.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: pass@k needs 1 <= k <= {n}, the responses of a problem")
    right_P = (reward_PR > 0.5).sum(axis=1)
    # Exact integers: a product of floats loses digits at n in the hundreds.
    all_wrong = [math.comb(n - int(right), k) / math.comb(n, k) for right in right_P]
    return 1.0 - np.array(all_wrong)


@dataclasses.dataclass(frozen=True)
class BudgetPoint:
    """The score at one token budget.

    Attributes:
        budget: largest response length in tokens.
        accuracy: avg@k if every response is cut at the budget, in [0, 1].
        stderr: standard error of `accuracy` over problems; None for one problem.
        cut_share: share of responses that are longer than the budget, in [0, 1].
    """

    budget: int
    accuracy: float
    stderr: float | None
    cut_share: float


def default_budgets(max_response_tokens: int) -> tuple[int, ...]:
    """The six largest powers of two below `max_response_tokens`, ascending, and that number itself.

    Raises:
        ValueError: `max_response_tokens` is below 1.
    """
    if max_response_tokens < 1:
        raise ValueError(f"max_response_tokens={max_response_tokens}: must be at least 1")
    powers = [1 << i for i in range((max_response_tokens - 1).bit_length())]
    return (*powers[-6:], max_response_tokens)


def budget_curve(
    length_PR: np.ndarray,
    reward_PR: np.ndarray,
    *,
    budgets: Sequence[int],
    regrade: Callable[[int, int, int], float] | None = None,
) -> list[BudgetPoint]:
    """avg@k at each budget, as if sampling had stopped there.

    A response within the budget keeps its reward, so the score at the full budget equals avg@k of
    the complete responses. A longer response is cut at the budget. Its reward is then 0, unless
    `regrade` is given: the first `budget` tokens may already contain the answer.

    Args:
        length_PR: response lengths in tokens, stop token included.
        reward_PR: rewards in [0, 1], of the same shape.
        budgets: token budgets, each at least 1, in any order.
        regrade: function of (problem index, response index, budget) that returns the reward of the
            response's first `budget` tokens, in [0, 1]. None: a response that is cut scores 0.

    Returns:
        One point for each budget, in the order of `budgets`.

    Raises:
        ValueError: the shapes differ, a budget is below 1, or `avg_at_k` refuses the rewards.
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


BLOG_EDGES = (16 * 1024, 32 * 1024)  # tokens; the borders of the POLARIS blog's length groups


@dataclasses.dataclass(frozen=True)
class LengthGroup:
    """Responses whose lengths lie between two edges.

    Attributes:
        name: e.g. `<16K`, `16K-32K`, `>32K`.
        responses: number of responses in the group.
        share: fraction of all responses that are in the group, in [0, 1].
        accuracy: mean reward of the group; None if the group is empty.
    """

    name: str
    responses: int
    share: float
    accuracy: float | None


def length_groups(
    length_PR: np.ndarray, reward_PR: np.ndarray, *, edges: Sequence[int] = BLOG_EDGES
) -> list[LengthGroup]:
    """Accuracy of short, medium and long responses, the group of the shortest first.

    Args:
        length_PR: response lengths in tokens.
        reward_PR: rewards in [0, 1], of the same shape.
        edges: ascending lengths in tokens between the groups. With 16K and 32K the groups are
            `<16K`, `16K-32K` (both edges included) and `>32K`; with one edge E they are `<=E` and
            `>E`; with more, an inner edge belongs to the group above it.

    Raises:
        ValueError: the shapes differ, there is no response or no edge, or the edges do not ascend.

    Source: POLARIS blog, length groups of the evaluation with and without YaRN.
    """
    length_PR, reward_PR = np.asarray(length_PR), np.asarray(reward_PR, np.float64)
    if length_PR.shape != reward_PR.shape or not length_PR.size:
        raise ValueError(
            f"length_PR {length_PR.shape} and reward_PR {reward_PR.shape} must be of one shape and "
            "not empty"
        )
    if not edges or any(low >= high for low, high in itertools.pairwise(edges)):
        raise ValueError(f"evaluate.length_edges={tuple(edges)}: must ascend, at least one")
    group_PR = length_group_of(length_PR, edges)
    groups = []
    for index, name in enumerate(_names(edges)):
        inside_PR = group_PR == index
        count = int(inside_PR.sum())
        groups.append(
            LengthGroup(
                name=name,
                responses=count,
                share=count / length_PR.size,
                accuracy=float(reward_PR[inside_PR].mean()) if count else None,
            )
        )
    return groups


def length_group_of(length_PR: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    """The index of each response's group in `length_groups`, int [P, R]."""
    group_PR = np.searchsorted(np.asarray(edges[:-1]), length_PR, side="right")
    return group_PR + (length_PR > edges[-1])


def _names(edges: Sequence[int]) -> list[str]:
    short = [f"{edge // 1024}K" if edge % 1024 == 0 else str(edge) for edge in edges]
    first = f"<{short[0]}" if len(edges) > 1 else f"<={short[0]}"
    middle = [f"{low}-{high}" for low, high in itertools.pairwise(short)]
    return [first, *middle, f">{short[-1]}"]
