"""The stage controller: pure functions from one `StageState` to the next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from polaris_jax.config.sections import StageSection
from polaris_jax.records import StageState


@dataclasses.dataclass(frozen=True)
class StepStats:
    """The statistics of a step that the controller uses.

    Attributes:
        entropy: policy entropy in nats over the fresh tokens of the step's update (no rescued row,
            no copy). None if there was no update, or no fresh token.
    """

    entropy: float | None = None


def decision(kind: str, value: Any, reason: str, table: Iterable[Any] = ()) -> dict[str, Any]:
    """One entry of a stage's decisions in stages.json."""
    return {"kind": kind, "value": value, "reason": reason, "table": list(table)}


def initial_state(
    stages: Sequence[StageSection],
    *,
    stage: int = 0,
    step: int = 0,
    temperature: float | None = None,
    dropped_ids: Iterable[str] = (),
    decisions: Iterable[dict[str, Any]] = (),
) -> StageState:
    """The state before the first step of a stage.

    Args:
        stages: the config's stages.
        stage: index of the stage, from 0.
        step: global step.
        temperature: sampling temperature; None: the stage's own.
        dropped_ids: problems already dropped from the training set.
        decisions: decisions made on entering the stage.

    Raises:
        ValueError: there is no such stage.
    """
    if not 0 <= stage < len(stages):
        raise ValueError(f"stage={stage}: the config has stages 0 to {len(stages) - 1}")
    section = stages[stage]
    return StageState(
        stage=stage,
        first_step=step,
        steps_done=0,
        temperature=section.temperature if temperature is None else float(temperature),
        max_response_tokens=section.max_response_tokens,
        dropped_ids=tuple(dict.fromkeys(dropped_ids)),
        decisions=tuple(decisions),
    )


def stage_ended(state: StageState, stages: Sequence[StageSection]) -> bool:
    """True if the state's stage has done all of its steps."""
    return state.steps_done >= stages[state.stage].steps


def observe(
    state: StageState, stats: StepStats, stages: Sequence[StageSection]
) -> tuple[StageState, list[dict[str, Any]]]:
    """The state after one more step, and a decision if the stage has ended.

    A step without an update, or with an update that was skipped as not finite, counts as a step and
    leaves the entropies unchanged. The end of the last stage sets `finished`.

    Args:
        state: state before the step.
        stats: statistics of the step.
        stages: the config's stages.

    Returns:
        (state, decisions); decisions is empty unless this step ended the stage.

    Raises:
        ValueError: the stage has already ended. Enter the next stage first.
    """
    if state.finished or stage_ended(state, stages):
        raise ValueError(
            f"stage {state.stage} has done its {stages[state.stage].steps} steps: enter the next "
            "stage, or end the run, before another step"
        )
    first, last = state.first_entropy, state.last_entropy
    if stats.entropy is not None and math.isfinite(stats.entropy):
        last = float(stats.entropy)
        first = last if first is None else first
    state = dataclasses.replace(
        state, steps_done=state.steps_done + 1, first_entropy=first, last_entropy=last
    )
    if not stage_ended(state, stages):
        return state, []
    state = dataclasses.replace(state, finished=state.stage == len(stages) - 1)
    steps = stages[state.stage].steps
    return state, [decision("stage_end", state.stage, f"stage {state.stage} did its {steps} steps")]
