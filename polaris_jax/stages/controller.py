"""The stage controller: pure functions from one `StageState` to the next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from polaris_jax.config.sections import StageSection
from polaris_jax.records import StageState

ENTROPY_STEPS = 5  # most steps of the two means whose difference is the fall in entropy


@dataclasses.dataclass(frozen=True)
class StepStats:
    """The statistics of a step that the controller uses.

    Attributes:
        entropy: policy entropy in nats over the fresh tokens of the step's update (no rescued row,
            no copy). None if there was no update, or no fresh token.
        reward: mean reward of the step's rollouts.
        clip_ratio: share of the step's responses that the budget ended.
    """

    entropy: float | None = None
    reward: float | None = None
    clip_ratio: float | None = None


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
    """True if the state's stage has done all of its steps, or one of its rules has ended it."""
    return state.ending is not None or state.steps_done >= stages[state.stage].steps


def observe(
    state: StageState, stats: StepStats, stages: Sequence[StageSection]
) -> tuple[StageState, list[dict[str, Any]]]:
    """The state after one more step, and a decision if the stage has ended.

    A step without an update counts as a step and leaves the entropies unchanged; so does an update
    without a finite entropy. The end of the last stage sets `finished`. A stage that a rule
    has ended may do one more step, in which the groups in flight are completed.

    Args:
        state: state before the step.
        stats: statistics of the step.
        stages: the config's stages.

    Returns:
        (state, decisions); decisions is empty unless the stage has ended.

    Raises:
        ValueError: the stage has done all of its steps. Enter the next stage first.
    """
    section = stages[state.stage]
    if state.finished or state.steps_done >= section.steps:
        raise ValueError(
            f"stage {state.stage} has done its {section.steps} steps: enter the next "
            "stage, or end the run, before another step"
        )
    state = dataclasses.replace(state, steps_done=state.steps_done + 1)
    state = _with_entropy(state, stats.entropy)
    if keeps := _steps_kept(section):
        row = (_finite(stats.reward), _finite(stats.clip_ratio), _finite(stats.entropy))
        state = dataclasses.replace(state, recent=(*state.recent, row)[-keeps:])
    return _settled(state, stages, _ending(state, section))


def observe_score(
    state: StageState, score: float, stages: Sequence[StageSection]
) -> tuple[StageState, list[dict[str, Any]]]:
    """The state after a held-out score of its newest step, and a decision if the stage has ended.

    Args:
        state: state after the step.
        score: held-out score in [0, 1].
        stages: the config's stages.
    """
    section = stages[state.stage]
    if not section.end_score_gain:
        return state, []
    border = state.steps_done - section.end_window
    oldest = border - section.end_window
    scores = (*state.scores, (state.steps_done, float(score)))
    state = dataclasses.replace(state, scores=tuple(s for s in scores if s[0] > oldest))
    newest = [score for done, score in state.scores if done > border]
    former = [score for done, score in state.scores if done <= border] if oldest >= 0 else []
    rule = ("end_score_gain", "held-out score")
    ending = _ended_by(state, section, *rule, _mean(newest), former=_mean(former))
    return _settled(state, stages, ending)


def _settled(
    state: StageState, stages: Sequence[StageSection], ending: dict[str, Any] | None
) -> tuple[StageState, list[dict[str, Any]]]:
    """The state with `ending` and `finished` set, and the decision if the stage has ended."""
    steps = stages[state.stage].steps
    if state.steps_done < steps:
        state = dataclasses.replace(state, ending=state.ending or ending)
    if not stage_ended(state, stages):
        return state, []
    state = dataclasses.replace(state, finished=state.stage == len(stages) - 1)
    by_steps = decision("stage_end", state.stage, f"stage {state.stage} did its {steps} steps")
    return state, [state.ending or by_steps]


def _with_entropy(state: StageState, entropy: float | None) -> StageState:
    """The state after a step's entropy.

    `first_entropy` and `last_entropy` are means over disjoint steps: half of those that measured
    one, at most `ENTROPY_STEPS`. One step's entropy is noise of the size of a stage's fall.
    """
    if (entropy := _finite(entropy)) is None:
        return state
    count, firsts, lasts = state.entropies, state.first_entropies, state.last_entropies
    if not count and state.first_entropy is not None:  # an earlier version kept two steps alone
        count, firsts, lasts = 1, (state.first_entropy,), (state.first_entropy,)
    count, lasts = count + 1, (*lasts, entropy)[-ENTROPY_STEPS:]
    firsts = (*firsts, entropy)[:ENTROPY_STEPS]
    width = max(1, min(ENTROPY_STEPS, count // 2))
    return dataclasses.replace(
        state,
        entropies=count,
        first_entropies=firsts,
        last_entropies=lasts,
        first_entropy=_mean(firsts[:width]),
        last_entropy=_mean(lasts[-width:]),
    )


def _steps_kept(section: StageSection) -> int:
    """The number of newest steps whose numbers the stage's rules need."""
    if section.end_reward_gain:
        return 2 * section.end_window
    return section.end_window if section.end_clip_ratio or section.end_entropy else 0


def _ending(state: StageState, section: StageSection) -> dict[str, Any] | None:
    """The decision of the first rule on the newest steps that ends the stage; None if none does."""

    def mean(column: int, *, skip: int = 0) -> float | None:
        rows = state.recent[: len(state.recent) - skip][-section.end_window :]
        full = len(rows) == section.end_window
        return _mean(row[column] for row in rows) if full else None

    return (
        _ended_by(state, section, "end_entropy", "entropy", mean(2))
        or _ended_by(state, section, "end_clip_ratio", "clip ratio", mean(1))
        or _ended_by(
            state,
            section,
            "end_reward_gain",
            "reward",
            mean(0),
            former=mean(0, skip=section.end_window),
        )
    )


def _ended_by(
    state: StageState,
    section: StageSection,
    rule: str,
    name: str,
    mean: float | None,
    *,
    former: float | None = None,
) -> dict[str, Any] | None:
    """The decision of one rule, if it ends the stage.

    Args:
        state: state after the step.
        section: `config.stages` of the stage.
        rule: name of the rule's field.
        name: what the rule is about.
        mean: its mean over the newest steps; None if unknown.
        former: its mean over the steps before them, for a rule on a gain.
    """
    limit, is_gain = getattr(section, rule), rule.endswith("_gain")
    if not limit or mean is None or (is_gain and former is None):
        return None
    value = mean - (former or 0.0)
    is_above = rule == "end_clip_ratio"
    if not (value > limit if is_above else value < limit):
        return None
    window, last = section.end_window, state.first_step + state.steps_done - 1
    before = "" if former is None else f", {former:.4g} over the {window} before"
    what = "above" if is_above else "a gain below" if is_gain else "below"
    reason = (
        f"mean {name} {mean:.4g} over steps {last - window + 1} to {last}{before}: {what} "
        f"stages[{state.stage}].{rule}={limit:g}"
    )
    row = {"rule": rule, "limit": limit, "window": window, "mean": mean, "former": former}
    return decision("stage_end", rule, reason, [row])


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None if there is none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
