"""One step of the recipe: sample, grade, record, rescue, substitute, pack, update.

Each function takes the state and returns the next one. Accuracy, lengths and all rollout metrics
are taken before anything is rescued or substituted.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from polaris_jax.assemble import Parts
from polaris_jax.batch import (
    Substitution,
    concat_graded,
    fresh_rows,
    group_advantages,
    pack,
    select_groups,
    substitute_uninformative,
)
from polaris_jax.batch.packing import stale_tokens
from polaris_jax.config import row_len_tokens
from polaris_jax.measure.solve import grade_groups, graded_here
from polaris_jax.metrics import Mean, value_of
from polaris_jax.metrics.rollout_stats import age_metrics, carried_metrics, rollout_metrics
from polaris_jax.metrics.throughput import update_flops
from polaris_jax.records import Graded, Group, TrainBatch
from polaris_jax.reward.grade_ahead import GradeAhead
from polaris_jax.rollout import SamplingParams
from polaris_jax.rollout.groups import begin, most_in_flight, sample_groups, settle
from polaris_jax.stages.controller import StepStats, observe
from polaris_jax.state import RunState, following, within_tokens
from polaris_jax.system.seeds import fold_seed
from polaris_jax.system.signals import StopRequest
from polaris_jax.train.update import merge_metrics


def step(parts: Parts, state: RunState, *, stop: StopRequest) -> RunState:
    """The state after one step; `pending_metrics` hold what the step measured.

    Raises:
        RolloutAborted: `stop` was requested in some process while sampling. `state` is still good.
    """
    totals = state.counts
    graded, metrics, state = visit(parts, state, stop=stop)
    graded, substitution, state = make_informative(parts, state, graded, stop=stop)
    state.live_sampler().release_pool()  # new weights void it, and the update needs the memory
    with parts.clock.timer("update"):
        batches = pack_minibatches(parts, state, graded, substitution)
        update_metrics, state = update(parts, state, batches)
    counts, state = count_batch(state, substitution, updated=bool(batches), totals=totals)
    return end_step(parts, state, metrics | update_metrics | counts)


def visit(
    parts: Parts, state: RunState, *, stop: StopRequest, attempt: int = 0
) -> tuple[Graded, dict[str, Any], RunState]:
    """A batch of graded groups, its rollout metrics, and the state that has recorded them.

    Args:
        parts: what the run is made of.
        state: before the batch is drawn.
        stop: asks to abandon the sampling.
        attempt: number of the batch within its step, from 0.
    """
    groups, state = draw(parts, state, attempt=attempt)
    batch, ahead, state = sample(parts, state, groups, stop=stop)
    graded = grade(parts, state, batch, ahead)
    metrics, state = record(parts, state, batch, graded, attempt=attempt)
    graded, state = rescue(parts, state, graded, attempt=attempt)
    return graded, metrics, state


def draw(parts: Parts, state: RunState, *, attempt: int) -> tuple[list[Group], RunState]:
    """The groups that the step begins with: those carried over, then as many new ones as it needs.

    Under `rollout.partial_rollouts=wait` the step has as many groups as it trains. Under carry it
    has more, until the last step of a stage (or of the run, once its tokens are spent). That step
    begins fewer groups and leaves none: a stage trains the prompts that it began, in either mode,
    and no group crosses its border.
    """
    config, section = parts.config, parts.config.rollout
    wanted = section.prompts_per_step
    seed_parts: tuple[Any, ...] = (config.seed, state.step, attempt)
    if section.partial_rollouts == "carry":
        seed_parts = (config.seed, "carry")  # sampled alike, whichever step begins the group
        last = state.stage.steps_done + 1 >= config.stages[state.stage.stage].steps
        if not (last or state.tokens_spent(section.total_tokens)):
            wanted = most_in_flight(wanted, section.partial_share)
    loader = copy.copy(state.loader)
    new = begin(
        loader.take(wanted - len(state.carried)),
        n=section.responses_per_prompt,
        version=state.policy_version,
        seed_parts=seed_parts,
    )
    return [*state.carried, *new], dataclasses.replace(state, loader=loader)


def sample(
    parts: Parts, state: RunState, groups: list[Group], *, stop: StopRequest
) -> tuple[dict[int, Group], GradeAhead, RunState]:
    """The step's batch by group number, being graded already, and the state with the other groups.

    Sampling ends once enough groups are complete, and so is every group that has reached the limit
    of its lag. The oldest complete groups are the batch; `carried` gets the others.

    Raises:
        RolloutAborted: `stop` was requested in some process.
    """
    section, version = parts.config.rollout, state.policy_version
    max_response_tokens = state.stage.max_response_tokens
    expected = state.lengths.expected(
        [group.problem_id for group in groups], max_response_tokens=max_response_tokens
    )
    if expected is not None:  # the carried groups are the long tail: they go first
        expected[: len(state.carried)] = [float(max_response_tokens)] * len(state.carried)
    sampler, solver = state.live_sampler(), parts.solver
    sampler.version = version
    ahead = GradeAhead(solver.grader, parts.config.reward.mode)
    responses = len(groups) * section.responses_per_prompt

    def grade_mine(number: int, group: Group) -> None:
        if graded_here(number):
            ahead.add(number, group)

    with (
        parts.clock.timer("rollout"),
        ahead,
        parts.progress.phase(f"step {state.step} rollout", responses) as phase,
    ):
        groups = sample_groups(
            sampler,
            groups,
            SamplingParams(
                temperature=state.stage.temperature,
                n=section.responses_per_prompt,
                max_tokens=max_response_tokens,
                stop_token_ids=solver.stop_token_ids,
            ),
            tokenizer=solver.tokenizer,
            wanted=section.prompts_per_step,
            due={
                i
                for i, group in enumerate(groups)
                if version - group.begun >= section.partial_max_lag
            },
            expected_tokens=expected,
            on_complete=grade_mine,
            on_progress=lambda done, total, tokens: phase.advance_to(done, f"{tokens} tokens"),
            should_abort=lambda: stop.requested,
        )
    batch, carried = settle(groups, section.prompts_per_step)
    return batch, ahead, dataclasses.replace(state, carried=carried)


def grade(parts: Parts, state: RunState, batch: dict[int, Group], ahead: GradeAhead) -> Graded:
    """The batch with its rewards, which `reward.control=permute` shuffles within each group."""
    section = parts.config.reward
    with parts.clock.timer("grade"):
        graded = grade_groups(parts.solver.grader, batch, mode=section.mode, ahead=ahead)
    if section.control == "permute":
        shuffle = generator(parts, state, "permute")
        graded = dataclasses.replace(graded, reward_PR=shuffle.permuted(graded.reward_PR, axis=1))
    return graded


def record(
    parts: Parts, state: RunState, batch: dict[int, Group], graded: Graded, *, attempt: int
) -> tuple[dict[str, Any], RunState]:
    """The batch's rollout metrics, and the state whose tables have seen what the policy sampled."""
    lengths, accuracy, stage = copy.copy(state.lengths), copy.copy(state.accuracy), state.stage
    lengths.record(graded.problem_ids, graded.token_ids)
    accuracy.record(graded.problem_ids, graded.reward_PR, stage=stage.stage)
    draws = [group.draw for group in batch.values()]
    parts.outputs.write_rollouts(state.step, graded, draws=draws, attempt=attempt)
    metrics = rollout_metrics(
        graded, temperature=stage.temperature, max_response_tokens=stage.max_response_tokens
    )
    if parts.config.rollout.partial_rollouts == "carry":
        metrics |= age_metrics(graded.versions or (), version=state.policy_version)
    metrics["data/epoch"] = next(iter(batch.values())).epoch
    state = dataclasses.replace(state, lengths=lengths, accuracy=accuracy)
    tokens = sum(len(response) for group in graded.token_ids for response in group)
    return metrics, state.counted(sampled_tokens=tokens)


def rescue(
    parts: Parts, state: RunState, graded: Graded, *, attempt: int
) -> tuple[Graded, RunState]:
    """The batch with a stored correct response in groups without one, and the state's new sink.

    The sink is updated after the rescue: a group is rescued by earlier steps alone.
    """
    if not parts.config.batch.rescue:
        return graded, state
    sink, stage = copy.copy(state.sink), state.stage
    graded, rescued = sink.rescue(
        graded,
        max_response_tokens=stage.max_response_tokens,
        rng=generator(parts, state, "rescue", attempt),
    )
    sink.update(graded, step=state.step, stage=stage.stage, temperature=stage.temperature)
    return graded, dataclasses.replace(state, sink=sink).counted(rescued_groups=rescued)


def make_informative(
    parts: Parts, state: RunState, graded: Graded, *, stop: StopRequest
) -> tuple[Graded, Substitution, RunState]:
    """The batch with every uninformative group replaced, drawing more prompts if so configured.

    The step's rollout metrics remain those of its first batch, which nothing has selected.
    """
    section = parts.config.batch
    if not section.substitute:
        informative = int(graded.informative_P.sum())
        action = "train" if informative else "none"
        return graded, Substitution(np.arange(len(graded)), informative, 0, 0, action), state
    on_scarce = section.on_scarce
    for attempt in range(1, section.max_resample + 1):
        swapped, substitution = substitute_uninformative(
            graded,
            min_informative=section.min_informative,
            on_scarce=on_scarce,
            rng=generator(parts, state, "substitute", attempt),
        )
        if on_scarce != "resample" or substitution.action not in ("resample", "none"):
            return swapped, substitution, state
        more, _, state = visit(parts, state, stop=stop, attempt=attempt)
        state = state.counted(resampled_batches=1)
        pooled = concat_graded([graded, more])
        informative_first = np.argsort(~pooled.informative_P, kind="stable")
        graded = select_groups(pooled, informative_first[: len(graded)])
    swapped, substitution = substitute_uninformative(
        graded,
        min_informative=section.min_informative,
        on_scarce="train" if on_scarce == "resample" else on_scarce,
        rng=generator(parts, state, "substitute"),
    )
    return swapped, substitution, state


def pack_minibatches(
    parts: Parts, state: RunState, graded: Graded, substitution: Substitution
) -> list[TrainBatch]:
    """Packed rows, a `TrainBatch` a minibatch; one in which every token is masked is left out.

    Empty if the batch is not to be trained. Tokens that are copies (substituted groups), stored
    (rescued rows) or of a former policy (carried over) are not fresh: the log-prob gap compares
    sampler and trainer on what was sampled just now.
    """
    if substitution.action != "train":
        return []
    config, objective = parts.config, parts.config.objective
    advantage_PR = group_advantages(
        graded.reward_PR, scale=objective.std, baseline=objective.baseline
    )
    fresh_PR = fresh_rows(graded, substitution)
    stale_PR = stale_tokens(graded, state.policy_version)
    batches = [
        pack(
            select_groups(graded, group),
            advantage_PR=advantage_PR[group],
            fresh_PR=fresh_PR[group],
            stale_PR=None if stale_PR is None else stale_PR[group],
            row_len=row_len_tokens(config),
            rows=parts.updater.rows,
            shards=parts.updater.shards,
            one_a_row=config.model.attention == "cudnn",
            objective=objective,
            max_response_tokens=state.stage.max_response_tokens,
            temperature=state.stage.temperature,
        )
        for group in np.array_split(np.arange(len(graded)), objective.minibatches)
    ]
    return [batch for batch in batches if batch.tokens]


def update(
    parts: Parts, state: RunState, batches: list[TrainBatch]
) -> tuple[dict[str, Any], RunState]:
    """The metrics of one optimizer step a minibatch, and the state after them.

    The sampler gets the new weights. Without a batch nothing changes.
    """
    if not batches:
        return {}, state
    updater, metrics = parts.updater, []
    train = updater.fetch(state.train)
    if parts.config.objective.old_logprobs == "recompute":
        batches = [updater.recompute_logprobs(train.params, batch) for batch in batches]
    for batch in batches:
        train, measured = updater.update(train, batch, reference=parts.reference)
        metrics.append(
            measured
            | {
                "batch/padding_share": Mean(batch.padding_share, 1.0),
                "batch/attention_imbalance": Mean(batch.attention_imbalance, 1.0),
                "batch/context_imbalance": Mean(updater.context_imbalance(batch), 1.0),
            }
        )
    state.live_sampler().update_weights(train.params)
    train = updater.park(train)
    parts.clock.count_update(update_flops(parts.model_config, batches))
    tokens, merged = sum(batch.tokens for batch in batches), merge_metrics(metrics)
    skipped = int(value_of(merged["update/skipped"]) or 0)
    state = dataclasses.replace(state, train=train)
    state = state.counted(update_tokens=tokens, skipped_updates=skipped)
    return merged | {"batch/tokens": tokens}, state


def count_batch(
    state: RunState, substitution: Substitution, *, updated: bool, totals: Mapping[str, int]
) -> tuple[dict[str, Any], RunState]:
    """What the step did with its batch, as metrics, and the state that has counted it.

    Args:
        state: after the update.
        substitution: what was substituted.
        updated: False if no update was made.
        totals: the state's counts before the step.
    """
    state = state.counted(
        substituted_groups=substitution.replaced,
        donors_reused=substitution.reused,
        steps_without_update=int(not updated),
    )
    names = ("rescued_groups", "resampled_batches", "steps_without_update")
    metrics = {f"batch/{n}": state.counts.get(n, 0) - totals.get(n, 0) for n in names}
    return metrics | {
        "batch/informative_groups": substitution.informative,
        "batch/substituted_groups": substitution.replaced,
        "batch/donors_reused": substitution.reused,
    }, state


def end_step(parts: Parts, state: RunState, metrics: dict[str, Any]) -> RunState:
    """The state one step later, with the step's metrics pending; it may end its stage."""
    if parts.config.rollout.partial_rollouts == "carry":
        metrics = metrics | carried_metrics(state.carried)
    stats = StepStats(entropy=value_of(metrics.get("update/fresh_entropy")))
    stage, _ = observe(state.stage, stats, parts.config.stages)
    state = dataclasses.replace(state, step=state.step + 1, stage=stage, pending_metrics=metrics)
    state = within_tokens(parts, state)
    return dataclasses.replace(state, next_stage=following(parts, state.stage))


def generator(parts: Parts, state: RunState, name: str, attempt: int = 0) -> np.random.Generator:
    """The generator of one random choice of this step: the same in a resumed run."""
    return np.random.default_rng(fold_seed(parts.config.seed, state.step, name, attempt))
