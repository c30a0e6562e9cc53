"""The figures of training: curves over steps, stage borders marked.

`CURVES` lists them. Each shows metrics of metrics.jsonl or timing.jsonl and the records of
stages.json.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.report.chart import Axis, Chart, Kind, Panel, Series, Unit
from polaris_jax.report.draw import draw_chart
from polaris_jax.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    numbers,
    smoothed,
)

Lines = Sequence[dict[str, Any]]
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric of a panel.

    Attributes:
        name: its name; `*` at the end stands for the rest, and each metric that fits is drawn.
        label: name in the legend; {} stands for the metric's name after the slash.
        color: color of the line.
        kind: how it is drawn.
        divisor: values are divided by this number before they are drawn.
        minor: True leaves it out where several runs are overlaid.
    """

    name: str
    label: str = ""
    color: str = BLUE
    kind: Kind = "curve"
    divisor: float = 1.0
    minor: bool = False


@dataclasses.dataclass(frozen=True)
class Rows:
    """A panel over steps, before its values are known; see `Panel` for the other fields.

    Attributes:
        metrics: what it shows.
        budget: True also draws the largest number of response tokens of each stage.
    """

    label: str
    metrics: tuple[Metric, ...]
    unit: Unit = "number"
    axis: Axis = "free"
    least: float = 0.05
    budget: bool = False


@dataclasses.dataclass(frozen=True)
class Curves:
    """A figure of training.

    Attributes:
        name: file name of the figure, without `.png`.
        title: title of the figure.
        panels: its panels, the upper one first.
        needs: metrics of which the lines must have one.
        caption: one sentence under the figure.
        source: file that has the lines.
        scores: True also draws the line of step -1, which has a held-out score alone.
        optional: True leaves the figure out, without a word, if what it needs is 0 throughout.
    """

    name: str
    title: str
    panels: tuple[Rows, ...]
    needs: tuple[str, ...]
    caption: str
    source: str = "metrics.jsonl"
    scores: bool = False
    optional: bool = False

    def chart(self, lines: Lines, stages: Lines) -> Chart | None:
        """The figure with its values; None if the lines lack its metrics.

        Args:
            lines: lines of the file `source`.
            stages: records of stages.json.
        """
        values = [line.get(name) for line in lines for name in self.needs]
        if not any(value if self.optional else value is not None for value in values):
            return None
        if not self.scores:
            lines = [line for line in lines if line["step"] >= 0]
        panels = tuple(_panel(rows, lines, stages) for rows in self.panels)
        if not any(panel.series for panel in panels):  # values that are not finite
            return None
        metrics = [metric for rows in self.panels for metric in rows.metrics]
        names = list(dict.fromkeys(name for m in metrics for name in _names(m, lines)))
        return Chart(
            name=self.name,
            title=self.title,
            caption=self.caption,
            panels=panels,
            stages=(stages,),
            header=("step", "stage", *names),
            rows=tuple((x["step"], x.get("stage"), *map(x.get, names)) for x in lines),
        )

    def figure(self, lines: Lines, stages: Lines, path: epath.Path) -> bool:
        """Draws the PNG; returns False, drawing nothing, if the lines lack the metrics."""
        chart = self.chart(lines, stages)
        if chart is not None:
            draw_chart(chart, path)
        return chart is not None


def _names(metric: Metric, lines: Lines) -> list[str]:
    """The metrics that a `Metric` stands for."""
    if not metric.name.endswith("*"):
        return [metric.name] if any(metric.name in line for line in lines) else []
    return sorted({n for line in lines for n in line if fnmatch.fnmatchcase(n, metric.name)})


def _panel(rows: Rows, lines: Lines, stages: Lines) -> Panel:
    series = [one for metric in rows.metrics for one in _series(metric, lines)]
    if rows.budget and stages:
        series.append(_budget(lines, stages))
    return Panel(rows.label, tuple(series), rows.unit, rows.axis, rows.least)


def _series(metric: Metric, lines: Lines) -> Iterator[Series]:
    for name in _names(metric, lines):
        steps, values = numbers(lines, "step"), numbers(lines, name) / metric.divisor
        if metric.kind == "marks":
            steps, values = steps[values > 0], 0 * values[values > 0]
        elif metric.kind == "points":
            steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
        if not np.isfinite(values).any() or (metric.kind == "stack" and not np.nansum(values)):
            continue
        stage_N = np.nan_to_num(numbers(lines, "stage"))
        yield Series(
            label=metric.label.format(name.rpartition("/")[2]),
            color=metric.color,
            x=steps,
            y=values,
            kind=metric.kind,
            smooth=None if len(steps) < len(lines) else smoothed(steps, values, stage_N),
            minor=metric.minor,
        )


def _budget(lines: Lines, stages: Lines) -> Series:
    """The largest number of response tokens at each step, by the stages' records."""
    steps = numbers(lines, "step")
    first = np.array([stage["first_step"] for stage in stages])
    at = np.maximum(np.searchsorted(first, steps, side="right") - 1, 0)
    budgets = np.array([stage["max_response_tokens"] for stage in stages], np.float64)
    return Series("budget", RED, steps, budgets[at], kind="steps", dashed=True, minor=True)


def _by_outcome(name: str) -> tuple[Metric, ...]:
    return (
        Metric(f"rollout/{name}", "all", INK),
        Metric(f"rollout/{name}_correct", "correct", BLUE, minor=True),
        Metric(f"rollout/{name}_incorrect", "incorrect", ORANGE, minor=True),
    )


PHASES = {"rollout": BLUE, "grade": ORANGE, "update": GREEN, "evaluate": PURPLE, "save": GREY}
CURVES = (
    Curves(
        "reward",
        "Reward of training rollouts",
        (
            Rows(
                "reward",
                (
                    Metric("rollout/reward_mean", "mean reward"),
                    Metric("eval/avg@*", "held-out {}", RED, "points"),
                ),
                "share",
                "rate",
            ),
            Rows(
                "groups with unequal rewards",
                (Metric("rollout/informative_share", "informative", GREEN),),
                "share",
                "rate",
            ),
        ),
        ("rollout/reward_mean",),
        "Mean reward of the rollouts as sampled, before rescue and substitution, and the share of "
        "groups whose responses disagree: only these teach. Held-out scores in between are graded "
        "in mode eval, with evaluate.max_response_tokens (by default the last stage's) in every "
        "stage.",
        scores=True,
    ),
    Curves(
        "held_out",
        "Held-out accuracy and diversity, at the evaluation's temperature",
        (
            Rows("accuracy", (Metric("eval/avg@*", "{}", RED, "points"),), "share", "fit"),
            Rows(
                "distinct 4-grams / all",
                (Metric("eval/diversity", color=ORANGE, kind="points"),),
                axis="zero",
            ),
        ),
        ("eval/diversity",),
        "Score and diversity of the same held-out problems and noise at every step, at "
        "evaluate.temperature (or a stage's evaluate_temperature) and not at the temperature of "
        "training.",
        scores=True,
    ),
    Curves(
        "length",
        "Response length",
        (
            Rows("tokens (mean)", _by_outcome("mean_length"), "tokens", "zero", budget=True),
            Rows("cut by the budget", _by_outcome("clip_ratio"), "share", "fit"),
        ),
        ("rollout/mean_length",),
        "Mean response length of correct and incorrect responses, and the share that reached the "
        "budget of its stage.",
    ),
    Curves(
        "exploration",
        "Exploration",
        (
            Rows("entropy, nats a token", (Metric("update/entropy", color=PURPLE),), axis="zero"),
            Rows("distinct 4-grams / all", (Metric("rollout/diversity", color=ORANGE),)),
            Rows("temperature", (Metric("rollout/temperature", color=RED, kind="steps"),)),
        ),
        ("update/entropy", "rollout/diversity"),
        "Entropy falls as a policy sharpens; a stage's start may raise the temperature so that "
        "diversity regains its former value.",
    ),
    Curves(
        "batch",
        "Rescue, substitution and dropped problems",
        (
            Rows(
                "groups rescued",
                (Metric("batch/rescued_groups", color=GREEN, kind="bars"),),
                "count",
                "count",
            ),
            Rows(
                "groups substituted",
                (
                    Metric("batch/substituted_groups", "substituted", SKY, "bars"),
                    Metric(
                        "batch/donors_reused", "by a donor\nused twice", BLUE, "bars", minor=True
                    ),
                ),
                "count",
                "count",
            ),
            Rows(
                "problems dropped",
                (Metric("data/dropped", color=RED, kind="steps"),),
                "count",
                "count",
            ),
        ),
        ("batch/rescued_groups", "batch/substituted_groups"),
        "Groups that a stored correct response rescued, groups replaced by an informative one, and "
        "easy problems dropped at stage ends.",
    ),
    Curves(
        "update",
        "Policy updates",
        (
            Rows("loss", (Metric("update/loss"),)),
            Rows(
                "gradient norm",
                (
                    Metric("update/grad_norm", "norm", INK),
                    Metric("update/skipped", "skipped", RED, "marks"),
                ),
                axis="zero",
            ),
            Rows(
                "tokens clipped",
                (
                    Metric("update/clip_fraction_low", "clipped low", ORANGE, minor=True),
                    Metric("update/clip_fraction_high", "clipped high", SKY),
                ),
                "share",
                "fit",
                least=0.01,
            ),
        ),
        ("update/loss", "update/grad_norm"),
        "Loss, gradient norm before clipping, and the share of tokens at the clip bounds (0 with "
        "one update a batch and current log-probs: the ratio is 1).",
    ),
    Curves(
        "logprob_gap",
        "Sampler against trainer",
        (
            Rows(
                "|difference| of log-probs, nats",
                (
                    Metric("rollout/logp_gap_mean", "mean"),
                    Metric("rollout/logp_gap_max", "largest", ORANGE, minor=True),
                ),
                axis="log",
            ),
        ),
        ("rollout/logp_gap_mean", "rollout/logp_gap_max"),
        "Absolute difference between the log-prob that the sampler reported and the one that the "
        "trainer computes, on tokens sampled in the same step.",
    ),
    Curves(
        "time",
        "Time, speed and memory",
        (
            Rows(
                "seconds a step",
                tuple(Metric(f"time/{n}_s", n, color, "stack") for n, color in PHASES.items()),
                axis="zero",
            ),
            Rows(
                "tokens / second",
                (
                    Metric("throughput/rollout_tokens_per_s", "rollout", PHASES["rollout"]),
                    Metric(
                        "throughput/update_tokens_per_s", "update", PHASES["update"], minor=True
                    ),
                ),
                "tokens",
                "zero",
            ),
            Rows(
                "memory, GiB",
                (
                    Metric("memory/host_bytes", "host", ORANGE, divisor=GIB),
                    Metric("memory/device_bytes", "device", PURPLE, divisor=GIB, minor=True),
                    Metric("memory/device_peak_bytes", "device peak", SKY, divisor=GIB),
                ),
                axis="zero",
            ),
        ),
        tuple(f"time/{name}_s" for name in PHASES),
        "Seconds by phase, tokens a second, and memory of the first process.",
        source="timing.jsonl",
    ),
    Curves(
        "drafts",
        "Drafts from history",
        (
            Rows(
                "accepted / drafted",
                (Metric("sampler/draft_rate", color=GREEN),),
                "share",
                "rate",
            ),
            Rows(
                "decode steps saved",
                (Metric("sampler/draft_steps_saved", color=SKY),),
                "count",
                "zero",
            ),
        ),
        ("sampler/verify_calls",),
        "Share of the drafted tokens that were accepted, and the decode steps that these would "
        "have taken; sampler/draft_steps_saved_by_rows of timing.jsonl has them by live rows.",
        source="timing.jsonl",
        optional=True,
    ),
)
