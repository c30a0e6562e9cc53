"""The scores that the POLARIS blog published, and ours beside them.

`python -m polaris_jax.evaluate.blog` prints docs/blog_table.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from polaris_jax.evaluate.benchmarks import BENCHMARKS
from polaris_jax.evaluate.estimators import avg_at_k
from polaris_jax.evaluate.intervals import LEVEL, bootstrap_interval, sampling_error

Z = 1.959964  # two-sided 95% of the normal distribution
COLUMNS = ("aime24", "aime25", "minerva", "olympiad", "amc23")
# avg@k in per cent, in the order of COLUMNS. Source: POLARIS blog, the table under Evaluation.
PUBLISHED: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "DeepSeek-R1-Distill-Qwen-7B": (55.0, 39.7, 36.7, 56.8, 81.9),
        "AReal-boba-RL-7B": (61.9, 48.3, 39.5, 61.9, 86.4),
        "Skywork-OR1-7B-Math": (69.8, 52.3, 40.8, 63.2, 85.3),
        "POLARIS-7B-Preview": (72.6, 52.6, 40.2, 65.4, 89.0),
        "DeepSeek-R1-Distill-Qwen-32B": (72.6, 54.9, 42.1, 59.4, 84.3),
        "Qwen3-32B": (81.4, 72.9, 44.2, 66.7, 92.4),
        "Qwen3-4B": (73.8, 65.6, 43.6, 62.2, 87.2),
        "POLARIS-4B-Preview": (81.2, 79.4, 44.0, 69.1, 94.8),
    }
)
# Others measure 9 to 15 points more for the two base models on these.
DISPUTED = frozenset(
    (model, benchmark)
    for model in ("DeepSeek-R1-Distill-Qwen-7B", "Qwen3-4B")
    for benchmark in ("minerva", "olympiad")
)
POOL = "aime24+aime25"


def table() -> dict[str, Any]:
    """The content of docs/blog_table.json."""
    return {
        "source": "https://hkunlp.github.io/blog/2025/Polaris, table under Evaluation",
        "unit": "avg@k in per cent; no intervals were published",
        "k": {name: BENCHMARKS[name].k for name in COLUMNS},
        "problems": {name: BENCHMARKS[name].problems for name in COLUMNS},
        "disputed": "others measure 9 to 15 points more for these base models",
        "models": [
            {
                "model": model,
                "scores": dict(zip(COLUMNS, scores, strict=True)),
                "disputed": [name for name in COLUMNS if (model, name) in DISPUTED],
            }
            for model, scores in PUBLISHED.items()
        ],
    }


def beside_blog(correct: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our scores beside the published ones, with intervals.

    Both were measured on the same problems, so a difference has the errors of sampling alone: ours,
    and theirs by the spread of our responses at the published k. AIME24 and AIME25 are also pooled
    if both are there.

    Args:
        correct: whether each response is correct, [P, R], of each set by name. Sets that the blog
            does not have are left out.

    Returns:
        For each benchmark: `ours` and `interval` (95%, over problems), `k`, `sampling_error`, and
        `published`: for each model `published` and `difference` (ours minus theirs) in [0, 1],
        `interval` (95%, sampling alone; None if the responses to no problem differ, which says
        nothing of theirs, or if one a problem was sampled) and `disputed`.
    """
    found = {}
    for name, correct_PR, k, theirs in _compared(correct):
        ours, error = avg_at_k(correct_PR).value, sampling_error(correct_PR)
        half = None
        if error:
            half = Z * error * math.sqrt(1 + correct_PR.shape[1] / k)
        found[name] = {
            "ours": ours,
            "interval": bootstrap_interval(correct_PR.mean(axis=1)),
            "sampling_error": error,
            "k": correct_PR.shape[1],
            "published_k": k,
            "published": [
                {
                    "model": model,
                    "published": score,
                    "difference": ours - score,
                    "interval": None
                    if half is None
                    else (ours - score - half, ours - score + half),
                    "disputed": (model, name) in DISPUTED,
                }
                for model, score in theirs.items()
            ],
        }
    return found


def _compared(
    correct: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, np.ndarray, int, dict[str, float]]]:
    """(name, our responses, published k, {model: published score}) of each benchmark."""
    for name, column in zip(COLUMNS, zip(*PUBLISHED.values(), strict=True), strict=True):
        if name in correct:
            theirs = {model: x / 100 for model, x in zip(PUBLISHED, column, strict=True)}
            yield name, np.asarray(correct[name]), BENCHMARKS[name].k, theirs
    first, second = POOL.split("+")
    if first in correct and second in correct:
        pooled_PR = np.concatenate([correct[first], correct[second]])
        theirs = {model: (row[0] + row[1]) / 200 for model, row in PUBLISHED.items()}
        yield POOL, pooled_PR, BENCHMARKS[first].k, theirs


def beside_lines(beside: Mapping[str, Any], *, sets: Iterable[str] = ()) -> list[str]:
    """Lines for a person: our score of each benchmark, then the published ones and differences.

    Args:
        beside: what `beside_blog` has found; {} if it was not asked.
        sets: names of all pooled sets, those that the blog does not have among them.
    """
    lines = []
    for name, found in beside.items():
        around = ""
        if found["interval"] is not None:
            low, high = found["interval"]
            around = f" ({LEVEL:.0%} over problems like these: {low:.1%} to {high:.1%})"
        lines.append(
            f"{name}: ours {found['ours']:.1%}{around}, avg@{found['k']}; published "
            f"avg@{found['published_k']}, and ours minus theirs with the error of sampling these "
            "problems:"
        )
        for row in found["published"]:
            spread = ""
            if row["interval"] is not None:
                low, high = (100 * x for x in row["interval"])
                spread = f" ({low:+.1f} to {high:+.1f})"
            disputed = ", disputed: others measure 9 to 15 points more" if row["disputed"] else ""
            lines.append(
                f"  {row['model']}: {row['published']:.1%}, difference "
                f"{100 * row['difference']:+.1f}{spread} points{disputed}"
            )
    others = [name for name in sets if name not in COLUMNS]
    if beside and others:
        lines.append(f"The blog has no score of {', '.join(others)}.")
    return lines


if __name__ == "__main__":
    print(json.dumps(table(), indent=1))
