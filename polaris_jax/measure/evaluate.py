"""avg@k, pass@k, accuracy by length and by token budget, with and without YaRN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from polaris_jax.assemble import (
    evaluation_problems,
    load_base,
    load_base_tokenizer,
)
from polaris_jax.checkpoint.convert import load_any
from polaris_jax.config import RunConfig
from polaris_jax.data.problem_sets import fitting
from polaris_jax.data.problems import problems_digest
from polaris_jax.evaluate.scoring import budgets_of, score_rows
from polaris_jax.measure.inputs import open_progress, response_settings, reward_identity
from polaris_jax.measure.responses import response_row
from polaris_jax.measure.solve import open_policy, with_decided_dtype
from polaris_jax.measure.weights import base_inputs, find_checkpoint
from polaris_jax.measure.workload import UNKNOWN, Batches, Forecast, Workload
from polaris_jax.models import Decoder
from polaris_jax.models.positions import check_evaluated_positions, yarn_scaling
from polaris_jax.models.weights.identity import tokenizer_digests
from polaris_jax.records import Problem
from polaris_jax.report.figures import evaluation_figure
from polaris_jax.reward.configured import check_reward
from polaris_jax.run.owner import Ownership, command_owns, tag_prefix
from polaris_jax.run.progress_file import ProgressFile
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.system import processes
from polaris_jax.system.progress import Progress

BATCH_PROMPTS = 128
# Fields that change no response, or that `response_identity` takes as separate arguments.
NOT_OF_RESPONSES = tuple(
    f"evaluate.{name}"
    for name in ("every_steps", "length_edges", "budgets", "yarn", "max_response_tokens")
)
# Causes that say nothing against a score: greedy responses agree, and an easy set may be solved.
NO_FAULTS = ("no_spread", "too_easy")
# Below this budget the blog's own figures are out of reach for lack of tokens alone.
COMPARABLE_TOKENS = 64 * 1024


def evaluate(
    config: RunConfig,
    workdir: epath.Path,
    *,
    progress: Progress,
    checkpoint: str = "",
    tag: str = "",
    forecast: Forecast = UNKNOWN,
) -> dict[str, Any]:
    """Scores a policy on the held-out problems -> eval.json, responses.jsonl, eval.png.

    Problems that cannot be asked are no part of the score: eval.json counts them in `left_out`.

    The same config and seeds give the same prompts and noise for any weights, so that two
    evaluations (before and after training) differ by their weights alone. A rerun continues
    after the last complete batch.

    Args:
        config: the run.
        workdir: gets the files.
        progress: gets lines and bars for a person.
        checkpoint: "" is the base model, "latest" the workdir's newest checkpoint, else a path.
        tag: put before the file names, e.g. `before` -> before_eval.json.
        forecast: what is known of the machine's speed.

    Raises:
        ConfigError: there are no held-out problems or no such checkpoint, or a sequence needs more
            positions than the checkpoint has.
    """
    config = with_decided_dtype(config, progress.line)
    check_reward(config.reward)
    ensure_workdir(workdir)
    writes = [
        name
        for stem in ("responses", "responses_yarn")
        for name in (f"{stem}.jsonl", f"{stem}.identity.json", "eval.json", "eval.png")
    ]
    primary = processes.is_first()
    with command_owns(workdir, "evaluate", writes=writes, primary=primary, tag=tag) as ownership:
        return _evaluate(
            config,
            workdir,
            progress,
            ownership,
            checkpoint=checkpoint,
            tag=tag,
            forecast=forecast,
        )


def _evaluate(
    config: RunConfig,
    workdir: epath.Path,
    progress: Progress,
    ownership: Ownership,
    *,
    checkpoint: str,
    tag: str,
    forecast: Forecast,
) -> dict[str, Any]:
    section, prefix = config.evaluate, tag_prefix(tag)
    max_response_tokens = section.max_response_tokens or config.stages[-1].max_response_tokens
    given, left_out = evaluation_problems(config, progress)
    if config.evaluate.problems and max_response_tokens < COMPARABLE_TOKENS:
        progress.line(
            f"warning: a budget of {max_response_tokens} tokens is under 64K: not comparable with "
            "the POLARIS blog's figures"
        )
    weights = _weights(config, workdir, checkpoint, progress)
    passes = {"off": [False], "on": [True], "both": [False, True]}[section.yarn]
    for yarn in passes:
        check_evaluated_positions(
            config,
            weights[0].config,
            progress.line,
            max_response_tokens=max_response_tokens,
            yarn=yarn,
        )
    problems = fitting(given, config.data, tokenizer=weights[1], say=progress.line)
    left_out = left_out | {"long_prompt": len(given) - len(problems)}
    results = {}
    inputs, places = _inputs(config, workdir, progress, weights[1], checkpoint)
    inputs["problems"] = problems_digest(given, extras=True)
    places["problems"] = f"evaluate.problems={config.evaluate.problems}"
    files = {
        yarn: open_progress(
            workdir / f"{prefix}responses{'_yarn' if yarn else ''}.jsonl",
            response_identity(
                config, weights[0], problems, max_response_tokens=max_response_tokens, yarn=yarn
            ),
            key=("problem_id", "sample"),
            unit=section.n,
            valid=_is_response,
            inputs=inputs,
            places=places,
            may_write=ownership.check,
        )
        for yarn in passes
    }
    left = sum(len(problems) * section.n - len(done.rows) for done in files.values())
    batch = min(BATCH_PROMPTS, len(problems)) * section.n
    work = [Batches(left, batch, section.n, max_response_tokens)]
    workload = Workload("evaluate", work, forecast=forecast, progress=progress)
    for yarn, done in files.items():
        rows = _respond(
            config,
            progress,
            weights,
            problems,
            max_response_tokens=max_response_tokens,
            done=done,
            yarn=yarn,
            workload=workload,
        )
        results[yarn] = score_rows(
            rows,
            section,
            correct_at=config.reward.correct_at,
            max_response_tokens=max_response_tokens,
            say=progress.line,
        )
    summary = dict(results[min(results)])
    if len(results) == 2:
        for plain, scaled in zip(
            summary["budget_curve"], results[True]["budget_curve"], strict=True
        ):
            plain["accuracy_yarn"] = scaled["accuracy"]
        summary["yarn"] = results[True]
    summary |= {"checkpoint": checkpoint or "base", "yarn_factor": config.rope.yarn.factor}
    summary["rope"] = section.yarn
    summary["left_out"] = {reason: count for reason, count in left_out.items() if count}
    if processes.is_first():
        ownership.check()
        write_json(workdir / f"{prefix}eval.json", summary)
        evaluation_figure(summary, workdir / f"{prefix}eval.png")
    progress.line(
        f"{tag or checkpoint or 'base'}: avg@{section.n} {summary['avg@k']:.1%} "
        f"+- {summary['stderr'] or 0:.1%} over {summary['problems']} problems, temperature "
        f"{section.temperature:g}, up to {max_response_tokens} tokens"
    )
    return summary


def _weights(
    config: RunConfig, workdir: epath.Path, checkpoint: str, progress: Progress
) -> tuple[Decoder, Any]:
    if not checkpoint:
        return load_base(config, workdir, progress)
    path, _ = find_checkpoint(workdir, checkpoint)
    model, tokenizer = load_any(path)
    return model, tokenizer or load_base_tokenizer(config)


def _inputs(
    config: RunConfig, workdir: epath.Path, progress: Progress, tokenizer: Any, checkpoint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the responses depend on by content, and the places of it; see `run.identity`.

    Other weights at `model.path` are refused. A checkpoint's weights are among the settings, since
    `--checkpoint=latest` names others from day to day; its tokenizer stays.
    """
    if not checkpoint:
        return base_inputs(config, workdir, progress, tokenizer=tokenizer)
    digests = tokenizer_digests(tokenizer)
    inputs = {f"{name} of {checkpoint}": value for name, value in digests.items()}
    return inputs, dict.fromkeys(inputs, f"--checkpoint={checkpoint}")


def _respond(
    config: RunConfig,
    progress: Progress,
    weights: tuple[Decoder, Any],
    problems: Sequence[Problem],
    *,
    max_response_tokens: int,
    done: ProgressFile,
    yarn: bool,
    workload: Workload,
) -> list[dict[str, Any]]:
    """Rows of responses.jsonl, sampled now or found from an earlier call."""
    section, rows = config.evaluate, list(done.rows)
    finished = {row["problem_id"] for row in rows}
    waiting = [p for p in problems if p.id not in finished]
    if finished:
        progress.line(f"resumed after {len(finished)} problems")
    if not waiting:
        return rows
    factor = config.rope.yarn.factor if yarn else 1.0
    with (
        open_policy(
            config,
            progress,
            weights,
            max_response_tokens=max_response_tokens,
            rope_scaling=yarn_scaling(config.rope.yarn, factor),
        ) as policy,
        progress.phase("evaluate", len(problems) * section.n) as phase,
    ):
        workload.starts()
        for first in range(0, len(waiting), BATCH_PROMPTS):
            batch = waiting[first : first + BATCH_PROMPTS]
            graded = policy.solve(
                batch,
                n=section.n,
                temperature=section.temperature,
                max_response_tokens=max_response_tokens,
                seed_parts=(section.seed, "evaluate"),
                mode="eval",
                top_k=section.top_k,
                top_p=section.top_p,
                on_progress=phase.sampling(len(rows), len(batch) * section.n),
            )
            if first == 0:
                health = policy.judged(graded, batch, reward=config.reward, mode="eval")
                for text in health.lines() if health.cause not in NO_FAULTS else ():
                    progress.line(text)
            budgets = budgets_of(section, max_response_tokens)
            prefixes = policy.prefix_rewards(graded, batch, budgets)
            new = [
                response_row(problem, graded, p, r, prefixes.get((p, r), {}))
                for p, problem in enumerate(batch)
                for r in range(section.n)
            ]
            done.append(new)
            rows += new
            phase.advance_to(len(rows))
            workload.did(responses=len(new), tokens=graded.response_tokens)
    return rows


def _is_response(row: Mapping[str, Any]) -> bool:
    numbers = all(isinstance(row[name], int | float) for name in ("reward", "tokens", "sample"))
    return numbers and isinstance(row["text"], str) and isinstance(row["finish_reason"], str)


def response_identity(
    config: RunConfig,
    model: Decoder,
    problems: Sequence[Problem],
    *,
    max_response_tokens: int,
    yarn: bool,
) -> dict[str, Any]:
    """What responses and rewards depend on: rows of a file with another identity are not reused.

    Every weight counts: an export in bfloat16 may have the very norms of its base.
    """
    sections = ("data", "evaluate", "rope")
    fields = response_settings(config, sections, without=NOT_OF_RESPONSES)
    checksums = {path: int(value) for path, value in _checksums(model.params()).items()}
    return fields | {
        "model.dtype": config.model.arithmetic,
        "architecture": model.config.architecture(),
        "weights": checksums,
        "problems": problems_digest(problems),
        "budget": max_response_tokens,
        "yarn": yarn,
        **reward_identity(config.reward, problems),
    }


@jax.jit
def _checksums(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A number of each parameter's bits; whole numbers wrap around, whatever the order."""

    def checksum(param: jax.Array) -> jax.Array:
        kind = {2: jnp.uint16, 4: jnp.uint32}[param.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(param, kind).astype(jnp.uint32)
        bits = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B)
        return jnp.sum(bits ^ (bits >> 13), dtype=jnp.uint32)

    return jax.tree.map(checksum, params)
