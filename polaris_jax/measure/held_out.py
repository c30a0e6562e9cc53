"""The held-out score that a run takes of its weights while it trains."""

from __future__ import annotations

import dataclasses

from polaris_jax.assemble import Parts
from polaris_jax.evaluate.estimators import avg_at_k
from polaris_jax.explore.diversity import distinct_ngrams
from polaris_jax.measure.solve import solve
from polaris_jax.state import RunState
from polaris_jax.system.signals import StopRequest


@dataclasses.dataclass(frozen=True)
class HeldOutScore:
    """The held-out score of one state's weights.

    Attributes:
        score: avg@n in [0, 1].
        n: number of responses to each problem.
        diversity: distinct / all 4-grams of the responses to a problem, mean over problems, in
            [0, 1]. Problems, n and noise are the same at every step, so values of a run compare as
            long as their temperature and budget are the same.
    """

    score: float
    n: int
    diversity: float

    def metrics(self) -> dict[str, float]:
        """The score's metrics by name."""
        return {f"eval/avg@{self.n}": self.score, "eval/diversity": self.diversity}


def held_out_score(parts: Parts, state: RunState, *, stop: StopRequest) -> HeldOutScore | None:
    """The score of the state's weights; None if no score is due after this step.

    Problems and sampling noise are the same at every step. Responses are graded as `polaris
    evaluate` grades them (`reward.function` in mode "eval"), and a response counts from
    `reward.correct_at` on. Their budget is `evaluate.max_response_tokens`, by default the last
    stage's, in every stage, so a run's scores can be compared. The temperature is the stage's
    `evaluate_temperature`, else `evaluate.temperature`.

    Raises:
        RolloutAborted: `stop` was requested in some process.
    """
    section = parts.config.evaluate
    if not parts.held_out or state.step % section.every_steps:
        return None
    return _score(parts, state, f"step {state.step - 1}", stop=stop)


def score_before(parts: Parts, state: RunState, *, stop: StopRequest) -> None:
    """Writes the held-out score of the weights that no update has changed, once in a run.

    It has a line of its own in metrics.jsonl, with step -1. Does nothing after the first step, or
    if the run takes no held-out scores, or if the line is there: a run that was killed in its first
    step has it already.

    Raises:
        RolloutAborted: `stop` was requested in some process.
    """
    if state.step or not parts.held_out or parts.outputs.scored_before:
        return
    sampler = state.live_sampler()
    sampler.release_pool()  # a probe of the stage's start may have filled it
    score = _score(parts, state, "before training", stop=stop)
    parts.outputs.write_score_before(score.metrics())
    parts.clock.begin_stage(sampler, parts.solver.grader)  # its answers are not of step 0


def _score(parts: Parts, state: RunState, when: str, *, stop: StopRequest) -> HeldOutScore:
    """The held-out score; prints it, and `when` it was taken."""
    section = parts.config.evaluate
    stage = parts.config.stages[state.stage.stage]
    temperature = stage.evaluate_temperature or section.temperature
    max_response_tokens = section.max_response_tokens or parts.config.stages[-1].max_response_tokens
    responses = len(parts.held_out) * section.n
    with (
        parts.clock.timer("evaluate"),
        parts.progress.phase(f"{when}: held-out score", responses) as phase,
    ):
        sampler = parts.solver.samplers.reused(
            state.train.params, max_response_tokens=max_response_tokens
        )
        graded = solve(
            parts.solver,
            sampler,
            parts.held_out,
            n=section.n,
            temperature=temperature,
            max_response_tokens=max_response_tokens,
            seed_parts=(section.seed, "evaluate"),
            mode="eval",
            top_k=section.top_k,
            top_p=section.top_p,
            should_abort=lambda: stop.requested,
            on_progress=phase.sampling(0, responses),
        )
        sampler.release()  # the next update needs the memory
    score, reward = (avg_at_k(x_PR).value for x_PR in (graded.correct_PR, graded.reward_PR))
    parts.progress.line(
        f"{when}: avg@{section.n} {score:.1%} on {len(parts.held_out)} held-out "
        f"problems at temperature {temperature:g}"
        + (f", mean reward {reward:.3f}" if reward != score else "")
    )
    return HeldOutScore(score, section.n, distinct_ngrams(graded.texts))
