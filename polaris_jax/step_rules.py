"""Two rules of a step, as functions of the config: what is packed, and when a run must stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polaris_jax.batch import Substitution, fresh_rows, group_advantages, pack, select_groups
from polaris_jax.config import RunConfig, row_len_tokens
from polaris_jax.metrics import value_of
from polaris_jax.records import Graded, StageState, TrainBatch
from polaris_jax.rollout.groups import leading_stale


def pack_minibatches(
    graded: Graded,
    swapped: Substitution,
    stage: StageState,
    config: RunConfig,
    *,
    rows: int,
    shards: int,
    version: int,
) -> list[TrainBatch]:
    """Packed rows, a `TrainBatch` a minibatch; one without a token that counts is left out.

    Args:
        graded: the batch.
        swapped: what was substituted in it.
        stage: temperature and budget.
        config: objective and row length.
        rows: rows of a microbatch.
        shards: parts into which these are split over the mesh.
        version: of the policy that is trained.

    Tokens that are copies (substituted groups), stored (rescued rows) or of a former policy
    (carried over) are not fresh: the log-prob gap compares the sampler with the trainer on what was
    sampled just now.
    """
    objective = config.objective
    advantage_PR = group_advantages(
        graded.reward_PR, scale=objective.std, baseline=objective.baseline
    )
    fresh_PR = fresh_rows(graded, swapped)
    stale_PR = np.array(
        [
            [leading_stale(versions, version) for versions in group]
            for group in graded.versions or ()
        ],
        np.int64,
    ).reshape(-1, graded.reward_PR.shape[1])
    batches = [
        pack(
            select_groups(graded, group),
            advantage_PR=advantage_PR[group],
            fresh_PR=fresh_PR[group],
            stale_PR=stale_PR[group] if graded.versions else None,
            row_len=row_len_tokens(config),
            rows=rows,
            shards=shards,
            one_a_row=config.model.attention == "cudnn",
            objective=objective,
            max_response_tokens=stage.max_response_tokens,
            temperature=stage.temperature,
        )
        for group in np.array_split(np.arange(len(graded)), objective.minibatches)
    ]
    return [batch for batch in batches if batch.tokens]


def check_health(
    step: int, skips_in_a_row: int, metrics: Mapping[str, Any], config: RunConfig
) -> None:
    """Returns where a run may go on.

    Raises:
        RuntimeError: too many non-finite updates in a row, or a sampler whose policy is not the
            trainer's; names the step, the value and the limit.
    """
    limit = config.optimizer.max_skips
    if skips_in_a_row >= limit:
        raise RuntimeError(
            f"step {step}: {skips_in_a_row} updates in a row had a non-finite gradient "
            f"(optimizer.max_skips={limit}); lower optimizer.learning_rate or look at the step's "
            "rollouts"
        )
    gap, gate = value_of(metrics.get("rollout/logp_gap_mean")), config.rollout.max_logp_gap_mean
    if gate and gap is not None and gap > gate:
        raise RuntimeError(
            f"step {step}: rollout/logp_gap_mean={gap:.4g} nats exceeds "
            f"rollout.max_logp_gap_mean={gate:g}: the sampler's policy is not the trainer's"
        )
