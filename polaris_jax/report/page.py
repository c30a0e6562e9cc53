"""report.html: one file without a request to anywhere, whatever its texts hold.

Three rules keep the texts of models harmless. Each is escaped where it becomes HTML, and its hidden
marks were made visible when it was read. Data lie in a JSON block in which `<`, `>` and `&` are
written as escapes, so nothing in them ends the block. The page's Content-Security-Policy allows the
two scripts by their hashes and no connection at all.
"""

from __future__ import annotations

import dataclasses
import html
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polaris_jax.report.chart import Chart
from polaris_jax.report.plots import chart_record, library, script_hash, thinned
from polaris_jax.report.result import Ending
from polaris_jax.report.style import DARK
from polaris_jax.system.foreign import printable


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        title: name of the run, or of the comparison.
        sentence: the result.
        further: what else is to be said of it; "" if nothing is.
        ran: what ran, one paragraph a run.
        endings: (name of the run or "", how it ended).
        warnings: warnings of the runs.
        runs: (name, color) of each run.
        charts: the figures.
        sections: HTML of the tables between figures and responses, heading included; made by
            `section`.
        responses: groups of responses, each with the index of its run.
        responses_text: how much of how much they are, one sentence a run.
        details: HTML of the last sections.
    """

    title: str
    sentence: str
    further: str
    ran: Sequence[str]
    endings: Sequence[tuple[str, Ending]]
    warnings: Sequence[str]
    runs: Sequence[tuple[str, str]]
    charts: Sequence[Chart]
    sections: Sequence[str]
    responses: Sequence[Mapping[str, Any]]
    responses_text: Sequence[str]
    details: Sequence[str]


def page_html(page: Page) -> str:
    """The text of report.html."""
    script, style = _script(), _part("page.css")
    packed, library_hash = library()
    records = [chart_record(chart) for chart in page.charts]
    data = {
        "runs": [{"name": name, "color": color} for name, color in page.runs],
        "dark": dict(DARK),
        "charts": records,
        "responses": list(page.responses),
    }
    policy = (
        f"default-src 'none'; script-src '{script_hash(script)}' '{library_hash}'; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    body = [
        _bar(page),
        "<main>",
        *_head(page),
        *_figures(page, thinned(records)),
        *page.sections,
        *_responses(page),
        *page.details,
        "</main>",
        f'<script type="application/json" id="data">{safe_json(data)}</script>',
        f'<script type="text/plain" id="library">{packed}</script>',
        f"<script>{script}</script>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(page.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def safe_json(value: Any) -> str:
    """JSON in ASCII that no HTML parser can take for markup."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def escaped(value: Any) -> str:
    """A value as HTML text, hidden and direction marks made visible."""
    return html.escape(printable(str(value)))


def section(name: str, title: str, *parts: str) -> str:
    """A section with a heading."""
    return f'<section id="{name}"><h2>{escaped(title)}</h2>{"".join(parts)}</section>'


def table(header: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; the first cell of each row is a heading. No head if `header` is empty."""
    names = "".join(f"<th>{escaped(name)}</th>" for name in header)
    head = f"<thead><tr>{names}</tr></thead>" if names else ""
    body = "".join(
        f"<tr><th>{escaped(first)}</th>{''.join(f'<td>{escaped(x)}</td>' for x in rest)}</tr>"
        for first, *rest in rows
    )
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def folded(title: str, *parts: str) -> str:
    """What a click on the title shows."""
    return f"<details><summary>{escaped(title)}</summary>{''.join(parts)}</details>"


def _script() -> str:
    """The page's own script: its files in one function, so that no name of theirs is global."""
    inside = "\n".join(_part(name) for name in ("page.js", "figures.js", "responses.js"))
    return f'"use strict";\n(() => {{\n{inside}}})();\n'


def _part(name: str) -> str:
    return (importlib.resources.files("polaris_jax.report") / name).read_text(encoding="utf-8")


def _bar(page: Page) -> str:
    names = {"figures": page.charts, "numbers": True, "responses": True, "config": page.details}
    links = "".join(
        f'<a href="#{name}">{name.capitalize()}</a>' for name, there in names.items() if there
    )
    switch = '<button type="button" id="theme" hidden>Dark</button>'
    return f'<nav class="bar"><strong>POLARIS</strong>{links}{switch}</nav>'


def _head(page: Page) -> list[str]:
    failed = [(name, end) for name, end in page.endings if end.kind == "bad"]
    others = [(name, end) for name, end in page.endings if end.kind != "bad"]
    parts = [f'<p class="over">{escaped(page.title)}</p>', *map(_ending, failed)]
    parts.append(f"<h1>{escaped(page.sentence)}</h1>")
    if page.further:
        parts.append(f'<p class="further">{escaped(page.further)}</p>')
    ran = "".join(f'<p class="ran">{escaped(text)}</p>' for text in page.ran)
    parts.append(ran if len(page.ran) == 1 else folded("What ran, run by run", ran))
    parts += map(_ending, others)
    if page.warnings:
        items = "".join(f"<li>{escaped(text)}</li>" for text in page.warnings)
        parts.append(f'<h3>Warnings</h3><ul class="warnings">{items}</ul>')
    return parts


def _ending(named: tuple[str, Ending]) -> str:
    name, end = named
    text = f"{name}: {end.text}" if name else end.text
    return f'<p><span class="end {end.kind}">{escaped(text)}</span></p>'


def _figures(page: Page, every: int) -> list[str]:
    if not page.charts:
        return []
    hint = (
        "Point at a figure, or tap it: all figures over steps show the values of the same step. "
        "Drag to zoom all of them, double-click to return; click a step to read its responses."
    )
    if every > 1:
        hint += f" The page draws every {every}th step of the longest run; the CSV files have all."
    chips = ""
    if len(page.runs) > 1:
        chips = "".join(
            f'<button type="button" data-run="{index}" aria-pressed="true">'
            f'<i class="swatch" style="--c: light-dark({color}, {DARK.get(color, color)})"></i>'
            f"{escaped(name)}</button>"
            for index, (name, color) in enumerate(page.runs)
        )
        chips = f'<div class="runs">{chips}</div>'
    measured = [chart for chart in page.charts if not _over_steps(chart)]
    curves = [chart for chart in page.charts if _over_steps(chart)]
    cards = (
        f'<div class="{look}">{"".join(map(_card, charts))}</div>'
        for look, charts in (("measured", measured), ("figures", curves))
        if charts
    )
    no_script = "<noscript><p>Without JavaScript the figures are in figures/.</p></noscript>"
    note = f'<p class="note">{escaped(hint)}</p>{no_script}'
    return [section("figures", "Figures", note, chips, *cards)]


def _over_steps(chart: Chart) -> bool:
    return all(panel.across == "step" for panel in chart.panels)


def _card(chart: Chart) -> str:
    files = "".join(
        f'<a href="figures/{chart.name}.{kind}">{kind.upper()}</a>' for kind in ("png", "csv")
    )
    return (
        f'<figure id="{chart.name}" style="--panels: {len(chart.panels)}">'
        f'<h3>{escaped(chart.title)}<span class="files">{files}</span></h3>'
        f'<div class="panels"></div><figcaption>{escaped(chart.caption)}</figcaption></figure>'
    )


def _responses(page: Page) -> list[str]:
    notes = "".join(f'<p class="note">{escaped(text)}</p>' for text in page.responses_text)
    return [section("responses", "Responses", notes, '<div id="browser"></div>')]
