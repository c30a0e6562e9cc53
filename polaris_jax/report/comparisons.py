"""Figures that set measurements of several models side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes

from polaris_jax.report.figures import (
    WIDE_INCHES,
    ZONES,
    accuracy_against_diversity,
    errors_of,
    zone_spans,
)
from polaris_jax.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    RED,
    SKY,
    from_zero,
    note,
    panels,
    rates,
)

COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
LABELLED_BINS = 16  # rollouts up to which every bar and cell has its number


def difficulty_comparison(summary: Mapping[str, Any], path: epath.Path) -> None:
    """Two models' histograms of pass rates, and on their common problems who solves what.

    Args:
        summary: content of difficulty_compared.json.
        path: path of the PNG.
    """
    models, names = summary["models"], [model["name"] for model in summary["models"]]
    rows = 2 if summary["common"] else 1
    title = f"Problem difficulty: {names[0]} against {names[1]}"
    with panels(path, title, rows=rows, columns=2, share_x=False, width=WIDE_INCHES) as all_axes:
        highest = max(max(model["histogram"]) / max(1, model["problems"]) for model in models)
        for axes, model, color in zip(all_axes[:2], models, (BLUE, ORANGE), strict=True):
            _histogram(axes, model, color, highest=highest)
        if summary["common"]:
            _joint(all_axes[2], summary, names)
            _by_whom(all_axes[3], summary, names)


def probe_comparison(
    probes: Sequence[Mapping[str, Any]], names: Sequence[str], path: epath.Path
) -> None:
    """Several probes over temperature, their zones, and the plane of diversity and accuracy.

    Error bars are standard errors; a ring marks each suggested temperature. The zones are a bar for
    each probe.

    Args:
        probes: contents of probe.json files.
        names: a name for each.
        path: path of the PNG.
    """
    with panels(path, "Probes compared", rows=3, columns=2, share_x=False, width=WIDE_INCHES) as (
        top,
        against,
        zones,
        diversity,
        entropy,
        length,
    ):
        _zone_bars(zones, probes, names)
        for found, name, color in zip(probes, names, COLORS, strict=False):
            accuracy_against_diversity(against, found, color=color, label=name)
            for axes, values, errors in (
                (top, "accuracies", "stderrs"),
                (diversity, "diversities", "diversity_stderrs"),
                (entropy, "entropies", ""),
                (length, "mean_lengths", ""),
            ):
                _over_temperature(axes, found, values, errors, color=color)
        highest = max(axes_top(axes) for axes in (top, against))
        rates(top, "accuracy ± standard error")
        for axes in (top, against):
            axes.set_ylim(0, min(1.02, highest))
        from_zero(diversity, "distinct 4-grams / all")
        from_zero(entropy, "entropy, nats a token")
        from_zero(length, "mean response, tokens")
        probed = [float(t) for found in probes for t in found["temperatures"]]
        ends = [end for found in probes for span in zone_spans(found) for end in span[:2]]
        for axes in (top, zones, diversity, entropy, length):
            axes.set_xlabel("sampling temperature")
            axes.set_xlim(min(probed + ends) - 0.02, max(probed + ends) + 0.02)
        for axes in (entropy, length):
            axes.set_visible(bool(axes.lines))
        zones.set_visible(bool(zones.patches))
        against.legend(loc="best")


def _zone_bars(axes: Axes, probes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """A bar for each probe in the colors of its zones; a line marks the suggested temperature."""
    for row, (found, color) in enumerate(zip(probes, COLORS, strict=False)):
        for start, end, label in zone_spans(found):
            look = {"color": ZONES.get(label, (GREY, ""))[0], "edgecolor": "white", "linewidth": 1}
            axes.barh(row, end - start, left=start, height=0.62, **look)
            text = label if label == "cold" else label.upper()
            note(axes, text, ((start + end) / 2, row + 0.15), va="center", color=INK)
        if (chosen := found.get("initial_temperature")) is not None:
            axes.plot([chosen] * 2, [row - 0.31, row], color=color, linewidth=2.4)
    axes.set_yticks(range(len(probes)), names[: len(probes)])
    axes.set_ylim(len(probes) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.set_title("zones; a line marks the suggested temperature", fontsize=10)


def axes_top(axes: Axes) -> float:
    """The upper end of the y axis."""
    return float(axes.get_ylim()[1])


def _over_temperature(
    axes: Axes, found: Mapping[str, Any], values: str, errors: str, *, color: str
) -> None:
    """Draws a list of probe.json with its standard errors; nothing if the file lacks it."""
    given = found.get(values) or []
    if len(given) != len(found["temperatures"]) or all(value is None for value in given):
        return
    points = [math.nan if value is None else float(value) for value in given]
    spread = errors_of(found, errors) if errors else None
    axes.errorbar(found["temperatures"], points, yerr=spread, color=color, marker="o", capsize=2)
    chosen = found.get("initial_temperature")
    if chosen is not None and chosen in found["temperatures"]:
        at = points[found["temperatures"].index(chosen)]
        axes.plot([chosen], [at], marker="o", ms=11, mfc="none", mec=color, linestyle="")


def _histogram(axes: Axes, model: Mapping[str, Any], color: str, *, highest: float) -> None:
    counts, n, problems = model["histogram"], model["n"], max(1, model["problems"])
    for correct, count in enumerate(counts):
        axes.bar(correct, count / problems, width=0.82, color=color, edgecolor="white")
        if n <= LABELLED_BINS:
            at = (correct, count / problems)
            note(axes, f"{count / problems:.0%}\n{count}", at, va="bottom", fontsize=7)
    step = max(1, -(-n // 8))
    axes.set_xticks(range(0, n + 1, step), [f"{k}/{n}" for k in range(0, n + 1, step)])
    axes.set_ylim(0, 1.25 * highest)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylabel("share of problems")
    axes.set_xlabel("correct responses (hard to easy)")
    axes.grid(axis="x", visible=False)
    text = f"{model['name']}: {model['shape']}, mean {model['mean']:.0%}, {problems:,} problems"
    axes.set_title(text, fontsize=10)


def _joint(axes: Axes, summary: Mapping[str, Any], names: list[str]) -> None:
    """Common problems by both models' rates; above the diagonal the second solves more."""
    joint, n = np.array(summary["joint"], float), summary["n"]
    share_KK = joint.T / max(1, summary["common"])  # [second, first]: the second runs upwards
    axes.imshow(np.sqrt(share_KK), origin="lower", cmap="Blues", aspect="auto")
    if n <= LABELLED_BINS:
        for (up, across), share in np.ndenumerate(share_KK):
            if share > 0:
                dark = np.sqrt(share) > 0.6 * np.sqrt(share_KK.max())
                text = f"{joint[across, up]:.0f}"
                look = {"color": "white" if dark else INK, "fontsize": 7, "va": "center"}
                note(axes, text, (float(across), float(up)), **look)
    axes.plot([-0.5, n + 0.5], [-0.5, n + 0.5], color=GREY, linewidth=0.8, alpha=0.5)
    step = max(1, -(-n // 8))
    ticks, labels = range(0, n + 1, step), [f"{k}/{n}" for k in range(0, n + 1, step)]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set_xlabel(f"correct responses of {names[0]}")
    axes.set_ylabel(names[1])
    axes.grid(visible=False)
    axes.set_title(f"{summary['common']:,} common problems, by both", fontsize=10)


def _by_whom(axes: Axes, summary: Mapping[str, Any], names: list[str]) -> None:
    """Who solves a problem at least once, and who in every response."""
    parts = [
        ("both", "both", GREEN),
        ("first_only", f"only {names[0]}", BLUE),
        ("second_only", f"only {names[1]}", ORANGE),
        ("neither", "neither", GREY),
    ]
    total = max(1, summary["common"])
    for y, row in ((1, "solved"), (0, "always")):
        start = 0.0
        for key, name, color in parts:
            share = summary[row][key] / total
            label = name if row == "solved" else None
            axes.barh(y, share, left=start, color=color, height=0.5, label=label)
            if share > 0.04:
                look = {"color": "white", "fontsize": 8, "va": "center"}
                note(axes, f"{summary[row][key]}\n{share:.0%}", (start + share / 2, y), **look)
            start += share
    axes.set_yticks([1, 0], ["at least\nonce", "in every\nresponse"])
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.5, 2.1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("share of the common problems")
    axes.grid(visible=False)
    axes.set_title("who solves what", fontsize=10)
    axes.legend(loc="upper center", ncols=2, labelcolor=QUIET)
