"""The figures of single commands: calibrate's histogram, probe's sweep, evaluate's scores.

Each takes what its command leaves as JSON and a path for the PNG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from etils import epath
from matplotlib.axes import Axes

from polaris_jax.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    PERCENT,
    PURPLE,
    QUIET,
    RED,
    SKY,
    TOKENS,
    from_zero,
    legend,
    note,
    panels,
    rates,
)
from polaris_jax.report.summary import pair_names
from polaris_jax.stages.difficulty import Preset, curate

WIDE_INCHES = 11.0
# Further lists of probe.json: name, label of the axis, color.
PROBED = (
    ("entropies", "entropy, nats a token", PURPLE),
    ("mean_lengths", "mean response, tokens", GREEN),
    ("clip_ratios", "responses at the budget", RED),
)
ZONES = {
    "cold": ("#DCE9F2", "cold"),
    "rgz": ("#DDF0E8", "robust generation"),
    "cez": ("#FBEFD3", "controlled exploration"),
    "pcz": ("#F8DDD0", "performance collapse"),
}


def difficulty_figure(summary: Mapping[str, Any], path: epath.Path) -> None:
    """The histogram of pass rates that calibration found, with dropped problems in grey.

    Args:
        summary: content of calibrate.json.
        path: path of the PNG.
    """
    counts, n = summary["histogram"], summary["n"]
    total = max(1, sum(counts))
    kept = kept_bars(summary)
    with panels(path, f"Problem difficulty for this model: {summary['shape']}") as (axes,):
        for correct, count in enumerate(counts):
            dropped = {"color": GREY, "hatch": "///", "alpha": 0.65}
            look: dict[str, Any] = {"color": BLUE} if correct in kept else dropped
            axes.bar(correct, count, width=0.82, edgecolor="white", **look)
            note(axes, f"{count}\n{count / total:.0%}", (correct, count), va="bottom")
        axes.set_xticks(range(len(counts)), [f"{k}/{n}" for k in range(len(counts))])
        axes.set_ylim(0, 1.2 * max(1, *counts))
        axes.set_xlabel(f"correct responses of {n} (hard to easy)")
        axes.set_ylabel("problems")
        axes.grid(axis="x", visible=False)
        title = (
            f"{summary['kept']} of {summary['problems']} problems kept; {summary['dropped']} "
            "dropped (grey)"
        )
        axes.set_title(title, fontsize=10, fontweight="normal", color=QUIET)


def kept_bars(summary: Mapping[str, Any]) -> set[int]:
    """The numbers of correct responses whose problems were kept."""
    n, limits = summary["n"], summary.get("rates") or []
    lowest, highest = limits if len(limits) == 2 else (0.0, 1.0)
    named = summary.get("preset")
    preset: Preset = next((p for p in get_args(Preset) if p == named), "drop_perfect")
    bars = {str(k): k / n for k in range(n + 1)}
    return set(map(int, curate(bars, preset, lowest=lowest, highest=highest)))


def probe_figure(summary: Mapping[str, Any], path: epath.Path) -> None:
    """What a probe measured at each temperature, the zones shaded, the suggestion marked.

    Accuracy and diversity with their standard errors, accuracy against diversity, and entropy,
    length and clip ratio if the probe recorded them.

    Args:
        summary: content of probe.json.
        path: path of the PNG.
    """
    temperatures = np.asarray(summary["temperatures"], float)
    chosen = summary.get("initial_temperature")
    spans = zone_spans(summary)
    labels = {label for _, _, label in spans}
    more = [
        (name, label, color)
        for name, label, color in PROBED
        if any(value is not None for value in summary.get(name) or [])
    ]
    count = 3 + len(more)
    short = [f"{zone.upper()} {ZONES[zone][1]}" for zone in ("rgz", "cez", "pcz") if zone in labels]
    beside = f": {', '.join(short)}" if short else ""
    with panels(
        path,
        f"Temperature zones{beside}",
        rows=(count + 1) // 2,
        columns=2,
        share_x=False,
        width=WIDE_INCHES,
    ) as all_axes:
        top, against, diversity, *others = all_axes
        for axes in others[len(more) :]:
            axes.set_visible(False)
        swept = [top, diversity, *others[: len(more)]]
        for axes in swept:
            _shade_zones(axes, spans, name=axes in (top, others[0]))
            if chosen is not None:
                axes.axvline(chosen, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.set_xlabel("sampling temperature")
        errors = errors_of(summary, "stderrs")
        style = {"color": BLUE, "marker": "o", "capsize": 3}
        top.errorbar(temperatures, summary["accuracies"], yerr=errors, **style)
        highest = max(a + e for a, e in zip(summary["accuracies"], errors, strict=True))
        rates(top, "accuracy ± standard error")
        top.set_ylim(0, min(1.02, 1.1 * highest + 0.02))
        if chosen is not None:
            on_the_right = chosen > temperatures.mean()
            side, away = ("right", -5) if on_the_right else ("left", 5)
            text, at = f"suggested T = {chosen:g}", (chosen, 0.04)
            note(top, text, at, offset=(away, 0), of_height=True, ha=side, fontsize=9, color=INK)
        style = {"color": ORANGE, "marker": "s", "capsize": 3}
        spread = errors_of(summary, "diversity_stderrs")
        diversity.errorbar(temperatures, summary["diversities"], yerr=spread, **style)
        diversity.set_ylabel("distinct 4-grams / all")
        diversity.set_ylim(bottom=0)
        accuracy_against_diversity(against, summary, color=BLUE)
        for axes, (name, label, color) in zip(others, more, strict=False):
            values = [np.nan if value is None else value for value in summary[name]]
            axes.plot(temperatures, values, color=color, marker="o")
            from_zero(axes, label)
            if name == "clip_ratios":
                axes.set_ylim(0, max(0.1, axes.get_ylim()[1]))
                axes.yaxis.set_major_formatter(PERCENT)


def errors_of(summary: Mapping[str, Any], name: str) -> list[float]:
    """A list of standard errors of probe.json, 0 where none is known."""
    errors = summary.get(name) or [None] * len(summary["temperatures"])
    return [0.0 if error is None else error for error in errors]


def accuracy_against_diversity(
    axes: Axes, summary: Mapping[str, Any], *, color: str, label: str | None = None
) -> None:
    """Draws one probe's temperatures as points: diversity across, accuracy upwards.

    Args:
        axes: axes to draw on.
        summary: content of probe.json.
        color: color of the points.
        label: label in the legend; None: each point is labelled with its temperature.
    """
    accuracies, diversities = summary["accuracies"], summary["diversities"]
    axes.errorbar(
        diversities,
        accuracies,
        xerr=errors_of(summary, "diversity_stderrs"),
        yerr=errors_of(summary, "stderrs"),
        color=color,
        marker="o",
        markersize=4,
        linewidth=1.0,
        elinewidth=0.9,
        label=label,
    )
    chosen = summary.get("initial_temperature")
    highest = max(a + e for a, e in zip(accuracies, errors_of(summary, "stderrs"), strict=True))
    points = zip(summary["temperatures"], diversities, accuracies, strict=True)
    for number, (t, x, y) in enumerate(points):
        if t == chosen:
            axes.plot([x], [y], marker="o", ms=11, mfc="none", mec=INK, linestyle="")
        if label is None:
            look: dict[str, Any] = {"va": "bottom", "offset": (3, 4)}
            if (
                number % 2 and y > 0.1 * highest
            ):  # above and below in turn, so that near ones do not touch
                look = {"va": "top", "offset": (-3, -4)}
            note(axes, f"{t:g}", (x, y), ha="center", fontsize=7, **look)
    rates(axes, "accuracy")
    axes.set_ylim(0, min(1.02, 1.1 * highest + 0.02))
    axes.set_xlabel("diversity: distinct 4-grams / all")


def zone_spans(summary: Mapping[str, Any]) -> list[tuple[float, float, str]]:
    """(from, to, label) of each temperature zone, borders halfway between two probed temperatures.

    Args:
        summary: content of probe.json.

    Returns:
        The spans, the coldest first; empty if the probe has no zones.
    """
    labels = (summary.get("zones") or {}).get("labels") or []
    t = np.asarray(summary["temperatures"], float)
    if len(labels) != len(t) or len(t) < 2:
        return []
    margin = 0.5 * (t[1] - t[0])
    edges = [t[0] - margin, *((t[1:] + t[:-1]) / 2).tolist(), t[-1] + margin]
    spans: list[tuple[float, float, str]] = []
    for at, label in enumerate(map(str, labels)):
        start = spans.pop()[0] if spans and spans[-1][2] == label else edges[at]
        spans.append((float(start), float(edges[at + 1]), label))
    return spans


def _shade_zones(axes: Axes, spans: Sequence[tuple[float, float, str]], *, name: bool) -> None:
    if not spans:
        return
    first, last = spans[0][0], spans[-1][1]
    for start, end, label in spans:
        color, text = ZONES[label]
        axes.axvspan(start, end, color=color, zorder=0, linewidth=0)
        if name:
            wide = end - start > 0.3 * (last - first)
            text = text if wide or label == "cold" else label.upper()
            note(axes, text, ((start + end) / 2, 1.02), of_height=True, va="bottom")
    axes.set_xlim(first, last)
    axes.grid(visible=False, axis="x")


def evaluation_figure(
    summary: Mapping[str, Any], path: epath.Path, *, before: Mapping[str, Any] | None = None
) -> None:
    """Scores on held-out problems: avg@k, pass@k, by length, and against the token budget.

    Args:
        summary: content of an eval.json.
        path: path of the PNG.
        before: content of before_eval.json, drawn beside `summary`; each is named by its weights.
    """
    names = pair_names(before, summary)
    runs = [(names[1], summary, BLUE)]
    if before is not None:
        runs.insert(0, (names[0], before, GREY))
    temperatures = " and ".join(dict.fromkeys(f"{run['temperature']:g}" for _, run, _ in runs))
    title = f"Held-out score at temperature {temperatures}"
    with panels(path, title, rows=2, columns=2, share_x=False) as (average, passes, groups, budget):
        _average_panel(average, runs)
        _pass_panel(passes, runs)
        _length_panel(groups, runs)
        _budget_panel(budget, runs)


Runs = list[tuple[str, Mapping[str, Any], str]]


def _average_panel(axes: Axes, runs: Runs) -> None:
    for position, (_, run, color) in enumerate(runs):
        error = run.get("stderr") or 0.0
        bars = {"ecolor": INK, "elinewidth": 1.2}
        axes.bar(position, run["avg@k"], 0.6, color=color, yerr=error, capsize=4, error_kw=bars)
        at = (position, run["avg@k"] + error)
        note(axes, f"{run['avg@k']:.1%}", at, offset=(0, 3), fontsize=9, color="black")
    rates(axes, "accuracy")
    axes.set_ylim(0, 1.1)
    axes.set_xlim(-0.75, len(runs) - 0.25)
    axes.set_xticks(range(len(runs)), [name for name, _, _ in runs])
    axes.grid(axis="x", visible=False)
    samples, problems = (
        " and ".join(dict.fromkeys(str(run[key]) for _, run, _ in runs))
        for key in ("k", "problems")
    )
    axes.set_title(f"avg@{samples}, {problems} problems", fontsize=10)


def _pass_panel(axes: Axes, runs: Runs) -> None:
    for (name, run, color), marker in zip(runs, MARKERS, strict=False):
        points = sorted((int(k), value) for k, value in (run.get("pass@k") or {}).items())
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=name)
            axes.set_xscale("log", base=2)
            axes.set_xticks([k for k, _ in points], [str(k) for k, _ in points])
            axes.minorticks_off()
    rates(axes, "pass@k")
    axes.set_xlabel("k (responses a problem)")
    axes.set_title("pass@k", fontsize=10)
    if len(runs) > 1:
        legend(axes, loc="lower right")


def _length_panel(axes: Axes, runs: Runs) -> None:
    width = 0.8 / len(runs)
    places = group_places([run for _, run, _ in runs])
    for offset, (_, run, color) in enumerate(runs):
        for group in run.get("length_groups") or []:
            x = places[group["name"]] + (offset - (len(runs) - 1) / 2) * width
            at = x, group["accuracy"] or 0.0
            count = group_count(group)
            axes.bar(*at, width=0.92 * width, color=color)
            note(axes, f"n={count}" if count else "none", at, offset=(0, 2), fontsize=7)
    axes.set_xticks(range(len(places)), list(places))
    rates(axes, "accuracy")
    axes.set_ylim(0, 1.1)
    axes.set_xlabel("response length, tokens")
    axes.set_title("by length of the response", fontsize=10)
    axes.grid(axis="x", visible=False)


def apart(budgets: Sequence[int]) -> list[int]:
    """The budgets whose labels do not touch on a log axis, the last one among them."""
    step = (budgets[-1] / budgets[0]) ** (1 / 8)
    kept = [budgets[-1]]
    for budget in reversed(budgets):
        if kept[-1] / budget >= max(step, 1.3):
            kept.append(budget)
    return kept[::-1]


def group_places(runs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """{name of a length group: its place}, for evaluations that may have other edges."""
    names = dict.fromkeys(group["name"] for run in runs for group in run.get("length_groups") or [])
    return {name: place for place, name in enumerate(names)}


def group_count(group: Mapping[str, Any]) -> int:
    """Responses of a length group."""
    return int(group.get("responses", group.get("count", 0)))


def _budget_panel(axes: Axes, runs: Runs) -> None:
    colors = {GREY: (GREY, PURPLE), BLUE: (BLUE, RED)}
    for (name, run, color), marker in zip(runs, MARKERS, strict=False):
        points = run.get("budget_curve") or []
        budgets = [p["budget"] for p in points]
        plain, scaled = colors.get(color, (GREEN, SKY))
        axes.plot(budgets, [p["accuracy"] for p in points], color=plain, marker=marker, label=name)
        if yarn := [p for p in points if p.get("accuracy_yarn") is not None]:
            budgets_on, scores = ([p[key] for p in yarn] for key in ("budget", "accuracy_yarn"))
            style = f"{marker}--"
            axes.plot(budgets_on, scores, style, color=scaled, label=f"{name}, YaRN")
        if budgets:
            axes.set_xscale("log", base=2)
            ticks = apart(budgets)
            axes.set_xticks(ticks, [TOKENS(b) for b in ticks], rotation=30)
            axes.minorticks_off()
    rates(axes, "accuracy")
    axes.set_xlabel("token budget (responses cut there)")
    axes.set_title("against the budget", fontsize=10)
    legend(axes, loc="upper left")
