"""The run in numbers: the rows that `polaris report` prints and the tables of report.html.

An eval.json is named by the weights that it scores. Two scores give a gain only if they differ by
their weights alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.evaluate.intervals import paired_difference
from polaris_jax.report.run_files import RunFiles

BASE = "base model"
Score = Mapping[str, Any]


def score_name(score: Score) -> str:
    """`base model`, `after RL` or `checkpoint a/b`: by the weights that were scored."""
    checkpoint = score.get("checkpoint") or "base"
    if checkpoint == "base":
        return BASE
    if checkpoint == "latest":
        return "after RL"
    return f"checkpoint {'/'.join(PurePosixPath(checkpoint).parts[-2:])}"


def pair_names(before: Score | None, after: Score | None) -> tuple[str, str]:
    """Names of before_eval.json and eval.json; only the base of another score is `before RL`."""
    first, last = ("" if score is None else score_name(score) for score in (before, after))
    if first == BASE and last != BASE:
        return "before RL", last
    return f"{first}, tag before", last


def not_comparable(before: Score, after: Score) -> str:
    """Why the difference of two scores is no gain: `temperature 0.6 and 1.3`; empty if it is."""
    names = score_name(before), score_name(after)
    reasons = []
    if before.get("checkpoint") == after.get("checkpoint"):
        reasons.append(f"both of the {BASE}" if names[0] == BASE else "both of one checkpoint")
    for name, key in (
        ("problems", "problems"),
        ("temperature", "temperature"),
        ("n", "k"),
        ("budget", "max_response_tokens"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
    ):
        if before.get(key) != after.get(key):
            reasons.append(f"{name} {_text(before.get(key))} and {_text(after.get(key))}")
    correct_at = [score.get("correct_at", 1.0) for score in (before, after)]
    if correct_at[0] != correct_at[1]:
        reasons.append(f"correct_at {_text(correct_at[0])} and {_text(correct_at[1])}")
    ids = [(score.get("problem_scores") or {}).keys() for score in (before, after)]
    if all(ids) and ids[0] != ids[1] and len(ids[0]) == len(ids[1]):
        reasons.append("other problems")
    yarn = _yarn(before), _yarn(after)
    if yarn[0] != yarn[1]:
        reasons.append(f"YaRN {yarn[0]} and {yarn[1]}")
    return ", ".join(reasons)


def gain_text(before: Score, after: Score) -> str:
    """The gain between two scores, e.g. `+32.0 ± 2.7 points`, or why they cannot be compared.

    The error is paired by problem if both have `problem_scores`.
    """
    reason = not_comparable(before, after)
    if reason:
        return f"not comparable: {reason}"
    pairs = same_problem_scores(before, after)
    if pairs is not None:
        found = paired_difference(*np.array(pairs, np.float64).T)
        return f"{_points(found.value, found.stderr)}, paired"
    one, other = before.get("stderr"), after.get("stderr")
    error = None if one is None or other is None else math.hypot(one, other)
    return _points(after["avg@k"] - before["avg@k"], error)


def _points(gain: float, error: float | None) -> str:
    """A gain with its error; one of 0 says nothing: all problems agree."""
    spread = f" ± {100 * error:.1f}" if error else ""
    return f"{100 * gain:+.1f}{spread} points"


def same_problem_scores(before: Score, after: Score) -> list[tuple[float, float]] | None:
    """Both scores of each problem; None unless both files have the scores of the same problems."""
    first, second = (score.get("problem_scores") or {} for score in (before, after))
    known = all(isinstance(x, int | float) for x in (*first.values(), *second.values()))
    if known and len(first) > 1 and first.keys() == second.keys():
        return [(first[i], second[i]) for i in first]
    return None


def caption(before: Score | None, after: Score | None) -> str:
    """What the figure of held-out scores shows."""
    if before is None or after is None:
        return "Held-out problems."
    reason = not_comparable(before, after)
    if reason:
        return f"Held-out problems. The two scores are not comparable: {reason}."
    alike = "problems, temperature and budget"
    if before.get("seed") == after.get("seed"):
        alike = "problems, seeds, temperature and budget"
    return f"Held-out problems: same {alike} before and after."


def _yarn(score: Score) -> str:
    """Under which scaling the score itself was sampled; `both` scores without it first."""
    if score.get("rope") != "on":
        return "off"
    factor, attention = score.get("yarn_factor"), score.get("attention_factor", 1.0)
    text = "on" if factor is None else f"x {_text(factor)}"
    return text if attention == 1.0 else f"{text} with attention {_text(attention)}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


DASH = "-"


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One stage: what it was set to and what came of it."""

    stage: int
    steps: str
    temperature: float
    max_response_tokens: int
    reward_first: float | None
    reward_last: float | None
    rescued: int
    substituted: int
    dropped_so_far: int
    decisions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ReportSummary:
    """What a report holds; printed, it is the run's closing table.

    Attributes:
        rows: (name, value) pairs of the table.
        stages: one row a stage.
        figures: paths of the PNGs, in the report's order.
        absent: (what, why) of figures left out and files not found.
        html: path of report.html.
    """

    rows: tuple[tuple[str, str], ...]
    stages: tuple[StageRow, ...]
    figures: tuple[epath.Path, ...]
    absent: tuple[tuple[str, str], ...]
    html: epath.Path

    def __str__(self) -> str:
        pairs = [*self.rows, ("report", str(self.html))]
        width = max(len(name) for name, _ in pairs)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)


def summary_rows(run: RunFiles, stages: Sequence[StageRow]) -> tuple[tuple[str, str], ...]:
    """(name, value) of everything a reader wants first; what is unknown is left out."""
    rows = [(f"avg@{score['k']} {name}", score_text(score)) for name, score in named_scores(run)]
    if run.before is not None and run.evaluation is not None:
        rows.append(("gain", gain_text(run.before, run.evaluation)))
    if run.compared is not None:
        rows.append(("expected", run.compared.text))
    if run.calibrate:
        c = run.calibrate
        rows.append(("difficulty", f"{c['shape']}; {c['kept']} of {c['problems']} problems kept"))
    if run.probe and run.probe.get("initial_temperature") is not None:
        rows.append(("probed temperature", f"{run.probe['initial_temperature']:g}"))
    for stage in stages:
        text = (
            f"steps {stage.steps}, temperature {stage.temperature:.3g}, up to "
            f"{stage.max_response_tokens} tokens, reward {share(stage.reward_first)} -> "
            f"{share(stage.reward_last)}"
        )
        rows.append((f"stage {stage.stage}", text))
    if run.metrics:
        rows += [(f"groups {k}", str(total(run.metrics, k))) for k in ("rescued", "substituted")]
        rows.append(("problems dropped", str(dropped(run))))
        rows += reward_parts(run)
        skipped = sum(int(line.get("update/skipped") or 0) for line in run.metrics)
        if skipped:
            rows.append(("updates skipped", str(skipped)))
    speeds = [
        f"{name} {speed:,.0f} tokens/s"
        for name in ("rollout", "update")
        if (speed := mean_speed(run.timing, name)) is not None
    ]
    if speeds:
        rows.append(("speed", ", ".join(speeds)))
    return tuple(rows)


def named_scores(run: RunFiles) -> list[tuple[str, dict[str, Any]]]:
    """The evaluations there are, each by what it is a score of or by its tag."""
    pair = zip(pair_names(run.before, run.evaluation), (run.before, run.evaluation), strict=True)
    return [(name, score) for name, score in [*pair, *run.others.items()] if score is not None]


def score_text(score: dict[str, Any]) -> str:
    """`41.5% ± 1.9% of 256 problems at temperature 1, up to 96 tokens`."""
    error = score.get("stderr")
    spread = f" ± {error:.1%}" if error else ""
    return (
        f"{score['avg@k']:.1%}{spread} of {score['problems']} problems at temperature "
        f"{score['temperature']:g}, up to {score['max_response_tokens']} tokens"
    )


def stage_rows(run: RunFiles) -> tuple[StageRow, ...]:
    """The stages of stages.json with the metrics of their steps."""
    rows = []
    for index, record in enumerate(run.stages):
        end = run.stages[index + 1]["first_step"] if index + 1 < len(run.stages) else math.inf
        lines = [line for line in run.metrics if record["first_step"] <= line["step"] < end]
        last = record.get("last_step")
        last = lines[-1]["step"] if last is None and lines else last
        reward_first, reward_last = quarters(lines)
        rows.append(
            StageRow(
                stage=record["stage"],
                steps=f"{record['first_step']} to {DASH if last is None else last}",
                temperature=record["temperature"],
                max_response_tokens=record["max_response_tokens"],
                reward_first=reward_first,
                reward_last=reward_last,
                rescued=total(lines, "rescued"),
                substituted=total(lines, "substituted"),
                dropped_so_far=record["dropped_ids_count"],
                decisions=tuple(decision_text(d) for d in record.get("decisions", [])),
            )
        )
    return tuple(rows)


def quarters(lines: Sequence[dict[str, Any]]) -> tuple[float | None, float | None]:
    """Mean reward of the first and of the last quarter of the steps; None without a reward."""
    rewards = [r for line in lines if (r := line.get("rollout/reward_mean")) is not None]
    window = max(1, len(rewards) // 4)
    return _mean(rewards[:window]), _mean(rewards[-window:])


def decision_text(decision: dict[str, Any]) -> str:
    """`temperature = 1.2: lowest candidate that reaches the target`."""
    value = decision.get("value")
    value = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{decision['kind']} = {value}: {decision.get('reason', '')}".rstrip(": ")


def total(lines: Sequence[dict[str, Any]], kind: str) -> int:
    """Groups of `kind` ("rescued" or "substituted") over all lines."""
    return sum(int(line.get(f"batch/{kind}_groups") or 0) for line in lines)


def dropped(run: RunFiles) -> int:
    """Easy problems dropped by the end of the run, those of the last stage's end included."""
    counts = [record["dropped_ids_count"] for record in run.stages]
    counts += [int(line.get("data/dropped") or 0) for line in run.metrics[-1:]]
    return max(counts, default=0)


def reward_parts(run: RunFiles) -> list[tuple[str, str]]:
    """(`reward/NAME`, first value -> last value) of what reward functions logged, and the number of
    responses whose grading failed, by kind."""
    names = sorted({name for line in run.metrics for name in line if name.startswith("reward/")})
    rows = []
    for name in names:
        values = [line[name] for line in run.metrics if line.get(name) is not None]
        if values:
            rows.append((name, f"{values[0]:.4g} -> {values[-1]:.4g}"))
    counts = {
        kind: sum(int(line.get(f"reward/{kind}") or 0) for line in run.timing)
        for kind in ("timeouts", "crashes", "memory", "errors", "invalid")
    }
    failed = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return [*rows, *([("grading failed", failed)] if failed else [])]


def mean_speed(timing: Sequence[dict[str, Any]], phase: str) -> float | None:
    """Tokens a second of a phase over the complete run: all its tokens over all its seconds."""
    tokens = seconds = 0.0
    for line in timing:
        speed, spent = line.get(f"throughput/{phase}_tokens_per_s"), line.get(f"time/{phase}_s")
        if speed is not None and spent:
            tokens += speed * spent
            seconds += spent
    return tokens / seconds if seconds else None


def share(value: float | None) -> str:
    """A rate as per cent, or a dash."""
    return DASH if value is None else f"{value:.1%}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
