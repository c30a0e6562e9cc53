"""Several runs in one report: names, fields that differ, one sentence, overlaid figures."""

from __future__ import annotations

import csv
import json

import pytest
from etils import epath
from matplotlib.figure import Figure

from polaris_jax.config import ConfigError
from polaris_jax.report import make_report
from polaris_jax.report.chart import overlaid
from polaris_jax.report.draw import draw_chart
from polaris_jax.report.measurements import difficulty_chart
from polaris_jax.report.run_files import read_run
from polaris_jax.report.runs import (
    MOST_RUNS,
    NamedRun,
    differing_fields,
    run_names,
    runs_sentence,
)
from tests.support.report.bars import bars_of, figures_of
from tests.support.report.html_text import HtmlText
from tests.support.report.synthetic import (
    CALIBRATE,
    RUN,
    evaluation,
    write_rollouts,
    write_run,
)

PNG = b"\x89PNG\r\n\x1a\n"


def named(*places):
    return [
        NamedRun(name, "#000000", epath.Path(place), read_run(epath.Path(place)))
        for name, place in zip(run_names([epath.Path(p) for p in places]), places, strict=True)
    ]


def made(folder, name, *, score=0.5, seed=0, **config):
    """The directory of a run that has an eval.json and a run.json only."""
    run_dir = folder / name
    run_dir.mkdir(parents=True)
    fields = {"seed": seed, "batch.rescue": True, **config}
    (run_dir / "run.json").write_text(json.dumps(RUN | {"config": fields}))
    if score is not None:
        (run_dir / "eval.json").write_text(json.dumps(evaluation(score)))
    return run_dir


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/runs/a", "/x/runs/b"], ("a", "b")),
        (["/x/plain/b0", "/x/both/b0"], ("plain", "both")),
        (["/x/a/0", "/x/b/1"], ("a/0", "b/1")),
        (["/x/a", "/x/a/b"], ("a", "a/b")),
        (["/x/run"], ("run",)),
    ],
)
def test_runs_are_named_by_what_tells_them_apart(paths, names):
    assert run_names([epath.Path(path) for path in paths]) == names


@pytest.mark.parametrize(
    ("count", "names", "words"),
    [
        (2, ["a"], "1 names for 2 runs"),
        (2, ["a", "a"], "two runs have this name"),
        (MOST_RUNS + 1, [], "at most 8"),
    ],
)
def test_names_that_do_not_fit_are_refused(count, names, words):
    with pytest.raises(ConfigError, match=words):
        run_names([epath.Path(f"/x/{i}") for i in range(count)], names)


def test_the_fields_that_differ_and_no_other(tmp_path):
    runs = named(
        made(tmp_path, "a", **{"optimizer.learning_rate": 1e-4}),
        made(tmp_path, "b", seed=1, **{"optimizer.learning_rate": 3e-4, "batch.rows": 4}),
    )
    assert differing_fields(runs) == [
        ("batch.rows", "-", "4"),
        ("optimizer.learning_rate", "0.0001", "0.0003"),
        ("seed", "0", "1"),
    ]


def test_runs_that_differ_in_the_seed_have_one_mean_with_students_interval(tmp_path):
    scores = (0.50, 0.56, 0.62)
    runs = named(*(made(tmp_path, f"s{i}", score=x, seed=i) for i, x in enumerate(scores)))
    # 0.06 / sqrt(3) * 4.303, the 97.5% point of t with 2 degrees of freedom
    assert "solve 56.0% of the held-out problems on average, 95% interval 41.1% to 70.9%" in (
        runs_sentence(runs)
    )


@pytest.mark.parametrize(("score", "said"), [(0.0, "0.0%"), (0.5, "50.0%"), (1.0, "100.0%")])
def test_seeds_of_equal_scores_have_no_interval(tmp_path, score, said):
    runs = named(*(made(tmp_path, f"s{seed}", score=score, seed=seed) for seed in range(3)))
    line = runs_sentence(runs)
    assert f"solve {said} of the held-out problems on average (" in line
    assert "interval" not in line


def test_two_other_runs_have_a_difference_with_its_interval(tmp_path):
    runs = named(
        made(tmp_path, "plain", score=0.50, **{"batch.rescue": False}),
        made(tmp_path, "both", score=0.60),
    )
    # 1.96 * 0.019 * sqrt(2) = 0.0527
    assert "both - plain is +10.0 points, 95% interval +4.7 to +15.3 (over problems" in (
        runs_sentence(runs)
    )


def test_scores_of_other_settings_are_not_compared(tmp_path):
    runs = named(made(tmp_path, "a"), made(tmp_path, "b", seed=1))
    (tmp_path / "b" / "eval.json").write_text(json.dumps(evaluation(0.9) | {"k": 4}))
    runs = named(tmp_path / "a", tmp_path / "b")
    assert runs_sentence(runs) == "The scores of the runs are not comparable: n 8 and 4."


def test_a_run_without_a_score_is_named(tmp_path):
    runs = named(made(tmp_path, "a"), made(tmp_path, "b", score=None))
    assert "no interval, because b has no eval.json" in runs_sentence(runs)


def test_one_page_of_three_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda _, out, **__: out.write(PNG))
    places = [write_run(tmp_path / name) for name in ("a", "b", "c")]
    (places[1] / "timing.jsonl").unlink()
    for place in places:
        write_rollouts(place, 0, [[{"problem_id": "p", "text": place.name, "reward": 1.0}]])
    before = {path.name for path in places[0].iterdir()}
    summary = make_report(*places, out=tmp_path / "compared")
    assert summary.html == tmp_path / "compared" / "report.html"
    assert {path.name for path in places[0].iterdir()} == before
    page = HtmlText(summary.html.read_text())
    assert [run["name"] for run in page.data["runs"]] == ["a", "b", "c"]
    assert len({run["color"] for run in page.data["runs"]}) == 3
    assert [group["run"] for group in page.data["responses"]] == [0, 1, 2]
    charts = {chart["name"]: chart for chart in page.data["charts"]}
    assert {s["run"] for s in charts["reward"]["panels"][0]["series"]} == {0, 1, 2}
    assert {s["run"] for s in charts["time"]["panels"][0]["series"]} == {0, 2}
    assert ("b: figure time", "timing.jsonl: not there") in summary.absent
    with open(tmp_path / "compared" / "figures" / "reward.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(x) for x in (places[1] / "metrics.jsonl").read_text().splitlines()]
    of_b = [float(row["rollout/reward_mean"]) for row in rows if row["run"] == "b"]
    assert of_b == [line["rollout/reward_mean"] for line in lines]


def test_bars_of_runs_with_other_categories_stand_over_their_own(tmp_path, monkeypatch):
    """One run calibrated with 8 attempts, the other with 4: 4/4 is no 4/8."""
    figures = figures_of(monkeypatch)
    counts = {8: [5, 0, 0, 0, 0, 0, 0, 0, 3], 4: [1, 0, 0, 0, 7]}
    charts = []
    for n, histogram in counts.items():
        run_dir = made(tmp_path, f"n{n}")
        calibrated = CALIBRATE | {"histogram": histogram, "n": n}
        (run_dir / "calibrate.json").write_text(json.dumps(calibrated))
        charts.append(difficulty_chart(read_run(epath.Path(run_dir)), one_run=False))
    chart = overlaid(charts, ["a", "b"], ["#000000", "#111111"], [0, 1])
    draw_chart(chart, epath.Path(tmp_path / "both.png"), names=["a", "b"])
    (figure,) = figures
    bars = bars_of(figure.axes[0])
    assert {name: bars[name] for name in ("0/8", "8/8", "0/4", "4/4")} == {
        "0/8": [pytest.approx(5 / 8)],
        "8/8": [pytest.approx(3 / 8)],
        "0/4": [pytest.approx(1 / 8)],
        "4/4": [pytest.approx(7 / 8)],
    }
