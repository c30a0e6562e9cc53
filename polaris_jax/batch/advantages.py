"""Group-relative advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Scale = Literal["std", "off"]
Baseline = Literal["mean", "leave_one_out"]


def group_advantages(
    reward_PR: np.ndarray | Sequence[Sequence[float]],
    *,
    scale: Scale = "std",
    baseline: Baseline = "mean",
    eps: float = 1e-6,
) -> np.ndarray:
    """Each response's reward, centred (and scaled) within its prompt's group.

    Args:
        reward_PR: terminal rewards in [0, 1]; R >= 2.
        scale: "std" divides by the group's standard deviation + eps; "off" keeps reward units.
        baseline: "mean" of the group, or "leave_one_out": the mean of the other R - 1 rewards.
        eps: added to the standard deviation, in reward units, at least 0.

    Returns:
        float32 [P, R]; exact zeros where a group's rewards agree.

    Raises:
        ValueError: rewards are not two-dimensional or not finite, R < 2, an option is unknown, or
            `eps` is negative or not finite.

    Source: GRPO, Shao et al. 2024 (arXiv:2402.03300), outcome supervision; "off" is Dr. GRPO, Liu
        et al. 2025 (arXiv:2503.20783); leave-one-out is RLOO, Ahmadian et al. 2024
        (arXiv:2402.14740). Differs: unbiased standard deviation (ddof 1), as the original's code.
    """
    reward_PR = np.asarray(reward_PR, np.float64)
    if reward_PR.ndim != 2 or reward_PR.shape[1] < 2:
        raise ValueError(
            f"reward_PR has shape {reward_PR.shape}: expected [P, R] with R >= 2; "
            "a group baseline needs at least 2 responses"
        )
    if not np.isfinite(reward_PR).all():
        raise ValueError("reward_PR holds a value that is not finite: grade every row first")
    if scale not in ("std", "off"):
        raise ValueError(f"scale={scale!r}: expected std or off")
    if baseline not in ("mean", "leave_one_out"):
        raise ValueError(f"baseline={baseline!r}: expected mean or leave_one_out")
    if not 0 <= eps < math.inf:
        raise ValueError(
            f"eps={eps}: it keeps the divisor above 0, so it is finite and not negative; leave it "
            "at 1e-6"
        )
    responses = reward_PR.shape[1]
    baseline_PR = reward_PR.mean(axis=1, keepdims=True)
    if baseline == "leave_one_out":
        baseline_PR = (reward_PR.sum(axis=1, keepdims=True) - reward_PR) / (responses - 1)
    advantage_PR = reward_PR - baseline_PR
    if scale == "std":
        with np.errstate(invalid="ignore", divide="ignore"):  # eps=0: 0 / 0 if a group agrees
            advantage_PR = advantage_PR / (reward_PR.std(axis=1, ddof=1, keepdims=True) + eps)
    if len(reward_PR):
        # The mean of equal numbers need not be that number: 0.1 eight times leaves 1e-17 / eps.
        agree_P = reward_PR.max(axis=1) == reward_PR.min(axis=1)
        advantage_PR = np.where(agree_P[:, None], 0.0, advantage_PR)
    return advantage_PR.astype(np.float32)
