"""What carrying unfinished groups over would save, by simulation: `python -m` this module.

In flight, batches and stops are the product's (`step`), as are driver and schedulers; the clock is
`plan.rollout_clock`'s for one host of 8 H100s (tests/support/rollout/pods.py) that samples a
quarter of the recipe's step: 32 problems x 8 samples. Updates, grading and weight sync are left
out: both modes have them.

Lengths are those of `plan.lengths`, anew for every problem; nothing is known of a problem before
its first visit, as in a first epoch.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from polaris_jax.config import RolloutSection, RunConfig, StageSection
from polaris_jax.metrics.rollout_stats import age_metrics
from polaris_jax.plan.lengths import draw as draw_lengths
from polaris_jax.plan.rollout_clock import STOP, TOKEN, Clock, CountingEngine, Shards
from polaris_jax.records import Group
from polaris_jax.rollout.programs import Rows
from polaris_jax.step import draw, sample
from polaris_jax.system.signals import StopRequest
from tests.support.driven import DrivenSampler
from tests.support.parts import NothingRight, make_parts, make_state, stage_at
from tests.support.rollout.pods import LENGTHS, PODS, PROMPT_TOKENS, RESPONSES
from tests.test_step import after

GRAIN = 16
HOST, PROBLEMS, SAMPLES = PODS["h100:32"], 32, RESPONSES
PROMPT, BUDGET = round(PROMPT_TOKENS / GRAIN) + 1, LENGTHS.longest // GRAIN
TRAINING_STEPS = 8


class TailEngine(CountingEngine):
    """Finds a row's length by its group's seed, and counts what is prefilled."""

    def __init__(self, sizes: Shards, clock: Clock, token_PR: np.ndarray, problem_of: dict):
        super().__init__(sizes, clock, token_PR, grain=GRAIN, max_len=PROMPT + BUDGET)
        self._problem_of = problem_of
        self.prefilled = 0

    def prefill_rows(self, model: Any, state: Any, jobs: Any) -> None:
        super().prefill_rows(model, state, jobs)
        self.prefilled += sum(len(job.tokens) for own in jobs for job in own)

    def lengths(self, rows: Rows) -> np.ndarray:
        problems = [self._problem_of.get(int(seed), 0) for seed in rows.params.seed_B]
        return self._token_PR[problems, rows.params.sample_B]


class Problems:
    """A new problem at every draw."""

    def __init__(self) -> None:
        self.drawn = 0

    def take(self, count: int, weights: Any = None) -> list[Group]:
        names = [f"p{self.drawn + i}" for i in range(count)]
        self.drawn += count
        return [Group(name, (TOKEN,) * PROMPT, name, name, draw=0, epoch=0) for name in names]


class Tokenizer:
    eos_token_id = STOP

    def get_vocab(self):
        return ()

    def decode(self, token_ids, skip_special_tokens):
        return ""


def simulate(**section: Any) -> dict[str, float]:
    """Totals of a stage of `TRAINING_STEPS` steps: time, and how old its tokens were."""
    token_PR, _ = draw_lengths(LENGTHS, prompts=TRAINING_STEPS * PROBLEMS, responses=SAMPLES)
    token_PR, problem_of = np.maximum(1, np.rint(token_PR / GRAIN)).astype(int), {}
    engine = TailEngine(HOST.sampler, HOST.clock(), token_PR, problem_of)
    rollout = RolloutSection(prompts_per_step=PROBLEMS, responses_per_prompt=SAMPLES, **section)
    parts = make_parts(
        RunConfig(rollout=rollout, stages=(StageSection(steps=TRAINING_STEPS),)),
        tokenizer=Tokenizer(),
        grader=NothingRight(),
    )
    stage = stage_at(max_response_tokens=BUDGET)
    state = make_state(stage=stage, sampler=DrivenSampler(engine), loader=Problems())
    stale = lag = tokens = 0.0
    longest, oldest, steps = 0, 0, []
    for _ in range(TRAINING_STEPS):
        began, version = engine.time_s, state.policy_version
        state, groups = draw(parts, state, attempt=0)
        oldest = max(oldest, *(version - group.begun for group in groups))
        problem_of |= {group.seed: int(group.problem_id[1:]) for group in groups}
        state, trained, _ = sample(parts, state, groups, stop=StopRequest())
        counts = [[len(r.token_ids) for r in group.responses] for group in trained.values()]
        for group, count in zip(trained.values(), counts, strict=True):
            assert count == token_PR[int(group.problem_id[1:])].tolist()
        versions = [[r.versions for r in group.responses] for group in trained.values()]
        metrics = age_metrics(versions, version=version)
        batch = sum(map(sum, counts))
        tokens += batch
        stale += metrics["rollout/stale_share"] * batch
        lag += metrics["rollout/lag_mean"] * batch
        longest = max(longest, metrics["rollout/lag_max"])
        state = after(state)
        steps.append(engine.time_s - began)
    assert tokens == token_PR.sum()
    return {
        "time": engine.time_s,
        "slowest": max(steps),
        "stale": stale / tokens,
        "lag_mean": lag / tokens,
        "lag_max": longest,
        "oldest": oldest,
        "recomputed": (engine.prefilled - TRAINING_STEPS * PROBLEMS) / tokens,
    }


def main() -> None:
    wait = simulate()
    print(f"wait: {wait['time'] / TRAINING_STEPS:.0f} s a step\n")
    print("| share | lag limit | time | slowest step | stale | lag mean | max | recomputed |")
    print("|---|---|---|---|---|---|---|---|")
    for share in (0.9, 0.8, 0.7):
        for limit in (1, 2):
            got = simulate(partial_rollouts="carry", partial_share=share, partial_max_lag=limit)
            print(
                f"| {share} | {limit} | {got['time'] / wait['time']:.3f} "
                f"| {got['slowest'] / wait['slowest']:.3f} | {got['stale']:.1%} "
                f"| {got['lag_mean']:.2f} | {got['lag_max']} | {got['recomputed']:.1%} |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
