"""A run beside recorded seeds of its config: the sentence, the shaded range, the CSV."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

from polaris_jax.report import make_report
from polaris_jax.report.chart import EXPECTED_LABEL
from polaris_jax.report.run_files import read_run
from polaris_jax.report.style import GREY
from polaris_jax.run.reference import GAIN, compare_with_reference, read_references
from tests.support.report.html_text import HtmlText
from tests.support.report.synthetic import write_run

PNG = b"\x89PNG\r\n\x1a\n"
REFERENCES = {reference.config: reference for reference in read_references()}
NOTEBOOK = REFERENCES["notebook"]
LOW, HIGH = (f"rollout/reward_mean expected {end}" for end in ("low", "high"))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Nothing is rendered; each figure's axes are kept."""
    drawn = []

    def savefig(self, out, **_):
        drawn.append(self)
        out.write(PNG)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return drawn


def run_of(folder, reference, *, shift=0.0):
    """A finished run of a reference's config, with its mean numbers moved by `shift`."""
    place = write_run(folder)
    scoring = {f"evaluate.{name}": value for name, value in reference.evaluation.items()}
    record = {
        "config": {**reference.fields, **scoring, "seed": 99},
        "binding": [*reference.fields],
        "starts": [{"ended": "finished"}],
    }
    (place / "run.json").write_text(json.dumps(record))
    steps = 1 + max(band.last_step for band in reference.bands)
    path = place / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()[:steps]]
    for band in reference.bands:
        for line in lines[band.first_step : band.last_step + 1] if band.name != GAIN else ():
            line[band.name] = float(np.mean(band.values)) + shift
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


def reward_chart(summary):
    """The figure of rewards in the page, and the rows of its CSV."""
    page = HtmlText(summary.html.read_text())
    with open(summary.html.parent / "figures" / "reward.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return next(c for c in page.data["charts"] if c["name"] == "reward"), rows


@pytest.mark.parametrize(("shift", "words"), [(0.0, "inside the band"), (-0.4, "outside the band")])
def test_the_summary_and_the_page_say_what_status_says(tmp_path, shift, words):
    place = run_of(tmp_path / "run", NOTEBOOK, shift=shift)
    summary = make_report(place)
    compared = compare_with_reference(epath.Path(place))
    assert compared is not None and words in compared.text
    assert dict(summary.rows)["expected"] == compared.text
    assert compared.text in summary.html.read_text()


def test_the_range_stands_behind_the_curves_of_its_metrics(tmp_path, no_pictures):
    chart, _ = reward_chart(make_report(run_of(tmp_path / "run", NOTEBOOK)))
    rewards, groups = chart["panels"]
    assert groups["expected"] == []
    assert [one["name"] for one in rewards["expected"]] == [EXPECTED_LABEL] * len(NOTEBOOK.bands)
    for one, band in zip(rewards["expected"], NOTEBOOK.bands, strict=True):
        assert one["x"] == [band.first_step - 0.5, band.last_step + 0.5]
        assert one["y"] == [band.low, band.high]
        label = "mean reward" if band.name.startswith("rollout") else "held-out"
        (color,) = {s["color"] for s in rewards["series"] if s["label"].startswith(label)}
        assert one["color"] == color
    figure = next(f for f in no_pictures if f.get_suptitle() == "Reward of training rollouts")
    shaded = [c for axes in figure.axes for c in axes.collections if c.get_alpha() is not None]
    assert len(shaded) == len(NOTEBOOK.bands)
    for patch, band in zip(shaded, NOTEBOOK.bands, strict=True):
        ends = patch.get_paths()[0].get_extents()
        assert (ends.x0, ends.x1) == (band.first_step - 0.5, band.last_step + 0.5)
        assert (ends.y0, ends.y1) == pytest.approx((band.low, band.high))


def test_the_csv_has_the_ends_of_the_range_at_its_steps(tmp_path):
    _, rows = reward_chart(make_report(run_of(tmp_path / "run", NOTEBOOK)))
    (score,) = (band for band in NOTEBOOK.bands if band.name.startswith("eval/"))
    assert {LOW, HIGH, f"{score.name} expected low"} <= rows[0].keys()
    for row in rows:
        step = int(row["step"])
        for band in NOTEBOOK.bands:
            if band.first_step <= step <= band.last_step:
                ends = [float(row[f"{band.name} expected {end}"]) for end in ("low", "high")]
                assert ends == [band.low, band.high]
        assert (row[f"{score.name} expected high"] == "") == (step != score.last_step)


def test_a_number_that_no_curve_shows_has_the_sentence_alone(tmp_path):
    summary = make_report(run_of(tmp_path / "run", REFERENCES["tiny_cpu"]))
    chart, rows = reward_chart(summary)
    assert "the band of tiny_cpu" in dict(summary.rows)["expected"]
    assert not any(panel["expected"] for panel in chart["panels"])
    assert not any("expected" in name for name in rows[0])


def test_a_run_without_a_record_has_neither(tmp_path):
    summary = make_report(write_run(tmp_path / "run"))
    chart, rows = reward_chart(summary)
    assert "expected" not in dict(summary.rows)
    assert not any(panel["expected"] for panel in chart["panels"])
    assert not any("expected" in name for name in rows[0])


def test_of_several_runs_each_has_its_range_and_a_common_one_is_grey(tmp_path):
    places = [run_of(tmp_path / name, NOTEBOOK) for name in ("a", "b")]
    places.append(write_run(tmp_path / "c"))
    summary = make_report(*places, out=tmp_path / "both")
    assert {name for name, _ in summary.rows if "expected" in name} == {
        "a: expected",
        "b: expected",
    }
    chart, rows = reward_chart(summary)
    ranges = chart["panels"][0]["expected"]
    assert len(ranges) == len(NOTEBOOK.bands)
    assert all(one["runs"] == [0, 1] and one["color"] == GREY for one in ranges)
    assert {row["run"] for row in rows if row[LOW]} == {"a", "b"}
    one = make_report(places[0], places[2], out=tmp_path / "one")
    chart, rows = reward_chart(one)
    colors = {run["color"] for run in HtmlText(one.html.read_text()).data["runs"]}
    assert all(r["runs"] == [0] and r["color"] in colors for r in chart["panels"][0]["expected"])
    # Columns that one run alone has are not lost.
    assert any(row["run"] == "c" and row["eval/avg@8"] for row in rows)
    assert {row["run"] for row in rows if row[HIGH]} == {"a"}


def test_scores_of_two_sample_numbers_are_both_drawn(tmp_path):
    place = write_run(tmp_path / "run")  # a resume may change evaluate.n
    path = place / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["eval/avg@4"] = 0.5
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chart, _ = reward_chart(make_report(place))
    points = [s for s in chart["panels"][0]["series"] if s["kind"] == "points"]
    assert [(s["label"], len(s["x"])) for s in points] == [
        ("held-out avg@4", 1),
        ("held-out avg@8", 4),
    ]


def test_a_damaged_run_json_leaves_it_out(tmp_path):
    place = run_of(tmp_path / "run", NOTEBOOK)
    (place / "run.json").write_text("[")
    assert read_run(epath.Path(place)).compared is None
