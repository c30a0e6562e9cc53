"""How hard each problem is for this model, and the curated training set that follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.assemble import load_base
from polaris_jax.config import RunConfig
from polaris_jax.data.problem_sets import CURATED, PREPARED
from polaris_jax.data.problems import problems_digest, write_problems
from polaris_jax.measure.inputs import (
    measured_on,
    open_progress,
    response_settings,
    reward_identity,
)
from polaris_jax.measure.solve import open_policy
from polaris_jax.records import Problem
from polaris_jax.report.figures import difficulty_figure
from polaris_jax.reward.configured import check_reward
from polaris_jax.run.owner import Ownership, command_owns
from polaris_jax.run.record import refuse_other_run
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.stages.difficulty import TOO_EASY_ABOVE, curate, pass_rate_histogram, shape_name
from polaris_jax.system import processes
from polaris_jax.system.progress import Progress

RESULTS = ("difficulty.parquet", CURATED, "difficulty.png", "calibrate.json")
# Fields that change no count, or that `count_identity` takes as separate arguments.
NOT_OF_COUNTS = tuple(
    f"calibrate.{name}" for name in ("preset", "batch_prompts", "max_response_tokens")
)


def calibrate(config: RunConfig, workdir: epath.Path, *, progress: Progress) -> dict[str, Any]:
    """n rollouts a problem -> difficulty.parquet, curated.parquet, difficulty.png, calibrate.json.

    A rerun continues after the last complete batch of prompts.

    Source: POLARIS, section 1 (offline difficulty estimation, targeted filtering).
    """
    refuse_other_run(
        workdir, config, sections=("seed", "model", "data", "warmstart", "rope", "calibrate")
    )
    check_reward(config.reward)
    ensure_workdir(workdir)
    writes = ("calibrate_progress.jsonl", "calibrate_progress.identity.json", *RESULTS)
    primary = processes.is_first()
    with command_owns(workdir, "calibrate", writes=writes, primary=primary) as ownership:
        return _calibrate(config, workdir, progress, ownership)


def _calibrate(
    config: RunConfig, workdir: epath.Path, progress: Progress, ownership: Ownership
) -> dict[str, Any]:
    section = config.calibrate
    max_response_tokens = section.max_response_tokens or config.stages[0].max_response_tokens
    measured = measured_on(config, workdir, progress, files=(PREPARED,))
    problems = measured.problems
    progress.line(f"calibrating {len(problems)} problems from {measured.origin}")
    done = open_progress(
        workdir / "calibrate_progress.jsonl",
        count_identity(config, problems, max_response_tokens=max_response_tokens),
        key=("id",),
        valid=lambda row: type(row["correct"]) is int and 0 <= row["correct"] <= section.n,
        inputs=measured.inputs,
        places=measured.places,
        may_write=ownership.check,
    )
    correct = {row["id"]: row["correct"] for row in done.rows}
    tokens = {row["id"]: row.get("tokens") for row in done.rows}  # files of 0.1 have none
    if correct:
        progress.line(f"resumed after {len(correct)} problems")
    waiting = [p for p in problems if p.id not in correct]
    if waiting:
        base = load_base(config, workdir, progress)[0], measured.tokenizer
        with (
            open_policy(config, progress, base, max_response_tokens=max_response_tokens) as policy,
            progress.phase("calibrate", len(problems) * section.n) as phase,
        ):
            for first in range(0, len(waiting), section.batch_prompts):
                batch = waiting[first : first + section.batch_prompts]
                graded = policy.solve(
                    batch,
                    n=section.n,
                    temperature=section.temperature,
                    max_response_tokens=max_response_tokens,
                    seed_parts=(config.seed, "calibrate"),
                    mode=config.reward.mode,
                    on_progress=phase.sampling(len(correct) * section.n, len(batch) * section.n),
                )
                if first == 0:
                    for text in policy.judged(graded, batch, reward=config.reward).lines():
                        progress.line(text)
                sums = graded.correct_PR.sum(axis=1).tolist()
                means = [sum(map(len, group)) / section.n for group in graded.token_ids]
                rows = [
                    {"id": p.id, "correct": right, "tokens": mean}
                    for p, right, mean in zip(batch, sums, means, strict=True)
                ]
                done.append(rows)
                correct |= {row["id"]: row["correct"] for row in rows}
                tokens |= {row["id"]: row["tokens"] for row in rows}
                phase.advance_to(len(correct) * section.n)
    rated = [
        dataclasses.replace(p, pass_rate=correct[p.id] / section.n, response_tokens=tokens[p.id])
        for p in problems
    ]
    rates = [correct[p.id] / section.n for p in problems]
    keep = set(curate({p.id: r for p, r in zip(problems, rates, strict=True)}, section.preset))
    curated = [p for p in rated if p.id in keep]
    histogram = pass_rate_histogram(rates, section.n)
    summary = {
        "n": section.n,
        "temperature": section.temperature,
        "max_response_tokens": max_response_tokens,
        "preset": section.preset,
        "histogram": [int(count) for count in histogram],
        "shape": shape_name(histogram),
        "curated_shape": shape_name(
            pass_rate_histogram([p.pass_rate or 0.0 for p in curated], section.n)
        ),
        "mean": float(np.mean(rates)),
        "problems": len(problems),
        "sampled_tokens": sum(round((tokens[p.id] or 0) * section.n) for p in problems),
        "kept": len(curated),
        "dropped": len(problems) - len(curated),
    }
    if processes.is_first():
        ownership.check()
        made_of = measured.found.made_of() | {"model": measured.model}
        write_problems(rated, workdir / "difficulty.parquet", made_of=made_of)
        write_problems(curated, workdir / CURATED, made_of=made_of)
        write_json(workdir / "calibrate.json", summary)
        difficulty_figure(summary, workdir / "difficulty.png")
    progress.line(
        f"pass rates: {summary['shape']}, mean {summary['mean']:.1%}; curated "
        f"({section.preset}): {len(curated)} kept, {summary['dropped']} dropped, "
        f"{summary['curated_shape']}"
    )
    kept_mean = float(np.mean([p.pass_rate or 0.0 for p in curated])) if curated else 1.0
    if kept_mean > TOO_EASY_ABOVE:
        progress.line(
            f"warning: the curated set's mean reward is {kept_mean:.2f}, over {TOO_EASY_ABOVE}: "
            "too easy for this model (POLARIS, section 1)"
        )
    return summary


def count_identity(
    config: RunConfig, problems: Sequence[Problem], *, max_response_tokens: int
) -> dict[str, Any]:
    """What the counts of right responses depend on: those of another identity are not reused."""
    sections = ("seed", "model", "data", "warmstart", "calibrate", "rope")
    return response_settings(config, sections, without=NOT_OF_COUNTS) | {
        "reward.mode": config.reward.mode,
        **reward_identity(config.reward, problems),
        "problems": problems_digest(problems),
        "budget": max_response_tokens,
    }
