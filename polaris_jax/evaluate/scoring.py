"""From graded responses to the figures of eval.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polaris_jax.config import EvaluateSection
from polaris_jax.evaluate.benchmarks import POOLED
from polaris_jax.evaluate.estimators import (
    avg_at_k,
    budget_curve,
    default_budgets,
    length_group_of,
    length_groups,
    pass_scores,
)
from polaris_jax.evaluate.intervals import bootstrap_interval, sampling_error
from polaris_jax.evaluate.votes import majority_scores
from polaris_jax.records import correct_rewards
from polaris_jax.reward.extract import last_box

Row = Mapping[str, Any]
Later = Mapping[tuple[str, int, int], float]
KS = (1, 2, 4, 8, 16, 32, 64)  # k of pass@k and maj@k, up to n
CLOSING = "</think>"
FAILED = "grading_failed"  # in a row of a progress file; their number in a measurement's JSON file


class Part(NamedTuple):
    """One of the ways to sample that an eval.json has scored.

    Attributes:
        suffix: what the name of its responses.jsonl has behind "responses".
        scaled: with YaRN.
        attention: an attention factor that is not the config's; empty: the config's.
        figures: what eval.json says of it.
    """

    suffix: str
    scaled: bool
    attention: str
    figures: Any


def parts_of(summary: Mapping[str, Any]) -> Iterator[Part]:
    """The ways to sample in an eval.json, its own first. Their figures are not checked.

    Args:
        summary: the content of the file.
    """
    on = summary.get("rope") == "on"
    yield Part("_yarn" if on else "", on, "", summary)
    if (scaled := summary.get("yarn")) is not None:
        yield Part("_yarn", True, "", scaled)
    factors = summary.get("attention_factors")
    for factor, scaled in factors.items() if isinstance(factors, dict) else ():
        yield Part(f"_yarn_{factor}", True, factor, scaled)


def grading_failed(row: Mapping[str, Any]) -> bool:
    """True for a row that has a response whose grading failed."""
    failed = row.get(FAILED)  # text in a column of that name from a user's problems
    return isinstance(failed, int) and failed > 0


def budgets_of(section: EvaluateSection, max_response_tokens: int) -> tuple[int, ...]:
    """The budgets, in tokens, at which the budget curve cuts the responses."""
    return section.budgets or default_budgets(max_response_tokens)


def stored_prefix(row: Row, budget: int) -> float | None:
    """The reward of a response's first `budget` tokens, as its row has it; None if it has not."""
    former = row.get("reward_at", {})  # versions up to 0.2 stored an object, or none
    return row.get(f"reward_at_{budget}", former.get(str(budget)))


def ungraded_prefixes(rows: Iterable[Row], budgets: Sequence[int]) -> list[tuple[Row, int]]:
    """(row, budget) of each response that a budget cuts, and whose row lacks the reward there."""
    return [
        (row, budget)
        for row in rows
        for budget in budgets
        if row["tokens"] > budget and stored_prefix(row, budget) is None
    ]


def score_rows(
    rows: Sequence[Row],
    section: EvaluateSection,
    *,
    correct_at: float,
    max_response_tokens: int,
    later: Later | None = None,
) -> dict[str, Any]:
    """The content of eval.json that responses alone decide.

    Args:
        rows: rows of responses.jsonl, the same number for each problem.
        section: `config.evaluate`.
        correct_at: `reward.correct_at`.
        max_response_tokens: budget of the responses, in tokens.
        later: {(problem id, sample, budget): reward} of `ungraded_prefixes`.
    """
    grades = grades_of(rows, correct_at)
    average, mean_reward = avg_at_k(grades.correct_PR), avg_at_k(grades.reward_PR).value

    def prefix_correct(p: int, r: int, at: int) -> float:
        row = grades.rows_PR[p][r]
        reward = stored_prefix(row, at)
        if reward is None:
            reward = (later or {})[row["problem_id"], row["sample"], at]
        return float(correct_rewards(np.array(reward), correct_at))

    curve = budget_curve(
        grades.length_PR,
        grades.correct_PR,
        budgets=budgets_of(section, max_response_tokens),
        regrade=prefix_correct,
    )
    scores = scores_of(grades, section.n)
    if sets := sets_of(rows):
        scores["sets"] = {
            name: scores_of(grades_of(of_set, correct_at)) for name, of_set in sets.items()
        }
    scores["problem_scores"] = {
        i: float(score) for i, score in zip(grades.ids, grades.correct_PR.mean(axis=1), strict=True)
    }
    failed = sum(map(grading_failed, rows))
    return scores | {
        **({FAILED: failed} if failed else {}),
        **({"mean_reward": mean_reward} if mean_reward != average.value else {}),
        "k": section.n,
        "temperature": section.temperature,
        "top_k": section.top_k,
        "top_p": section.top_p,
        "seed": section.seed,
        "correct_at": correct_at,
        "max_response_tokens": max_response_tokens,
        **health_shares(rows),
        "length_groups": _length_groups(grades, section.length_edges),
        "budget_curve": [dataclasses.asdict(point) for point in curve],
    }


def score_line(name: str, summary: Mapping[str, Any]) -> str:
    """What an evaluation says when it ends: the score of `name` and its interval."""
    spread = " without an interval"  # one problem, or all agree
    if summary["interval"] is not None:
        low, high = summary["interval"]
        spread = f" +- {summary['stderr']:.1%} (95%: {low:.1%} to {high:.1%})"
    return (
        f"{name}: avg@{summary['k']} {summary['avg@k']:.1%}{spread} over {summary['problems']} "
        f"problems, temperature {summary['temperature']:g}, up to "
        f"{summary['max_response_tokens']} tokens"
    )


@dataclasses.dataclass(frozen=True)
class Grades:
    """Rows of responses.jsonl by problem.

    Attributes:
        ids: problem ids, sorted.
        rows_PR: the rows of each problem.
        reward_PR: rewards in [0, 1].
        correct_PR: whether each response counts as correct.
        length_PR: lengths in tokens.
    """

    ids: list[str]
    rows_PR: list[list[Row]]
    reward_PR: np.ndarray
    correct_PR: np.ndarray
    length_PR: np.ndarray

    @property
    def answers_PR(self) -> list[list[str | None]]:
        """The answer found in each response."""
        return [[row.get("answer") for row in rows] for rows in self.rows_PR]


def grades_of(rows: Iterable[Row], correct_at: float) -> Grades:
    """The rows by problem and sample; the same number of each is assumed."""
    by_problem: dict[str, list[Row]] = {}
    for row in rows:
        by_problem.setdefault(row["problem_id"], []).append(row)
    ids = sorted(by_problem)
    rows_PR = [sorted(by_problem[i], key=lambda row: row["sample"]) for i in ids]
    reward_PR = np.array([[row["reward"] for row in rows] for rows in rows_PR], np.float32)
    return Grades(
        ids=ids,
        rows_PR=rows_PR,
        reward_PR=reward_PR,
        correct_PR=correct_rewards(reward_PR, correct_at),
        length_PR=np.array([[row["tokens"] for row in rows] for rows in rows_PR]),
    )


def sets_of(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each pooled set, in the order of the sets; {} if nothing is pooled."""
    sets: dict[str, list[Row]] = {}
    for row in rows:
        if isinstance(name := row.get(POOLED), str):
            sets.setdefault(name, []).append(row)
    return sets


def scores_of(grades: Grades, n: int = 0) -> dict[str, Any]:
    """avg@k, pass@k and maj@k with intervals over problems.

    Args:
        grades: the graded responses.
        n: responses to each problem; 0: as many as there are.
    """
    correct_PR = grades.correct_PR
    average = avg_at_k(correct_PR)
    passes, votes = {}, {}
    for k in (k for k in KS if k <= (n or correct_PR.shape[1])):
        passes[str(k)] = pass_scores(correct_PR, k)
        found = majority_scores(grades.answers_PR, correct_PR, k)
        if found is not None:
            votes[str(k)] = found
    scores = {
        "avg@k": average.value,
        "stderr": average.stderr,
        "interval": bootstrap_interval(correct_PR.mean(axis=1)),
        "sampling_error": sampling_error(correct_PR),
        "problems": len(grades.ids),
    }
    for name, by_k in (("pass@k", passes), ("maj@k", votes)):
        if by_k:
            scores[name] = {k: float(score_P.mean()) for k, score_P in by_k.items()}
            intervals = {k: bootstrap_interval(score_P) for k, score_P in by_k.items()}
            scores[f"{name}_interval"] = intervals
    return scores


def health_shares(rows: Sequence[Row]) -> dict[str, float]:
    """Mean length in tokens, and the shares of responses that ended, have a box, have their tags.

    `no_box_share` and `not_one_think_share` look at complete responses, cut ones among them:
    without a complete box, and with any number of `</think>` but one.
    """
    texts = [row["text"] for row in rows]

    def share(flags: Iterable[bool]) -> float:
        return float(np.mean(list(flags)))

    return {
        "mean_length": float(np.mean([row["tokens"] for row in rows])),
        "ended_share": share(row["finish_reason"] == "stop" for row in rows),
        "well_formed_share": share(row["well_formed"] for row in rows),
        "truncated_share": share(row["finish_reason"] == "length" for row in rows),
        "no_box_share": share(last_box(text) is None for text in texts),
        "not_one_think_share": share(text.count(CLOSING) != 1 for text in texts),
    }


def _length_groups(grades: Grades, edges: Sequence[int]) -> list[dict[str, Any]]:
    """The length groups, each with an interval over problems of its accuracy."""
    group_PR = length_group_of(grades.length_PR, edges)
    found = []
    for index, group in enumerate(length_groups(grades.length_PR, grades.correct_PR, edges=edges)):
        inside_PR = group_PR == index
        count_P = inside_PR.sum(axis=1)
        right_P = (grades.correct_PR & inside_PR).sum(axis=1)
        score_P = np.divide(right_P, count_P, out=np.zeros(len(count_P)), where=count_P > 0)
        found.append(dataclasses.asdict(group) | {"interval": bootstrap_interval(score_P, count_P)})
    return found
