"""A `Chart` as the page's script takes it, and as CSV.

plotly.js draws the figures of the page. It is inlined from the package `plotly`, packed with gzip:
a third of its 4.8 MB. The page's own script unpacks it.
"""

from __future__ import annotations

import base64
import csv
import functools
import gzip
import hashlib
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from polaris_jax.report.chart import EXPECTED_LABEL, Chart, Panel, Series
from polaris_jax.report.style import alone

MOST_POINTS = 2_000  # of a line in the page; the CSV has all
DIGITS = 5  # significant ones, in the page; the CSV has all
GZIP_LEVEL = 9


def chart_csv(chart: Chart) -> bytes:
    """The numbers of a chart, every digit of them; an unknown one is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(chart.header)
    writer.writerows(["" if cell is None else _cell(cell) for cell in row] for row in chart.rows)
    return out.getvalue().encode()


def _cell(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def chart_record(chart: Chart) -> dict[str, Any]:
    """A chart for the page: plain JSON values, null for what is unknown, rounded."""
    return {
        "name": chart.name,
        "panels": [_panel_record(panel) for panel in chart.panels if panel.series],
        "stages": [
            [
                {
                    "stage": stage["stage"],
                    "first": stage["first_step"],
                    "temperature": _rounded(stage["temperature"]),
                    "tokens": stage["max_response_tokens"],
                }
                for stage in stages
            ]
            for stages in chart.stages
        ],
    }


def _panel_record(panel: Panel) -> dict[str, Any]:
    return {
        "label": panel.label,
        "unit": panel.unit,
        "axis": panel.axis,
        "span": None if (span := panel.span()) is None else _numbers(span),
        "across": panel.across,
        "x_label": panel.x_label,
        "expected": [
            {
                "name": EXPECTED_LABEL,
                "x": [one.first_step - 0.5, one.last_step + 0.5],
                "y": _numbers((one.low, one.high)),
                "color": one.color,
                "runs": list(one.runs),
            }
            for one in panel.expected
        ],
        "bands": [[*_numbers(band[:2]), *band[2:]] for band in panel.bands],
        "mark": None if panel.mark is None else [_rounded(panel.mark[0]), panel.mark[1]],
        "series": [_series_record(series) for series in panel.series],
    }


def _series_record(series: Series) -> dict[str, Any]:
    every = max(1, -(-len(series.y) // MOST_POINTS))
    x, y = series.x[::every], series.y[::every]
    found: dict[str, Any] = {
        "label": " ".join(series.label.split()),
        "color": series.color,
        "kind": series.kind,
        "dashed": series.dashed,
        "minor": series.minor,
        "run": series.run,
        "x": list(x) if isinstance(x[0], str) else _numbers(np.asarray(x)),
        "y": _numbers(y),
        "alone": np.flatnonzero(alone(y)).tolist(),
    }
    if every > 1:
        found["every"] = every
    if series.error is not None:
        found["error"] = _numbers(series.error)
    if series.smooth is not None:
        across, upwards = series.smooth
        kept = (np.arange(len(upwards)) % every == 0) | ~np.isfinite(upwards)
        found["smooth"] = {"x": _numbers(across[kept]), "y": _numbers(upwards[kept])}
    return found


def _numbers(values: Iterable[float]) -> list[float | int | None]:
    return [_rounded(float(value)) for value in values]


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    if value.is_integer() and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.{DIGITS}g}")


def thinned(records: Iterable[Mapping[str, Any]]) -> int:
    """1, or k if the page draws every k-th step of the longest run only."""
    return max(
        (s.get("every", 1) for r in records for panel in r["panels"] for s in panel["series"]),
        default=1,
    )


@functools.lru_cache(maxsize=1)
def library() -> tuple[str, str]:
    """plotly.js, packed with gzip in base64, and the hash by which the page's policy allows it."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs().removeprefix("\ufeff")
    packed = gzip.compress(script.encode(), GZIP_LEVEL, mtime=0)
    return base64.b64encode(packed).decode("ascii"), script_hash(script)


def script_hash(script: str) -> str:
    """What a Content-Security-Policy calls a script: `sha256-...`."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
