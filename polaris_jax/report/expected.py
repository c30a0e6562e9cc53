"""The expected range of a run's numbers, behind the curves that show them.

`run.reference` says whether a run lies in the band of recorded seeds of its config. This module
puts the band into a figure over steps and into its CSV.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence

from polaris_jax.report.chart import Chart, Expected
from polaris_jax.report.curves import Curves
from polaris_jax.run.reference import Band, Comparison

CAPTION = " Shaded: where the mean over these steps is expected, by recorded runs of other seeds."


def with_expected(chart: Chart, curves: Curves, compared: Comparison | None) -> Chart:
    """The chart with the bands of the metrics that it shows; the same chart if there are none.

    Two columns of the CSV are added for each metric: `NAME expected low` and `NAME expected high`.
    A step outside of all bands has empty cells there.

    Args:
        chart: chart that `curves` made.
        curves: the figure.
        compared: the run beside the recorded runs of its config; None if none are recorded.
    """
    bands = () if compared is None else compared.reference.bands
    shown: dict[str, list[Band]] = {}
    panels = []
    for panel, rows in zip(chart.panels, curves.panels, strict=True):
        ranges = []
        for metric in rows.metrics:
            for band in bands:
                if band.name not in chart.header or not fnmatch.fnmatchcase(band.name, metric.name):
                    continue
                shown.setdefault(band.name, []).append(band)
                low, high = band.low / metric.divisor, band.high / metric.divisor
                ranges.append(Expected(band.first_step, band.last_step, low, high, metric.color))
        panels.append(dataclasses.replace(panel, expected=tuple(ranges)))
    if not shown:
        return chart
    columns = [f"{name} expected {end}" for name in shown for end in ("low", "high")]
    return dataclasses.replace(
        chart,
        panels=tuple(panels),
        caption=chart.caption + CAPTION,
        header=(*chart.header, *columns),
        rows=tuple(
            (*row, *(end for own in shown.values() for end in _ends(own, row[0])))
            for row in chart.rows
        ),
    )


def _ends(bands: Sequence[Band], step: int) -> tuple[float | None, float | None]:
    """Lower and upper end of the first band that contains the step; None if there is none."""
    for band in bands:
        if band.first_step <= step <= band.last_step:
            return band.low, band.high
    return None, None
