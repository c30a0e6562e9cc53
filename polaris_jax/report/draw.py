"""Paints a `Chart` as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from polaris_jax.report.chart import EXPECTED_LABEL, Chart, Panel, Series
from polaris_jax.report.figures import WIDE_INCHES, apart
from polaris_jax.report.style import (
    INK,
    PERCENT,
    TOKENS,
    curve,
    legend,
    mark_stages,
    note,
    panels,
)

RUN_WIDTH = 0.82  # of a group of bars


def draw_chart(chart: Chart, path: epath.Path, *, names: Sequence[str] = ()) -> None:
    """Draws a chart.

    Args:
        chart: the chart; with several runs, series that are `minor` are left out.
        path: path of the PNG.
        names: names of the runs if there are several; the legend has them once.
    """
    over_steps = all(panel.across == "step" for panel in chart.panels)
    columns = 1 if over_steps or len(chart.panels) == 1 else 2
    rows = -(-len(chart.panels) // columns)
    look: dict[str, Any] = {} if over_steps else {"share_x": False}
    if columns == 2:
        look["width"] = WIDE_INCHES
    with panels(path, chart.title, rows=rows, columns=columns, **look) as all_axes:
        for axes in all_axes[len(chart.panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(all_axes, chart.panels, strict=False):
            _panel(axes, panel, names)
        if over_steps:
            _steps(all_axes, chart)
        for index, (axes, panel) in enumerate(zip(all_axes, chart.panels, strict=False)):
            if not over_steps or index == len(chart.panels) - 1:
                axes.set_xlabel(panel.x_label)
            if not (names and index):
                legend(axes)


def _steps(all_axes: Sequence[Axes], chart: Chart) -> None:
    """Marks the stages if all runs have the same ones, and ends the x axis with the last step."""
    steps = np.concatenate([np.asarray(s.x) for p in chart.panels for s in p.series])
    same = all(_borders(stages) == _borders(chart.stages[0]) for stages in chart.stages)
    stages = chart.stages[0] if chart.stages and same else ()
    mark_stages(all_axes, stages, int(steps.min()), int(steps.max()))


def _borders(stages: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = ("first_step", "temperature", "max_response_tokens")
    return [tuple(stage[name] for name in names) for stage in stages]


def _panel(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    shown = [one for one in panel.series if not (names and one.minor)]
    floor: Any = 0.0
    over_steps = panel.across == "step"
    _expected(axes, panel)
    bars = [one for one in shown if one.kind == "bars"]
    # Runs may have other categories: of 4 attempts and of 8, or other length groups.
    places = dict.fromkeys(str(name) for one in shown for name in one.x)
    places = {name: at for at, name in enumerate(places)}
    if panel.across == "category" and shown:
        axes.set_xticks(range(len(places)), list(places))
        axes.grid(axis="x", visible=False)
    labelled: set[int] = set()
    for one in shown:
        label: str | None = one.label or None
        if names:
            label = None if one.run in labelled else names[one.run]
            labelled.add(one.run)
        if one.kind == "stack":
            height = np.nan_to_num(one.y)
            axes.bar(
                np.asarray(one.x), height, bottom=floor, width=0.92, color=one.color, label=label
            )
            floor = floor + height
        elif one.kind == "bars":
            at_N = np.asarray(one.x) if over_steps else np.array([places[str(x)] for x in one.x])
            _bars(axes, one, at_N, bars, label, over_steps=over_steps)
        else:
            _line(axes, one, label, log=panel.axis == "log")
    if panel.across == "log2":
        _log_ticks(axes, shown)
    if panel.mark is not None:
        axes.axvline(panel.mark[0], color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        note(axes, panel.mark[1], (panel.mark[0], 0.04), offset=(5, 0), of_height=True, ha="left")
    _y_axis(axes, panel)


def _expected(axes: Axes, panel: Panel) -> None:
    """Shades where means are expected; the legend says it once."""
    for index, one in enumerate(panel.expected):
        axes.fill_between(
            [one.first_step - 0.5, one.last_step + 0.5],
            one.low,
            one.high,
            color=one.color,
            alpha=0.14,
            linewidth=0,
            zorder=0.5,
            label=None if index else EXPECTED_LABEL,
        )


def _bars(
    axes: Axes,
    one: Series,
    at_N: np.ndarray,
    bars: Sequence[Series],
    label: str | None,
    *,
    over_steps: bool,
) -> None:
    if over_steps:
        axes.bar(at_N, one.y, width=0.9, color=one.color, label=label)
        return
    width = RUN_WIDTH / len(bars)
    middle = (len(bars) - 1) / 2
    shift = (next(i for i, b in enumerate(bars) if b is one) - middle) * width
    axes.bar(
        at_N + shift,
        np.nan_to_num(one.y),
        width=0.94 * width,
        color=one.color,
        label=label,
        yerr=None if one.error is None else np.nan_to_num(one.error),
        capsize=3,
        error_kw={"ecolor": INK, "elinewidth": 1.0},
    )


def _line(axes: Axes, one: Series, label: str | None, *, log: bool) -> None:
    x, y = np.asarray(one.x), one.y
    if log:
        y = np.where(y > 0, y, np.nan)
    dash = ":" if one.dashed else "-"
    if one.kind == "curve":
        curve(axes, x, y, one.smooth, color=one.color, label=label)
    elif one.kind == "steps":
        width = 1.2 if one.dashed else 1.8
        axes.step(x, y, dash, where="mid", color=one.color, label=label, linewidth=width)
    elif one.kind == "points":
        axes.plot(x, y, "D", color=one.color, ms=6, label=label, clip_on=False)
    elif one.kind == "marks":
        axes.plot(x, y, "x", color=one.color, label=label, clip_on=False)
    else:
        error = None if one.error is None else np.nan_to_num(one.error)
        dash = "--" if one.dashed else "-"
        look: dict[str, Any] = {"color": one.color, "linestyle": dash, "marker": "o"}
        axes.errorbar(x, y, yerr=error, capsize=2, label=label, **look)


def _log_ticks(axes: Axes, shown: Sequence[Series]) -> None:
    axes.set_xscale("log", base=2)
    kept = apart(sorted({int(x) for one in shown for x in one.x}))
    axes.set_xticks(kept, [TOKENS(tick) for tick in kept])
    axes.minorticks_off()


def _y_axis(axes: Axes, panel: Panel) -> None:
    span = panel.span()
    if span is not None:
        axes.set_ylim(*span)
    if panel.axis == "log":
        axes.set_yscale("log")
    if panel.axis == "count":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if panel.unit == "share":
        axes.yaxis.set_major_formatter(PERCENT)
    elif panel.unit == "tokens":
        axes.yaxis.set_major_formatter(TOKENS)
    axes.set_ylabel(panel.label)
