"""A step's rollouts: which groups are in flight, and when the step stops sampling them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polaris_jax.assemble import prompt_seeds, stop_token_ids
from polaris_jax.data.loader import PromptLoader
from polaris_jax.records import Graded, Rollouts, StageState
from polaris_jax.reward.grade_ahead import GradeAhead
from polaris_jax.rollout import Sampler, SamplingParams
from polaris_jax.rollout.groups import (
    Group,
    age_metrics,
    begin,
    carried_metrics,
    most_in_flight,
    prompts_of,
    settle,
)
from polaris_jax.rollout.sample_groups import sample_groups
from polaris_jax.state import TrainingRun
from polaris_jax.system.signals import StopRequest


def in_flight(
    run: TrainingRun, loader: PromptLoader, stage: StageState, *, attempt: int
) -> list[Group]:
    """The groups that a step begins with: those carried over, then as many new ones as are missing.

    Under wait a step has as many as it trains. Under carry it has more, until the last step of a
    stage (or of the run, once its tokens are spent): that begins fewer and leaves none, so that a
    stage begins the prompts that it trains, whichever the mode, and nothing crosses its border.
    """
    section, seed = run.config.rollout, run.config.seed
    wanted = section.prompts_per_step
    last = stage.steps_done + 1 >= run.config.stages[stage.stage].steps or run.tokens_spent
    parts: tuple[Any, ...] = (seed, run.step, attempt)
    if section.partial_rollouts == "carry":
        parts = (seed, "carry")  # a problem's draw is sampled alike, whichever step begins it
        wanted = wanted if last else most_in_flight(wanted, section.partial_share)
    prompts = loader.take(wanted - len(run.carried))
    new = begin(
        prompts,
        prompt_seeds(prompts, *parts),
        n=section.responses_per_prompt,
        version=run.policy_version,
    )
    return [*run.carried, *new]


def roll_out(
    run: TrainingRun,
    sampler: Sampler,
    groups: Sequence[Group],
    stage: StageState,
    stop: StopRequest,
) -> tuple[Rollouts, GradeAhead]:
    """This step's batch at the stage's temperature and budget, being graded already.

    Sampling stops when there are enough whole groups, and every group at the limit of its lag is
    whole. The oldest whole ones are the batch; `run.carried` gets the others.

    Raises:
        RolloutAborted: `stop` asked for it in some process; nothing has changed.
    """
    section, version = run.config.rollout, run.policy_version
    limit, old = stage.max_response_tokens, len(run.carried)
    expected = run.lengths.expected([group.problem_id for group in groups], limit=limit)
    if expected is not None:  # what was carried over is the long tail: it goes first
        expected[:old] = [float(limit)] * old
    ahead = GradeAhead(run.grader, run.config.reward.mode)
    responses = len(groups) * section.responses_per_prompt
    sampler.version = version
    with ahead, run.progress.phase(f"step {run.step} rollout", responses) as phase:
        groups, texts = sample_groups(
            sampler,
            groups,
            SamplingParams(
                temperature=stage.temperature,
                n=section.responses_per_prompt,
                max_tokens=limit,
                stop_token_ids=stop_token_ids(run.tokenizer),
            ),
            tokenizer=run.tokenizer,
            wanted=section.prompts_per_step,
            due={
                i
                for i, group in enumerate(groups)
                if version - group.begun >= section.partial_max_lag
            },
            expected_tokens=expected,
            ahead=ahead,
            on_progress=lambda done, total, tokens: phase.advance_to(done, f"{tokens} tokens"),
            should_abort=lambda: stop.requested,
        )
    chosen, run.carried = settle(groups, section.prompts_per_step)
    batch = Rollouts(
        prompts_of([groups[i] for i in chosen]),
        tuple(groups[i].responses for i in chosen),
        tuple(texts[i] for i in chosen),
        stage.temperature,
        limit,
        numbers=tuple(chosen),
    )
    return batch, ahead


def lag_metrics(run: TrainingRun, graded: Graded) -> dict[str, Any]:
    """How old the batch's tokens are; nothing under wait."""
    if run.config.rollout.partial_rollouts == "wait":
        return {}
    return age_metrics(graded.versions or (), version=run.policy_version)


def left_metrics(run: TrainingRun) -> dict[str, Any]:
    """What the step leaves in flight; nothing under wait."""
    if run.config.rollout.partial_rollouts == "wait":
        return {}
    return carried_metrics(run.carried)
