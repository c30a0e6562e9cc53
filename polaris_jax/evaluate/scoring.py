"""From graded responses to the figures of eval.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polaris_jax.config import EvaluateSection
from polaris_jax.evaluate.estimators import (
    avg_at_k,
    budget_curve,
    default_budgets,
    length_groups,
    pass_at_k,
)
from polaris_jax.records import correct_rewards


def budgets_of(section: EvaluateSection, max_response_tokens: int) -> tuple[int, ...]:
    """The budgets, in tokens, at which the budget curve cuts the responses."""
    return section.budgets or default_budgets(max_response_tokens)


def score_rows(
    rows: Sequence[Mapping[str, Any]],
    section: EvaluateSection,
    *,
    correct_at: float,
    max_response_tokens: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The content of eval.json that responses alone decide.

    Args:
        rows: rows of responses.jsonl, the same number for each problem.
        section: `config.evaluate`.
        correct_at: `reward.correct_at`.
        max_response_tokens: budget of the responses, in tokens.
        say: gets a warning if budgets were asked for after the responses were graded.
    """
    by_problem: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_problem.setdefault(row["problem_id"], []).append(row)
    ids = sorted(by_problem)
    reward_PR = np.array([[row["reward"] for row in by_problem[i]] for i in ids], np.float32)
    length_PR = np.array([[row["tokens"] for row in by_problem[i]] for i in ids])
    correct_PR = correct_rewards(reward_PR, correct_at)
    average, mean_reward = avg_at_k(correct_PR), avg_at_k(reward_PR).value
    ungraded: set[int] = set()

    def prefix_correct(p: int, r: int, at: int) -> float:
        row = by_problem[ids[p]][r]
        former = row.get("reward_at", {})  # versions up to 0.2 stored an object, or none
        reward = row.get(f"reward_at_{at}", former.get(str(at)))
        if reward is None:
            ungraded.add(at)
        return float(correct_rewards(np.array(reward or 0.0), correct_at))

    curve = budget_curve(
        length_PR,
        correct_PR,
        budgets=budgets_of(section, max_response_tokens),
        regrade=prefix_correct,
    )
    if ungraded:
        say(
            f"warning: responses were stored before budgets {sorted(ungraded)} were asked for; "
            "those that they cut count as wrong there (another evaluate.seed samples anew)"
        )
    powers = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= section.n]
    ended = [row["finish_reason"] == "stop" for row in rows]
    return {
        "avg@k": average.value,
        "stderr": average.stderr,
        **({"mean_reward": mean_reward} if mean_reward != average.value else {}),
        "k": section.n,
        "pass@k": {str(k): pass_at_k(correct_PR, k).value for k in powers},
        "problems": len(ids),
        "temperature": section.temperature,
        "top_k": section.top_k,
        "top_p": section.top_p,
        "max_response_tokens": max_response_tokens,
        "mean_length": float(length_PR.mean()),
        "ended_share": float(np.mean(ended)),
        "well_formed_share": float(np.mean([row["well_formed"] for row in rows])),
        "length_groups": [
            dataclasses.asdict(group)
            for group in length_groups(length_PR, correct_PR, edges=section.length_edges)
        ],
        "budget_curve": [dataclasses.asdict(point) for point in curve],
    }
