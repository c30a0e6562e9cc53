"""How every figure looks: palette, axes, stage marks, and saving.

Figures are plain matplotlib `Figure` objects: no pyplot, so no global state and no display.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from polaris_jax.system.files import write_bytes

# Okabe and Ito's palette: told apart under the common forms of colour blindness.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
RED, PURPLE, SKY, GREY, INK = "#D55E00", "#CC79A7", "#56B4E9", "#7A7A7A", "#222222"
QUIET = "#555555"
MARKERS = ("o", "s", "^", "D", "v", "P")

WIDTH_INCHES = 8.0
PANEL_INCHES = 2.5

DPI = 150
SMOOTH_FROM = 16  # with this many points or more, a running mean is drawn over faint raw points

RC: dict[Any, Any] = {
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "patch.linewidth": 0,
}

PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g}%")
TOKENS = FuncFormatter(lambda value, _: short_number(value))


def short_number(value: float) -> str:
    """12.3K for 12,300; the plain number below 10,000."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "K")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'K' else limit):.3g}{suffix}"
    return f"{value:g}"


@contextlib.contextmanager
def panels(
    path: epath.Path, title: str, *, rows: int = 1, columns: int = 1, share_x: bool = True
) -> Iterator[list[Axes]]:
    """The axes of a new figure, row by row; saved to `path` as PNG when the block ends."""
    with mpl.rc_context(RC):
        height = 1.1 + PANEL_INCHES * rows if rows > 1 else 3.9
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        grid = figure.subplots(rows, columns, sharex="col" if share_x else "none", squeeze=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
        yield list(grid.reshape(-1))
        path.parent.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
        write_bytes(path, out.getvalue())


def numbers(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """Column `name` of metric lines as floats; nan where it is null or missing."""
    values = [row.get(name) for row in rows]
    return np.array([np.nan if v is None else float(v) for v in values], np.float64)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` points, shorter at the ends; nan entries do not count."""
    known = np.isfinite(values)

    def summed(terms: np.ndarray) -> np.ndarray:
        # not mode="same": it is as long as the kernel where that is the longer one
        first = (width - 1) // 2
        return np.convolve(terms, np.ones(width))[first : first + len(terms)]

    sums, counts = summed(np.where(known, values, 0.0)), summed(known.astype(float))
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def curve(
    axes: Axes,
    lines: Sequence[dict[str, Any]],
    name: str,
    *,
    color: str,
    label: str | None = None,
    unit: float = 1.0,
) -> None:
    """Metric `name` over steps; with many points a running mean over the faint raw line.

    The mean stops at stage borders, because the recipe causes the jumps there. The line is broken
    at steps whose metric is null: nothing was measured there.

    Args:
        axes: axes to draw on.
        lines: lines of metrics.jsonl or timing.jsonl.
        name: name of the metric; nothing is drawn if no line has the metric.
        color: color of the line.
        label: label in the legend; None: the legend leaves the metric out.
        unit: number that values are divided by.
    """
    steps, values = numbers(lines, "step"), numbers(lines, name) / unit
    known = np.isfinite(values)
    if not known.any():
        return
    if known.sum() < SMOOTH_FROM:
        axes.plot(steps, values, color=color, label=label, marker="o", ms=3.5)
        return
    alone = known & ~np.append(known[1:], False) & ~np.append(False, known[:-1])
    axes.plot(steps, values, color=color, alpha=0.28, linewidth=1.0)
    axes.plot(steps[alone], values[alone], color=color, alpha=0.28, linestyle="", marker="o", ms=3)
    stages = np.nan_to_num(numbers(lines, "stage"))
    width = max(3, len(values) // 20 | 1)
    for index, stage in enumerate(np.unique(stages)):
        inside = stages == stage
        smooth = running_mean(values[inside], width)
        smooth[~known[inside]] = np.nan
        axes.plot(steps[inside], smooth, color=color, label=label if index == 0 else None)
        dots = alone[inside]
        axes.plot(steps[inside][dots], smooth[dots], color=color, linestyle="", marker="o", ms=3.5)


def mark_stages(all_axes: Sequence[Axes], stages: Sequence[dict[str, Any]], last_step: int) -> None:
    """Shades every second stage, draws its border, and names the stages above the first panel."""
    for index, stage in enumerate(stages):
        first = stage["first_step"]
        end = stages[index + 1]["first_step"] if index + 1 < len(stages) else last_step + 1
        for axes in all_axes:
            if index % 2:
                axes.axvspan(first - 0.5, end - 0.5, color="#F3F1EA", zorder=0, linewidth=0)
            if index:
                axes.axvline(first - 0.5, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)))
        text = (
            f"stage {stage['stage']} · T {stage['temperature']:.3g}\n"
            f"{short_number(stage['max_response_tokens'])} tokens"
        )
        at = (max(first - 0.5, 0), 1.0)
        note(all_axes[0], text, at, offset=(3, 3), of_height=True, ha="left", va="bottom")
    for axes in all_axes:
        axes.set_xlim(-0.5, last_step + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    *,
    offset: tuple[float, float] = (0, 0),
    of_height: bool = False,
    **look: Any,
) -> None:
    """A small text at a point.

    Args:
        axes: axes to write on.
        text: the text.
        at: the point.
        offset: distance of the text from the point, in points.
        of_height: True if the y of the point is a share of the height of the axes.
        look: properties of the text.
    """
    look = {"ha": "center", "fontsize": 8, "color": QUIET} | look
    where = ("data", "axes fraction") if of_height else "data"
    axes.annotate(text, at, xytext=offset, textcoords="offset points", xycoords=where, **look)


def rates(axes: Axes, label: str) -> None:
    """The y axis as a share from 0 to 100%."""
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel(label)


def from_zero(axes: Axes, label: str) -> None:
    """The y axis from 0 with some room above the highest point."""
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
    axes.set_ylabel(label)


def legend(axes: Axes, **placement: Any) -> None:
    """A legend, where the axes have something to name; to their right unless placed otherwise."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        outside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axes.legend(handles, labels, **(placement or outside))
