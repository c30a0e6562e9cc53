"""The figures of training: curves over steps, stage borders marked.

`CURVES` lists them. Each draws lines of metrics.jsonl or timing.jsonl and the records of
stages.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from polaris_jax.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    TOKENS,
    curve,
    from_zero,
    legend,
    mark_stages,
    numbers,
    panels,
    rates,
)

Lines = Sequence[dict[str, Any]]
GIB = 2**30
OUTCOMES = (("", "all", INK), ("_correct", "correct", BLUE), ("_incorrect", "incorrect", ORANGE))
PHASES = {"rollout": BLUE, "grade": ORANGE, "update": GREEN, "evaluate": PURPLE, "save": GREY}


@dataclasses.dataclass(frozen=True)
class Curves:
    """A figure of training.

    Attributes:
        name: file name of the figure, without `.png`.
        title: title of the figure.
        rows: number of panels.
        draw: draws the panels; gets their axes, the lines and the stages' records.
        needs: metrics of which the lines must have one.
        caption: one sentence under the figure.
        source: file that has the lines.
        scores: True also draws the line of step -1, which has a held-out score alone.
    """

    name: str
    title: str
    rows: int
    draw: Callable[[Sequence[Axes], Lines, Lines], None]
    needs: tuple[str, ...]
    caption: str
    source: str = "metrics.jsonl"
    scores: bool = False

    def figure(self, lines: Lines, stages: Lines, path: epath.Path) -> bool:
        """Draws the figure; returns False, drawing nothing, if the lines lack its metrics."""
        if not any(line.get(name) is not None for line in lines for name in self.needs):
            return False
        if not self.scores:
            lines = [line for line in lines if line["step"] >= 0]
        with panels(path, self.title, rows=self.rows) as all_axes:
            self.draw(all_axes, lines, stages)
            all_axes[-1].set_xlabel("step")
            mark_stages(all_axes, stages, lines[0]["step"], lines[-1]["step"])
            for axes in all_axes:
                legend(axes)
        return True


def _reward(axes: Sequence[Axes], lines: Lines, _: Lines) -> None:
    top, bottom = axes
    curve(top, lines, "rollout/reward_mean", label="mean reward", color=BLUE)
    for name in sorted({n for line in lines for n in line if n.startswith("eval/avg@")}):
        values = numbers(lines, name)
        known = np.isfinite(values)
        label = f"held-out {name.removeprefix('eval/')}"
        steps = numbers(lines, "step")[known]
        top.plot(steps, values[known], "D", color=RED, ms=6, label=label)
    rates(top, "reward")
    curve(bottom, lines, "rollout/informative_share", label="informative", color=GREEN)
    rates(bottom, "groups with unequal rewards")


def _length(axes: Sequence[Axes], lines: Lines, stages: Lines) -> None:
    top, bottom = axes
    for suffix, label, color in OUTCOMES:
        curve(top, lines, f"rollout/mean_length{suffix}", label=label, color=color)
        curve(bottom, lines, f"rollout/clip_ratio{suffix}", label=label, color=color)
    ends = [stage["first_step"] for stage in stages[1:]] + [lines[-1]["step"] + 1]
    for index, (stage, end) in enumerate(zip(stages, ends, strict=False)):
        budget, first = stage["max_response_tokens"], stage["first_step"]
        label = "" if index else "budget"
        top.hlines(budget, first - 0.5, end - 0.5, RED, ":", label=label, linewidth=1.2)
    from_zero(top, "tokens (mean)")
    top.yaxis.set_major_formatter(TOKENS)
    rates(bottom, "cut by the budget")
    highest = _highest(lines, *(f"rollout/clip_ratio{suffix}" for suffix, _, _ in OUTCOMES))
    bottom.set_ylim(0, min(1.02, 1.15 * max(0.05, highest)))


def _exploration(axes: Sequence[Axes], lines: Lines, _: Lines) -> None:
    top, middle, bottom = axes
    curve(top, lines, "update/entropy", color=PURPLE)
    from_zero(top, "entropy, nats a token")
    curve(middle, lines, "rollout/diversity", color=ORANGE)
    middle.set_ylabel("distinct 4-grams / all")
    steps = numbers(lines, "step")
    bottom.step(steps, numbers(lines, "rollout/temperature"), where="mid", color=RED)
    bottom.set_ylabel("temperature")


def _batch(axes: Sequence[Axes], lines: Lines, _: Lines) -> None:
    top, middle, bottom = axes
    steps = numbers(lines, "step")
    rescued, swapped, reused = (
        np.nan_to_num(numbers(lines, f"batch/{name}"))
        for name in ("rescued_groups", "substituted_groups", "donors_reused")
    )
    top.bar(steps, rescued, width=0.9, color=GREEN)
    top.set_ylabel("groups rescued")
    middle.bar(steps, swapped, width=0.9, color=SKY, label="substituted")
    middle.bar(steps, reused, width=0.9, color=BLUE, label="by a donor\nused twice")
    middle.set_ylabel("groups substituted")
    bottom.step(steps, numbers(lines, "data/dropped"), where="mid", color=RED)
    bottom.set_ylabel("problems dropped")
    for panel in axes:
        panel.set_ylim(bottom=0)
        panel.set_ylim(top=max(1.0, 1.15 * panel.get_ylim()[1]))
        panel.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _update(axes: Sequence[Axes], lines: Lines, _: Lines) -> None:
    top, middle, bottom = axes
    curve(top, lines, "update/loss", color=BLUE)
    top.set_ylabel("loss")
    skipped = numbers(lines, "step")[numbers(lines, "update/skipped") > 0]
    curve(middle, lines, "update/grad_norm", label="norm" if len(skipped) else None, color=INK)
    if len(skipped):
        middle.plot(skipped, 0 * skipped, "x", color=RED, label="skipped", clip_on=False)
    from_zero(middle, "gradient norm")
    low, high = "update/clip_fraction_low", "update/clip_fraction_high"
    curve(bottom, lines, low, label="clipped low", color=ORANGE)
    curve(bottom, lines, high, label="clipped high", color=SKY)
    rates(bottom, "tokens clipped")
    bottom.set_ylim(0, max(0.01, min(1.02, 1.2 * _highest(lines, low, high))))


def _logprob_gap(axes: Sequence[Axes], lines: Lines, _: Lines) -> None:
    for name, label, color in (("mean", "mean", BLUE), ("max", "largest", ORANGE)):
        values = numbers(lines, f"rollout/logp_gap_{name}")
        steps = numbers(lines, "step")
        axes[0].plot(steps, np.where(values > 0, values, np.nan), color=color, label=label)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("|difference| of log-probs, nats")


def _time(axes: Sequence[Axes], lines: Lines, _: Lines) -> None:
    top, middle, bottom = axes
    steps, floor = numbers(lines, "step"), np.zeros(len(lines))
    for name, color in PHASES.items():
        seconds = np.nan_to_num(numbers(lines, f"time/{name}_s"))
        if seconds.any():
            top.bar(steps, seconds, bottom=floor, width=0.92, color=color, label=name)
            floor += seconds
    from_zero(top, "seconds a step")
    for name in ("rollout", "update"):
        metric = f"throughput/{name}_tokens_per_s"
        curve(middle, lines, metric, label=name, color=PHASES[name])
    from_zero(middle, "tokens / second")
    middle.yaxis.set_major_formatter(TOKENS)
    kinds = {"host": ORANGE, "device": PURPLE, "device_peak": SKY}
    for name, color in kinds.items():
        label = name.replace("_", " ")
        curve(bottom, lines, f"memory/{name}_bytes", unit=GIB, label=label, color=color)
    from_zero(bottom, "memory, GiB")


def _highest(lines: Lines, *names: str) -> float:
    """The highest value of some metrics, at least 0; null ones do not count."""
    return max(float(np.nanmax(np.append(numbers(lines, name), 0.0))) for name in names)


CURVES = (
    Curves(
        "reward",
        "Reward of training rollouts",
        2,
        _reward,
        ("rollout/reward_mean",),
        "Mean reward of the rollouts as sampled, before rescue and substitution, and the share of "
        "groups whose responses disagree: only these teach. Held-out scores in between are graded "
        "in mode eval, with evaluate.max_response_tokens (by default the last stage's) in every "
        "stage.",
        scores=True,
    ),
    Curves(
        "length",
        "Response length",
        2,
        _length,
        ("rollout/mean_length",),
        "Mean response length of correct and incorrect responses, and the share that reached the "
        "budget of its stage.",
    ),
    Curves(
        "exploration",
        "Exploration",
        3,
        _exploration,
        ("update/entropy", "rollout/diversity"),
        "Entropy falls as a policy sharpens; a stage's start may raise the temperature so that "
        "diversity regains its former value.",
    ),
    Curves(
        "batch",
        "Rescue, substitution and dropped problems",
        3,
        _batch,
        ("batch/rescued_groups", "batch/substituted_groups"),
        "Groups that a stored correct response rescued, groups replaced by an informative one, and "
        "easy problems dropped at stage ends.",
    ),
    Curves(
        "update",
        "Policy updates",
        3,
        _update,
        ("update/loss", "update/grad_norm"),
        "Loss, gradient norm before clipping, and the share of tokens at the clip bounds (0 with "
        "one update a batch and current log-probs: the ratio is 1).",
    ),
    Curves(
        "logprob_gap",
        "Sampler against trainer",
        1,
        _logprob_gap,
        ("rollout/logp_gap_mean", "rollout/logp_gap_max"),
        "Absolute difference between the log-prob that the sampler reported and the one that the "
        "trainer computes, on tokens sampled in the same step.",
    ),
    Curves(
        "time",
        "Time, speed and memory",
        3,
        _time,
        tuple(f"time/{name}_s" for name in PHASES),
        "Seconds by phase, tokens a second, and memory of the first process.",
        source="timing.jsonl",
    ),
)
