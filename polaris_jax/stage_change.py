"""Entering a stage: drop easy problems, choose the temperature, reset the optimizer, resize.

One transaction: everything here happens between two checkpoints and is a function of the state it
starts from, so a kill in its middle repeats it and comes to the same place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from polaris_jax.assemble import fold_seed, grade, prompt_batch, sample
from polaris_jax.config import ConfigError
from polaris_jax.data.loader import PromptLoader
from polaris_jax.explore import Candidate, next_temperature
from polaris_jax.explore.temperature import candidate_temperatures, measure_candidate
from polaris_jax.records import Problem, StageState
from polaris_jax.rollout import Sampler
from polaris_jax.stages.controller import decision, initial_state, stage_ended
from polaris_jax.state import TrainingRun
from polaris_jax.system.signals import StopRequest
from polaris_jax.train.state import TrainState, with_rope_scaling

Entry = tuple[StageState, TrainState, PromptLoader, Sampler]


def enter_stage(
    run: TrainingRun,
    index: int,
    state: TrainState,
    *,
    left: StageState | None = None,
    loader: PromptLoader | None = None,
    sampler: Sampler | None = None,
    stop: StopRequest | None = None,
) -> Entry:
    """What the first step of stage `index` works with.

    Args:
        run: the run; its stage records and counts are brought up to date.
        index: the stage to enter, from 0.
        state: as the former stage left it.
        left: the stage just ended; None at the run's first.
        loader: the former stage's.
        sampler: the former stage's, which measures the temperature candidates.
        stop: asks to abandon the measuring.

    Raises:
        RolloutAborted: `stop` did; the stage can be entered again from the same state.
        ConfigError: match_diversity without a target, or with one of another probe set.
    """
    assert not run.carried, "the last step of a stage leaves nothing in flight"
    dropped, decisions = _drop_easy(run, index, left)
    section = run.config.stages[index]
    temperature, chosen = _temperature(run, index, state, left=left, sampler=sampler, stop=stop)
    decisions.append(chosen)

    state = with_rope_scaling(state, run.rope_scaling(index))
    if left is not None and section.reset_optimizer:
        state = run.updater.reset_optimizer(state)
        decisions.append(decision("reset_optimizer", True, "stage change"))
    run.accuracy.forget(index)  # there are some where the checkpoint was another run's
    loader = loader or run.make_loader()
    loader.drop(dropped)
    budget = section.max_response_tokens
    resized = left is None or budget != left.max_response_tokens
    rescaled = left is None or run.rope_scaling(index) != run.rope_scaling(left.stage)
    if sampler is None or resized or rescaled:
        if sampler is not None:
            sampler.release()
        sampler = run.make_sampler(state, budget)

    stage = initial_state(
        run.config.stages,
        stage=index,
        step=run.step,
        temperature=temperature,
        dropped_ids=dropped,
        decisions=decisions,
    )
    following = run.config.stages[index + 1 : index + 2]
    if following and following[0].temperature_rule == "match_diversity":
        measured = measure(run, sampler, stage, temperature, stop=stop)
        stage = dataclasses.replace(
            stage,
            target_diversity=measured.diversity,
            target_probe=probe_identity(run, stage),
        )
    run.stage_records.append(
        {
            "stage": index,
            "first_step": run.step,
            "last_step": None,
            "temperature": temperature,
            "max_response_tokens": budget,
            "dropped_ids_count": len(dropped),
            "decisions": decisions,
        }
    )
    run.files.write_stages(run.stage_records)
    run.progress.line(
        f"stage {index}: {section.steps} steps, temperature {temperature:g}, up to {budget} "
        f"response tokens, {len(dropped)} problems dropped so far"
    )
    return stage, state, loader, sampler


def _drop_easy(
    run: TrainingRun, index: int, left: StageState | None
) -> tuple[list[str], list[dict[str, Any]]]:
    """Problems that stage `index` goes without, and what was decided of the stage just left.

    A stage of which another run's checkpoint has not seen the end is told, and drops nothing where
    it is entered again.
    """
    if left is None:
        return [], []
    remaining = {problem.id for problem in run.problems}  # another run may have had others
    dropped = [i for i in left.dropped_ids if i in remaining]
    remaining.difference_update(dropped)
    cut_short = ""
    if not stage_ended(left, run.config.stages):
        steps = run.config.stages[left.stage].steps
        cut_short = f"; stage {left.stage} was left after {left.steps_done} of its {steps} steps"
        run.progress.line(f"entering stage {index}{cut_short}")
        if left.stage == index:
            reason = f"stage {index} is entered again{cut_short}"
            return dropped, [decision("drop_easy", 0, reason)]
    threshold = run.config.stages[left.stage].drop_above
    if threshold >= 1:
        return dropped, []
    statistic = run.config.stages[left.stage].drop_statistic
    easy = run.accuracy.easy_ids(left.stage, drop_above=threshold, statistic=statistic)
    easy = [i for i in easy if i in remaining]
    if len(dropped) + len(easy) >= len(run.problems):
        reason = f"all remaining problems pass {threshold:g}; the last set is kept{cut_short}"
        return dropped, [decision("drop_easy", 0, reason)]
    run.count(dropped_problems=len(easy))
    of = "mean accuracy of the stage's visits"
    if statistic == "last":
        of = "accuracy of the stage's newest visit"
    reason = f"{of} above {threshold:g}{cut_short}"
    return dropped + easy, [decision("drop_easy", len(easy), reason, easy)]


def _temperature(
    run: TrainingRun,
    index: int,
    state: TrainState,
    *,
    left: StageState | None,
    sampler: Sampler | None,
    stop: StopRequest | None,
) -> tuple[float, dict[str, Any]]:
    section = run.config.stages[index]
    if section.temperature_rule == "fixed":
        reason = f"stages[{index}].temperature"
        return section.temperature, decision("temperature", section.temperature, reason)
    if section.temperature_rule == "probe":
        path = run.workdir / "probe.json"
        if not path.exists():
            run.progress.line(
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
    if left is not None and left.stage == index:
        return left.temperature, decision("temperature", left.temperature, "the checkpoint's own")
    if left is None or left.target_diversity is None:
        raise ConfigError(
            f"stages[{index}].temperature_rule='match_diversity': there is no measured stage "
            "before it; use fixed or probe where a run begins"
        )
    present = probe_identity(run, left)
    if left.target_probe not in (None, present):
        raise ConfigError(
            f"stages[{index}].temperature_rule='match_diversity': the target diversity of stage "
            f"{left.stage} was measured on {left.target_probe}, and here it would be compared on "
            f"{present}; give probe.problems, probe.n, seed and data.problems of that run, or set "
            f"stages[{index}].temperature_rule to fixed or probe"
        )
    grid = candidate_temperatures(
        left.temperature,
        left.first_entropy,
        left.last_entropy,
        run.config.probe.max_candidates,
    )
    with contextlib.ExitStack() as measuring:
        if sampler is None:  # a stage begun from another run's checkpoint
            former = with_rope_scaling(state, run.rope_scaling(left.stage))
            sampler = run.make_sampler(former, left.max_response_tokens)
            measuring.callback(sampler.release)
        candidates = [measure(run, sampler, left, t, stop=stop) for t in (left.temperature, *grid)]
    chosen = next_temperature(
        candidates,
        current=left.temperature,
        target_diversity=left.target_diversity,
        rgz_tolerance=run.config.probe.rgz_tolerance,
        cez_tolerance=run.config.probe.cez_tolerance,
    )
    return chosen.temperature, decision(
        "temperature", chosen.temperature, chosen.reason, chosen.table
    )


def _probe_set(run: TrainingRun) -> list[Problem]:
    order = np.random.default_rng(fold_seed(run.config.seed, "probe set")).permutation(
        len(run.problems)
    )
    return [run.problems[i] for i in order[: run.config.probe.problems]]


def probe_identity(run: TrainingRun, stage: StageState) -> str:
    """What a diversity depends on besides policy and temperature, in words that tell it apart."""
    ids = sorted(problem.id for problem in _probe_set(run))
    digest = hashlib.blake2b(json.dumps(ids).encode(), digest_size=4).hexdigest()
    return (
        f"{len(ids)} problems ({digest}) x {run.config.probe.n} responses of up to "
        f"{stage.max_response_tokens} tokens"
    )


def measure(
    run: TrainingRun,
    sampler: Sampler,
    stage: StageState,
    temperature: float,
    *,
    stop: StopRequest | None,
) -> Candidate:
    """Accuracy and diversity at a temperature, on the fixed probe set with the stage's budget."""
    section = run.config.probe
    rollouts = sample(
        sampler,
        prompt_batch(
            _probe_set(run), tokenizer=run.tokenizer, prompt_suffix=run.config.data.prompt_suffix
        ),
        tokenizer=run.tokenizer,
        n=section.n,
        temperature=temperature,
        max_response_tokens=stage.max_response_tokens,
        seed_parts=(run.config.seed, "measure", stage.stage, f"{temperature:.4f}"),
        should_abort=None if stop is None else lambda: stop.requested,
    )
    graded = grade(run.grader, rollouts, mode=run.config.reward.mode)
    return measure_candidate(temperature, graded.texts, graded.reward_PR)
