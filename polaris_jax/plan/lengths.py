"""The response lengths that a plan assumes: correlated within a problem, cut off at the budget."""

from __future__ import annotations

import dataclasses
import functools
import math
from statistics import NormalDist

import numpy as np

# Standard deviations of log length: of a problem's mean among problems, and of a response around
# its problem's mean. The recipe's proportions.
BETWEEN, WITHIN = 0.5, 0.35
QUANTILES = 4000  # of the normal distribution, for the moments


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Moments of the response length in tokens: lognormal, cut off at the budget.

    Attributes:
        mean: mean length.
        square: mean of the squared length.
        longest: the budget; some response of each step is assumed to reach the budget.
        median: median of the lengths before they are cut off.
    """

    mean: float
    square: float
    longest: int
    median: float


@functools.cache
def cut_lognormal(mean: float, longest: int) -> Lengths:
    """Lengths on (0, longest] with the given mean.

    A mean near `longest` needs a median far above it: nearly all responses reach the budget then.
    """
    if mean >= longest:
        return Lengths(float(longest), float(longest) ** 2, longest, math.inf)
    normal = NormalDist(sigma=math.hypot(BETWEEN, WITHIN))
    scatter = np.exp([normal.inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES)])
    low, high = math.log(mean) - 10, math.log(longest) + 10
    for _ in range(100):
        middle = (low + high) / 2
        below = np.minimum(math.exp(middle) * scatter, longest).mean() < mean
        low, high = (middle, high) if below else (low, middle)
    cut = np.minimum(math.exp(low) * scatter, longest)
    return Lengths(mean, float((cut**2).mean()), longest, math.exp(low))


def draw(
    lengths: Lengths, *, prompts: int, responses: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(token_PR, expected_P): a step's lengths, and what each problem's last visit would expect.

    The expectation is the mean of as many other responses to the same problem.

    Args:
        lengths: the distribution.
        prompts: number of problems.
        responses: responses to each problem.
        seed: seed of the draw.
    """
    rng = np.random.default_rng(seed)
    median = min(lengths.median, 1e6 * lengths.longest)
    mean_P1 = median * np.exp(BETWEEN * rng.standard_normal((prompts, 1)))
    both = mean_P1 * np.exp(WITHIN * rng.standard_normal((prompts, 2 * responses)))
    both = np.clip(both, 1, lengths.longest)
    return np.ceil(both[:, :responses]).astype(int), both[:, responses:].mean(axis=1)
