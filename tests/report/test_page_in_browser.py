"""report.html in a headless Chromium: figures, linked values, filters, hostile texts."""

from __future__ import annotations

import json
import re

import pytest

from polaris_jax.report import make_report
from tests.support.report.browser import BINARY, browser
from tests.support.report.synthetic import hostile_row, response_row, write_rollouts, write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(BINARY is None, reason="no chromium"),
]
HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'>\u202egnp.exe"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run_dir = write_run(tmp_path_factory.mktemp("browser") / "run")
    for step in (0, 24, 47):
        groups = [
            [response_row("a", r, float(r)) for r in range(2)],
            [response_row("b", r, 0.0) | {"finish_reason": "length"} for r in range(2)],
        ]
        write_rollouts(run_dir, step, [*groups, [hostile_row(HOSTILE)]])
    return make_report(run_dir).html


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium, report):
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.open(report)
    yield chromium
    chromium.run("localStorage.clear()")  # the theme that a test has chosen
    assert chromium.errors == []
    assert [address for address in chromium.requests if not address.startswith("file:")] == []


def rows(page):
    """(right or not, text) of every response that is shown."""
    return page.run(
        "[...document.querySelectorAll('.response')].map((one) => "
        "[one.classList.contains('good'), one.querySelector('pre').textContent])"
    )


def choose(page, label, value):
    page.run(
        f"""(() => {{
          const element = document.querySelector(`[aria-label={json.dumps(label)}]`);
          element.value = {json.dumps(value)};
          element.dispatchEvent(new Event('change'));
        }})()"""
    )


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_figure_is_drawn_and_nothing_is_wider_than_the_window(page, report, width, dark):
    page.open(report, width=width, dark=dark)
    plots = page.run(
        "[...document.querySelectorAll('.plot')].map((plot) => "
        "[plot.closest('figure').id, plot.querySelectorAll('.main-svg .trace').length, "
        "plot.querySelector('.main-svg').getBoundingClientRect().width])"
    )
    assert {name for name, _, _ in plots} == {
        *("evaluation", "difficulty", "probe", "reward", "length", "exploration", "batch"),
        *("held_out", "update", "logprob_gap", "time"),
    }
    assert all(traces > 0 and plotted > 150 for _, traces, plotted in plots)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    sizes = page.run(
        "[...document.querySelectorAll('.plot text')].map((text) => "
        "parseFloat(getComputedStyle(text).fontSize))"
    )
    assert min(sizes) >= 11


def failed_run(directory):
    """A run that ended with an error after three steps, without a score."""
    run_dir = write_run(directory)
    for name in ("eval.json", "before_eval.json"):
        (run_dir / name).unlink()
    for name in ("metrics.jsonl", "timing.jsonl"):
        lines = (run_dir / name).read_text().splitlines()[:3]
        (run_dir / name).write_text("\n".join(lines) + "\n")
    stages = json.loads((run_dir / "stages.json").read_text())[:1]
    stages[0]["last_step"] = None
    (run_dir / "stages.json").write_text(json.dumps(stages))
    record = json.loads((run_dir / "run.json").read_text())
    record["starts"] = [{"ended": f"failed: no reward {HOSTILE}"}]
    (run_dir / "run.json").write_text(json.dumps(record))
    write_rollouts(run_dir, 0, [[response_row("a", r, 0.0) for r in range(2)]])
    return run_dir


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("case", ["failed", "three seeds"])
def test_a_failed_run_and_three_runs_together_are_whole_pages(page, tmp_path, case, width):
    """The page fixture demands no console error and no request."""
    if case == "failed":
        summary = make_report(failed_run(tmp_path / "run"))
    else:
        places = [write_run(tmp_path / f"seed{i}") for i in range(3)]
        for place in places:
            write_rollouts(place, 0, [[response_row("a", r, float(r)) for r in range(2)]])
        summary = make_report(*places, out=tmp_path / "together")
    page.open(summary.html, width=width, dark=False)
    traces = page.run(
        "[...document.querySelectorAll('.plot')].map((plot) => "
        "plot.querySelectorAll('.main-svg .trace').length)"
    )
    assert traces
    assert min(traces) > 0
    assert page.run("document.documentElement.scrollWidth") <= width
    text = page.run("document.body.innerText")
    if case == "failed":
        assert "The run failed: no reward </script><script>hacked = 1</script>" in text
        assert page.run("typeof hacked") == "undefined"
    else:
        assert all(f"seed{i}" in text for i in range(3))
        assert len(rows(page)) > 0


def test_pointing_at_a_step_shows_its_values_in_all_figures(page):
    x, y, width, height = page.run(
        """(() => {
          const plot = document.querySelector('#reward .plot');
          plot.scrollIntoView({ block: 'center' });
          const box = plot.querySelector('.nsewdrag').getBoundingClientRect();
          return [box.x, box.y, box.width, box.height];
        })()"""
    )
    label = "(id) => document.querySelector(`#${id} .plot .hoverlayer`)?.textContent ?? ''"
    page.point_at(x + width / 2 - 4, y + height / 2)
    page.point_at(x + width / 2, y + height / 2)
    page.until(f"({label})('reward').includes('mean reward')")
    said = page.run(f"({label})('reward')")
    step = int(re.search(r"step (\d+)", said)[1])
    values = page.run(
        "JSON.parse(document.getElementById('data').textContent).charts"
        ".find((chart) => chart.name === 'reward').panels[0].series[0]"
    )
    assert f"{values['y'][values['x'].index(step)]:.1%}" in said
    assert "held-out" not in said or "(step " in said.split("held-out")[1]
    page.until(
        "[...document.querySelectorAll('.plot .hoverlayer')].filter("
        f"(one) => one.textContent.includes('step {step}')).length > 1"
    )


def test_a_hostile_response_is_text(page):
    choose(page, "step", "24")
    assert any(HOSTILE.replace("\u202e", r"\u202e") == text for _, text in rows(page))
    assert page.run("typeof hacked") == "undefined"
    assert page.run("document.querySelectorAll('#browser img, #browser script').length") == 0


def test_the_policy_stops_what_would_leave_the_page(page):
    stopped = page.run(
        "fetch('https://polaris.invalid/').then(() => false, () => true)"
        ".then((fetched) => { const script = document.createElement('script');"
        "script.textContent = 'hacked = 1'; document.head.append(script);"
        "return fetched && typeof hacked === 'undefined'; })"
    )
    assert stopped
    assert page.errors and all("Content Security Policy" in text for text in page.errors)
    page.errors.clear()


def test_responses_are_filtered_by_step_and_outcome(page):
    assert page.run("document.querySelector('#browser .note').textContent") == (
        "15 responses in 9 of 9 groups here fit."
    )
    assert len(rows(page)) == 10  # of the first 6 groups
    page.run("document.querySelector('.more').click()")
    assert len(rows(page)) == 15
    choose(page, "step", "47")
    assert len(rows(page)) == 5
    choose(page, "outcome", "right")
    assert [right for right, _ in rows(page)] == [True]
    choose(page, "outcome", "wrong")
    assert [right for right, _ in rows(page)] == [False] * 4
    tick = "[...document.querySelectorAll('.filters label')].find((l) => l.textContent.includes"
    page.run(f"{tick}('cut')).click()")
    assert len(rows(page)) == 2
    page.run(f"{tick}('rescued')).click()")
    assert rows(page) == []


def test_a_click_on_a_step_opens_its_responses(page):
    page.run("document.querySelector('#reward .plot').emit('plotly_click', {points: [{x: 30}]})")
    assert page.run("document.querySelector('[aria-label=step]').value") == "24"


def test_the_switch_changes_the_theme_and_the_figures(page):
    line = "getComputedStyle(document.querySelector('#reward .js-line')).stroke"
    before = page.run(line)
    page.run("document.getElementById('theme').click()")
    assert page.run("document.documentElement.dataset.theme") == "dark"
    page.until(f"{line} !== {json.dumps(before)}")
    page.run("document.getElementById('theme').click()")
