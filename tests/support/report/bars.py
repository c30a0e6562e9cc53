"""What a figure shows, read from matplotlib's objects in place of its pixels."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def figures_of(monkeypatch: Any) -> list[Figure]:
    """A list that gets every figure that is saved from here on; none is painted."""
    saved: list[Figure] = []

    def keep(figure: Figure, out: Any, **_: Any) -> None:
        saved.append(figure)
        out.write(b"\x89PNG\r\n\x1a\n")

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def bars_of(axes: Axes) -> dict[str, list[float]]:
    """{label under a group of bars: their heights}."""
    labels = [label.get_text() for label in axes.get_xticklabels()]
    found: dict[str, list[float]] = {label: [] for label in labels}
    for bars in axes.containers:
        for bar in getattr(bars, "patches", ()):
            found[labels[round(bar.get_x() + bar.get_width() / 2)]].append(bar.get_height())
    return found
