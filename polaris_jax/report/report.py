"""Makes the report of one run or several: figures as PNG and CSV, and report.html."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from polaris_jax.config import ConfigError
from polaris_jax.report.chart import Chart, overlaid
from polaris_jax.report.curves import CURVES, Curves
from polaris_jax.report.draw import draw_chart
from polaris_jax.report.expected import with_expected
from polaris_jax.report.figures import difficulty_figure, evaluation_figure, probe_figure
from polaris_jax.report.measurements import difficulty_chart, evaluation_chart, probe_chart
from polaris_jax.report.page import Page, folded, page_html, section, table
from polaris_jax.report.plots import chart_csv
from polaris_jax.report.responses import MOST_CHARS, sample_responses
from polaris_jax.report.result import ending, further_sentence, result_sentence, what_ran
from polaris_jax.report.run_files import RunFiles, holds_anything, read_run
from polaris_jax.report.runs import (
    RUN_COLORS,
    NamedRun,
    differing_fields,
    run_names,
    runs_sentence,
)
from polaris_jax.report.summary import ReportSummary, stage_rows, summary_rows
from polaris_jax.report.tables import (
    absent_table,
    configuration,
    evaluations_table,
    stages_table,
)
from polaris_jax.run.owner import command_owns
from polaris_jax.run.signs import read_warnings
from polaris_jax.system.files import AnyPath, as_place, delete_partials, write_bytes

SHOWN_WARNINGS = 8


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: name of its files.
        source: file of the run from which it is made.
        chart: its numbers, for the page and the CSV; None if the file has none for it. Gets the
            files, and whether they are the only run.
        draw: draws the PNG of a single run, from its files and the chart.
        optional: True: nothing is said of a run that does not have it.
    """

    name: str
    source: str
    chart: Callable[[RunFiles, bool], Chart | None]
    draw: Callable[[RunFiles, Chart, epath.Path], Any]
    optional: bool = False


def _of_curves(curves: Curves) -> Figure:
    def chart(run: RunFiles, _: bool) -> Chart | None:
        lines = run.timing if curves.source == "timing.jsonl" else run.metrics
        found = curves.chart(lines, run.stages)
        return None if found is None else with_expected(found, curves, run.compared)

    def draw(_: RunFiles, chart: Chart, path: epath.Path) -> None:
        draw_chart(chart, path)

    return Figure(curves.name, curves.source, chart, draw, curves.optional)


FIGURES = (
    Figure(
        "evaluation",
        "eval.json",
        lambda run, one: evaluation_chart(run, one_run=one),
        lambda run, _, path: evaluation_figure(run.evaluation or {}, path, before=run.before),
    ),
    Figure(
        "difficulty",
        "calibrate.json",
        lambda run, one: difficulty_chart(run, one_run=one),
        lambda run, _, path: difficulty_figure(run.calibrate or {}, path),
    ),
    Figure(
        "probe",
        "probe.json",
        lambda run, one: probe_chart(run, one_run=one),
        lambda run, _, path: probe_figure(run.probe or {}, path),
    ),
    *map(_of_curves, CURVES),
)


def make_report(
    *run_dirs: AnyPath,
    names: Sequence[str] = (),
    out: AnyPath | None = None,
    groups: int = 96,
) -> ReportSummary:
    """Writes report.html, figures/*.png and figures/*.csv.

    A figure whose data is absent is left out, and its files from an earlier report are deleted.

    Args:
        run_dirs: one directory of a run, or several, which are overlaid.
        names: a name for each; (): what tells their paths apart.
        out: directory of the report; None: that of the run, and the present one for several.
        groups: largest number of groups whose responses the page shows; 0: none.

    Returns:
        The rows and stages of the report's tables, the paths of figures and page, and in `absent`
        each figure or file that was left out, with the reason.

    Raises:
        FileNotFoundError: a run directory is none.
        ConfigError: a directory holds no file of a run, the names do not fit, or another report is
            being made in `out`.
    """
    places = [as_place(run_dir) for run_dir in run_dirs]
    runs = []
    for place, name, color in zip(places, run_names(places, names), RUN_COLORS, strict=False):
        files = read_run(place)
        if not holds_anything(files):
            raise ConfigError(
                f"--workdir={place}: holds no file of a run (metrics.jsonl, eval.json, ...); name "
                "the directory that the other commands were given"
            )
        runs.append(NamedRun(name, color, place, files))
    if out is None:
        out = places[0] if len(places) == 1 else "."
    out = as_place(out)
    out.mkdir(parents=True, exist_ok=True)
    with command_owns(out, "report", writes=("report.html",)):
        delete_partials(out / "figures")
        return _write(out, runs, groups)


def _write(out: epath.Path, runs: Sequence[NamedRun], groups: int) -> ReportSummary:
    charts, paths, absent = _figures(out / "figures", runs)
    for run in runs:
        absent += [(_of(run, runs, what), why) for what, why in _missing(run.files, absent)]
    stages = stage_rows(runs[0].files) if len(runs) == 1 else ()
    if len(runs) == 1:
        rows = summary_rows(runs[0].files, stages)
    else:
        rows = tuple((run.name, result_sentence(run.files)) for run in runs)
        rows += tuple(
            (f"{run.name}: expected", compared.text)
            for run in runs
            if (compared := run.files.compared) is not None
        )
    summary = ReportSummary(rows, stages, tuple(paths), tuple(absent), out / "report.html")
    write_bytes(summary.html, page_html(_page(runs, charts, summary, groups)).encode())
    return summary


def _figures(
    folder: epath.Path, runs: Sequence[NamedRun]
) -> tuple[list[Chart], list[epath.Path], list[tuple[str, str]]]:
    """Writes the figures: their charts, the PNGs, and (figure, why) of those that are absent."""
    charts, paths, absent = [], [], []
    folder.mkdir(exist_ok=True)
    for figure in FIGURES:
        png, numbers = folder / f"{figure.name}.png", folder / f"{figure.name}.csv"
        one = len(runs) == 1
        found = [
            (run, None if figure.source in run.files.absent else figure.chart(run.files, one))
            for run in runs
        ]
        present = [(run, chart) for run, chart in found if chart is not None]
        for run, chart in found:
            if chart is None and not figure.optional:
                why = run.files.absent.get(figure.source, "holds none of its metrics")
                what = _of(run, runs, f"figure {figure.name}")
                absent.append((what, f"{figure.source}: {why}"))
        if not present:
            for path in (png, numbers):
                path.unlink(missing_ok=True)  # an earlier report may have written it
            continue
        if one:
            ((run, chart),) = present
            figure.draw(run.files, chart, png)
        else:
            chart = overlaid(
                [chart for _, chart in present],
                [run.name for run, _ in present],
                [run.color for run, _ in present],
                [runs.index(run) for run, _ in present],
            )
            draw_chart(chart, png, names=[run.name for run in runs])
        write_bytes(numbers, chart_csv(chart))
        charts.append(chart)
        paths.append(png)
    return charts, paths, absent


def _missing(run: RunFiles, absent: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Files that are missing and that no absent figure has named, and steps that one lacks."""
    named = {reason.split(":")[0] for _, reason in absent}
    return [(n, why) for n, why in run.absent.items() if n not in named] + [*run.gaps.items()]


def _of(run: NamedRun, runs: Sequence[NamedRun], what: str) -> str:
    return f"{run.name}: {what}" if len(runs) > 1 else what


def _page(
    runs: Sequence[NamedRun], charts: Sequence[Chart], summary: ReportSummary, groups: int
) -> Page:
    many = len(runs) > 1
    label = functools.partial(_of, runs=runs)
    sampled = [
        sample_responses(
            run.place,
            groups=groups // len(runs),
            correct_at=_correct_at(run.files),
            substituted={
                line["step"]: int(line.get("batch/substituted_groups") or 0)
                for line in run.files.metrics
            },
            chars=MOST_CHARS // len(runs),
        )
        for run in runs
    ]
    endings = [(run.name if many else "", ending(run.files)) for run in runs]
    numbers = [table((), summary.rows)]
    if many:
        fields = differing_fields(runs)
        same = '<p class="note">The configs agree in every field.</p>'
        names = [run.name for run in runs]
        numbers += ["<h3>Fields in which the runs differ</h3>"]
        numbers += [table(("field", *names), fields) if fields else same]
    for run in runs:
        tables = [*evaluations_table(run.files), *stages_table(stage_rows(run.files))]
        numbers += [folded(f"{run.name}: scores and stages", *tables)] if many else tables
    return Page(
        title=f"POLARIS run{'s' * many}: {', '.join(run.name for run in runs)}",
        sentence=runs_sentence(runs),
        further="" if many else further_sentence(runs[0].files),
        ran=[label(run, what=what_ran(run.files)) for run in runs],
        # Of several runs only those that did not finish are named.
        endings=[(n, end) for n, end in endings if end and not (many and end.kind == "good")],
        warnings=[label(run, what=text) for run in runs for text in _warnings(run.place)],
        runs=[(run.name, run.color) for run in runs],
        charts=charts,
        sections=[section("numbers", "Numbers", *numbers)],
        responses=[
            {"run": index, **group} for index, s in enumerate(sampled) for group in s.groups
        ],
        responses_text=[
            label(run, what=one.text(wanted=groups)) for run, one in zip(runs, sampled, strict=True)
        ],
        details=[*absent_table(summary.absent), *configuration(runs)],
    )


def _correct_at(run: RunFiles) -> float:
    """The reward from which a response counts as correct, by run.json."""
    found = ((run.run or {}).get("config") or {}).get("reward.correct_at", 1.0)
    return float(found) if isinstance(found, int | float) else 1.0


def _warnings(run_dir: epath.Path) -> list[str]:
    """The newest warnings of a run, as text."""
    newest = read_warnings(run_dir)[-SHOWN_WARNINGS:]
    often = [f" ({one['count']} times)" if one["count"] > 1 else "" for one in newest]
    return [f"{one['text']}{times}" for one, times in zip(newest, often, strict=True)]
