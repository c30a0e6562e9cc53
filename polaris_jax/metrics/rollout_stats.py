"""Metrics of a step's rollouts, before anything is rescued or substituted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from polaris_jax.explore.diversity import distinct_ngrams
from polaris_jax.records import Graded, Group, Versions
from polaris_jax.stages.length import length_stats

CORRECT = 1.0


def rollout_metrics(
    graded: Graded,
    *,
    temperature: float,
    max_response_tokens: int | None = None,
    diversity: float | None = None,
) -> dict[str, Any]:
    """The step's `rollout/*` metrics by name; a mean over an empty class is None.

    Rescued rows, if the record has any, are left out of all metrics.

    Args:
        graded: the step's graded groups.
        temperature: sampling temperature of the rollouts.
        max_response_tokens: token budget of a response, reported if given.
        diversity: distinct-4-gram share of the rollouts if it is known; None: counted here.

    Returns:
        rollout/reward_mean, informative_share, mean_length (tokens) and clip_ratio with
        _correct and _incorrect, temperature, diversity, max_response_tokens.
    """
    own_PR = ~np.asarray(graded.rescued_PR, bool)
    reward_PR = graded.reward_PR
    correct_B = reward_PR[own_PR] >= CORRECT
    tokens_PR = np.array([[len(row) for row in group] for group in graded.token_ids], np.int64)
    truncated_PR = np.array(
        [[str(reason) == "length" for reason in group] for group in graded.finish_reasons], bool
    )
    lengths = length_stats(
        tokens_PR.reshape(reward_PR.shape)[own_PR],
        truncated_PR.reshape(reward_PR.shape)[own_PR],
        correct_B,
    )
    if diversity is None and own_PR.any():
        diversity = distinct_ngrams(
            [
                [text for text, own in zip(texts, own_R, strict=True) if own]
                for texts, own_R in zip(graded.texts, own_PR, strict=True)
            ]
        )
    highest_P = np.where(own_PR, reward_PR, -np.inf).max(axis=1, initial=-np.inf)
    lowest_P = np.where(own_PR, reward_PR, np.inf).min(axis=1, initial=np.inf)
    values: dict[str, Any] = {
        "reward_mean": float(reward_PR[own_PR].mean(dtype=np.float64)) if own_PR.any() else None,
        "informative_share": float((highest_P > lowest_P).mean()) if len(reward_PR) else None,
        **dataclasses.asdict(lengths),
        "temperature": float(temperature),
        "diversity": diversity,
    }
    if max_response_tokens is not None:
        values["max_response_tokens"] = int(max_response_tokens)
    return {f"rollout/{name}": value for name, value in values.items()}


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
