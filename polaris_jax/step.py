"""One step of the recipe: sample, grade, record, rescue, substitute, pack, update.

A function that changes the state takes one and returns the next. Accuracy, lengths and all rollout
metrics are taken before anything is rescued or substituted.
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
    is_scarce,
    no_substitution,
    pack,
    select_groups,
    substitute_uninformative,
)
from polaris_jax.batch.packing import stale_tokens
from polaris_jax.measure.batch_health import say_health
from polaris_jax.measure.solve import grade_groups
from polaris_jax.metrics import value_of
from polaris_jax.metrics.rollout_stats import (
    age_metrics,
    carried_metrics,
    count_metrics,
    part_metrics,
    rollout_metrics,
    spread_metrics,
)
from polaris_jax.metrics.throughput import update_flops
from polaris_jax.models import packs_rows
from polaris_jax.records import Graded, Group, TrainBatch
from polaris_jax.reward.grade_ahead import GradeAhead
from polaris_jax.rollout import SamplingParams
from polaris_jax.rollout.groups import begin, most_in_flight, sample_groups, settle
from polaris_jax.stages.controller import StepStats, observe
from polaris_jax.state import RunState, with_next_stage
from polaris_jax.system.seeds import fold_seed
from polaris_jax.system.signals import StopRequest
from polaris_jax.train.metrics import merge_metrics


def step(parts: Parts, state: RunState, *, stop: StopRequest) -> RunState:
    """The state after one step; `pending_metrics` holds its metrics.

    Raises:
        RolloutAborted: `stop` was requested in some process while sampling. `state` is still good.
    """
    before = state.counts
    state, graded, rollout_metrics = collect_rollouts(parts, state, stop=stop)
    state, graded, place_P = resample_if_scarce(parts, state, graded, stop=stop)
    graded, substitution = substitute(parts, state, graded, before=before)
    parts.outputs.write_rollouts(state.step, donors=substitution.donors(place_P))
    state.live_sampler().release_pool()  # frees the KV pages: the update needs their memory
    with parts.clock.timer("update"):
        batches = pack_minibatches(parts, state, graded, substitution)
        state, update_metrics = update(parts, state, batches)
    state, batch_metrics = count_batch(state, substitution, updated=bool(batches), before=before)
    batch_metrics |= spread_metrics(graded, trained=bool(batches))
    return end_step(parts, state, rollout_metrics | update_metrics | batch_metrics)


def collect_rollouts(
    parts: Parts, state: RunState, *, stop: StopRequest, attempt: int = 0
) -> tuple[RunState, Graded, dict[str, Any]]:
    """A batch of graded groups and its rollout metrics, with the state that has recorded them.

    Args:
        parts: what the run is made of.
        state: the state before the batch is drawn.
        stop: asks to abandon the sampling.
        attempt: number of the batch within its step, from 0.
    """
    state, groups = draw(parts, state, attempt=attempt)
    state, batch, grading = sample(parts, state, groups, stop=stop)
    graded = grade(parts, state, batch, grading)
    state, metrics = record(parts, state, batch, graded, attempt=attempt)
    rescued_state, rescued = rescue(parts, state, graded, attempt=attempt)
    parts.outputs.keep_rollouts(
        state.step,
        graded,
        rescued=rescued,
        sink=state.sink,
        problems=parts.problems,
        draws=[group.draw for group in batch.values()],
        attempt=attempt,
    )
    return rescued_state, rescued, metrics


def draw(parts: Parts, state: RunState, *, attempt: int) -> tuple[RunState, list[Group]]:
    """The groups that the step begins with: those carried over, then as many new ones as it needs.

    Under `rollout.partial_rollouts=wait` the step has as many groups as it trains. Under carry it
    has more, until the last step of a stage (or of the run, once its tokens are spent). That step
    starts only as many groups as it trains, so no group is carried into the next stage.
    """
    config, section = parts.config, parts.config.rollout
    wanted = section.prompts_per_step
    seed_parts: tuple[Any, ...] = (config.seed, state.step, attempt)
    if section.partial_rollouts == "carry":
        seed_parts = (config.seed, "carry")  # the seed must not depend on the step that starts it
        last = state.stage.steps_done + 1 >= config.stages[state.stage.stage].steps
        last = last or state.stage.ending is not None
        if not (last or state.tokens_spent(section.total_tokens)):
            wanted = most_in_flight(wanted, section.partial_share)
    uniform = config.data.weighting == "uniform"
    weights = None if uniform else state.accuracy.learnable([p.id for p in parts.problems])
    loader = copy.copy(state.loader)
    new = begin(
        loader.take(wanted - len(state.carried), weights=weights),
        n=section.responses_per_prompt,
        version=state.policy_version,
        seed_parts=seed_parts,
    )
    return dataclasses.replace(state, loader=loader), [*state.carried, *new]


def sample(
    parts: Parts, state: RunState, groups: list[Group], *, stop: StopRequest
) -> tuple[RunState, dict[int, Group], GradeAhead]:
    """Samples until enough groups are complete: the state with the others, the batch, its grading.

    Every group that has reached `rollout.partial_max_lag` is complete then, too. The oldest
    complete groups are the batch, by group number; `carried` gets the others.

    Raises:
        RolloutAborted: `stop` was requested in some process.
    """
    section, version = parts.config.rollout, state.policy_version
    max_response_tokens = state.stage.max_response_tokens
    expected = state.lengths.expected(
        [group.problem_id for group in groups], max_response_tokens=max_response_tokens
    )
    if expected is not None:  # carried groups take longest: they start first
        expected[: len(state.carried)] = [float(max_response_tokens)] * len(state.carried)
    sampler, solver = state.live_sampler(), parts.solver
    sampler.version = version
    responses = len(groups) * section.responses_per_prompt
    with (
        parts.clock.timer("rollout"),
        GradeAhead(solver.grader, parts.config.reward.mode) as grading,
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
            history=[state.drafts.texts(group.problem_id) for group in groups],
            on_ended=grading.add,
            on_progress=phase.sampling(0, responses),
            should_abort=lambda: stop.requested,
        )
    batch, carried = settle(groups, section.prompts_per_step)
    return dataclasses.replace(state, carried=carried), batch, grading


def grade(parts: Parts, state: RunState, batch: dict[int, Group], grading: GradeAhead) -> Graded:
    """The batch with its rewards, which `reward.control=permute` shuffles within each group."""
    section = parts.config.reward
    with parts.clock.timer("grade"):
        graded = grade_groups(
            parts.solver.grader,
            batch,
            mode=section.mode,
            correct_at=section.correct_at,
            ahead=grading,
        )
    if section.control == "permute":
        shuffle = step_rng(parts, state, "permute")
        graded = dataclasses.replace(graded, reward_PR=shuffle.permuted(graded.reward_PR, axis=1))
    return graded


def record(
    parts: Parts, state: RunState, batch: dict[int, Group], graded: Graded, *, attempt: int
) -> tuple[RunState, dict[str, Any]]:
    """The state with its tables updated, but for the sink, and the batch's rollout metrics."""
    lengths, accuracy, stage = copy.copy(state.lengths), copy.copy(state.accuracy), state.stage
    drafts = copy.copy(state.drafts)
    lengths.record(graded.problem_ids, graded.token_ids)
    drafts.record(graded.problem_ids, graded.token_ids)
    accuracy.record(
        graded.problem_ids, graded.reward_PR, stage=stage.stage, correct_at=graded.correct_at
    )
    metrics = rollout_metrics(
        graded, temperature=stage.temperature, max_response_tokens=stage.max_response_tokens
    )
    if parts.config.rollout.partial_rollouts == "carry":
        metrics |= age_metrics(graded.versions or (), version=state.policy_version)
    metrics |= part_metrics(graded)
    metrics["data/epoch"] = next(iter(batch.values())).epoch
    if attempt == 0:
        say_health(parts, state, graded)
    state = dataclasses.replace(state, lengths=lengths, accuracy=accuracy, drafts=drafts)
    return state.counted(sampled_tokens=graded.response_tokens), metrics


def rescue(
    parts: Parts, state: RunState, graded: Graded, *, attempt: int
) -> tuple[RunState, Graded]:
    """The batch with a stored correct response in groups without one, and the state's new sink.

    The sink is updated after the rescue, so a group only gets a response of an earlier step, or of
    an earlier batch of a step that samples again.
    """
    if not parts.config.batch.rescue:
        return state, graded
    sink, stage = copy.copy(state.sink), state.stage
    graded, rescued = sink.rescue(
        graded,
        max_response_tokens=stage.max_response_tokens,
        rng=step_rng(parts, state, "rescue", attempt),
    )
    rescued_P: np.ndarray = np.any(np.asarray(graded.rescued_PR), axis=1)
    ids = [i for i, was in zip(graded.problem_ids, rescued_P, strict=True) if was]
    age_steps = sum(state.step - sink.stored_at(problem_id) for problem_id in ids)
    sink.update(graded, step=state.step, stage=stage.stage, temperature=stage.temperature)
    state = dataclasses.replace(state, sink=sink)
    return state.counted(rescued_groups=rescued, rescued_age_steps=age_steps), graded


def resample_if_scarce(
    parts: Parts, state: RunState, graded: Graded, *, stop: StopRequest
) -> tuple[RunState, Graded, np.ndarray]:
    """The batch with informative groups of further batches in place of uninformative ones.

    Under `batch.on_scarce=resample` the step draws further prompts until informative groups are no
    longer scarce, `batch.max_resample` times at most. Its rollout metrics remain those of its first
    batch, which nothing has selected. `place_P` is each group's place among all that were sampled.
    Source: with `batch.min_informative=1`, dynamic sampling: DAPO, Yu et al. 2025
        (arXiv:2503.14476), section 3.2.
    """
    section = parts.config.batch
    most = section.max_resample if section.on_scarce == "resample" else 0
    place_P, sampled = np.arange(len(graded)), len(graded)
    for attempt in range(1, most + 1):
        if not is_scarce(graded, section.min_informative):
            break
        state, more, _ = collect_rollouts(parts, state, stop=stop, attempt=attempt)
        state = state.counted(resampled_batches=1)
        pooled = concat_graded([graded, more])
        informative_first = np.argsort(~pooled.informative_P, kind="stable")
        kept = np.sort(informative_first[: len(graded)])  # as drawn: minibatches are cut in it
        graded = select_groups(pooled, kept)
        place_P = np.append(place_P, sampled + np.arange(len(more)))[kept]
        sampled += len(more)
    return state, graded, place_P


def substitute(
    parts: Parts, state: RunState, graded: Graded, *, before: Mapping[str, int]
) -> tuple[Graded, Substitution]:
    """The batch with a copy of an informative group in place of each uninformative one.

    Args:
        parts: what the run is made of.
        state: the state after the batch was sampled.
        graded: the batch.
        before: the counts before the step.
    """
    section = parts.config.batch
    if not section.substitute:
        skip = section.on_scarce == "skip" and is_scarce(graded, section.min_informative)
        return graded, no_substitution(graded, action="skip" if skip else "train")
    drawn = state.counts.get("resampled_batches", 0) - before.get("resampled_batches", 0)
    last = drawn == section.max_resample  # 0 numbers the last attempt, so that old runs resume
    return substitute_uninformative(
        graded,
        min_informative=section.min_informative,
        on_scarce="skip" if section.on_scarce == "skip" else "train",
        max_copies=section.max_copies,
        rng=step_rng(parts, state, "substitute", 0 if last else drawn + 1),
    )


def pack_minibatches(
    parts: Parts, state: RunState, graded: Graded, substitution: Substitution
) -> list[TrainBatch]:
    """One packed `TrainBatch` for each minibatch that has an unmasked token.

    None if `substitution.action` is not "train". Only tokens that the present policy sampled in
    this step are fresh; copies, stored responses and carried tokens are not. The log-prob gap
    compares sampler and trainer on fresh tokens.
    """
    if substitution.action != "train":
        return []
    objective = parts.config.objective
    advantage_PR = group_advantages(
        graded.reward_PR, scale=objective.std, baseline=objective.baseline
    )
    fresh_PR = fresh_rows(graded, substitution)
    stale_PR = stale_tokens(graded, state.policy_version)
    share_prompts = parts.updater.shares_prompts(parts.model_config)
    batches = [
        pack(
            select_groups(graded, group),
            advantage_PR=advantage_PR[group],
            fresh_PR=fresh_PR[group],
            stale_PR=None if stale_PR is None else stale_PR[group],
            row_len=parts.updater.row_len,
            rows=parts.updater.rows,
            shards=parts.updater.shards,
            one_a_row=not packs_rows(parts.config.model.attention),
            share_prompts=share_prompts,
            objective=objective,
            max_response_tokens=state.stage.max_response_tokens,
            temperature=state.stage.temperature,
        )
        for group in np.array_split(np.arange(len(graded)), objective.minibatches)
    ]
    return [batch for batch in batches if batch.tokens]


def update(
    parts: Parts, state: RunState, batches: list[TrainBatch]
) -> tuple[RunState, dict[str, Any]]:
    """The state after one optimizer step for each minibatch, and their merged metrics.

    The sampler gets the new weights. Without a batch nothing changes.
    """
    if not batches:
        return state, {}
    updater, metrics = parts.updater, []
    train = updater.fetch(state.train)
    if parts.config.objective.old_logprobs == "recompute":
        batches = [updater.recompute_logprobs(train.params, batch) for batch in batches]
    for batch in batches:
        train, measured = updater.update(train, batch, reference=parts.reference)
        metrics.append(measured)
    state.live_sampler().update_weights(train.params)
    train = updater.park(train)
    tokens, merged = sum(batch.tokens for batch in batches), merge_metrics(metrics)
    parts.clock.count_update(tokens=tokens, flops=update_flops(parts.model_config, batches))
    skipped = int(value_of(merged["update/skipped"]) or 0)
    state = dataclasses.replace(state, train=train)
    state = state.counted(update_tokens=tokens, skipped_updates=skipped)
    return state, merged | {"batch/tokens": tokens}


def count_batch(
    state: RunState, substitution: Substitution, *, updated: bool, before: Mapping[str, int]
) -> tuple[RunState, dict[str, Any]]:
    """The state that has counted what the step did with its batch, and the same as metrics.

    Args:
        state: the state after the update.
        substitution: what was substituted.
        updated: False if no update was made.
        before: the counts before the step.
    """
    state = state.counted(
        substituted_groups=substitution.replaced,
        donors_reused=substitution.reused,
        steps_without_update=int(not updated),
    )
    metrics = count_metrics(before, state.counts)
    return state, metrics | {"batch/informative_groups": substitution.informative}


def end_step(parts: Parts, state: RunState, metrics: dict[str, Any]) -> RunState:
    """The state one step later, with the step's metrics pending; it may end its stage."""
    if parts.config.rollout.partial_rollouts == "carry":
        metrics = metrics | carried_metrics(state.carried)
    stats = StepStats(
        entropy=value_of(metrics.get("update/fresh_entropy")),
        reward=value_of(metrics.get("rollout/reward_mean")),
        clip_ratio=value_of(metrics.get("rollout/clip_ratio")),
    )
    stage, _ = observe(state.stage, stats, parts.config.stages)
    state = dataclasses.replace(state, step=state.step + 1, stage=stage, pending_metrics=metrics)
    return with_next_stage(parts, state)


def step_rng(parts: Parts, state: RunState, name: str, attempt: int = 0) -> np.random.Generator:
    """The random generator of one choice in this step; a resumed run gets the same one."""
    return np.random.default_rng(fold_seed(parts.config.seed, state.step, name, attempt))
