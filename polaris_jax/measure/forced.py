"""Budget forcing: responses that the budget cut are closed and made to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polaris_jax.config import ConfigError, EvaluateSection
from polaris_jax.evaluate.scoring import FAILED, grades_of, grading_failed, scores_of
from polaris_jax.measure.policy import Policy
from polaris_jax.measure.respond import BATCH_PROMPTS, Asked, Loaded, Variant, closing_text
from polaris_jax.measure.responses import ids_of, ids_text
from polaris_jax.records import Problem
from polaris_jax.run.progress_file import ProgressFile


def forced_identity(identity: Mapping[str, Any], section: EvaluateSection) -> dict[str, Any]:
    """What forced answers depend on: the responses, and how they are closed."""
    return dict(identity) | {
        "forced tokens": section.force_answer_tokens,
        "forced text": section.force_answer_text,
    }


def force_answers(
    asked: Asked,
    weights: Loaded,
    variant: Variant,
    rows: Sequence[Mapping[str, Any]],
    *,
    done: ProgressFile,
    path: Any,
) -> list[dict[str, Any]]:
    """A row for each response: its reward after budget forcing.

    A response that the budget cut is closed with `</think>`, if it has none, and
    `evaluate.force_answer_text`, and continued for `evaluate.force_answer_tokens` tokens. The
    others keep their rewards.

    Args:
        asked: what the responses were sampled for.
        weights: the weights that sampled them.
        variant: the variant under which they were sampled.
        rows: rows of responses.jsonl.
        done: the forced rows that are there; gets the new ones.
        path: path of the rows' file, for errors.

    Raises:
        ConfigError: a response that has to be continued has no token ids.

    Source: s1, Muennighoff et al. 2025 (arXiv:2501.19393), section 3.1. Differs: a response is only
        ended early, never made longer by "Wait".
    """
    forced = list(done.rows)
    finished = {row["problem_id"] for row in forced}
    by_problem: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["problem_id"] not in finished:
            by_problem.setdefault(row["problem_id"], []).append(row)
    waiting = list(by_problem.values())
    if not any(_is_cut(row) for group in waiting for row in group):  # no sampler is needed
        new = [_forced_row(row) for group in waiting for row in group]
        done.append(new)
        return forced + new
    for row in (row for group in waiting for row in group):
        if _is_cut(row) and row.get("token_ids") is None:
            raise ConfigError(
                f"evaluate.force_answer_tokens={asked.config.evaluate.force_answer_tokens}: {path} "
                "is of a version that kept no token ids, so its responses cannot be continued; set "
                "another evaluate.seed or --tag to sample anew"
            )
    by_id = {problem.id: problem for problem in asked.problems}
    with asked.policy(weights, variant) as policy:
        for first in range(0, len(waiting), BATCH_PROMPTS):
            batch = waiting[first : first + BATCH_PROMPTS]
            new = _forced_batch(asked, policy, batch, by_id)
            done.append(new)
            forced += new
    return forced


def _forced_batch(
    asked: Asked,
    policy: Policy,
    groups: Sequence[Sequence[Mapping[str, Any]]],
    by_id: Mapping[str, Problem],
) -> list[dict[str, Any]]:
    section = asked.config.evaluate
    cut = [row for group in groups for row in group if _is_cut(row)]
    if not cut:
        return [_forced_row(row) for group in groups for row in group]
    answers = policy.continued(
        [(by_id[row["problem_id"]], row["sample"], ids_of(row) or ()) for row in cut],
        texts=[closing_text(row["text"], section.force_answer_text) for row in cut],
        max_tokens=section.force_answer_tokens,
        temperature=section.temperature,
        top_k=section.top_k,
        top_p=section.top_p,
        seed_parts=(section.seed, "evaluate", "forced"),
    )
    found = {
        (row["problem_id"], row["sample"]): answer for row, answer in zip(cut, answers, strict=True)
    }
    rows = []
    for group in groups:
        for row in group:
            answer = found.get((row["problem_id"], row["sample"]))
            rows.append(_forced_row(row) if answer is None else _forced_row(row, **answer))
    return rows


def _forced_row(row: Mapping[str, Any], **forced: Any) -> dict[str, Any]:
    own = {"reward": row["reward"], "answer": row.get("answer"), "tokens": row["tokens"]}
    start = {"problem_id": row["problem_id"], "sample": row["sample"], "forced": bool(forced)}
    failed = {FAILED: grading_failed(row) or grading_failed(forced)}
    return start | own | {"text": "", "token_ids": ids_text(())} | forced | failed


def forced_scores(
    rows: Sequence[Mapping[str, Any]], section: EvaluateSection, correct_at: float
) -> dict[str, Any]:
    """`forced` of eval.json.

    Args:
        rows: what `force_answers` returns.
        section: `config.evaluate`.
        correct_at: `reward.correct_at`.
    """
    failed = sum(map(grading_failed, rows))
    return {
        "tokens": section.force_answer_tokens,
        "share": sum(row["forced"] for row in rows) / len(rows),
        **({FAILED: failed} if failed else {}),
        **scores_of(grades_of(rows, correct_at), section.n),
    }


def _is_cut(row: Mapping[str, Any]) -> bool:
    return row["finish_reason"] == "length"


def is_forced_row(row: Mapping[str, Any]) -> bool:
    """True for a row that `force_answers` can have written."""
    numbers = all(isinstance(row[name], int | float) for name in ("reward", "tokens", "sample"))
    return numbers and isinstance(row["forced"], bool)
