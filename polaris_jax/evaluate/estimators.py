"""avg@k and unbiased pass@k with standard errors over problems."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from polaris_jax.records import require_rewards


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score and how far it may be off.

    Attributes:
        value: in [0, 1].
        stderr: standard error over problems (their spread / sqrt(P)); None for one problem.
        problems: P.
    """

    value: float
    stderr: float | None
    problems: int


def _over_problems(score_P: np.ndarray) -> Estimate:
    problems = len(score_P)
    stderr = float(score_P.std(ddof=1) / math.sqrt(problems)) if problems > 1 else None
    return Estimate(value=float(score_P.mean()), stderr=stderr, problems=problems)


def _checked(reward_PR: np.ndarray) -> np.ndarray:
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
        The mean; its standard error takes problems as the sample, responses as part of each score.

    Raises:
        ValueError: no problem or no response, or a reward outside [0, 1].
    """
    return _over_problems(_checked(reward_PR).mean(axis=1))


def pass_at_k(reward_PR: np.ndarray, k: int) -> Estimate:
    """Chance that at least one of k responses is right, averaged over problems.

    Unbiased for any k up to R: 1 - C(n - c, k) / C(n, k) with n = R responses of which c are right.

    Args:
        reward_PR: rewards in [0, 1]; a response is right when its reward is above 0.5.
        k: responses that one may try.

    Raises:
        ValueError: k below 1 or above R, or rewards that `avg_at_k` refuses.

    Source: Chen et al. 2021 (arXiv:2107.03374), section 2.1.
    """
    reward_PR = _checked(reward_PR)
    n = reward_PR.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: pass@k needs 1 <= k <= {n}, the responses of a problem")
    right_P = (reward_PR > 0.5).sum(axis=1)
    # Exact integers: a product of floats loses digits at n in the hundreds.
    all_wrong = [math.comb(n - int(right), k) / math.comb(n, k) for right in right_P]
    return _over_problems(1.0 - np.array(all_wrong))
