"""The whole training algorithm on one screen.

A pass of the loop is one step of the recipe: draw prompts, sample, grade, log accuracy, rescue,
substitute, update, hand the new weights to the sampler and, when a stage has ended, enter the next.
`TrainingRun` (training_run.py) holds what outlives a step and writes the run's files.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.batch import (
    Substitution,
    concat_graded,
    select_groups,
    substitute_uninformative,
)
from polaris_jax.config import RunConfig
from polaris_jax.data.loader import PromptLoader
from polaris_jax.mark import Mark
from polaris_jax.metrics import value_of
from polaris_jax.metrics.rollout_stats import rollout_metrics
from polaris_jax.records import Graded, StageState
from polaris_jax.rollout import RolloutAborted, Sampler
from polaris_jax.stage_change import enter_stage
from polaris_jax.stages.controller import StepStats, observe, stage_ended
from polaris_jax.start_at import StartAt
from polaris_jax.state import TrainingRun
from polaris_jax.step import in_flight, lag_metrics, left_metrics, roll_out
from polaris_jax.step_rules import check_health
from polaris_jax.step_update import update_policy
from polaris_jax.system import processes
from polaris_jax.system.progress import Progress
from polaris_jax.system.signals import StopRequest
from polaris_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """How a call of `train` ended: where it began and stopped, and the run's totals by name."""

    first_step: int
    last_step: int
    finished: bool
    counts: dict[str, int]


def train(
    config: RunConfig,
    workdir: epath.Path,
    *,
    progress: Progress,
    stop: StopRequest,
    overwrite: bool = False,
    start: StartAt | None = None,
) -> TrainSummary:
    """Runs all stages, or what a resumed run has left of them; leaves everything in `workdir`.

    Args:
        config: the run.
        workdir: gets metrics.jsonl, timing.jsonl, stages.json, checkpoints/, rollouts/, run.json.
        progress: where a person sees it.
        stop: asks for an early end that leaves a resumable state.
        overwrite: begin anew in a used workdir.
        start: begin at a later stage, from a checkpoint.

    Raises:
        ConfigError: a bad config, before any device is touched.
        RuntimeError: too many non-finite updates in a row, or too large a log-prob gap.
    """
    opened = TrainingRun(config, workdir, progress=progress, overwrite=overwrite, start=start)
    with opened as run, run.clock.compiles:
        first_step = run.next_line
        if run.resumed is None:
            try:
                stage, state, loader, sampler = enter_stage(
                    run, run.first_stage, run.state, left=run.left, stop=stop
                )
            except RolloutAborted:  # there is nothing yet that a checkpoint would keep
                return TrainSummary(first_step, run.step, False, dict(run.counts))
            run.clock.begin_stage(sampler, run.grader)
        else:
            stage, state, loader, sampler = run.resumed
        state = run.updater.park(state)
        mark = run.mark(stage, loader, owed=run.owed)  # always of a step's end: see below
        try:
            if run.owed is not None:
                mark = close_step(run, state, stage, loader, sampler, run.owed, stop)
                run.save(state, mark, replace=True)  # the same step, and nothing is owed any more
            while not stage.finished and not processes.any_process(stop.requested):
                if stage_ended(stage, config.stages):  # one transaction, repeated after a stop
                    stage, state, loader, sampler = enter_stage(
                        run,
                        stage.stage + 1,
                        state,
                        left=stage,
                        loader=loader,
                        sampler=sampler,
                        stop=stop,
                    )
                    run.clock.begin_stage(sampler, run.grader)
                    mark = run.mark(stage, loader)
                    run.save(state, mark, replace=True)
                graded, metrics = visit(run, sampler, loader, stage, stop)
                graded, swapped = make_informative(run, graded, sampler, loader, stage, stop)
                sampler.release_pool()  # new weights void it, and the update has use for the room
                if swapped.action == "train":
                    with run.clock.timer("update"):
                        state, update_metrics = update_policy(run, state, graded, swapped, stage)
                        sampler.update_weights(state.params)
                        state = run.updater.park(state)
                    metrics |= update_metrics
                metrics |= run.count_batch(swapped, since=mark) | left_metrics(run)
                stats = StepStats(entropy=value_of(metrics.get("update/fresh_entropy")))
                stage, _ = observe(stage, stats, config.stages)
                stage = run.within_tokens(stage)
                run.step += 1
                mark = run.mark(stage, loader, owed=metrics)
                mark = close_step(run, state, stage, loader, sampler, metrics, stop)
        except RolloutAborted:  # what was begun since the mark is forgotten
            pass
        run.save(state, mark)
        finished = stage.finished and mark.owed is None
        return TrainSummary(first_step, run.step, finished, dict(run.counts))


def close_step(
    run: TrainingRun,
    state: TrainState,
    stage: StageState,
    loader: PromptLoader,
    sampler: Sampler,
    metrics: dict[str, Any],
    stop: StopRequest,
) -> Mark:
    """What follows an update: the held-out score, the step's lines, a checkpoint where one is due.

    Raises:
        RolloutAborted: `stop` cut the scoring off; a mark that owes `metrics` resumes with it.
    """
    config, step = run.config, run.step - 1
    metrics = metrics | run.evaluate(state, step, stop)
    run.write_metrics(step, metrics)
    check_health(step, int(state.skips_in_a_row), metrics, config)
    ended = stage.finished or stage_ended(stage, config.stages)
    if ended:
        run.close_stage_record(step)
    mark = run.mark(stage, loader)
    with run.clock.timer("save"):
        if ended or run.step % config.checkpoint.every_steps == 0:
            run.save(state, mark)  # at a stage's end too: a kill in the entry repeats it
    run.write_timing(step, sampler)
    return mark


def visit(
    run: TrainingRun,
    sampler: Sampler,
    loader: PromptLoader,
    stage: StageState,
    stop: StopRequest,
    *,
    attempt: int = 0,
) -> tuple[Graded, dict[str, Any]]:
    """One batch of prompts, sampled, graded, logged, and rescued where a group has failed whole.

    Accuracy and all rollout metrics are taken before the rescue.
    """
    with run.clock.timer("rollout"):
        groups = in_flight(run, loader, stage, attempt=attempt)  # what was left, then new prompts
        rollouts, ahead = roll_out(run, sampler, groups, stage, stop)
    with run.clock.timer("grade"):
        graded = run.grade(rollouts, ahead)  # what ended early is graded by now
    run.lengths.record(graded.problem_ids, graded.token_ids)
    run.accuracy.record(graded.problem_ids, graded.reward_PR, stage=stage.stage)
    metrics = rollout_metrics(
        graded, temperature=stage.temperature, max_response_tokens=stage.max_response_tokens
    ) | lag_metrics(run, graded)
    run.count(sampled_tokens=sum(len(r) for group in graded.token_ids for r in group))
    run.files.write_rollouts(run.step, graded, draws=rollouts.prompts.draws, attempt=attempt)
    if run.config.batch.rescue:
        graded, rescued = run.sink.rescue(
            graded,
            max_response_tokens=stage.max_response_tokens,
            rng=run.rng("rescue", attempt),
        )
        run.count(rescued_groups=rescued)
        run.sink.update(graded, step=run.step, stage=stage.stage, temperature=stage.temperature)
    return graded, metrics | {"data/epoch": rollouts.prompts.epoch}


def unchanged(graded: Graded) -> Substitution:
    """The batch as it is; without an informative group there is nothing to learn from it."""
    informative = int(graded.informative_P.sum())
    action = "train" if informative else "none"
    return Substitution(np.arange(len(graded)), informative, 0, 0, action)


def make_informative(
    run: TrainingRun,
    graded: Graded,
    sampler: Sampler,
    loader: PromptLoader,
    stage: StageState,
    stop: StopRequest,
) -> tuple[Graded, Substitution]:
    """The batch with every uninformative group replaced, drawing more prompts if so configured.

    The step's rollout metrics remain those of its first attempt, which nothing has selected.
    """
    section = run.config.batch
    if not section.substitute:
        return graded, unchanged(graded)
    for attempt in range(1, section.max_resample + 1):
        swapped, substitution = substitute_uninformative(
            graded,
            min_informative=section.min_informative,
            on_scarce=section.on_scarce,
            rng=run.rng("substitute", attempt),
        )
        scarce = substitution.action in ("resample", "none") and section.on_scarce == "resample"
        if not scarce:
            return swapped, substitution
        more, _ = visit(run, sampler, loader, stage, stop, attempt=attempt)
        run.count(resampled_batches=1)
        pooled = concat_graded([graded, more])
        informative_first = np.argsort(~pooled.informative_P, kind="stable")
        graded = select_groups(pooled, informative_first[: len(graded)])
    return substitute_uninformative(
        graded,
        min_informative=section.min_informative,
        on_scarce="train" if section.on_scarce == "resample" else section.on_scarce,
        rng=run.rng("substitute", 0),
    )
