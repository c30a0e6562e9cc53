"""Metrics of a step's rollouts, before anything is rescued or substituted."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polaris_jax.explore.diversity import distinct_ngrams
from polaris_jax.metrics.writer import Mean
from polaris_jax.records import Graded, Group, Versions


def rollout_metrics(
    graded: Graded, *, temperature: float, max_response_tokens: int | None = None
) -> dict[str, Any]:
    """The step's `rollout/*` metrics by name; a mean over an empty class is None.

    Rescued rows, if the record has any, are left out of all metrics.

    Args:
        graded: the step's graded groups.
        temperature: sampling temperature of the rollouts.
        max_response_tokens: token budget of a response, reported if given.

    Returns:
        rollout/reward_mean, informative_share, mean_length (tokens, the stop token included) and
        clip_ratio (share of responses that the budget ended) with _correct and _incorrect,
        temperature, diversity, max_response_tokens.

    Source: POLARIS, "Inference-Time Length Scaling", for the clip ratios.
    """
    own_PR, reward_PR = ~np.asarray(graded.rescued_PR, bool), graded.reward_PR
    own_B = own_PR.reshape(-1)
    lengths = [len(row) for group in graded.token_ids for row in group]
    length_B = np.array(lengths, np.float64)[own_B]
    ends = [str(reason) for group in graded.finish_reasons for reason in group]
    clipped_B = np.array([end == "length" for end in ends], bool)[own_B]
    correct_B = graded.correct_PR[own_PR]
    highest_P = np.where(own_PR, reward_PR, -np.inf).max(axis=1, initial=-np.inf)
    lowest_P = np.where(own_PR, reward_PR, np.inf).min(axis=1, initial=np.inf)
    own_texts = [
        [text for text, own in zip(texts, own_R, strict=True) if own]
        for texts, own_R in zip(graded.texts, own_PR, strict=True)
    ]
    values: dict[str, Any] = {
        "reward_mean": float(reward_PR[own_PR].mean(dtype=np.float64)) if own_B.any() else None,
        "informative_share": float((highest_P > lowest_P).mean()) if len(reward_PR) else None,
        "temperature": float(temperature),
        "diversity": distinct_ngrams(own_texts) if own_B.any() else None,
    }
    everyone_B = np.ones_like(correct_B)
    for name, of_B in ("", everyone_B), ("_correct", correct_B), ("_incorrect", ~correct_B):
        values[f"mean_length{name}"] = float(length_B[of_B].mean()) if of_B.any() else None
        values[f"clip_ratio{name}"] = float(clipped_B[of_B].mean()) if of_B.any() else None
    if max_response_tokens is not None:
        values["max_response_tokens"] = int(max_response_tokens)
    return {f"rollout/{name}": value for name, value in values.items()}


def part_metrics(graded: Graded) -> dict[str, Mean]:
    """`reward/NAME` for each named entry that a reward function returned beside the reward.

    A mean over the responses that have the entry; null if it is None in all of them. A response
    whose reward function failed has no entries.
    """
    found: dict[str, Mean] = {}
    for entries in (entries for group in graded.parts or () for entries in group):
        for name, value in entries.items():
            term = Mean(0.0, 0) if value is None else Mean(value, 1)
            found[f"reward/{name}"] = found.get(f"reward/{name}", Mean(0.0, 0)) + term
    return found


# Totals of the run whose growth in a step is a `batch/` metric.
COUNTED = (
    "rescued_groups",
    "resampled_batches",
    "substituted_groups",
    "donors_reused",
    "steps_without_update",
)


def count_metrics(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """What a step has added to the totals of its run.

    Args:
        before: `RunState.counts` before the step.
        after: the same after it.

    Returns:
        batch/NAME for each name of `COUNTED`; batch/rescued_age, the mean age in steps of the
        responses that rescued a group, None without a rescue; rollout/reset_tokens, the run's
        total.
    """

    def grown(name: str) -> int:
        return after.get(name, 0) - before.get(name, 0)

    metrics: dict[str, Any] = {f"batch/{name}": grown(name) for name in COUNTED}
    rescued = grown("rescued_groups")
    metrics["batch/rescued_age"] = grown("rescued_age_steps") / rescued if rescued else None
    metrics["rollout/reset_tokens"] = after.get("reset_tokens", 0)
    return metrics


def spread_metrics(graded: Graded, *, trained: bool) -> dict[str, Any]:
    """Over how many problems a batch's gradient spreads.

    Args:
        graded: the batch to train on, after rescue and substitution.
        trained: False if the step made no update.

    Returns:
        batch/distinct_problems: problems of its informative groups, a copy counted once;
        effective_groups: (sum w)^2 / sum w^2 with w the rows trained per distinct problem, so
            copies lower it; None without an informative group.

    Source: Kish 1965, "Survey Sampling", for the effective sample size.
    """
    informative = np.flatnonzero(graded.informative_P).tolist() if trained else []
    groups = collections.Counter(graded.problem_ids[p] for p in informative)
    w_P = np.array(list(groups.values()), np.float64) * graded.reward_PR.shape[1]
    effective = float(w_P.sum() ** 2 / (w_P**2).sum()) if len(w_P) else None
    return {"batch/distinct_problems": len(w_P), "batch/effective_groups": effective}


def age_metrics(versions: Sequence[Sequence[Versions]], *, version: int) -> dict[str, Any]:
    """The age of a batch's tokens.

    Args:
        versions: [P][R] `Response.versions`, before anything is rescued or substituted.
        version: version of the policy that is trained.

    Returns:
        rollout/stale_share: share of the batch's tokens that former policies sampled, in [0, 1];
        lag_mean and lag_max over its tokens, in updates.
    """
    pairs = [pair for group in versions for response in group for pair in response]
    tokens = sum(count for _, count in pairs)
    stale = sum(count for sampled, count in pairs if sampled < version)
    lag = sum((version - sampled) * count for sampled, count in pairs)
    return {
        "rollout/stale_share": stale / tokens if tokens else None,
        "rollout/lag_mean": lag / tokens if tokens else None,
        "rollout/lag_max": max((version - sampled for sampled, _ in pairs), default=None),
    }


def carried_metrics(carried: Sequence[Group]) -> dict[str, Any]:
    """What a step leaves in flight: groups, their unfinished responses, the tokens of all."""
    responses = [response for group in carried for response in group.responses]
    return {
        "rollout/carried_groups": len(carried),
        "rollout/carried_responses": sum(not response.ended for response in responses),
        "rollout/carried_tokens": sum(len(response.token_ids) for response in responses),
    }
