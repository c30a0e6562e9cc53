"""A step's update: the batch packed, one optimizer step a minibatch, and what they tell."""

from __future__ import annotations

from typing import Any

from polaris_jax.batch import Substitution
from polaris_jax.metrics import Mean, value_of
from polaris_jax.metrics.throughput import update_flops
from polaris_jax.records import Graded, StageState
from polaris_jax.state import TrainingRun
from polaris_jax.step_rules import pack_minibatches
from polaris_jax.train.state import TrainState
from polaris_jax.train.update import merge_metrics


def update_policy(
    run: TrainingRun, state: TrainState, graded: Graded, swapped: Substitution, stage: StageState
) -> tuple[TrainState, dict[str, Any]]:
    """The state after one optimizer step a minibatch, and their metrics.

    Both are as before, and nothing is told, where every token is masked.
    """
    updater = run.updater
    batches = pack_minibatches(
        graded,
        swapped,
        stage,
        run.config,
        rows=updater.rows,
        shards=updater.shards,
        version=run.policy_version,
    )
    if not batches:
        run.count(steps_without_update=1)
        return state, {}
    state = updater.fetch(state)
    if run.config.objective.old_logprobs == "recompute":
        batches = [updater.recompute_logprobs(state.params, b) for b in batches]
    parts = []
    for batch in batches:
        state, metrics = updater.update(state, batch, reference=run.reference)
        parts.append(
            metrics
            | {
                "batch/padding_share": Mean(batch.padding_share, 1.0),
                "batch/attention_imbalance": Mean(batch.attention_imbalance, 1.0),
                "batch/context_imbalance": Mean(updater.context_imbalance(batch), 1.0),
            }
        )
    run.clock.count_update(update_flops(run.base_config, batches))
    tokens = sum(batch.tokens for batch in batches)
    run.count(update_tokens=tokens)
    merged = merge_metrics(parts)
    run.count(skipped_updates=int(value_of(merged["update/skipped"]) or 0))
    return state, merged | {"batch/tokens": tokens}
