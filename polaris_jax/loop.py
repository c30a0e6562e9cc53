"""The complete training algorithm: stages, and in each stage steps.

`run` trains in a workdir; `train` is the algorithm.
"""

from __future__ import annotations

import contextlib
import dataclasses

from etils import epath
from ml_collections import ConfigDict

from polaris_jax.assemble import Parts, assemble
from polaris_jax.config import RunConfig, build_config
from polaris_jax.measure.held_out import HeldOutScore, held_out_score, score_before
from polaris_jax.measure.workload import (
    UNKNOWN,
    Forecast,
    before_text,
    first_step_text,
    training_left,
)
from polaris_jax.metrics.writer import reduce_metrics
from polaris_jax.rollout import RolloutAborted
from polaris_jax.run.outputs import step_text
from polaris_jax.run.signs import Signs
from polaris_jax.run.standing import duration, read_standing, score_text
from polaris_jax.stage_change import change_stage, warn_of_probes
from polaris_jax.stages.controller import stage_ended
from polaris_jax.stages.guards import check_health, failed_grading, watch
from polaris_jax.start import StartAt, check_start, open_state
from polaris_jax.state import RunState, with_score
from polaris_jax.step import step
from polaris_jax.system.console import open_console
from polaris_jax.system.failures import at_run_time
from polaris_jax.system.files import as_place
from polaris_jax.system.processes import any_process, process_count, process_index
from polaris_jax.system.signals import StopRequest


def run(
    config: ConfigDict | RunConfig,
    workdir: str | epath.Path,
    *,
    overwrite: bool = False,
    start: StartAt | None = None,
    stop: StopRequest | None = None,
    forecast: Forecast = UNKNOWN,
) -> RunState:
    """Trains in `workdir`, or continues the run that it holds, and returns the last state.

    What `polaris train` does, for Python: SIGTERM and Ctrl-C leave a checkpoint, and the same call
    continues from it. Prints each step and how the run ended.

    Args:
        config: a config like those in configs/, or a `RunConfig`.
        workdir: directory of the run's files.
        overwrite: delete what an earlier training left in the workdir.
        start: begin at a later stage, from another run's checkpoint.
        stop: records the signal that ended the run; made here if not given.
        forecast: what is known of the machine's speed, for the line that says how long a run of
            more than an hour takes.

    Raises:
        ConfigError: config, problems, model, devices or workdir do not suit one another.
        RuntimeError: the run's numbers cannot be trusted (see `stages.guards`).
    """
    config = build_config(config) if isinstance(config, ConfigDict) else config
    workdir = as_place(workdir)
    if start is not None:
        check_start(start, config, workdir, overwrite=overwrite)
    progress = open_console(Signs(workdir, process=process_index()))
    with (
        stop or StopRequest() as stop,
        assemble(config, workdir, progress=progress, overwrite=overwrite) as parts,
    ):
        # No name for the first state: it would keep what the run outgrows in memory.
        state = train(parts, announced(parts, open_state(parts, start), forecast), stop=stop)
        by = "" if stop.signal is None else f" by {stop.signal.name}"
        parts.outputs.note_end("finished" if state.done else f"stopped{by}", state.counts)
    if state.done and parts.outputs.first_line == state.step:
        progress.line(f"already complete: {state.step} steps in {workdir}")
        if text := ended_early(parts.config, state):
            progress.line(text)
        return state
    counts = "  ".join(f"{name} {value}" for name, value in sorted(state.counts.items()))
    ending = "finished" if state.done else "stopped; rerun the same command to continue"
    if stop.signal is not None:
        ending += f" ({stop.waited_s:.1f} s after {stop.signal.name})"
    if warning := state.guards.summary():
        progress.line(f"warning: {warning}")
    progress.line(f"{ending}: {state.step} steps  {counts}")
    if state.done:
        if text := ended_early(parts.config, state):
            progress.line(text)
        for text in closing_lines(workdir, state):
            progress.line(text)
    return state


def announced(parts: Parts, state: RunState, forecast: Forecast) -> RunState:
    """The state; prints what lies ahead: a probe that is missing, more than an hour of sampling."""
    warn_of_probes(parts, state)
    left = training_left(parts.config, state.stage, state.next_stage)
    if not state.stage.finished and (text := before_text("train", left, forecast)):
        parts.progress.line(text)
    return state


def ended_early(config: RunConfig, state: RunState) -> str:
    """What has ended a finished run before the last step of its last stage; else ""."""
    stage, most = state.stage, config.rollout.total_tokens
    if stage.stage == len(config.stages) - 1 and stage_ended(stage, config.stages):
        if stage.ending is None:
            return ""
        reason = stage.ending["reason"]
        return f"stage {stage.stage} was ended early, {reason}: more steps do not continue it"
    return f"rollout.total_tokens={most} are spent: a larger number continues the run"


def closing_lines(workdir: epath.Path, state: RunState) -> list[str]:
    """What a finished run has reached, what it took, and what to run next."""
    run = read_standing(workdir)
    tokens = state.counts.get("sampled_tokens", 0)
    score = f"{text}; " if (text := score_text(run)) else ""
    here = f"--config=... --workdir={workdir}"
    return [
        f"{score}{tokens:,} tokens sampled in {duration(run.seconds)}",
        f"next: polaris evaluate {here} --checkpoint=latest; polaris report {here}; "
        f"polaris show {workdir} --wrong",
    ]


def train(parts: Parts, state: RunState, *, stop: StopRequest) -> RunState:
    """Runs all stages, or the remaining stages of a resumed run, and returns the last state.

    Args:
        parts: what the run is made of, from `assemble`.
        state: the state to continue from, from `open_state`.
        stop: asks for an early end, which leaves a checkpoint.

    Raises:
        RuntimeError: too many non-finite updates in a row, or too large a log-prob gap.
    """
    with parts.clock.compile_counter, at_run_time(lambda: f"step {state.step}"):
        with contextlib.suppress(RolloutAborted):  # stopped while sampling: keep the state before
            while not state.done and not any_process(stop.requested):
                if state.pending_metrics is None:  # else the step is done, but not yet written
                    if state.next_stage is not None:
                        state = change_stage(parts, state, stop=stop)
                        save_if_due(parts, state)
                    score_before(parts, state, stop=stop)
                    state = step(parts, state, stop=stop)
                score = held_out_score(parts, state, stop=stop)
                state = write_step(parts, state, score=score)
                with parts.clock.timer("save"):
                    save_if_due(parts, state)
                write_timing(parts, state)
        if state.stage_records:  # empty if a stop came before the first stage was entered
            parts.checkpoints.save(state.snapshot())
    return state


def write_step(parts: Parts, state: RunState, *, score: HeldOutScore | None) -> RunState:
    """Writes the newest step's metrics, and stages.json if the step ended its stage.

    Returns:
        The state without pending metrics.

    Raises:
        RuntimeError: the metrics show that the run must stop (see `stages.guards`).
    """
    assert state.pending_metrics is not None
    number, records = state.step - 1, state.stage_records
    metrics = state.pending_metrics | {
        "stage": state.stage.stage,
        "data/dropped": len(state.stage.dropped_ids),
    }
    if score is not None:
        metrics |= score.metrics()
        state = with_score(parts, state, score.score)
    parts.outputs.write_metrics(number, metrics)
    parts.progress.line(step_text(number, metrics))
    line = reduce_metrics(metrics)
    check_health(number, int(state.train.skips_in_a_row), line, parts.config)
    guards, warnings = watch(state.guards, line, step=number, section=parts.config.guards)
    for text in warnings:
        parts.progress.line(f"warning: {text}")
    if state.at_stage_end:
        ended = {**records[-1], "last_step": number}
        if (ending := state.stage.ending) is not None:
            ended["decisions"] = [*ended["decisions"], ending]
            parts.progress.line(f"stage {state.stage.stage} ends: {ending['reason']}")
        records = (*records[:-1], ended)
        parts.outputs.write_stages(records)
    return dataclasses.replace(state, pending_metrics=None, stage_records=records, guards=guards)


def save_if_due(parts: Parts, state: RunState) -> None:
    """Saves every `checkpoint.every_steps` steps, at a stage's end, and after a stage is entered.

    A stage change that is killed is repeated from the checkpoint of the stage's end. Nothing is
    saved before the first step.
    """
    at_border = state.at_stage_end or state.stage.steps_done == 0
    every_steps = parts.config.checkpoint.every_steps
    if state.step > 0 and (at_border or state.step % every_steps == 0):
        parts.checkpoints.save(state.snapshot())


def write_timing(parts: Parts, state: RunState) -> None:
    """Writes the step's line of timing.jsonl, and warnings about what only the clock knows.

    Raises:
        RuntimeError: grading failed too often, and `guards.stop` names "grader".
    """
    line = parts.clock.line(
        state.live_sampler(),
        parts.solver.grader,
        devices=list(parts.updater.mesh.devices.flat),
    )
    number = state.step - 1
    parts.outputs.write_timing(number, line)
    if number == parts.outputs.first_line:
        samplers = process_count() // parts.config.rollout.processes
        position = state.stage, state.next_stage
        if text := first_step_text(parts.config, *position, line, samplers=samplers):
            parts.progress.line(text)
    for warning in (
        parts.clock.grace_warning(line, parts.config.checkpoint),
        failed_grading(line, step=number, section=parts.config.guards),
    ):
        if warning:
            parts.progress.line(f"warning: {warning}")
