"""The figure of an ablation: differences to the first arm, and the arms' curves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from polaris_jax.ablate.page import trained
from polaris_jax.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    PANEL_INCHES,
    PERCENT,
    PURPLE,
    RED,
    SKY,
    legend,
    panels,
)

COLORS = (GREY, BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
ROW_INCHES = 0.2  # of an arm
POINTS = FuncFormatter(lambda value, _: f"{100 * value:+g}")


def ablation_figure(summary: Mapping[str, Any], path: epath.Path, *, title: str) -> None:
    """Draws ablations.png.

    The upper panel has the mean held-out score of each arm over training, or its score if nothing
    was trained, with one standard error; the lower one each arm's difference to the one that it is
    compared with, with its 95% interval and every pair.

    Args:
        summary: the content of ablations.json.
        path: the PNG file.
        title: title of the figure.
    """
    arms, outcomes = summary["arms"], [o for o in summary["outcomes"] if o["value"] is None]
    colors = {arm["name"]: COLORS[i % len(COLORS)] for i, arm in enumerate(arms)}
    height = max(PANEL_INCHES, ROW_INCHES * len(arms))
    with panels(path, title, rows=2, share_x=False, panel_height=height) as (top, bottom):
        if trained(summary):
            _curves(top, outcomes, colors)
        else:
            _scores(top, arms, colors)
        figures = {(o["arm"], o["base"], o["seed"]): _figure(o, summary) for o in outcomes}
        compared = [arm for arm in arms if arm["difference"] is not None]
        for place, arm in enumerate(compared):
            color = colors[arm["name"]]
            pairs = [
                value - figures[arm["against"], base, seed]
                for (name, base, seed), value in figures.items()
                if name == arm["name"] and (arm["against"], base, seed) in figures
            ]
            bottom.plot(pairs, [place] * len(pairs), "|", color=color, alpha=0.5, ms=9)
            found = arm["difference"]
            if found["low"] is not None:
                bottom.plot([found["low"], found["high"]], [place] * 2, color=color, linewidth=2.4)
            bottom.plot(found["mean"], place, "o", color=color, ms=7)
        bottom.axvline(0, color=INK, linewidth=1.0)
        _name_rows(bottom, compared)
        bottom.xaxis.set_major_formatter(POINTS)
        bottom.set_xlabel(
            f"points above {summary['against']}, or the arm it is compared with: mean, 95% "
            "interval, each pair"
        )


def _curves(axes: Axes, outcomes: list[Mapping[str, Any]], colors: Mapping[str, str]) -> None:
    """Each arm's mean score over training, with one standard error."""
    for (name, color), marker in zip(colors.items(), itertools.cycle(MARKERS), strict=False):
        own = [o for o in outcomes if o["arm"] == name]
        step_S, mean_S, error_S = _curve(own)
        axes.plot(step_S, mean_S, ms=3.5, label=name, color=color, marker=marker)
        axes.fill_between(step_S, mean_S - error_S, mean_S + error_S, color=color, alpha=0.15)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out score")
    axes.yaxis.set_major_formatter(PERCENT)
    legend(axes)


def _scores(axes: Axes, arms: list[Mapping[str, Any]], colors: Mapping[str, str]) -> None:
    """Each arm's mean score, with one standard error."""
    for place, arm in enumerate(arms):
        found, color = arm["figure"], colors[arm["name"]]
        error = found["stderr"] or 0.0
        ends = [found["mean"] - error, found["mean"] + error]
        axes.plot(ends, [place] * 2, color=color, linewidth=2.4)
        axes.plot(found["mean"], place, "o", color=color, ms=6)
    _name_rows(axes, arms)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("held-out score: mean over the bases and one standard error")


def _name_rows(axes: Axes, arms: list[Mapping[str, Any]]) -> None:
    """An arm a row, from the top."""
    axes.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    axes.set_ylim(max(len(arms), 1) - 0.5, -0.5)


def _figure(outcome: Mapping[str, Any], summary: Mapping[str, Any]) -> float:
    values = [score for _, score in outcome["scores"]]
    return values[-1] if summary["figure"] == "last" else float(np.mean(values))


def _curve(outcomes: list[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean score and its standard error over the runs that have a score at the step."""
    by_step: dict[int, list[float]] = {}
    for outcome in outcomes:
        by_step.setdefault(-1, []).append(outcome["before"])
        for step, score in outcome["scores"]:
            by_step.setdefault(step, []).append(score)
    steps = sorted(by_step)
    mean_S = np.array([np.mean(by_step[s]) for s in steps])
    error_S = np.array(
        [
            np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0.0
            for found in (by_step[s] for s in steps)
        ]
    )
    return np.array(steps), mean_S, error_S
