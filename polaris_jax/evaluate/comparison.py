"""Evaluations of the same problems side by side: paired differences and gains by difficulty."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from polaris_jax.evaluate.estimators import pass_scores
from polaris_jax.evaluate.intervals import DIFFICULTY_BINS, gain_by_difficulty, paired_difference
from polaris_jax.evaluate.scoring import FAILED, KS, Grades, Row, grades_of, sets_of
from polaris_jax.evaluate.votes import majority_scores
from polaris_jax.system.text import printable

# Settings that two evaluations must share if their difference is to be the weights'.
SHARED = ("temperature", "top_k", "top_p", "max_response_tokens", "k", "seed", "correct_at")
# Others, which eval.json does not have, by their names in responses.identity.json. One that is
# missing there has its default.
ASKED = (
    *("data.prompt_suffix", "data.system_prompt", "data.chat_template", "data.template_args"),
    *("data.response_prefill", "data.shots", "data.turns", "reward.function"),
    *("model.dtype", "rollout.kv_dtype"),
)
SCALED = ("rope.yarn.factor", "rope.yarn.attention_factor")  # count under YaRN alone
SHARES = ("truncated_share", "no_box_share", "not_one_think_share")
VALUE_CHARS = 40  # of a setting in a warning


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One evaluation.

    Attributes:
        name: what people call it.
        source: path of its responses.
        figures: its content of eval.json.
        rows: its rows of responses.jsonl; texts are not needed.
        correct_at: reward from which a response counts as correct.
        questions: {problem id: its question and gold answer}; an id may be missing.
        settings: what the responses depend on, by name; {} if it is not known.
    """

    name: str
    source: str
    figures: Mapping[str, Any]
    rows: Sequence[Row]
    correct_at: float = 1.0
    questions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def compared(evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """The content of eval_compared.json.

    Each evaluation but the first is compared with the first one, and with the one before it.

    Args:
        evaluated: two or more evaluations.
    """
    grades = [grades_of(one.rows, one.correct_at) for one in evaluated]
    pairs = [(0, i) for i in range(1, len(evaluated))]
    pairs += [(i - 1, i) for i in range(2, len(evaluated))]
    return {
        "evaluations": [
            {"name": one.name, "source": one.source, **_shown(one.figures)} for one in evaluated
        ],
        "differences": [
            {"first": evaluated[a].name, "second": evaluated[b].name}
            | _differences(evaluated[a], evaluated[b], grades[a], grades[b])
            for a, b in pairs
        ],
        "warnings": list(_warnings(evaluated, grades)),
    }


def _shown(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that the table and the pictures show."""
    names = (
        *("checkpoint", "avg@k", "stderr", "interval", "sampling_error", "problems", *SHARED),
        *("pass@k", "pass@k_interval", "maj@k", "maj@k_interval", "mean_length", *SHARES, "sets"),
        *("length_groups", "budget_curve"),
    )
    return {name: figures[name] for name in names if name in figures}


def _warnings(evaluated: Sequence[Evaluated], grades: Sequence[Grades]) -> Iterator[str]:
    for field in SHARED:
        values = [one.figures.get(field) for one in evaluated]
        if len({str(value) for value in values if value is not None}) > 1:
            listed = ", ".join(f"{e.name} {v}" for e, v in zip(evaluated, values, strict=True))
            yield f"{field} differs ({listed}): differences are not the weights' alone"
    yield from _setting_warnings(evaluated)
    for one, own in zip(evaluated, grades, strict=True):
        yield from _own_warnings(one, own)
    ids = [set(one.ids) for one in grades]
    common = set.intersection(*ids)
    if any(own != common for own in ids):
        sizes = ", ".join(f"{e.name} {len(own)}" for e, own in zip(evaluated, ids, strict=True))
        yield (
            f"the problems differ ({sizes}; {len(common)} in common): each difference is of the "
            "problems that both have"
        )
    first, *others = evaluated
    for one in others:
        both = first.questions.keys() & one.questions.keys()
        changed = sorted(i for i in both if first.questions[i] != one.questions[i])
        if changed:
            yield (
                f"{len(changed)} of {len(both)} common ids, such as {printable(changed[0])!r}, "
                f"have another question or gold answer in {one.name} than in {first.name}: they "
                "are paired, though they may be other problems"
            )


def _setting_warnings(evaluated: Sequence[Evaluated]) -> Iterator[str]:
    """Settings beside `SHARED` that differ among the evaluations that know them."""
    for name in (*ASKED, *SCALED):
        those = [one for one in evaluated if one.settings]
        if name in SCALED:
            those = [one for one in those if one.settings.get("yarn") and name in one.settings]
        values = [one.settings.get(name) for one in those]
        if len({json.dumps(value, sort_keys=True) for value in values}) > 1:
            listed = "; ".join(
                f"{one.name} {_setting(value)}" for one, value in zip(those, values, strict=True)
            )
            yield f"{name} differs ({listed}): differences are not the weights' alone"


def _setting(value: Any) -> str:
    if value is None:
        return "its default"
    text = printable(json.dumps(value))
    return text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]} ..."


def _own_warnings(one: Evaluated, grades: Grades) -> Iterator[str]:
    """What spoils one evaluation: failed grading, or an eval.json of another call than its rows.

    A call that was killed leaves responses of its own beside the eval.json of an earlier one.
    """
    if isinstance(failed := one.figures.get(FAILED), int):
        yield f"{one.name}: grading failed for {failed} responses, which score 0; evaluate it again"
    found = float(grades.correct_PR.mean())
    said, problems = one.figures["avg@k"], one.figures["problems"]
    # Versions without `correct_at` gave the mean reward as avg@k.
    differs = "correct_at" in one.figures and not math.isclose(said, found, abs_tol=1e-6)
    if problems != len(grades.ids) or differs:
        yield (
            f"{one.name}: its eval.json says {said:.1%} of {problems} problems, and its responses "
            f"{found:.1%} of {len(grades.ids)}: they are of two calls; run the evaluation to its "
            "end"
        )


def _differences(
    first: Evaluated, second: Evaluated, grades: Grades, others: Grades
) -> dict[str, Any]:
    common = sorted(set(grades.ids) & set(others.ids))
    if not common:
        return {"avg@k": None}
    a, b = _only(grades, common), _only(others, common)
    found: dict[str, Any] = {
        "avg@k": dataclasses.asdict(
            paired_difference(a.correct_PR.mean(axis=1), b.correct_PR.mean(axis=1))
        )
    }
    most = min(a.correct_PR.shape[1], b.correct_PR.shape[1])
    ks = [k for k in KS if k <= most]
    found["pass@k"] = {
        str(k): dataclasses.asdict(
            paired_difference(pass_scores(a.correct_PR, k), pass_scores(b.correct_PR, k))
        )
        for k in ks
    }
    votes = {k: [majority_scores(x.answers_PR, x.correct_PR, k) for x in (a, b)] for k in ks}
    found["maj@k"] = {
        str(k): dataclasses.asdict(paired_difference(one, two))
        for k, (one, two) in votes.items()
        if one is not None and two is not None
    }
    sets = {name: {row["problem_id"] for row in rows} for name, rows in sets_of(first.rows).items()}
    if len(sets) > 1:
        found["sets"] = {
            name: dataclasses.asdict(
                paired_difference(
                    *(x.correct_PR[[i in ids for i in common]].mean(axis=1) for x in (a, b))
                )
            )
            for name, ids in sets.items()
            if ids & set(common)
        }
    if most > 1:
        found["by_difficulty"] = [
            dataclasses.asdict(gain) for gain in gain_by_difficulty(a.correct_PR, b.correct_PR)
        ]
    return found


def _only(grades: Grades, ids: Sequence[str]) -> Grades:
    """The grades of these problems, in their order."""
    place = {own: index for index, own in enumerate(grades.ids)}
    at_P = np.array([place[i] for i in ids])
    return Grades(
        ids=list(ids),
        rows_PR=[grades.rows_PR[index] for index in at_P],
        reward_PR=grades.reward_PR[at_P],
        correct_PR=grades.correct_PR[at_P],
        length_PR=grades.length_PR[at_P],
    )


# ---- as text


def comparison_lines(summary: Mapping[str, Any]) -> list[str]:
    """eval_compared.md: tables of scores, of differences, by set and by difficulty."""
    lines = _score_table(summary["evaluations"])
    differences = [found for found in summary["differences"] if found["avg@k"] is not None]
    if not differences:
        return [*lines, "", "No problem has the same id in two of them: nothing can be paired."]
    lines += ["", "Differences in points, paired by problem, with 95% intervals over problems:", ""]
    lines += _table(
        ["", "avg@k", "error if unpaired", "pass@k", "maj@k", "problems"],
        [
            [
                f"{found['second']} minus {found['first']}",
                _points(found["avg@k"]),
                _error(found["avg@k"]),
                _at_most(found["pass@k"]),
                _at_most(found["maj@k"]),
                str(found["avg@k"]["problems"]),
            ]
            for found in differences
        ],
    )
    if names := sorted({name for found in differences for name in found.get("sets", {})}):
        lines += ["", "By set:", ""]
        lines += _table(
            ["", *names],
            [
                [f"{found['second']} minus {found['first']}"]
                + [_points(found.get("sets", {}).get(name)) for name in names]
                for found in differences
            ],
        )
    if any(found.get("by_difficulty") for found in differences):
        lines += [
            "",
            f"By how many of {DIFFICULTY_BINS} responses of the first are right (one half of its "
            "responses sorts the problems, the other halves are compared):",
            "",
            *_difficulty_table(differences),
        ]
    return lines


def _score_table(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for one in evaluations:
        shares = [f"{one[name]:.1%}" if name in one else "-" for name in SHARES]
        length = f"{one['mean_length']:,.0f}" if "mean_length" in one else "-"
        average = f"{one['avg@k']:.1%}{_range(one.get('interval'))}"
        both = [_best(one, name) for name in ("pass@k", "maj@k")]
        rows.append([one["name"], str(one["k"]), average, *both, *shares, length])
    header = ["", "k", "avg@k (95%)", "pass@k", "maj@k", "cut by the budget", "no box"]
    return _table([*header, "not one </think>", "mean tokens"], rows)


def _difficulty_table(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    bins = sorted({gain["bin"] for found in differences for gain in found.get("by_difficulty", [])})
    rows = []
    for found in differences:
        gains = {gain["bin"]: gain for gain in found.get("by_difficulty", [])}
        cells = []
        for b in bins:
            gain = gains.get(b)
            cells.append(
                "-"
                if gain is None
                else f"{100 * gain['gain']:+.1f}{_range(gain['interval'], sign=True)}, "
                f"n={gain['problems']:g}"
            )
        rows.append([f"{found['second']} minus {found['first']}", *cells])
    return _table(["", *(f"{b}/{DIFFICULTY_BINS}" for b in bins)], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def _range(interval: Sequence[float] | None, *, sign: bool = False) -> str:
    if interval is None:
        return ""
    low, high = (100 * value for value in interval)
    return f" ({low:+.1f} to {high:+.1f})" if sign else f" ({low:.1f} to {high:.1f})"


def _points(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "-"
    return f"{100 * difference['value']:+.1f}{_range(difference['interval'], sign=True)}"


def _error(difference: Mapping[str, Any]) -> str:
    paired, unpaired = difference["stderr"], difference["unpaired_stderr"]
    if not paired or not unpaired:  # one problem, or all agree: nothing is known of the error
        return "-"
    return f"± {100 * unpaired:.1f}, paired ± {100 * paired:.1f}"


def _at_most(by_k: Mapping[str, Any]) -> str:
    """The difference at the largest k."""
    if not by_k:
        return "-"
    k = max(by_k, key=int)
    return f"@{k}: {_points(by_k[k])}"


def _best(one: Mapping[str, Any], name: str) -> str:
    """pass@k or maj@k at the largest k."""
    by_k = one.get(name) or {}
    if not by_k:
        return "-"
    k = max(by_k, key=int)
    return f"@{k}: {by_k[k]:.1%}{_range((one.get(f'{name}_interval') or {}).get(k))}"
