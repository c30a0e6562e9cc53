"""The picture of several evaluations: scores, accuracy by length, budget curves, gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes

from polaris_jax.evaluate.intervals import DIFFICULTY_BINS
from polaris_jax.report.comparisons import COLORS
from polaris_jax.report.figures import WIDE_INCHES, apart, group_count, group_places
from polaris_jax.report.style import GREY, INK, MARKERS, TOKENS, legend, note, panels, rates

Z = 1.96  # bands of the budget curve, in standard errors
ROOM = 0.2  # score from which its bar has room for the number


def evaluations_figure(summary: Mapping[str, Any], path: epath.Path) -> None:
    """Scores with intervals, accuracy by length, budget curves, and gains by difficulty.

    Args:
        summary: content of eval_compared.json.
        path: path of the PNG.
    """
    runs = summary["evaluations"]
    first = runs[0]["name"]
    gains = [found for found in summary["differences"] if found["first"] == first]
    title = f"{len(runs)} evaluations compared"
    with panels(path, title, rows=2, columns=2, share_x=False, width=WIDE_INCHES) as (
        scores,
        groups,
        budget,
        difficulty,
    ):
        _scores(scores, runs)
        _groups(groups, runs)
        _budgets(budget, runs)
        _difficulty(difficulty, gains, first)


def positions_figure(summary: Mapping[str, Any], path: epath.Path) -> None:
    """Mean log-prob and entropy of response tokens by position; lines mark the lengths.

    Args:
        summary: content of positions.json.
        path: path of the PNG.
    """
    trained = summary["trained_length"]
    title = f"Log-probs by position, {summary['responses']} responses, {summary['checkpoint']}"
    with panels(path, title, rows=2, width=WIDE_INCHES) as (logprob, entropy):
        for index, curve in enumerate(summary["curves"]):
            color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
            at = np.array(curve["position"])
            value, error = (
                np.array([np.nan if x is None else x for x in curve[name]], float)
                for name in ("logprob", "stderr")
            )
            logprob.plot(at, value, label=curve["name"], color=color, marker=marker, markersize=3)
            low, high = (value + sign * Z * np.nan_to_num(error) for sign in (-1, 1))
            logprob.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0)
            shown = [np.nan if x is None else x for x in curve["entropy"]]
            entropy.plot(at, shown, color=color, marker=marker, markersize=3)
        for axes in (logprob, entropy):
            marks = ((trained, "trained"), (summary["yarn_factor"] * trained, "YaRN"))
            for length, name in marks:
                axes.axvline(length, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)))
                if axes is logprob:
                    note(axes, name, (length, 1.0), of_height=True, va="bottom")
            axes.xaxis.set_major_formatter(TOKENS)
        logprob.set_ylabel("log-prob, nats a token")
        entropy.set_ylabel("entropy, nats a token")
        entropy.set_xlabel("position, tokens (prompt included)")
        legend(logprob, loc="best")


def _spread(value: float, interval: Sequence[float] | None) -> list[list[float]] | None:
    """Lengths of the bars below and above a value, as matplotlib takes them."""
    if interval is None:
        return None
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _scores(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    for at, (run, color) in enumerate(zip(runs, _colors(runs), strict=True)):
        value = run["avg@k"]
        bars = {"ecolor": INK, "elinewidth": 1.2}
        spread = _spread(value, run.get("interval"))
        axes.barh(at, value, 0.6, color=color, xerr=spread, capsize=4, error_kw=bars)
        inside = value >= ROOM
        where = 0.0 if inside else max(value, (run.get("interval") or (0.0, 0.0))[1])
        offset, shade = ((4, 0), "white") if inside else ((8, 0), INK)
        note(axes, f"{value:.1%}", (where, at), offset=offset, ha="left", va="center", color=shade)
    axes.set_yticks(range(len(runs)), [run["name"] for run in runs])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y", visible=False)
    axes.set_title("avg@k, 95% intervals over problems", fontsize=10)


def _groups(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    width = 0.8 / len(runs)
    places = group_places(runs)
    for offset, (run, color) in enumerate(zip(runs, _colors(runs), strict=True)):
        for group in run.get("length_groups") or []:
            at = places[group["name"]] + (offset - (len(runs) - 1) / 2) * width
            value = group["accuracy"]
            if value is not None:
                spread = _spread(value, group.get("interval"))
                bars = {"ecolor": INK, "elinewidth": 0.9}
                axes.bar(at, value, 0.92 * width, color=color, yerr=spread, error_kw=bars)
            count = group_count(group)
            tall = value is not None and value > 0.12
            color_of_text = "white" if tall else INK
            text = f"{count}" if count else "none"
            note(axes, text, (at, 0), offset=(0, 2), fontsize=6, color=color_of_text)
    axes.set_xticks(range(len(places)), list(places))
    rates(axes, "accuracy")
    axes.set_xlabel("response length, tokens (the numbers count responses)")
    axes.set_title("by length of the response", fontsize=10)
    axes.grid(axis="x", visible=False)


def _budgets(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    ticks: set[int] = set()
    for run, color, marker in zip(runs, _colors(runs), MARKERS * len(runs), strict=False):
        points = run.get("budget_curve") or []
        if not points:
            continue
        budgets = [point["budget"] for point in points]
        score = np.array([point["accuracy"] for point in points])
        error = Z * np.array([point.get("stderr") or 0.0 for point in points])
        axes.plot(budgets, score, color=color, marker=marker, label=run["name"])
        low, high = (np.clip(score + sign * error, 0, 1) for sign in (-1, 1))
        axes.fill_between(budgets, low, high, color=color, alpha=0.12, linewidth=0)
        ticks |= set(budgets)
    if ticks:
        axes.set_xscale("log", base=2)
        shown = apart(sorted(ticks))
        axes.set_xticks(shown, [TOKENS(b) for b in shown], rotation=30)
        axes.minorticks_off()
    rates(axes, "accuracy")
    axes.set_xlabel("token budget (responses cut there)")
    axes.set_title("against the budget", fontsize=10)
    legend(axes, loc="upper left")


def _difficulty(axes: Axes, gains: Sequence[Mapping[str, Any]], first: str) -> None:
    drawn = False
    for index, found in enumerate(gains):
        points = found.get("by_difficulty") or []
        if not points:
            continue
        drawn = True
        shift = 0.12 * (index - (len(gains) - 1) / 2)
        value = [100 * point["gain"] for point in points]
        pairs = [point["interval"] or (point["gain"],) * 2 for point in points]
        spread = [
            [max(0.0, v - 100 * low) for v, (low, _) in zip(value, pairs, strict=True)],
            [max(0.0, 100 * high - v) for v, (_, high) in zip(value, pairs, strict=True)],
        ]
        axes.errorbar(
            [point["bin"] + shift for point in points],
            value,
            yerr=spread,
            color=COLORS[(index + 1) % len(COLORS)],
            marker=MARKERS[(index + 1) % len(MARKERS)],
            capsize=2,
            label=found["second"],
        )
    axes.axhline(0, color=GREY, linewidth=1.0)
    ticks = range(DIFFICULTY_BINS + 1)
    axes.set_xticks(ticks, [f"{k}/{DIFFICULTY_BINS}" for k in ticks])
    axes.set_xlabel(f"correct responses of {first} (hard to easy)")
    axes.set_ylabel("gain, points")
    axes.set_title(f"gain over {first} by difficulty", fontsize=10)
    axes.set_visible(drawn)
    legend(axes, loc="best")


def _colors(runs: Sequence[Any]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(runs))]
