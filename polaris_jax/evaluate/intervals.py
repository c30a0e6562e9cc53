"""Intervals over problems, paired differences of two models, and gains by difficulty.

Problems are what an evaluation draws: its responses to one problem are alike, so every interval
here resamples problems, each with all of its responses. `sampling_error` alone takes the problems
as fixed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np

from polaris_jax.evaluate.estimators import checked_rewards

LEVEL = 0.95
DRAWS = 10_000
LEAST_DRAWS, DRAWN = 1_000, 20_000_000  # fewer draws of many problems: at most 40 MB up to 20,000
DIFFICULTY_BINS = 8
CHUNK = 1_000  # resamples at a time: at 675 problems 5 MB
_SEED = 20_250_620  # any; fixed, so that equal responses have equal intervals


@dataclasses.dataclass(frozen=True)
class Difference:
    """Second minus first on the problems that both have.

    Attributes:
        value: mean difference, in [-1, 1].
        stderr: standard error over problems of the paired differences; None for one problem.
        interval: 95% bootstrap interval (low, high); None as `bootstrap_interval` gives it.
        problems: number of common problems.
        unpaired_stderr: what the error would be if the problems were not the same; None for one
            problem.
    """

    value: float
    stderr: float | None
    interval: tuple[float, float] | None
    problems: int
    unpaired_stderr: float | None


@functools.lru_cache(maxsize=4)
def _resamples(problems: int) -> np.ndarray:
    """Indices int16 or int32 [S, P] of resampled problems, the same for every score."""
    kind = np.int16 if problems < 1 << 15 else np.int32
    draws = max(LEAST_DRAWS, min(DRAWS, DRAWN // problems))
    return np.random.default_rng(_SEED).integers(0, problems, (draws, problems), dtype=kind)


def bootstrap_interval(
    score_P: np.ndarray, weight_P: np.ndarray | None = None
) -> tuple[float, float] | None:
    """The 95% percentile interval of a mean over problems.

    All calls with as many problems draw the same resamples, so the intervals of pass@k at several
    k, and of several models, move together. 10,000 resamples; of more than 2,000 problems fewer, at
    least 1,000.

    Args:
        score_P: one score a problem, not empty.
        weight_P: weights, at least 0; the mean is sum(score * weight) / sum(weight). A resample
            without any weight is left out. None: all 1.

    Returns:
        (low, high). None for a single problem, if no resample has any weight, or if all scores
        agree: then all resamples do, whatever other problems would give.

    Source: Efron 1979, the percentile interval. On 30 problems it covers a little less than 95%.
    """
    score_P = np.asarray(score_P, np.float64)
    if len(score_P) < 2:
        return None
    weight_P = np.ones(len(score_P)) if weight_P is None else np.asarray(weight_P, np.float64)
    if len(np.unique(score_P[weight_P > 0])) < 2:
        return None
    at_SP = _resamples(len(score_P))
    means = []
    for first in range(0, len(at_SP), CHUNK):
        chunk_SP = at_SP[first : first + CHUNK]
        total_S = weight_P[chunk_SP].sum(axis=1)
        sum_S = (score_P * weight_P)[chunk_SP].sum(axis=1)
        means.append(sum_S[total_S > 0] / total_S[total_S > 0])
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_difference(first_P: np.ndarray, second_P: np.ndarray) -> Difference:
    """Second minus first, problem by problem.

    Args:
        first_P: one score a problem.
        second_P: the second model's scores of the same problems, in the same order.

    Raises:
        ValueError: there is no problem, or the numbers of problems differ.
    """
    first_P, second_P = np.asarray(first_P, np.float64), np.asarray(second_P, np.float64)
    if first_P.shape != second_P.shape or first_P.ndim != 1 or not first_P.size:
        raise ValueError(
            f"first_P {first_P.shape} and second_P {second_P.shape}: a paired difference needs the "
            "scores of the same problems, at least one; keep those that both have"
        )
    difference_P, problems = second_P - first_P, len(first_P)
    stderr = unpaired = None
    if problems > 1:
        stderr = float(difference_P.std(ddof=1) / math.sqrt(problems))
        unpaired = math.sqrt((first_P.var(ddof=1) + second_P.var(ddof=1)) / problems)
    return Difference(
        value=float(difference_P.mean()),
        stderr=stderr,
        interval=bootstrap_interval(difference_P),
        problems=problems,
        unpaired_stderr=unpaired,
    )


def sampling_error(reward_PR: np.ndarray) -> float | None:
    """Standard error of avg@k if the problems are fixed and the responses are sampled again.

    This is the error to compare two scores of one benchmark with, where `Estimate.stderr` is that
    of problems like these.

    Args:
        reward_PR: rewards in [0, 1].

    Returns:
        sqrt(sum over problems of s_p^2 / R) / P with s_p the sample deviation of a problem's
        rewards; None if R is 1.
    """
    reward_PR = checked_rewards(reward_PR)
    problems, responses = reward_PR.shape
    if responses < 2:
        return None
    return float(np.sqrt(reward_PR.var(axis=1, ddof=1).sum() / responses) / problems)


@dataclasses.dataclass(frozen=True)
class Gain:
    """The gain on problems of one difficulty.

    Attributes:
        bin: k of k/8: how many of 8 responses of the first model are right, rounded.
        problems: number of problems; one whose two halves differ counts half in each of two bins.
        gain: mean of second minus first, in [-1, 1].
        interval: 95% bootstrap interval over problems; None if it cannot be drawn.
    """

    bin: int
    problems: float
    gain: float
    interval: tuple[float, float] | None


def gain_by_difficulty(first_PR: np.ndarray, second_PR: np.ndarray) -> list[Gain]:
    """Second minus first by the first model's pass rate, k/8; bins without problems are left out.

    A problem is sorted by one half of the first model's responses, and its gain is measured on the
    other half of both models', both ways round. Sorting and measuring by the same responses would
    find gains on the hardest problems and losses on the easiest between two samples of one model:
    regression to the mean. The second model's sorting half is left out too, because equal seeds
    give both models the same noise in the same sample.

    Args:
        first_PR: rewards of the first model in [0, 1], at least 2 responses a problem. The halves
            are the even and the odd samples.
        second_PR: rewards of the second model on the same problems, likewise; R may differ.

    Raises:
        ValueError: the problems differ in number, a model has one response a problem, or the
            rewards are refused.
    """
    first_PR, second_PR = checked_rewards(first_PR), checked_rewards(second_PR)
    if len(first_PR) != len(second_PR) or min(first_PR.shape[1], second_PR.shape[1]) < 2:
        raise ValueError(
            f"first_PR {first_PR.shape}, second_PR {second_PR.shape}: gains by difficulty need the "
            "same problems, and at least 2 responses to each; set evaluate.n"
        )
    (first_even_P, first_odd_P), (even_P, odd_P) = (
        (x_PR[:, 0::2].mean(axis=1), x_PR[:, 1::2].mean(axis=1)) for x_PR in (first_PR, second_PR)
    )
    gains: Mapping[int, list[np.ndarray]] = {b: [] for b in range(DIFFICULTY_BINS + 1)}
    weights: Mapping[int, list[np.ndarray]] = {b: [] for b in range(DIFFICULTY_BINS + 1)}
    for sorts_P, gain_P in (
        (first_even_P, odd_P - first_odd_P),
        (first_odd_P, even_P - first_even_P),
    ):
        # Half up, as people round; numpy rounds halves to even.
        bin_P = np.floor(DIFFICULTY_BINS * sorts_P + 0.5).astype(int)
        for b in gains:
            gains[b].append(np.where(bin_P == b, gain_P, 0.0) / 2)
            weights[b].append((bin_P == b) / 2)
    found = []
    for b in gains:
        sum_P, weight_P = sum(gains[b]), np.asarray(sum(weights[b]), np.float64)
        total = float(weight_P.sum())
        if total:
            score_P = np.divide(sum_P, weight_P, out=np.zeros_like(weight_P), where=weight_P > 0)
            found.append(
                Gain(
                    bin=b,
                    problems=total,
                    gain=float(np.sum(sum_P) / total),
                    interval=bootstrap_interval(score_P, weight_P),
                )
            )
    return found
