"""Two models' pass rates on the same problems: their histograms, and who solves what."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from polaris_jax.stages.difficulty import pass_rate_histogram, shape_name

MOST_ROLLOUTS = 64  # tried when the number of rollouts is guessed from rates
USUAL_ROLLOUTS = 8  # the blog's
ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class PassRates:
    """A model's pass rates.

    Attributes:
        rates: problem id -> pass rate in [0, 1].
        n: rollouts that a rate is made of.
        facts: what else is known of them, for the result's file.
    """

    rates: Mapping[str, float]
    n: int
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def rollouts_of(rates: Iterable[float]) -> int:
    """The smallest number of rollouts that rates can be shares of; 8 if there is none up to 64."""
    distinct = set(rates)
    for n in range(1, MOST_ROLLOUTS + 1):
        if all(abs(rate * n - round(rate * n)) < ROUNDING for rate in distinct):
            return n
    return USUAL_ROLLOUTS


def compare_pass_rates(first: PassRates, second: PassRates) -> dict[str, Any]:
    """The content of difficulty_compared.json, names aside.

    Problems are the same if their ids are. "Solved" means by at least one rollout, "always" by all
    of them. The joint table counts problems by both models' rates; a rate between two bins, of a
    model with more rollouts, counts in the nearer bin.

    Returns:
        "models": for each its n, number of problems, mean, histogram and shape. "common" and
        "only_in": numbers of problems. Over the common ones "means", their "difference" (second
        minus first) with its standard error over problems, "n" and "joint"[k of the first][k of the
        second], and the numbers "solved" and "always" by both, one or neither.

    Source: POLARIS, the figure of section 1 (1.5B against 7B).
    """
    ids = [i for i in first.rates if i in second.rates]
    n = min(first.n, second.n)
    rate_CP = np.array([[model.rates[i] for i in ids] for model in (first, second)], np.float64)
    solved_CP = np.floor(rate_CP * n + 0.5).astype(np.int64)
    joint = np.zeros((n + 1, n + 1), np.int64)
    np.add.at(joint, tuple(solved_CP), 1)
    difference_P = rate_CP[1] - rate_CP[0]
    several = len(ids) > 1
    return {
        "models": [_described(model) for model in (first, second)],
        "common": len(ids),
        "only_in": [len(model.rates) - len(ids) for model in (first, second)],
        "means": [float(rates.mean()) if ids else None for rates in rate_CP],
        "difference": float(difference_P.mean()) if ids else None,
        "difference_stderr": (
            float(difference_P.std(ddof=1) / math.sqrt(len(ids))) if several else None
        ),
        "n": n,
        "joint": joint.tolist(),
        "solved": _by_whom(rate_CP > 0),
        "always": _by_whom(rate_CP >= 1),
    }


def _described(model: PassRates) -> dict[str, Any]:
    histogram = pass_rate_histogram(model.rates.values(), model.n)
    return {
        **model.facts,
        "n": model.n,
        "problems": len(model.rates),
        "mean": float(np.mean(list(model.rates.values()))) if model.rates else None,
        "histogram": histogram.tolist(),
        "shape": shape_name(histogram),
    }


def _by_whom(yes_CP: np.ndarray) -> dict[str, int]:
    first_P, second_P = yes_CP
    return {
        "both": int((first_P & second_P).sum()),
        "first_only": int((first_P & ~second_P).sum()),
        "second_only": int((~first_P & second_P).sum()),
        "neither": int((~first_P & ~second_P).sum()),
    }
