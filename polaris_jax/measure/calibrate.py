"""How hard each problem is for this model, and the curated training set that follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.data.problem_sets import CURATED, PREPARED
from polaris_jax.data.problems import problems_digest, write_problems
from polaris_jax.evaluate.scoring import FAILED, grading_failed
from polaris_jax.measure.inputs import (
    Measured,
    measured_on,
    open_progress,
    response_settings,
    reward_identity,
)
from polaris_jax.measure.policy import open_policy, with_decided_dtype
from polaris_jax.measure.responses import KeptResponses, say_failed
from polaris_jax.measure.weights import Weights
from polaris_jax.measure.workload import UNKNOWN, Batches, Forecast, Workload
from polaris_jax.records import Problem
from polaris_jax.report.figures import difficulty_figure
from polaris_jax.reward.configured import check_reward
from polaris_jax.run.owner import Ownership, command_owns, tag_prefix
from polaris_jax.run.progress_file import ProgressFile
from polaris_jax.run.record import (
    began_with,
    read_record,
    refuse_other_run,
    with_recorded_defaults,
)
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.stages.difficulty import TOO_EASY_ABOVE, curate, pass_rate_histogram, shape_name
from polaris_jax.system import processes
from polaris_jax.system.progress import Progress
from polaris_jax.system.seeds import fold_seed

PROGRESS = "calibrate_progress.jsonl"
RESPONSES = "calibrate_responses"
RESULTS = ("difficulty.parquet", CURATED, "difficulty.png", "calibrate.json")
# Fields that change no count, or that `count_identity` takes as separate arguments.
NOT_OF_COUNTS = tuple(
    f"calibrate.{name}"
    for name in (
        *("preset", "min_rate", "max_rate", "problems"),
        *("keep_responses", "batch_prompts", "max_response_tokens"),
    )
)


def calibrate(
    config: RunConfig,
    workdir: epath.Path,
    *,
    progress: Progress,
    checkpoint: str = "",
    tag: str = "",
    forecast: Forecast = UNKNOWN,
) -> dict[str, Any]:
    """n rollouts a problem -> difficulty.parquet, curated.parquet, difficulty.png, calibrate.json.

    A rerun continues after the last complete batch of prompts.

    Args:
        config: the run.
        workdir: gets the files.
        progress: gets lines and bars for a person.
        checkpoint: "" is the base model, "latest" the workdir's newest checkpoint, else a path.
        tag: put before the file names, e.g. `after` -> after_difficulty.parquet.
        forecast: what is known of the machine's speed.

    Raises:
        ConfigError: there is no such checkpoint, problems or model do not suit the config, or the
            files would replace those of the run in the workdir.

    Source: POLARIS, section 1 (offline difficulty estimation, targeted filtering).
    """
    config = with_recorded_defaults(workdir, config, progress.line)
    sections = ("seed", "model", "data", "warmstart", "rope") + (() if tag else ("calibrate",))
    refuse_other_run(workdir, config, sections=sections)
    check_reward(config.reward)
    record = read_record(workdir) if checkpoint and not tag else None
    if record is not None and began_with(record, workdir) == CURATED:
        raise ConfigError(
            f"--checkpoint={checkpoint}: the run in workdir={workdir} trains on {CURATED}, which "
            "this would replace; add --tag=NAME, as in --tag=after, for files of their own"
        )
    config = with_decided_dtype(config, Weights.of(workdir, checkpoint), progress.line)
    ensure_workdir(workdir)
    writes = (PROGRESS, "calibrate_progress.identity.json", *RESULTS)
    primary = processes.is_first()
    with command_owns(workdir, "calibrate", writes=writes, primary=primary, tag=tag) as ownership:
        files = () if config.data.use == "problems" else (PREPARED,)
        measured = measured_on(
            config,
            workdir,
            progress,
            files=files,
            checkpoint=checkpoint,
            command="calibrate",
        )
        return _calibrate(
            config,
            workdir,
            progress,
            ownership,
            measured,
            prefix=tag_prefix(tag),
            forecast=forecast,
        )


def _calibrate(
    config: RunConfig,
    workdir: epath.Path,
    progress: Progress,
    ownership: Ownership,
    measured: Measured,
    *,
    prefix: str,
    forecast: Forecast,
) -> dict[str, Any]:
    section = config.calibrate
    max_response_tokens = section.max_response_tokens or config.stages[0].max_response_tokens
    problems = drawn(measured.problems, section.problems, seed=config.seed)
    progress.line(
        f"calibrating {len(problems)} problems from {measured.origin}; model: "
        f"{measured.weights.name}"
    )
    if left_out := len(measured.problems) - len(problems):
        progress.line(
            f"calibrate.problems={section.problems}: {left_out} problems are not sampled, and will "
            f"not be in {prefix}{CURATED}"
        )
    identity = measured.scaling_identity(config) | count_identity(
        config, measured.problems, max_response_tokens=max_response_tokens
    )
    done = open_progress(
        workdir / f"{prefix}{PROGRESS}",
        identity,
        key=("id",),
        valid=lambda row: type(row["correct"]) is int and 0 <= row["correct"] <= section.n,
        again=grading_failed,
        inputs=measured.inputs,
        places=measured.places,
        may_write=ownership.check,
    )
    kept = None
    if section.keep_responses:
        kept = KeptResponses(
            workdir / f"{prefix}{RESPONSES}",
            {"settings": identity, "inputs": measured.inputs},
            may_write=ownership.check,
        )
    rows = _count(
        config,
        workdir,
        progress,
        measured,
        problems,
        done=done,
        kept=kept,
        max_response_tokens=max_response_tokens,
        forecast=forecast,
    )
    tokens = {i: row.get("tokens") for i, row in rows.items()}  # files of 0.1 have none
    rated = [
        dataclasses.replace(
            p, pass_rate=rows[p.id]["correct"] / section.n, response_tokens=tokens[p.id]
        )
        for p in problems
    ]
    rates = {p.id: p.pass_rate or 0.0 for p in rated}
    limits = {"lowest": section.min_rate, "highest": section.max_rate}
    keep = set(curate(rates, section.preset, **limits))
    curated = [p for p in rated if p.id in keep]
    histogram = pass_rate_histogram(rates.values(), section.n)
    failed = sum(rows[p.id].get(FAILED, 0) for p in problems)
    summary = {
        "n": section.n,
        "temperature": section.temperature,
        "max_response_tokens": max_response_tokens,
        "preset": section.preset,
        **({} if section.preset != "range" else {"rates": [section.min_rate, section.max_rate]}),
        "checkpoint": measured.weights.name,
        "histogram": [int(count) for count in histogram],
        "shape": shape_name(histogram),
        "curated_shape": shape_name(
            pass_rate_histogram([p.pass_rate or 0.0 for p in curated], section.n)
        ),
        "mean": float(np.mean(list(rates.values()))),
        "problems": len(problems),
        "not_sampled": left_out,
        "sampled_tokens": sum(round((tokens[p.id] or 0) * section.n) for p in problems),
        "kept": len(curated),
        "dropped": len(problems) - len(curated),
        **({FAILED: failed} if failed else {}),
    }
    if processes.is_first():
        ownership.check()
        made_of = measured.found.made_of() | {"model": measured.model}
        write_problems(rated, workdir / f"{prefix}difficulty.parquet", made_of=made_of)
        write_problems(curated, workdir / f"{prefix}{CURATED}", made_of=made_of)
        write_json(workdir / f"{prefix}calibrate.json", summary)
        difficulty_figure(summary, workdir / f"{prefix}difficulty.png")
    progress.line(
        f"pass rates: {summary['shape']}, mean {summary['mean']:.1%}; curated "
        f"({section.preset}): {len(curated)} kept, {summary['dropped']} dropped, "
        f"{summary['curated_shape']}"
    )
    say_failed(summary, len(problems) * section.n, progress.line)
    if kept is not None and (without := sum("kept" not in rows[p.id] for p in problems)):
        progress.line(
            f"note: {without} of {len(problems)} problems were sampled before "
            "calibrate.keep_responses was set: their responses are not kept"
        )
    kept_mean = float(np.mean([p.pass_rate or 0.0 for p in curated])) if curated else 1.0
    if kept_mean > TOO_EASY_ABOVE:
        progress.line(
            f"warning: the curated set's mean reward is {kept_mean:.2f}, over {TOO_EASY_ABOVE}: "
            "too easy for this model (POLARIS, section 1)"
        )
    return summary


def _count(
    config: RunConfig,
    workdir: epath.Path,
    progress: Progress,
    measured: Measured,
    problems: Sequence[Problem],
    *,
    done: ProgressFile,
    kept: KeptResponses | None,
    max_response_tokens: int,
    forecast: Forecast,
) -> dict[str, Mapping[str, Any]]:
    """Each problem's row of the progress file, by id: found from an earlier call or sampled now."""
    section = config.calibrate
    rows: dict[str, Mapping[str, Any]] = {row["id"]: row for row in done.rows}
    waiting = [p for p in problems if p.id not in rows]
    if found := len(problems) - len(waiting):
        progress.line(f"resumed after {found} problems")
    if not waiting:
        return rows
    batch_prompts = min(section.batch_prompts, len(waiting))
    work = [
        Batches(len(waiting) * section.n, batch_prompts * section.n, section.n, max_response_tokens)
    ]
    workload = Workload("calibrate", work, forecast=forecast, progress=progress)
    policy_weights = measured.weights.load(config, workdir, progress), measured.tokenizer
    with (
        open_policy(
            config,
            progress,
            policy_weights,
            max_response_tokens=max_response_tokens,
            rope_scaling=measured.weights.first_stage_scaling(config),
        ) as policy,
        progress.phase("calibrate", len(problems) * section.n, before=found * section.n) as phase,
    ):
        workload.starts()
        for first in range(0, len(waiting), section.batch_prompts):
            batch = waiting[first : first + section.batch_prompts]
            graded = policy.solve(
                batch,
                n=section.n,
                temperature=section.temperature,
                max_response_tokens=max_response_tokens,
                seed_parts=(config.seed, "calibrate"),
                mode=config.reward.mode,
                on_progress=phase.sampling((found + first) * section.n, len(batch) * section.n),
            )
            if first == 0:
                for text in policy.judged(graded, batch, reward=config.reward).lines():
                    progress.line(text)
            if kept is not None and processes.is_first():
                kept.write(graded, batch, before=len(rows))
            sums = graded.correct_PR.sum(axis=1).tolist()
            means = [sum(map(len, group)) / section.n for group in graded.token_ids]
            mark = {} if kept is None else {"kept": True}
            new: list[dict[str, Any]] = [
                {"id": p.id, "correct": right, "tokens": mean, **mark}
                for p, right, mean in zip(batch, sums, means, strict=True)
            ]
            for row, failed in zip(new, graded.failed or (), strict=False):
                row |= {FAILED: sum(failed)} if any(failed) else {}
            done.append(new)
            rows |= {row["id"]: row for row in new}
            phase.advance_to((found + first + len(batch)) * section.n)
            workload.did(responses=len(batch) * section.n, tokens=graded.response_tokens)
    return rows


def drawn(problems: Sequence[Problem], limit: int, *, seed: int) -> list[Problem]:
    """At most `limit` of the problems, drawn by the seed, in their own order.

    A larger limit draws the same problems and more. 0: all problems.
    """
    if not limit or limit >= len(problems):
        return list(problems)
    order = np.random.default_rng(fold_seed(seed, "calibration set")).permutation(len(problems))
    return [problems[i] for i in sorted(order[:limit].tolist())]


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
