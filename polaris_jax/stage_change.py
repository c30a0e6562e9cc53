"""From one stage to the next: drop easy problems, choose a temperature, reset, resize.

One transaction: everything here happens between two checkpoints and depends only on the state it
starts from. A run that is killed in the middle repeats it with the same result.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import Any

from polaris_jax.assemble import Parts
from polaris_jax.config import ConfigError, few_problems, longest_response_tokens
from polaris_jax.explore import Candidate, next_temperature
from polaris_jax.explore.temperature import candidate_temperatures
from polaris_jax.explore.zones import tolerances
from polaris_jax.measure.probe_set import (
    measure_temperature,
    probe_identity,
    read_initial_temperature,
)
from polaris_jax.records import NO_STAGE, StageState
from polaris_jax.rollout import Sampler
from polaris_jax.stages.controller import decision, initial_state, stage_ended
from polaris_jax.state import RunState
from polaris_jax.system import processes
from polaris_jax.system.signals import StopRequest
from polaris_jax.train.state import with_rope_scaling

Decision = dict[str, Any]

MAX_COLLAPSED = 2  # hotter candidates in the collapse zone; one may be noise


def change_stage(parts: Parts, state: RunState, *, stop: StopRequest) -> RunState:
    """The state with which the first step of stage `state.next_stage` begins.

    Raises:
        RolloutAborted: `stop` was requested while sampling; call it again with the same state.
        ConfigError: the temperature rule is match_diversity, and the previous stage has no target
            diversity, or one that was measured on another probe set.
    """
    assert state.next_stage is not None
    assert not state.carried, "the last step of a stage leaves nothing in flight"
    index, previous = state.next_stage, state.stage if state.stage.stage != NO_STAGE else None
    section = parts.config.stages[index]
    dropped, decisions = drop_easy(parts, state, index, previous)
    temperature, chosen = choose_temperature(parts, state, index, previous, stop=stop)
    decisions.append(chosen)
    tokens = sum(candidate["tokens"] for candidate in chosen["table"])

    train = with_rope_scaling(state.train, parts.rope_scaling(index))
    resets = previous is not None and section.reset_optimizer
    if resets:
        decisions.append(decision("reset_optimizer", True, "stage change"))
    accuracy, loader = copy.copy(state.accuracy), copy.copy(state.loader)
    accuracy.forget(index)  # another run's checkpoint may hold visits of this stage
    loader.drop(dropped)
    drafts, sink = copy.copy(state.drafts), copy.copy(state.sink)
    drafts.drop(dropped)
    sink.drop(dropped)
    stage = initial_state(
        parts.config.stages,
        stage=index,
        step=state.step,
        temperature=temperature,
        dropped_ids=dropped,
        decisions=decisions,
    )
    tables = {"accuracy": accuracy, "loader": loader, "drafts": drafts, "sink": sink}
    state = dataclasses.replace(state, train=train, **tables)
    sampler = stage_sampler(parts, state, index, previous)
    following = parts.config.stages[index + 1 : index + 2]
    if any(stage.temperature_rule == "match_diversity" for stage in following):
        measured = measure_temperature(parts, sampler, stage, temperature, stop=stop)
        tokens += measured.tokens
        stage = dataclasses.replace(
            stage,
            target_diversity=measured.diversity,
            target_probe=probe_identity(parts, stage),
        )
    if resets:  # after all sampling: old and new moments need the memory of the KV pages
        sampler.release_pool()
        state = dataclasses.replace(state, train=parts.updater.reset_optimizer(train))
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
        f"{section.max_response_tokens} response tokens, {len(dropped)} problems dropped so far, "
        f"{len(loader)} left"
    )
    if dropped and (text := few_problems(len(loader), parts.config.rollout.prompts_per_step)):
        parts.progress.line(text)
    parts.clock.begin_stage(sampler, parts.solver.grader)
    state = dataclasses.replace(
        state, stage=stage, next_stage=None, sampler=sampler, stage_records=records
    )
    easy = [entry["value"] for entry in decisions if entry["kind"] == "drop_easy"]
    state = state.counted(reset_tokens=tokens) if tokens else state
    return state.counted(dropped_problems=sum(easy)) if easy else state


def drop_easy(
    parts: Parts, state: RunState, index: int, previous: StageState | None
) -> tuple[list[str], list[Decision]]:
    """All problems dropped from stage `index` on, and the decision about the previous stage's.

    A run that begins from another run's checkpoint may enter a stage that the other run left before
    its end. The decision says so, and nothing is dropped if it is the same stage.
    """
    if previous is None:
        return [], []
    remaining = {
        problem.id for problem in parts.problems
    }  # another run may have had other problems
    dropped = [i for i in previous.dropped_ids if i in remaining]
    remaining.difference_update(dropped)
    cut_short = ""
    if not stage_ended(previous, parts.config.stages):
        steps = parts.config.stages[previous.stage].steps
        cut_short = (
            f"; stage {previous.stage} was left after {previous.steps_done} of its {steps} steps"
        )
        parts.progress.line(f"entering stage {index}{cut_short}")
        if previous.stage == index:
            reason = f"stage {index} is entered again{cut_short}"
            return dropped, [decision("drop_easy", 0, reason)]
    threshold = parts.config.stages[previous.stage].drop_above
    if threshold >= 1:
        return dropped, []
    statistic = parts.config.stages[previous.stage].drop_statistic
    easy = state.accuracy.easy_ids(previous.stage, drop_above=threshold, statistic=statistic)
    easy = [i for i in easy if i in remaining]
    if len(dropped) + len(easy) >= len(parts.problems):
        reason = f"all remaining problems pass {threshold:g}; the last set is kept{cut_short}"
        return dropped, [decision("drop_easy", 0, reason)]
    what = "mean accuracy of the stage's visits"
    if statistic == "last":
        what = "accuracy of the stage's newest visit"
    reason = f"{what} above {threshold:g}{cut_short}"
    return dropped + easy, [decision("drop_easy", len(easy), reason, easy)]


def choose_temperature(
    parts: Parts, state: RunState, index: int, previous: StageState | None, *, stop: StopRequest
) -> tuple[float, Decision]:
    """The temperature of stage `index` by its `temperature_rule`, and the decision for it."""
    section = parts.config.stages[index]
    if section.temperature_rule == "fixed":
        reason = f"stages[{index}].temperature"
        return section.temperature, decision("temperature", section.temperature, reason)
    if section.temperature_rule == "probe":
        return probed_temperature(parts, index)
    if previous is not None and previous.stage == index:
        return previous.temperature, decision(
            "temperature", previous.temperature, "the checkpoint's own"
        )
    if previous is None or previous.target_diversity is None:
        raise ConfigError(
            f"stages[{index}].temperature_rule='match_diversity': there is no measured stage "
            "before it; use fixed or probe for a run's first stage"
        )
    present = probe_identity(parts, previous)
    if previous.target_probe not in (None, present):
        raise ConfigError(
            f"stages[{index}].temperature_rule='match_diversity': the target diversity of stage "
            f"{previous.stage} was measured on {previous.target_probe}, and here it would be "
            f"compared on {present}; give probe.problems, probe.n, seed and data.problems of that "
            "run, or set "
            f"stages[{index}].temperature_rule to fixed or probe"
        )
    return matching_temperature(parts, state, previous, stop=stop)


def warn_of_probes(parts: Parts, state: RunState) -> None:
    """Warns if a stage that is still to come could not take its temperature from probe.json now."""
    first = state.stage.stage + 1 if state.next_stage is None else state.next_stage
    rules = [stage.temperature_rule for stage in parts.config.stages]
    if "probe" not in rules[first:] or rules.index("probe", first) == state.next_stage:
        return  # a stage that begins now says it itself
    index, path = rules.index("probe", first), parts.workdir / "probe.json"

    def look() -> str:
        try:
            known = read_initial_temperature(path, stage=index) is not None
        except ConfigError as error:
            return f"{error}; stage {index} ends the run otherwise"
        return "" if known else f"no probe.json in the workdir yet; stage {index} looks for it"

    if text := processes.from_first(look):
        parts.progress.line(f"warning: {text}")


def probed_temperature(parts: Parts, index: int) -> tuple[float, Decision]:
    """The temperature that `polaris probe` suggests; the stage's own if it was not run."""
    section = parts.config.stages[index]
    path = parts.workdir / "probe.json"
    probed = processes.from_first(lambda: read_initial_temperature(path, stage=index))
    if probed is None:
        parts.progress.line(
            f"warning: no probe.json in the workdir (`polaris probe` makes it); stage {index} "
            f"begins at stages[{index}].temperature={section.temperature:g}"
        )
        reason = f"stages[{index}].temperature, since the workdir has no probe.json"
        return section.temperature, decision("temperature", section.temperature, reason)
    reason = "highest probed temperature in the robust zone"
    return probed, decision("temperature", probed, reason)


def matching_temperature(
    parts: Parts, state: RunState, previous: StageState, *, stop: StopRequest
) -> tuple[float, Decision]:
    """The temperature at which the policy is as diverse as it was when stage `previous` began.

    Candidates are sampled by the previous stage's sampler, under its budget and rotary scaling,
    from the present temperature up until one reaches the target, `MAX_COLLAPSED` lie in the
    collapse zone, or `probe.max_candidates` are measured.
    """
    section = parts.config.probe
    grid = candidate_temperatures(
        previous.temperature, previous.first_entropy, previous.last_entropy, section.max_candidates
    )
    with contextlib.ExitStack() as measuring:
        sampler = state.sampler
        if sampler is None:  # the run begins here, from another run's checkpoint
            former = with_rope_scaling(state.train, parts.rope_scaling(previous.stage))
            sampler = parts.solver.samplers.make(
                former.params,
                max_response_tokens=max(
                    previous.max_response_tokens, longest_response_tokens(parts.config)
                ),
            )
            measuring.callback(sampler.release)
        assert previous.target_diversity is not None
        candidates: list[Candidate] = []
        for temperature in (previous.temperature, *grid):
            candidates.append(measure_temperature(parts, sampler, previous, temperature, stop=stop))
            chosen = next_temperature(
                candidates,
                current=previous.temperature,
                target_diversity=previous.target_diversity,
                **tolerances(
                    section, [candidate.accuracy for candidate in candidates], measured_only=True
                ),
            )
            if chosen.reached or chosen.collapsed(previous.temperature) == MAX_COLLAPSED:
                break
    first, last = previous.first_entropy, previous.last_entropy
    fall = "entropy unknown" if first is None else f"entropy {first:.4g}, then {last:.4g} nats"
    reason = f"{chosen.reason}; candidates {grid[0] - previous.temperature:.3g} apart ({fall})"
    return chosen.temperature, decision("temperature", chosen.temperature, reason, chosen.table)


def stage_sampler(
    parts: Parts, state: RunState, index: int, previous: StageState | None
) -> Sampler:
    """The previous stage's sampler if the rotary scaling stays; else releases it for another.

    A run's sampler has room for the longest stage, so a stage with longer responses compiles no
    program of it. The weights are the state's.
    """
    if state.sampler is not None:
        assert previous is not None
        if parts.rope_scaling(index) == parts.rope_scaling(previous.stage):
            return state.sampler
        state.sampler.release()
    return parts.solver.samplers.make(
        state.train.params, max_response_tokens=longest_response_tokens(parts.config)
    )
