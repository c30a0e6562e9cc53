"""The charts of single commands, for the page and for several runs: score, difficulty, probe.

The PNGs of one run are drawn by `figures`, which says more in print than a chart can.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polaris_jax.report.chart import Chart, Panel, Series
from polaris_jax.report.figures import ZONES, errors_of, kept_bars, zone_spans
from polaris_jax.report.run_files import RunFiles
from polaris_jax.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED
from polaris_jax.report.summary import caption, pair_names

HEADER = ("panel", "series", "x", "value", "stderr")
Record = Mapping[str, Any]


def evaluation_chart(run: RunFiles, *, one_run: bool = True) -> Chart | None:
    """Scores on held-out problems: avg@k, pass@k, by length, against the budget.

    Args:
        run: the files of the run.
        one_run: True also shows the score before; False: the run is one of several.

    Returns:
        None without an eval.json.
    """
    if run.evaluation is None:
        return None
    before = run.before if one_run else None
    names = pair_names(before, run.evaluation)
    runs = [(names[1], run.evaluation, BLUE)]
    if before is not None:
        runs.insert(0, (names[0], before, GREY))
    panels = (
        _averages(runs),
        Panel(
            "pass@k",
            tuple(
                _line(name, color, _known_points(score.get("pass@k") or {}))
                for name, score, color in runs
            ),
            "share",
            "rate",
            across="log2",
            x_label="k (responses a problem)",
        ),
        _by_length(runs),
        Panel(
            "accuracy against the budget",
            tuple(one for name, score, color in runs for one in _budgets(name, score, color)),
            "share",
            "rate",
            across="log2",
            x_label="token budget (responses cut there)",
        ),
    )
    known = ((p, tuple(s for s in p.series if len(s.x))) for p in panels)  # of a score that has it
    panels = tuple(dataclasses.replace(p, series=series) for p, series in known if series)
    text = caption(before, run.evaluation)
    return _chart("evaluation", "Held-out score", text, panels)


def difficulty_chart(run: RunFiles, *, one_run: bool = True) -> Chart | None:
    """How many of the calibration rollouts solved each problem; None without a calibrate.json."""
    if run.calibrate is None:
        return None
    counts, n = run.calibrate["histogram"], run.calibrate["n"]
    kept, names = kept_bars(run.calibrate), [f"{k}/{n}" for k in range(len(counts))]
    if one_run:
        shares = {
            "kept": (BLUE, [c if k in kept else math.nan for k, c in enumerate(counts)]),
            "left out": (GREY, [math.nan if k in kept else c for k, c in enumerate(counts)]),
        }
        series = [
            Series(label, color, names, np.array(values, np.float64), "stack")
            for label, (color, values) in shares.items()
            if np.isfinite(values).any()
        ]
        panel = Panel("problems", tuple(series), "count", "count")
    else:
        share = np.array(counts, np.float64) / max(1, sum(counts))
        panel = Panel(
            "share of the problems", (Series("", BLUE, names, share, "bars"),), "share", "zero"
        )
    panel = Panel(
        panel.label,
        panel.series,
        panel.unit,
        panel.axis,
        across="category",
        x_label=f"correct responses{f' of {n}' * one_run} (hard to easy)",
    )
    text = "How many of the calibration rollouts solved each problem"
    text += "; the grey ones are left out of training." if one_run else ", as a share of all."
    title = "Problem difficulty"
    title += f": {run.calibrate['shape']}" if one_run else ""
    return _chart("difficulty", title, text, (panel,))


def probe_chart(run: RunFiles, *, one_run: bool = True) -> Chart | None:
    """Accuracy and diversity over sampling temperatures; None without a probe.json."""
    found = run.probe
    if found is None:
        return None
    chosen = found.get("initial_temperature")
    bands = _bands(found) if one_run else ()
    mark = None if chosen is None or not one_run else (float(chosen), f"T = {chosen:g}")
    rows = (
        ("accuracy", "accuracies", "stderrs", "share", BLUE),
        ("distinct 4-grams / all", "diversities", "diversity_stderrs", "number", ORANGE),
        ("entropy, nats a token", "entropies", "", "number", PURPLE),
        ("mean response, tokens", "mean_lengths", "", "tokens", GREEN),
        ("responses at the budget", "clip_ratios", "", "share", RED),
    )
    panels = []
    for label, name, errors, unit, color in rows:
        values = found.get(name) or []
        if len(values) != len(found["temperatures"]) or all(v is None for v in values):
            continue
        series = Series(
            "",
            color,
            np.array(found["temperatures"], np.float64),
            _array(values),
            "line",
            error=np.array(errors_of(found, errors)) if found.get(errors) else None,
        )
        panels.append(
            Panel(
                label,
                (series,),
                unit,  # type: ignore[arg-type]
                "fit" if unit == "share" else "zero",
                across="number",
                x_label="sampling temperature",
                bands=bands,
                mark=mark,
            )
        )
    text = (
        "Accuracy and diversity over sampling temperatures. Training starts at the upper border of "
        "the robust zone."
    )
    return _chart("probe", "Temperature zones", text, tuple(panels))


def _chart(name: str, title: str, text: str, panels: tuple[Panel, ...]) -> Chart:
    rows = [
        (
            panel.label,
            series.label,
            str(x) if isinstance(x, str) else float(x),
            _known(y),
            None if series.error is None else _known(series.error[i]),
        )
        for panel in panels
        for series in panel.series
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True))
        if math.isfinite(y)
    ]
    return Chart(name, title, text, panels, header=HEADER, rows=tuple(rows))


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _line(name: str, color: str, points: list[tuple[float, float]], **look: Any) -> Series:
    points.sort()
    x, y = (np.array([point[i] for point in points], np.float64) for i in (0, 1))
    return Series(name, color, x, y, "line", **look)


def _known_points(by_k: Record) -> list[tuple[float, float]]:
    return [(float(k), float(value)) for k, value in by_k.items() if value is not None]


def _averages(runs: Sequence[tuple[str, Record, str]]) -> Panel:
    names = [name for name, _, _ in runs]
    series = []
    for at, (name, score, color) in enumerate(runs):
        y_N, error_N = np.full(len(runs), np.nan), np.full(len(runs), np.nan)
        y_N[at] = score["avg@k"]
        if score.get("stderr") is not None:
            error_N[at] = score["stderr"]
        x = names if len(names) > 1 else [f"avg@{score['k']}"]
        series.append(Series(name, color, x, y_N, "stack", error=error_N))
    samples = " and ".join(dict.fromkeys(str(score["k"]) for _, score, _ in runs))
    if len(runs) == 1:
        series = [Series(s.label, s.color, s.x, s.y, "bars", error=s.error) for s in series]
    return Panel(f"avg@{samples}", tuple(series), "share", "rate", across="category", x_label="")


def _by_length(runs: Sequence[tuple[str, Record, str]]) -> Panel:
    series = []
    for name, score, color in runs:
        groups = score.get("length_groups") or []
        x = [str(group["name"]) for group in groups]
        values = _array([group["accuracy"] for group in groups])
        series.append(Series(name, color, x, values, "bars"))
    return Panel(
        "accuracy by length",
        tuple(series),
        "share",
        "rate",
        across="category",
        x_label="response length, tokens",
    )


def _budgets(name: str, score: Record, color: str) -> list[Series]:
    points = score.get("budget_curve") or []
    found = [_line(name, color, [(p["budget"], p["accuracy"]) for p in points])] if points else []
    yarn = [(p["budget"], p["accuracy_yarn"]) for p in points if p.get("accuracy_yarn") is not None]
    if yarn:
        scaled = {BLUE: RED, GREY: PURPLE}.get(color, INK)
        found.append(_line(f"{name}, YaRN", scaled, yarn, dashed=True, minor=True))
    return found


def _bands(found: Record) -> tuple[tuple[float, float, str, str], ...]:
    """The zones as ranges of temperature, with name and color."""
    looks = [(start, end, ZONES.get(label, ("", label))) for start, end, label in zone_spans(found)]
    return tuple((start, end, name, color) for start, end, (color, name) in looks)
