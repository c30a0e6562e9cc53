"""What carrying unfinished groups over would save, by simulation: `python -m` this module.

In flight, batches and stops are the product's (`step`), as are driver and schedulers; the
engine counts time as test_shard_simulation does: a decode step of a shard reads the weights in 1
and a full shard's keys and values in 1, and a call lasts as long as its slowest shard. Prefilled
tokens, those that are computed again among them, cost 1 for every `PREFILL` of them (at their
scaled length: a 4B model reads 8 GB of weights in 2.4 ms at 3.35 TB/s, in which it prefills some
120 tokens at 400 TFLOP/s). Updates, grading and weight sync are left out: both modes have them.

Lengths have the recipe's proportions at a 32nd of their size (see test_shard_simulation), anew for
every problem; nothing is known of a problem before its first visit, as in a first epoch.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np

from polaris_jax.config import RolloutSection, RunConfig, StageSection
from polaris_jax.metrics.rollout_stats import age_metrics
from polaris_jax.records import Group
from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.engine import ResultTokens
from polaris_jax.step import draw, sample
from polaris_jax.system.signals import StopRequest
from tests.rollout.test_shard_simulation import (
    BUDGET,
    MEDIAN,
    PAGE_SIZE,
    PROBLEMS,
    SAMPLES,
    SCATTER_BETWEEN,
    SCATTER_WITHIN,
    STEPS,
    CountingEngine,
)
from tests.support.driven import DrivenSampler
from tests.support.parts import NothingRight, make_parts, make_state, stage_at
from tests.test_step import after

STOP, TOKEN, PREFILL = 3, 1, 120
TRAINING_STEPS = 8


class Lengths:
    """Response tokens of a (problem, sample), by the prompt's own number."""

    def __init__(self, problems: int, seed: int):
        rng = np.random.default_rng(seed)
        means = MEDIAN * np.exp(SCATTER_BETWEEN * rng.standard_normal((problems, 1)))
        drawn = means * np.exp(SCATTER_WITHIN * rng.standard_normal((problems, SAMPLES)))
        self.tokens = np.clip(drawn, 16, BUDGET).astype(int)


class TailEngine(CountingEngine):
    """A row ends, with a stop token, at the length of its sample; prefill takes time."""

    def __init__(self, config: SamplerConfig, shards: int, lengths: Lengths, problem_of: dict):
        super().__init__(config, shards)
        self._lengths, self._problem_of = lengths.tokens, problem_of
        self.prefilled = 0

    def prefill_rows(self, model: Any, state: Any, jobs_by_shard: Any) -> None:
        tokens = [sum(len(job.tokens) for job in jobs) for jobs in jobs_by_shard]
        self.time += max(tokens) / PREFILL
        self.prefilled += sum(tokens)

    def dispatch(self, model: Any, state: DecodeState, *, stop_token_ids: Any, exit_below: Any):
        rows = state.rows
        problems = [self._problem_of.get(int(seed), 0) for seed in rows.params.seed_B]
        self._ends_B = rows.prompt_len_B + self._lengths[problems, rows.params.sample_B]
        limit_B = rows.limit_B.copy()
        rows.limit_B[:] = np.minimum(limit_B, self._ends_B)
        count_B = super().dispatch(
            model, state, stop_token_ids=stop_token_ids, exit_below=exit_below
        )
        rows.limit_B[:] = limit_B
        return count_B

    def collect(self, state: DecodeState, count_B: np.ndarray) -> ResultTokens:
        rows = state.rows
        before_B = rows.position_B.copy()
        result = super().collect(state, count_B)
        data = np.full_like(result.data, TOKEN)
        ends = (before_B + count_B + 1 >= self._ends_B) & (count_B > 0)
        data[ends, count_B[ends] - 1] = STOP
        rows.alive_B[:] &= ~ends
        return types.SimpleNamespace(**{**vars(result), "data": data, "alive": rows.alive_B.copy()})


class Problems:
    """A new problem at every draw."""

    def __init__(self) -> None:
        self.drawn = 0

    def take(self, count: int) -> list[Group]:
        names = [f"p{self.drawn + i}" for i in range(count)]
        self.drawn += count
        return [Group(name, (1, 2), name, name, draw=0, epoch=0) for name in names]


class Tokenizer:
    eos_token_id = STOP

    def get_vocab(self):
        return ()

    def decode(self, token_ids, skip_special_tokens):
        return ""


def simulate(shards: int, slots: int, **section: Any) -> dict[str, float]:
    """Totals of a stage of `TRAINING_STEPS` steps: time, and how old its tokens were."""
    lengths, problem_of = Lengths(TRAINING_STEPS * PROBLEMS, seed=0), {}
    config = SamplerConfig(
        slots=shards * slots,
        page_size=PAGE_SIZE,
        num_pages=shards * (slots * -(-(BUDGET + 2) // PAGE_SIZE) + 1),
        max_len=BUDGET + 2,
        decode_steps=STEPS,
        prefill_budget=0,
        prefix_cache=False,
    )
    engine = TailEngine(config, shards, lengths, problem_of)
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
        began, version = engine.time, state.policy_version
        state, groups = draw(parts, state, attempt=0)
        oldest = max(oldest, *(version - group.begun for group in groups))
        problem_of |= {group.seed: int(group.problem_id[1:]) for group in groups}
        state, trained, _ = sample(parts, state, groups, stop=StopRequest())
        counts = [[len(r.token_ids) for r in group.responses] for group in trained.values()]
        for group, count in zip(trained.values(), counts, strict=True):
            assert count == lengths.tokens[int(group.problem_id[1:])].tolist()
        versions = [[r.versions for r in group.responses] for group in trained.values()]
        metrics = age_metrics(versions, version=version)
        batch = sum(map(sum, counts))
        tokens += batch
        stale += metrics["rollout/stale_share"] * batch
        lag += metrics["rollout/lag_mean"] * batch
        longest = max(longest, metrics["rollout/lag_max"])
        state = after(state)
        steps.append(engine.time - began)
    assert tokens == lengths.tokens.sum()
    return {
        "time": engine.time,
        "slowest": max(steps),
        "stale": stale / tokens,
        "lag_mean": lag / tokens,
        "lag_max": longest,
        "oldest": oldest,
        "recomputed": (engine.prefilled - TRAINING_STEPS * PROBLEMS) / tokens,
    }


def main() -> None:
    for shards, slots in ((32, 32), (8, 64)):
        wait = simulate(shards, slots)
        print(
            f"\n{shards} shards x {slots} slots; wait: {wait['time'] / TRAINING_STEPS:.0f} a step\n"
        )
        print("| share | lag limit | time | slowest step | stale | lag mean | max | recomputed |")
        print("|---|---|---|---|---|---|---|---|")
        for share in (0.9, 0.8, 0.7):
            by_limit: dict[int, dict[str, float]] = {}
            for limit in (3, 2, 1):
                above = by_limit.get(limit + 1)
                # Where nothing in flight reached this age, no limit from here up did anything.
                same = above is not None and above["oldest"] < limit
                by_limit[limit] = (
                    above
                    if above is not None and same
                    else simulate(
                        shards,
                        slots,
                        partial_rollouts="carry",
                        partial_share=share,
                        partial_max_lag=limit,
                    )
                )
            for limit, got in sorted(by_limit.items()):
                print(
                    f"| {share} | {limit} | {got['time'] / wait['time']:.3f} "
                    f"| {got['slowest'] / wait['slowest']:.3f} | {got['stale']:.1%} "
                    f"| {got['lag_mean']:.2f} | {got['lag_max']} | {got['recomputed']:.1%} |"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
