"""Differences between arms, paired by base and seed, with what they are worth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

Pair = tuple[str, int]  # base and seed


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean over runs.

    Attributes:
        n: number of runs.
        mean: their mean.
        stderr: standard error of the mean; None for a single run.
    """

    n: int
    mean: float
    stderr: float | None


@dataclasses.dataclass(frozen=True)
class Paired:
    """The differences of two arms over the (base, seed) that both have.

    Attributes:
        n: number of pairs.
        mean: mean difference.
        stderr: its standard error; None for a single pair.
        low, high: interval of Student's t that covers the mean in 95 of 100 cases; None for a
            single pair.
        positive: pairs whose difference is above 0.
        negative: pairs whose difference is below 0.
    """

    n: int
    mean: float
    stderr: float | None
    low: float | None
    high: float | None
    positive: int
    negative: int

    @property
    def sign_p(self) -> float:
        """How often a fair coin gives so one-sided a count, or more (two-sided sign test)."""
        tosses, most = self.positive + self.negative, max(self.positive, self.negative)
        if tosses == 0:
            return 1.0
        tail = sum(math.comb(tosses, k) for k in range(most, tosses + 1)) / 2**tosses
        return min(1.0, 2 * tail)


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard error.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("values=[]: a mean needs at least one run")
    array = np.asarray(values, np.float64)
    stderr = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return Spread(len(array), float(array.mean()), stderr)


def paired(
    arm: Mapping[Pair, float], against: Mapping[Pair, float], *, confidence: float = 0.95
) -> Paired | None:
    """The differences `arm` - `against` over the pairs that both have; None without a pair.

    Args:
        arm: {(base, seed): figure} of one arm.
        against: {(base, seed): figure} of the other arm.
        confidence: how often the interval covers the mean.
    """
    pairs = sorted(arm.keys() & against.keys())
    if not pairs:
        return None
    differences = np.array([arm[pair] - against[pair] for pair in pairs], np.float64)
    found = spread(differences.tolist())
    low = high = None
    if found.stderr is not None:
        from scipy.stats import t  # comes with jax; takes a second to import

        half = float(t.ppf(0.5 + confidence / 2, found.n - 1)) * found.stderr
        low, high = found.mean - half, found.mean + half
    return Paired(
        n=found.n,
        mean=found.mean,
        stderr=found.stderr,
        low=low,
        high=high,
        positive=int((differences > 0).sum()),
        negative=int((differences < 0).sum()),
    )
