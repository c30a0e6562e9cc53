"""Makes the report of a run directory: figures/*.png, and report.html with the figures embedded."""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from etils import epath

from polaris_jax.config import ConfigError
from polaris_jax.report.curves import CURVES
from polaris_jax.report.figures import (
    difficulty_figure,
    evaluation_figure,
    group_count,
    probe_figure,
)
from polaris_jax.report.run_files import RunFiles, holds_anything, read_run
from polaris_jax.report.summary import (
    ReportSummary,
    caption,
    named_scores,
    share,
    stage_rows,
    summary_rows,
)
from polaris_jax.run.owner import command_owns
from polaris_jax.system.files import AnyPath, as_place, delete_partials, write_bytes

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; color: #222; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid #ddd; }
.facts { color: #666; font-size: .9rem; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem 1rem .35rem 0; vertical-align: top; }
thead th { border-bottom: 2px solid #bbb; font-weight: 600; white-space: nowrap; }
tbody tr + tr > * { border-top: 1px solid #eee; }
tbody th { font-weight: 600; white-space: nowrap; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
h3 + ul { margin: 0; padding-left: 1.1rem; max-width: 52rem; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: #555; font-size: .9rem; margin-top: .35rem; max-width: 46rem; }
details { margin-top: .75rem; } summary { cursor: pointer; color: #0072B2; }
code, pre { font: .85rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; }
"""


def make_report(run_dir: AnyPath) -> ReportSummary:
    """Writes figures/*.png and report.html into `run_dir`.

    A figure whose data is absent is left out, and its file from an earlier report is deleted.

    Returns:
        The rows and stages of the report's tables, the paths of figures and page, and in `absent`
        each figure or file that was left out, with the reason.

    Raises:
        FileNotFoundError: `run_dir` is not a directory.
        ConfigError: `run_dir` holds no file of a run, or another report is being made of it.
    """
    run_dir = as_place(run_dir)
    run = read_run(run_dir)
    if not holds_anything(run):
        raise ConfigError(
            f"--workdir={run_dir}: holds no file of a run (metrics.jsonl, eval.json, ...); name "
            "the directory that the other commands were given"
        )
    with command_owns(run_dir, "report", writes=("report.html",)):
        delete_partials(run_dir / "figures")
        return _write(run_dir, run)


def _write(run_dir: epath.Path, run: RunFiles) -> ReportSummary:
    figures: list[tuple[str, str, str, Callable[[epath.Path], bool | None]]] = [
        (
            "evaluation",
            caption(run.before, run.evaluation),
            "eval.json",
            lambda path: evaluation_figure(run.evaluation or {}, path, before=run.before),
        ),
        (
            "difficulty",
            "How many of the calibration rollouts solved each problem; the grey ones are left out "
            "of training.",
            "calibrate.json",
            lambda path: difficulty_figure(run.calibrate or {}, path),
        ),
        (
            "probe",
            "Accuracy and diversity over sampling temperatures. Training starts at the upper "
            "border of the robust zone.",
            "probe.json",
            lambda path: probe_figure(run.probe or {}, path),
        ),
    ]
    for curves in CURVES:
        lines = run.timing if curves.source == "timing.jsonl" else run.metrics
        draw = functools.partial(curves.figure, lines, run.stages)
        figures.append((curves.name, curves.caption, curves.source, draw))
    paths: list[epath.Path] = []
    captions: list[str] = []
    absent: list[tuple[str, str]] = []
    for name, text, source, draw in figures:
        path = run_dir / "figures" / f"{name}.png"
        if source not in run.absent and draw(path) is not False:
            paths.append(path)
            captions.append(text)
            continue
        path.unlink(missing_ok=True)  # an earlier report may have written it
        why = run.absent.get(source, "holds none of its metrics")
        absent.append((f"figure {name}", f"{source}: {why}"))
    named = {reason.split(":")[0] for _, reason in absent}
    absent += [(name, why) for name, why in run.absent.items() if name not in named]
    absent += run.gaps.items()

    stages = stage_rows(run)
    summary = ReportSummary(
        rows=summary_rows(run, stages),
        stages=stages,
        figures=tuple(paths),
        absent=tuple(absent),
        html=run_dir / "report.html",
    )
    write_html(summary, run, captions, title=f"POLARIS run: {run_dir.name}")
    return summary


def write_html(
    summary: ReportSummary, run: RunFiles, captions: Sequence[str], *, title: str
) -> None:
    """Writes `summary.html`.

    Args:
        summary: the report's rows, stages and figures.
        run: the files of the run, for the tables.
        captions: caption of each figure, in the order of `summary.figures`.
        title: title of the page.
    """
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="facts">{_text(_facts(run))}</p>',
        _table((), summary.rows),
        *_evaluations(run),
        *_stages(summary),
        "<h2>Figures</h2>",
    ]
    for path, text in zip(summary.figures, captions, strict=True):
        parts.append(_figure(path, text))
    if summary.absent:
        parts.append("<h2>Not in this report</h2>")
        parts.append(_table((), summary.absent))
    parts += _configuration(run)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    write_bytes(summary.html, page.encode())


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(header: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; the first cell of each row is a heading. No head if `header` is empty."""
    names = "".join(f"<th>{_text(name)}</th>" for name in header)
    head = f"<thead><tr>{names}</tr></thead>" if names else ""
    body = "".join(
        f"<tr><th>{_text(first)}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _facts(run: RunFiles) -> str:
    if run.run is None:
        return "run.json is absent: config, versions and commit are unknown"
    versions = run.run.get("versions", {})
    starts = run.run.get("starts") or [{}]
    facts = [
        f"commit {run.run.get('commit') or 'unknown'}",
        *(f"{name} {versions[name]}" for name in ("polaris_jax", "jax") if name in versions),
        str(run.run.get("devices") or ""),
        f"begun {starts[0]['time']}" if "time" in starts[0] else "",
        f"started {len(starts)} times" if len(starts) > 1 else "",
        ""
        if run.run.get("deterministic", True)
        else "not deterministic: the machine decided a reward, or changed",
    ]
    return " · ".join(fact for fact in facts if fact)


def _evaluations(run: RunFiles) -> list[str]:
    present = named_scores(run)
    if not present:
        return []
    samples = {score["k"] for _, score in present}
    tokens = sorted({int(k) for _, score in present for k in score.get("pass@k", {})})
    rows = []
    for name, score in present:
        error = score.get("stderr")
        groups = score.get("length_groups") or []
        lengths = ", ".join(
            f"{g['name']}: {share(g['accuracy'])} (n={group_count(g)})" for g in groups
        )
        rows.append(
            [
                name,
                share(score["avg@k"])
                + (f" ± {error:.1%}" if error is not None else "")
                + (f" (k={score['k']})" if len(samples) > 1 else ""),
                *(share(score.get("pass@k", {}).get(str(k))) for k in tokens),
                f"{score['temperature']:g}",
                score["max_response_tokens"],
                lengths,
            ]
        )
    average = f"avg@{samples.pop() if len(samples) == 1 else 'k'}"
    header = ["", average, *(f"pass@{k}" for k in tokens)]
    header += ["temperature", "budget", "accuracy by length in tokens"]
    return ["<h2>Held-out evaluation</h2>", _table(header, rows)]


def _stages(summary: ReportSummary) -> list[str]:
    if not summary.stages:
        return []
    rows, entries = [], []
    for stage in summary.stages:
        if stage.decisions:
            decisions = "".join(f"<li>{_text(d)}</li>" for d in stage.decisions)
            entries.append(f"<h3>Decisions of stage {_text(stage.stage)}</h3><ul>{decisions}</ul>")
        rows.append(
            [
                stage.stage,
                stage.steps,
                f"{stage.temperature:.3g}",
                stage.max_response_tokens,
                f"{share(stage.reward_first)} → {share(stage.reward_last)}",
                stage.rescued,
                stage.substituted,
                stage.dropped_so_far,
            ]
        )
    header = ("stage", "steps", "temperature", "budget", "reward, first and last quarter")
    header += ("rescued", "substituted", "dropped before it")
    return ["<h2>Stages</h2>", _table(header, rows), *entries]


def _figure(path: epath.Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure id="{_text(path.stem)}"><img alt="{_text(caption)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{_text(caption)}</figcaption></figure>'
    )


def _configuration(run: RunFiles) -> list[str]:
    config = (run.run or {}).get("config")
    if not config:
        return []
    lines = "\n".join(f"{name} = {value!r}" for name, value in sorted(config.items()))
    return [
        "<h2>Configuration</h2>",
        f"<details><summary>{len(config)} fields</summary><pre>{_text(lines)}</pre></details>",
    ]
