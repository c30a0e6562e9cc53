"""A figure as data: panels with series, from which its PNG, its place in the page and its CSV come.

`curves` makes the charts of training and `measurements` those of single commands. `draw` paints
them with matplotlib, `plots` writes them for the page. No array here is changed after it was made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from polaris_jax.report.style import GREY

# curve: a line over steps, with a running mean. line: a plain line with markers. points: markers
# alone. bars: bars side by side. stack: bars upon one another. steps: a line with steps. marks:
# crosses at 0.
Kind = Literal["curve", "line", "points", "bars", "stack", "steps", "marks"]
Unit = Literal["number", "share", "tokens", "count"]
# free: as the values need. zero: from 0. rate: 0 to 1. fit: from 0 to the highest share. count:
# from 0, whole numbers. log: logarithmic.
Axis = Literal["free", "zero", "rate", "fit", "count", "log"]
Across = Literal["step", "number", "log2", "category"]
EXPECTED_LABEL = "expected mean"  # of an `Expected`, in legends


@dataclasses.dataclass(frozen=True)
class Series:
    """One line, or one set of points or bars.

    Attributes:
        label: name in the legend; "": the panel's only series.
        color: color in the light theme.
        x: float64 [N], or the names of N categories.
        y: float64 [N]; nan if a value is unknown.
        kind: how it is drawn.
        smooth: x and y of the running mean, with a nan between stages; None: none is drawn.
        error: float64 [N], standard error of `y`; None if unknown.
        dashed: True draws a broken line.
        minor: True leaves it out where several runs are overlaid.
        run: index of its run.
    """

    label: str
    color: str
    x: np.ndarray | Sequence[str]
    y: np.ndarray
    kind: Kind = "curve"
    smooth: tuple[np.ndarray, np.ndarray] | None = None
    error: np.ndarray | None = None
    dashed: bool = False
    minor: bool = False
    run: int = 0


@dataclasses.dataclass(frozen=True)
class Expected:
    """A shaded range behind a curve over steps: where a mean is expected.

    Attributes:
        first_step: first step of those whose mean is expected there.
        last_step: last one.
        low: lower end.
        high: upper end.
        color: color of the curve in the light theme.
        runs: indices of the runs that it belongs to.
    """

    first_step: int
    last_step: int
    low: float
    high: float
    color: str
    runs: tuple[int, ...] = (0,)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        label: what the y axis shows, with its unit.
        series: what is drawn.
        unit: how a value is written.
        axis: range of the y axis.
        least: with `axis` fit: the least upper end.
        across: what the x axis is.
        x_label: name of the x axis.
        bands: (from, to, name, color) of shaded ranges of x.
        mark: (x, text) of a vertical line; None: there is none.
        expected: where the means of its curves are expected.
    """

    label: str
    series: tuple[Series, ...]
    unit: Unit = "number"
    axis: Axis = "free"
    least: float = 0.05
    across: Across = "step"
    x_label: str = "step"
    bands: tuple[tuple[float, float, str, str], ...] = ()
    mark: tuple[float, str] | None = None
    expected: tuple[Expected, ...] = ()

    def span(self) -> tuple[float, float] | None:
        """Lower and upper end of the y axis; None if the values decide."""
        if self.axis in ("free", "log"):
            return None
        if self.axis == "rate":
            return 0.0, 1.02
        highest = self._highest()
        if self.axis == "fit":
            return 0.0, min(1.02, 1.15 * max(self.least, highest))
        if self.axis == "count":
            return 0.0, max(1.0, 1.15 * highest)
        return 0.0, 1.1 * highest if highest > 0 else 1.0

    def _highest(self) -> float:
        """The highest value, errors, stacked bars and expected ranges included; at least 0."""
        tops = [0.0]
        stacked = [np.nan_to_num(s.y) for s in self.series if s.kind == "stack"]
        if stacked:
            tops += np.sum(stacked, axis=0).tolist()
        for series in self.series:
            if series.kind not in ("stack", "marks"):
                error = 0.0 if series.error is None else np.nan_to_num(series.error)
                tops += (series.y + error)[np.isfinite(series.y)].tolist()
        tops += [one.high for one in self.expected]
        return max(tops)


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure: panels under one another, or beside one another.

    Attributes:
        name: name of its files, without an ending.
        title: its title.
        caption: one or two sentences under it.
        panels: its panels; those over steps share their x axis.
        stages: for each run the records of its stages; empty unless the x axis is the step.
        header: names of the columns of its CSV.
        rows: the rows of its CSV.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    stages: tuple[Sequence[dict[str, Any]], ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()


def overlaid(
    charts: Sequence[Chart], names: Sequence[str], colors: Sequence[str], indices: Sequence[int]
) -> Chart:
    """The charts of several runs in one: a run's series have its color, and bars become lines.

    Args:
        charts: the same chart of each run. A panel that a run lacks is drawn for the others.
        names: name of each run.
        colors: color of each run.
        indices: index of each run among all runs of the report.
    """
    panels: dict[str, Panel] = {}
    for run, chart, color in zip(indices, charts, colors, strict=True):
        for panel in chart.panels:
            own = tuple(
                dataclasses.replace(series, run=run, color=color, kind=_as_line(series.kind, panel))
                for series in _summed(panel.series)
            )
            former = panels.get(panel.label)
            if former is None:
                former = dataclasses.replace(panel, series=(), bands=(), mark=None, expected=())
            panels[panel.label] = dataclasses.replace(
                former,
                series=(*former.series, *own),
                expected=_joined_ranges(former.expected, panel.expected, run=run, color=color),
            )
    return Chart(
        name=charts[0].name,
        title=charts[0].title,
        caption=max((chart.caption for chart in charts), key=len),
        panels=tuple(panels.values()),
        stages=tuple(stages for chart in charts for stages in chart.stages),
        header=("run", *_joined_header(charts)),
        rows=_joined_rows(charts, names),
    )


def _as_line(kind: Kind, panel: Panel) -> Kind:
    return "curve" if kind == "bars" and panel.across == "step" else kind


def _summed(series: tuple[Series, ...]) -> tuple[Series, ...]:
    """Stacked bars as one curve: the sum."""
    stacked = [one for one in series if one.kind == "stack"]
    if not stacked:
        return series
    sum_N = np.sum([np.nan_to_num(one.y) for one in stacked], axis=0)
    total = Series("all together", stacked[0].color, stacked[0].x, sum_N)
    return (total, *(one for one in series if one.kind != "stack"))


def _joined_ranges(
    former: Sequence[Expected], own: Sequence[Expected], *, run: int, color: str
) -> tuple[Expected, ...]:
    """The ranges of several runs; one that several runs have stands there once, in grey."""
    found = {(e.first_step, e.last_step, e.low, e.high): e for e in former}
    for one in own:
        place = (one.first_step, one.last_step, one.low, one.high)
        runs = (run,) if (same := found.get(place)) is None else (*same.runs, run)
        own_color = color if same is None else GREY
        found[place] = dataclasses.replace(one, runs=runs, color=own_color)
    return tuple(found.values())


def _joined_header(charts: Sequence[Chart]) -> tuple[str, ...]:
    """The columns of all charts, those of the widest one first."""
    widest = max((chart.header for chart in charts), key=len)
    return tuple(dict.fromkeys([*widest, *(name for chart in charts for name in chart.header)]))


def _joined_rows(charts: Sequence[Chart], names: Sequence[str]) -> tuple[tuple[Any, ...], ...]:
    """The rows of all charts by the names of their columns; None if a run lacks a column."""
    header = _joined_header(charts)
    rows = []
    for chart, name in zip(charts, names, strict=True):
        at = {column: index for index, column in enumerate(chart.header)}
        for row in chart.rows:
            rows.append((name, *(row[at[c]] if c in at else None for c in header)))
    return tuple(rows)
