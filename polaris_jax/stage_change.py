"""From one stage to the next: drop easy problems, choose a temperature, reset, resize.

One transaction: everything here happens between two checkpoints and is a function of the state it
starts from, so a kill in its middle repeats it and comes to the same place.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from polaris_jax.assemble import Parts
from polaris_jax.config import ConfigError
from polaris_jax.explore import Candidate, next_temperature
from polaris_jax.explore.temperature import candidate_temperatures, measure_candidate
from polaris_jax.measure.solve import solve
from polaris_jax.records import NO_STAGE, Problem, StageState
from polaris_jax.rollout import Sampler
from polaris_jax.stages.controller import decision, initial_state, stage_ended
from polaris_jax.state import RunState
from polaris_jax.system.seeds import fold_seed
from polaris_jax.system.signals import StopRequest
from polaris_jax.train.state import with_rope_scaling

Decision = dict[str, Any]


def change_stage(parts: Parts, state: RunState, *, stop: StopRequest) -> RunState:
    """The state with which the first step of stage `state.next_stage` begins.

    Raises:
        RolloutAborted: `stop` was requested while sampling; the same state can enter again.
        ConfigError: match_diversity without a target, or with one of another probe set.
    """
    assert state.next_stage is not None
    assert not state.carried, "the last step of a stage leaves nothing in flight"
    index, left = state.next_stage, state.stage if state.stage.stage != NO_STAGE else None
    section = parts.config.stages[index]
    dropped, decisions = drop_easy(parts, state, index, left)
    temperature, chosen = choose_temperature(parts, state, index, left, stop=stop)
    decisions.append(chosen)

    train = with_rope_scaling(state.train, parts.rope_scaling(index))
    if left is not None and section.reset_optimizer:
        train = parts.updater.reset_optimizer(train)
        decisions.append(decision("reset_optimizer", True, "stage change"))
    accuracy, loader = copy.copy(state.accuracy), copy.copy(state.loader)
    accuracy.forget(index)  # it has visits of this stage if the checkpoint was another run's
    loader.drop(dropped)
    stage = initial_state(
        parts.config.stages,
        stage=index,
        step=state.step,
        temperature=temperature,
        dropped_ids=dropped,
        decisions=decisions,
    )
    state = dataclasses.replace(state, train=train, accuracy=accuracy, loader=loader)
    sampler = stage_sampler(parts, state, index, left)
    if _matches_diversity(parts, index + 1):
        measured = measure(parts, sampler, stage, temperature, stop=stop)
        stage = dataclasses.replace(
            stage,
            target_diversity=measured.diversity,
            target_probe=probe_identity(parts, stage),
        )
    record = {
        "stage": index,
        "first_step": state.step,
        "last_step": None,
        "temperature": temperature,
        "max_response_tokens": section.max_response_tokens,
        "dropped_ids_count": len(dropped),
        "decisions": decisions,
    }
    records = (*state.stage_records, record)
    parts.outputs.write_stages(records)
    parts.progress.line(
        f"stage {index}: {section.steps} steps, temperature {temperature:g}, up to "
        f"{section.max_response_tokens} response tokens, {len(dropped)} problems dropped so far"
    )
    parts.clock.begin_stage(sampler, parts.solver.grader)
    state = dataclasses.replace(
        state, stage=stage, next_stage=None, sampler=sampler, stage_records=records
    )
    easy = [entry["value"] for entry in decisions if entry["kind"] == "drop_easy"]
    return state.counted(dropped_problems=sum(easy)) if easy else state


def drop_easy(
    parts: Parts, state: RunState, index: int, left: StageState | None
) -> tuple[list[str], list[Decision]]:
    """The problems that stage `index` leaves out, and what was decided about the stage just left.

    A run that begins from another run's checkpoint may enter a stage that the other run left before
    its end. The decision says so, and nothing is dropped if it is the same stage.
    """
    if left is None:
        return [], []
    remaining = {problem.id for problem in parts.problems}  # another run may have had others
    dropped = [i for i in left.dropped_ids if i in remaining]
    remaining.difference_update(dropped)
    cut_short = ""
    if not stage_ended(left, parts.config.stages):
        steps = parts.config.stages[left.stage].steps
        cut_short = f"; stage {left.stage} was left after {left.steps_done} of its {steps} steps"
        parts.progress.line(f"entering stage {index}{cut_short}")
        if left.stage == index:
            reason = f"stage {index} is entered again{cut_short}"
            return dropped, [decision("drop_easy", 0, reason)]
    threshold = parts.config.stages[left.stage].drop_above
    if threshold >= 1:
        return dropped, []
    statistic = parts.config.stages[left.stage].drop_statistic
    easy = state.accuracy.easy_ids(left.stage, drop_above=threshold, statistic=statistic)
    easy = [i for i in easy if i in remaining]
    if len(dropped) + len(easy) >= len(parts.problems):
        reason = f"all remaining problems pass {threshold:g}; the last set is kept{cut_short}"
        return dropped, [decision("drop_easy", 0, reason)]
    of = "mean accuracy of the stage's visits"
    if statistic == "last":
        of = "accuracy of the stage's newest visit"
    reason = f"{of} above {threshold:g}{cut_short}"
    return dropped + easy, [decision("drop_easy", len(easy), reason, easy)]


def choose_temperature(
    parts: Parts, state: RunState, index: int, left: StageState | None, *, stop: StopRequest
) -> tuple[float, Decision]:
    """The temperature of stage `index` by its `temperature_rule`, and the decision for it."""
    section = parts.config.stages[index]
    if section.temperature_rule == "fixed":
        reason = f"stages[{index}].temperature"
        return section.temperature, decision("temperature", section.temperature, reason)
    if section.temperature_rule == "probe":
        return probed_temperature(parts, index)
    if left is not None and left.stage == index:
        return left.temperature, decision("temperature", left.temperature, "the checkpoint's own")
    if left is None or left.target_diversity is None:
        raise ConfigError(
            f"stages[{index}].temperature_rule='match_diversity': there is no measured stage "
            "before it; use fixed or probe where a run begins"
        )
    present = probe_identity(parts, left)
    if left.target_probe not in (None, present):
        raise ConfigError(
            f"stages[{index}].temperature_rule='match_diversity': the target diversity of stage "
            f"{left.stage} was measured on {left.target_probe}, and here it would be compared on "
            f"{present}; give probe.problems, probe.n, seed and data.problems of that run, or set "
            f"stages[{index}].temperature_rule to fixed or probe"
        )
    return matching_temperature(parts, state, left, stop=stop)


def probed_temperature(parts: Parts, index: int) -> tuple[float, Decision]:
    """The temperature that `polaris probe` suggests; the stage's own if it was not run."""
    section, path = parts.config.stages[index], parts.workdir / "probe.json"
    if not path.exists():
        parts.progress.line(
            f"warning: no {path.name} in the workdir (`polaris probe` makes it); stage {index} "
            f"begins at stages[{index}].temperature={section.temperature:g}"
        )
        reason = f"stages[{index}].temperature, since the workdir has no {path.name}"
        return section.temperature, decision("temperature", section.temperature, reason)
    try:
        value = float(json.loads(path.read_text())["initial_temperature"])
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path}: not what `polaris probe` leaves ({type(error).__name__}: {error}); "
            "delete it and run `polaris probe` again, or set "
            f"stages[{index}].temperature_rule=fixed"
        ) from None
    reason = "highest probed temperature in the robust zone"
    return value, decision("temperature", value, reason)


def matching_temperature(
    parts: Parts, state: RunState, left: StageState, *, stop: StopRequest
) -> tuple[float, Decision]:
    """The temperature at which the policy is as diverse as it was when stage `left` began.

    Candidates are sampled by the former stage's sampler, under its budget and rotary scaling.
    """
    section = parts.config.probe
    grid = candidate_temperatures(
        left.temperature, left.first_entropy, left.last_entropy, section.max_candidates
    )
    with contextlib.ExitStack() as measuring:
        sampler = state.sampler
        if sampler is None:  # a stage begun from another run's checkpoint
            former = with_rope_scaling(state.train, parts.rope_scaling(left.stage))
            sampler = parts.solver.samplers.make(
                former.params, max_response_tokens=left.max_response_tokens
            )
            measuring.callback(sampler.release)
        temperatures = (left.temperature, *grid)
        candidates = [measure(parts, sampler, left, t, stop=stop) for t in temperatures]
    assert left.target_diversity is not None
    chosen = next_temperature(
        candidates,
        current=left.temperature,
        target_diversity=left.target_diversity,
        rgz_tolerance=section.rgz_tolerance,
        cez_tolerance=section.cez_tolerance,
    )
    return chosen.temperature, decision(
        "temperature", chosen.temperature, chosen.reason, chosen.table
    )


def stage_sampler(parts: Parts, state: RunState, index: int, left: StageState | None) -> Sampler:
    """The former stage's sampler if budget and rotary scaling stay, else a new one."""
    max_response_tokens = parts.config.stages[index].max_response_tokens
    if state.sampler is not None:
        assert left is not None
        rescaled = parts.rope_scaling(index) != parts.rope_scaling(left.stage)
        if max_response_tokens == left.max_response_tokens and not rescaled:
            return state.sampler
        state.sampler.release()
    return parts.solver.samplers.make(state.train.params, max_response_tokens=max_response_tokens)


def measure(
    parts: Parts,
    sampler: Sampler,
    stage: StageState,
    temperature: float,
    *,
    stop: StopRequest,
) -> Candidate:
    """Accuracy and diversity at a temperature, on the fixed probe set with the stage's budget."""
    graded = solve(
        parts.solver,
        sampler,
        probe_set(parts),
        n=parts.config.probe.n,
        temperature=temperature,
        max_response_tokens=stage.max_response_tokens,
        seed_parts=(parts.config.seed, "measure", stage.stage, f"{temperature:.4f}"),
        mode=parts.config.reward.mode,
        should_abort=lambda: stop.requested,
    )
    return measure_candidate(temperature, graded.texts, graded.reward_PR)


def probe_set(parts: Parts) -> list[Problem]:
    """The problems on which temperatures are compared: the same at every stage change."""
    seed = fold_seed(parts.config.seed, "probe set")
    order = np.random.default_rng(seed).permutation(len(parts.problems))
    return [parts.problems[i] for i in order[: parts.config.probe.problems]]


def probe_identity(parts: Parts, stage: StageState) -> str:
    """What a diversity depends on besides policy and temperature, in words that tell it apart."""
    ids = sorted(problem.id for problem in probe_set(parts))
    digest = hashlib.blake2b(json.dumps(ids).encode(), digest_size=4).hexdigest()
    return (
        f"{len(ids)} problems ({digest}) x {parts.config.probe.n} responses of up to "
        f"{stage.max_response_tokens} tokens"
    )


def _matches_diversity(parts: Parts, index: int) -> bool:
    """True if stage `index` exists and needs the diversity of the one before it."""
    following = parts.config.stages[index : index + 1]
    return bool(following) and following[0].temperature_rule == "match_diversity"
