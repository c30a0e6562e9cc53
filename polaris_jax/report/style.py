"""The common look of all figures: colours, axes, stage marks, and saving.

Figures are matplotlib `Figure` objects. pyplot is not used, because it keeps global state and may
open a display.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from polaris_jax.system.files import write_bytes

# Okabe and Ito's palette, which readers with the common forms of colour blindness can distinguish.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
RED, PURPLE, SKY, GREY, INK = "#D55E00", "#CC79A7", "#56B4E9", "#7A7A7A", "#222222"
QUIET = "#555555"
MARKERS = ("o", "s", "^", "D", "v", "P")
# What stands for each of them on a dark background.
DARK = MappingProxyType(
    {
        BLUE: "#58AEE6",
        ORANGE: "#F2B544",
        GREEN: "#35C795",
        RED: "#FF8A4F",
        PURPLE: "#E3A6C6",
        SKY: "#8AD0F7",
        GREY: "#9AA1A9",
        INK: "#E4E7EA",
        # the temperature zones
        "#DCE9F2": "#1F2C37",
        "#DDF0E8": "#17322A",
        "#FBEFD3": "#383016",
        "#F8DDD0": "#3B251B",
    }
)

WIDTH_INCHES = 8.0
PANEL_INCHES = 2.5

DPI = 150
SMOOTH_FROM = 16  # points from which on `curve` draws a running mean over the faint raw line

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
    """A number in short form: `12.3K` for 12,300, up to G for 1e9; unchanged below 10,000."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "K")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'K' else limit):.3g}{suffix}"
    return f"{value:g}"


@contextlib.contextmanager
def panels(
    path: epath.Path,
    title: str,
    *,
    rows: int = 1,
    columns: int = 1,
    share_x: bool = True,
    width: float = WIDTH_INCHES,
    panel_height: float = PANEL_INCHES,
) -> Iterator[list[Axes]]:
    """A context manager that gives the axes of a new figure and saves the figure at the end.

    Args:
        path: path of the PNG file.
        title: title above all panels.
        rows: number of rows of panels.
        columns: number of panels in a row.
        share_x: True: the panels of a column have one x axis.
        width: width of the figure, in inches.
        panel_height: height of each of several rows, in inches.

    Yields:
        The axes, row by row.
    """
    with mpl.rc_context(RC):
        height = 1.1 + panel_height * rows if rows > 1 else 3.9
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(rows, columns, sharex="col" if share_x else "none", squeeze=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
        yield list(grid.reshape(-1))
        path.parent.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
        write_bytes(path, out.getvalue())


def numbers(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """Field `name` of each row as float64 [rows]; nan if the field is null or missing."""
    values = [row.get(name) for row in rows]
    return np.array([np.nan if v is None else float(v) for v in values], np.float64)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over up to `width` points, fewer at the ends; nan values are left out.

    The result is nan if all of the points are.
    """
    known = np.isfinite(values)

    def summed(terms: np.ndarray) -> np.ndarray:
        # Not mode="same": its result has the kernel's length if the kernel is longer than `terms`.
        first = (width - 1) // 2
        return np.convolve(terms, np.ones(width))[first : first + len(terms)]

    sums, counts = summed(np.where(known, values, 0.0)), summed(known.astype(float))
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def smoothed(
    steps: np.ndarray, values: np.ndarray, stages: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The running mean of a metric as a line: x and y, with a nan between stages.

    The mean is taken within each stage, because the recipe causes jumps at the borders. It is nan
    where the metric is.

    Args:
        steps: numbers of the steps, [N].
        values: the metric, float64 [N]; nan if a step has none.
        stages: stage of each step, [N].

    Returns:
        None if the metric has few points.
    """
    known = np.isfinite(values)
    if known.sum() < SMOOTH_FROM:
        return None
    width = max(3, len(values) // 20 | 1)
    across, upwards = [], []
    for stage in np.unique(stages):
        inside = stages == stage
        means = np.where(known[inside], running_mean(values[inside], width), np.nan)
        across += [*steps[inside].tolist(), steps[inside][-1]]
        upwards += [*means.tolist(), np.nan]
    return np.array(across[:-1], np.float64), np.array(upwards[:-1], np.float64)


def alone(values: np.ndarray) -> np.ndarray:
    """True for a value between unknown ones: no line shows such a point, bool [N]."""
    known = np.isfinite(values)
    return known & ~np.append(known[1:], False) & ~np.append(False, known[:-1])


def curve(
    axes: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    smooth: tuple[np.ndarray, np.ndarray] | None,
    *,
    color: str,
    label: str | None = None,
) -> None:
    """Draws a metric over steps; with many points, its running mean over the faint raw line.

    A step without a value leaves a gap in the line.

    Args:
        axes: axes to draw on.
        steps: numbers of the steps, [N].
        values: the metric, float64 [N]; nan if a step has none.
        smooth: what `smoothed` gives; None draws the values alone, with markers.
        color: color of the line.
        label: label in the legend; None: the metric is not in the legend.
    """
    if smooth is None:
        axes.plot(steps, values, color=color, label=label, marker="o", ms=3.5)
        return
    dots: dict[str, Any] = {"color": color, "linestyle": "", "marker": "o"}
    faint = alone(values)
    axes.plot(steps, values, color=color, alpha=0.28, linewidth=1.0)
    axes.plot(steps[faint], values[faint], alpha=0.28, ms=3, **dots)
    across, upwards = smooth
    single = alone(upwards)
    axes.plot(across, upwards, color=color, label=label)
    axes.plot(across[single], upwards[single], ms=3.5, **dots)


def mark_stages(
    all_axes: Sequence[Axes], stages: Sequence[dict[str, Any]], first_step: int, last_step: int
) -> None:
    """Shades every second stage, draws the borders, and labels the stages above the top panel.

    Args:
        all_axes: axes of all panels, the top one first; the x axis is the step.
        stages: records of stages.json.
        first_step: first step of the x axis; -1 if it begins with a score before training.
        last_step: last step of the x axis.
    """
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
        axes.set_xlim(min(first_step, 0) - 0.5, last_step + 0.5)
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
    """Writes a small text at a position.

    Args:
        axes: axes to write on.
        text: the text.
        at: (x, y) in data coordinates.
        offset: (x, y) distance of the text from `at`, in typographic points.
        of_height: True: y is a share of the height of the axes, in [0, 1], not a data coordinate.
        look: further properties of the text, such as `ha="left"`.
    """
    look = {"ha": "center", "fontsize": 8, "color": QUIET} | look
    where = ("data", "axes fraction") if of_height else "data"
    axes.annotate(text, at, xytext=offset, textcoords="offset points", xycoords=where, **look)


def rates(axes: Axes, label: str) -> None:
    """Sets up and labels the y axis for shares in [0, 1], shown as 0% to 100%."""
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel(label)


def from_zero(axes: Axes, label: str) -> None:
    """Sets up and labels a y axis that begins at 0, with some room above the highest point."""
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
    axes.set_ylabel(label)


def legend(axes: Axes, **placement: Any) -> None:
    """Adds a legend if the axes have labels; to the right of them unless `placement` is given."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        outside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axes.legend(handles, labels, **(placement or outside))
