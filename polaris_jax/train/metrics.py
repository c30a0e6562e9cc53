"""The metrics of an update, and of several minibatches as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polaris_jax.config import ObjectiveSection
from polaris_jax.metrics import Mean, value_of

Metrics = dict[str, Mean | float | None]


def update_metrics(
    sums: Sequence[dict[str, Any]], step: dict[str, Any], objective: ObjectiveSection
) -> Metrics:
    """The metrics of one update, by name, from the sums of all calls; added up in float64."""
    each = {name: [float(x) for part in sums for x in np.ravel(part[name])] for name in sums[0]}
    total = {name: sum(values) for name, values in each.items()}
    tokens, fresh = total["tokens"], total["fresh"]

    def share(name: str) -> Mean:
        return Mean(total[name], tokens)

    metrics: Metrics = {
        "update/loss": Mean(total["loss"], 1.0),
        "update/grad_norm": Mean(float(step["grad_norm"]), 1.0),
        "update/entropy": share("entropy"),
        "update/fresh_entropy": Mean(total["fresh_entropy"], fresh),
        "update/clip_fraction_low": share("clipped_low"),
        "update/clip_fraction_high": share("clipped_high"),
        "update/clip_fraction_dual": share("clipped_dual"),
        "update/ratio_mean": share("ratio"),
        "update/skipped": float(step["skipped"]),
        "rollout/logp_gap_mean": Mean(total["gap"], fresh),
        "rollout/logp_gap_max": max(each["gap_max"]) if fresh else None,
    }
    if objective.old_logprobs == "sampler":
        metrics["update/tis_fraction"] = share("truncated")
    if objective.kl_coef > 0:
        metrics["update/kl"] = share("kl")
    return metrics


def merge_metrics(parts: Sequence[Metrics]) -> Metrics:
    """The metrics of several minibatches as one: means are pooled, numbers are summed.

    The log-prob gap (mean and max) is that of the first minibatch with a token that was sampled in
    this step. The gap of a later one also contains the updates of earlier minibatches (unless
    old_logprobs is "recompute").

    Args:
        parts: metrics of each minibatch, in order; at least one.
    """
    merged = dict(parts[0])
    sampled = (part for part in parts if value_of(part.get("rollout/logp_gap_mean")) is not None)
    first = next(sampled, parts[0])
    merged |= {name: x for name, x in first.items() if name.startswith("rollout/logp_gap")}
    for part in parts[1:]:
        for name, value in part.items():
            if not name.startswith("rollout/logp_gap"):
                merged[name] = merged[name] + value  # type: ignore[operator]
    return merged
