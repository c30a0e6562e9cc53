"""A run directory becomes figures, one self-contained page and a table, whatever is missing."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

from polaris_jax.config import ConfigError
from polaris_jax.report import make_report
from polaris_jax.report.evaluations import evaluations_figure
from polaris_jax.report.figures import difficulty_figure, evaluation_figure, probe_figure
from polaris_jax.report.measurements import evaluation_chart
from polaris_jax.report.plots import chart_record
from polaris_jax.report.run_files import read_run
from polaris_jax.report.style import curve, running_mean, short_number, smoothed
from polaris_jax.report.summary import (
    caption,
    gain_text,
    mean_speed,
    not_comparable,
    pair_names,
    score_name,
    stage_rows,
    summary_rows,
)
from polaris_jax.report.tables import evaluations_table
from tests.support.report.bars import bars_of, figures_of
from tests.support.report.html_text import HtmlText
from tests.support.report.synthetic import CALIBRATE, PROBE, RUN, evaluation, write_run

PNG = b"\x89PNG\r\n\x1a\n"
FIGURES = {
    "evaluation": "eval.json",
    "difficulty": "calibrate.json",
    "probe": "probe.json",
    "reward": "metrics.jsonl",
    "held_out": "metrics.jsonl",
    "length": "metrics.jsonl",
    "exploration": "metrics.jsonl",
    "batch": "metrics.jsonl",
    "update": "metrics.jsonl",
    "logprob_gap": "metrics.jsonl",
    "time": "timing.jsonl",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = write_run(tmp_path_factory.mktemp("report") / "run")
    return run_dir, make_report(run_dir)


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run whose figures are built but not painted: painting is most of a report's time."""
    monkeypatch.setattr(Figure, "savefig", lambda _, out, **__: out.write(PNG))
    return write_run(tmp_path / "run")


def test_every_figure_is_there_as_png_and_csv_and_in_the_page(finished):
    run_dir, summary = finished
    assert {path.stem for path in summary.figures} == set(FIGURES)
    page = HtmlText(summary.html.read_text())
    assert page.open == []
    assert page.ids >= set(FIGURES)
    assert set(page.links) == {f"figures/{n}.{kind}" for n in FIGURES for kind in ("png", "csv")}
    assert {chart["name"] for chart in page.data["charts"]} == set(FIGURES)
    for link in page.links:
        assert (run_dir / link).stat().st_size > 100
    assert all(path.read_bytes().startswith(PNG) for path in summary.figures)
    assert summary.html == run_dir / "report.html"


@pytest.mark.parametrize(
    ("name", "source"), [(n, s) for n, s in FIGURES.items() if s.endswith(".jsonl")]
)
def test_the_values_of_a_csv_are_those_of_the_metrics(finished, name, source):
    run_dir, _ = finished
    lines = [json.loads(line) for line in (run_dir / source).read_text().splitlines()]
    with open(run_dir / "figures" / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines)
    metrics = set(rows[0]) - {"step", "stage"}
    assert metrics
    for row, line in zip(rows, lines, strict=True):
        for metric in ("step", *metrics):
            assert (
                row[metric] == ""
                if line.get(metric) is None
                else float(row[metric]) == line[metric]
            )


def test_nothing_is_named_absent_in_a_whole_run(finished):
    assert finished[1].absent == ()


def test_the_table_says_what_the_demo_promises(finished):
    text = str(finished[1])
    for pattern in (
        r"avg@8 before RL +36\.0% ± 1\.9% of 256 problems at temperature 1, up to 96 tokens",
        r"avg@8 after RL +68\.0%",
        r"gain +\+32\.0 ± 2\.7 points",
        r"stage 0 +steps 0 to 23, temperature 1, up to 72 tokens, reward",
        r"stage 1 +steps 24 to 47, temperature 1\.1, up to 96 tokens, reward",
        r"groups rescued +\d+",
        r"groups substituted +\d+",
        r"problems dropped +31",
        r"updates skipped +1",
        r"speed +rollout [\d,]+ tokens/s, update [\d,]+ tokens/s",
        r"report +.*report\.html",
    ):
        assert re.search(pattern, text), pattern


def test_counts_are_those_of_the_metrics(finished):
    run_dir, summary = finished
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = dict(summary.rows)
    for kind in ("rescued", "substituted"):
        by_stage = [
            sum(x[f"batch/{kind}_groups"] for x in lines if x["stage"] == s) for s in (0, 1)
        ]
        assert rows[f"groups {kind}"] == str(sum(by_stage))
        assert [getattr(stage, kind) for stage in summary.stages] == by_stage


def test_what_a_run_writes_is_text_not_markup(finished):
    page = finished[1].html.read_text()
    assert "reaches &lt;the&gt; target" in page
    assert "<the>" not in page


@pytest.mark.parametrize("name", sorted({*FIGURES.values(), "stages.json", "run.json"}))
@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_file_that_gives_nothing_is_named_and_its_figures_left_out(run_dir, name, fault):
    if fault == "missing":
        (run_dir / name).unlink()
    else:
        (run_dir / name).write_text("{broken\n{broken\n")
    summary = make_report(run_dir)
    gone = {figure for figure, source in FIGURES.items() if source == name}
    assert {path.stem for path in summary.figures} == set(FIGURES) - gone
    word = "not there" if fault == "missing" else "damaged"
    named = [f"{what}: {why}" for what, why in summary.absent]
    assert len(named) == max(1, len(gone))
    assert all(name in line and word in line for line in named)
    page = HtmlText(summary.html.read_text())
    assert page.open == []
    assert any(name in text for text in page.texts)


def test_a_run_without_held_out_diversity_has_its_other_figures(run_dir):
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k != "eval/diversity"} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    summary = make_report(run_dir)
    assert {found.stem for found in summary.figures} == set(FIGURES) - {"held_out"}


def test_a_directory_of_no_run_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="holds no file of a run"):
        make_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_without_figures_gives_a_page_that_says_so(tmp_path):
    (tmp_path / "prepare.json").write_text('{"kept": 3}')
    summary = make_report(tmp_path)
    assert summary.figures == ()
    assert {what.removeprefix("figure ") for what, _ in summary.absent} >= set(FIGURES)
    assert summary.html.exists()
    assert str(summary) == f"report  {summary.html}"


def test_a_run_that_died_before_its_first_step(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "run.json").write_text(json.dumps(RUN | {"starts": [{"ended": "failed: no"}]}))
    summary = make_report(tmp_path)
    assert ("figure reward", "metrics.jsonl: empty") in summary.absent
    page = HtmlText(summary.html.read_text())
    texts = " ".join(page.texts)
    assert page.data["charts"] == page.data["responses"] == []
    assert "No step of training is recorded" in texts and "The run failed: no" in texts


def test_no_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run directory"):
        make_report(tmp_path / "nothing")


def test_a_second_report_drops_the_figures_it_no_longer_has(run_dir):
    make_report(run_dir)
    (run_dir / "probe.json").unlink()
    make_report(run_dir)
    assert not list((run_dir / "figures").glob("probe.*"))


def test_a_run_cut_off_after_one_step(run_dir):
    for name in ("metrics.jsonl", "timing.jsonl"):
        first = (run_dir / name).read_text().splitlines()[0]
        (run_dir / name).write_text(first + '\n{"step": 1, "torn')
    stages = json.loads((run_dir / "stages.json").read_text())[:1]
    stages[0]["last_step"] = None
    (run_dir / "stages.json").write_text(json.dumps(stages))
    summary = make_report(run_dir)
    drawn = set(FIGURES) - {"held_out"}  # the step was not scored
    assert {path.stem for path in summary.figures} == drawn
    assert [stage.steps for stage in summary.stages] == ["0 to 0"]


def test_metrics_that_are_null_throughout_leave_their_figure_out(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"rollout/logp_gap_mean": None, "rollout/logp_gap_max": None}
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = make_report(run_dir)
    assert ("figure logprob_gap", "metrics.jsonl: holds none of its metrics") in summary.absent


def test_a_run_that_drafts_has_a_figure_of_it_and_no_other_is_told(run_dir):
    lines = [json.loads(line) for line in (run_dir / "timing.jsonl").read_text().splitlines()]
    for calls, drawn in ((0, set()), (3, {"drafts"})):
        for line in lines:
            line |= {"sampler/verify_calls": calls, "sampler/draft_rate": 0.25 * calls}
            line |= {"sampler/draft_steps_saved": 1.5 * calls}
        (run_dir / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = make_report(run_dir)
        assert {path.stem for path in summary.figures} == set(FIGURES) | drawn
        assert "drafts" not in str(summary.absent)
    rows = (run_dir / "figures" / "drafts.csv").read_text().splitlines()
    assert rows[0] == "step,stage,sampler/draft_rate,sampler/draft_steps_saved"
    assert rows[1].endswith(",0.75,4.5")


def test_without_a_score_before_training_no_gain_is_claimed(run_dir):
    (run_dir / "before_eval.json").unlink()
    summary = make_report(run_dir)
    assert "gain" not in dict(summary.rows)
    assert ("before_eval.json", "not there") in summary.absent


def test_a_score_of_the_base_model_is_not_called_after_rl(run_dir):
    score = evaluation(0.68) | {"checkpoint": "base", "temperature": 1.3}
    (run_dir / "eval.json").write_text(json.dumps(score))
    summary = make_report(run_dir)
    rows, page = dict(summary.rows), summary.html.read_text()
    assert "avg@8 base model" in rows
    assert "after RL" not in str(summary) + page
    assert rows["gain"] == "not comparable: both of the base model, temperature 1 and 1.3"
    assert "before and after" not in page
    assert "not comparable: both of the base model" in page


def test_further_evaluations_are_listed_by_their_tag(run_dir):
    shutil.copy(run_dir / "eval.json", run_dir / "greedy_eval.json")
    run = read_run(run_dir)
    assert list(run.others) == ["greedy"]
    assert "avg@8 greedy" in dict(summary_rows(run, stage_rows(run)))


def test_speed_is_all_tokens_by_all_seconds():
    timing = [
        {"time/rollout_s": 1.0, "throughput/rollout_tokens_per_s": 100.0},
        {"time/rollout_s": 3.0, "throughput/rollout_tokens_per_s": 200.0},
        {"time/rollout_s": 5.0, "throughput/rollout_tokens_per_s": None},
    ]
    assert mean_speed(timing, "rollout") == (100 + 600) / 4
    assert mean_speed(timing, "update") is None


def test_a_running_mean_ignores_what_is_unknown():
    values = np.array([1.0, np.nan, 3.0, 5.0])
    np.testing.assert_array_equal(running_mean(values, 3), [1.0, 2.0, 4.0, 4.0])
    assert np.isnan(running_mean(np.full(3, np.nan), 3)).all()


def test_a_stage_shorter_than_the_mean_is_wide():
    np.testing.assert_array_equal(running_mean(np.array([2.0, 4.0]), 7), [3.0, 3.0])


@pytest.mark.parametrize("count", [6, 60], ids=["few", "many"])
def test_a_line_is_broken_where_there_was_nothing_to_measure(count):
    nulls = {2, count - 3, count - 2}
    steps = np.arange(count, dtype=float)
    values = np.array([np.nan if s in nulls else 1.0 for s in range(count)])
    axes = Figure().subplots()
    smooth = smoothed(steps, values, np.zeros(count))
    curve(axes, steps, values, smooth, label="x", color="black")
    drawn = [line for line in axes.lines if line.get_linestyle() != "None"]
    for line in drawn:
        gaps = set(line.get_xdata()[np.isnan(line.get_ydata())])
        assert gaps == nulls
    alone = [x for line in axes.lines if line.get_marker() == "o" for x in line.get_xdata()]
    assert count - 1 in alone


def test_no_running_mean_crosses_the_border_of_a_stage():
    steps, stages = np.arange(40.0), np.repeat([0, 1], 20)
    across, upwards = smoothed(steps, np.where(stages == 0, 0.0, 1.0), stages)
    assert set(upwards[np.isfinite(upwards)]) == {0.0, 1.0}
    assert np.isnan(upwards[20]) and across[20] == 19


@pytest.mark.parametrize(
    ("value", "text"),
    [(96, "96"), (9_999, "9999"), (39_936, "39.9K"), (53_248, "53.2K"), (2.5e6, "2.5M")],
)
def test_short_numbers(value, text):
    assert short_number(value) == text


@pytest.mark.parametrize(
    "change",
    [
        {"accuracies": [0.0] * 7},
        {"stderrs": [None] * 7},
        {"stderrs": None, "zones": {}},
        {"zones": {"labels": ["rgz"] * 7, "rgz": [0.4, 1.6], "cez": None, "pcz_from": None}},
        {"initial_temperature": None},
        {"zones": {}},
    ],
    ids=["all-zero", "null-errors", "no-errors", "one-zone", "no-choice", "no-zones"],
)
def test_odd_sweeps_are_built(run_dir, change):
    probe_figure(PROBE | change, run_dir / "probe.png")
    assert (run_dir / "probe.png").exists()


@pytest.mark.parametrize("preset", ["full", "drop_perfect", "aggressive"])
def test_histograms_are_built_for_every_preset(run_dir, preset):
    for histogram in (CALIBRATE["histogram"], [0] * 9):
        summary = CALIBRATE | {"histogram": histogram, "preset": preset}
        difficulty_figure(summary, run_dir / "difficulty.png")


def test_an_evaluation_stands_alone_too(tmp_path):
    score = evaluation(0.4) | {"checkpoint": "base", "stderr": None, "budget_curve": []}
    evaluation_figure(score, tmp_path / "eval.png")
    assert (tmp_path / "eval.png").read_bytes().startswith(PNG)


def test_length_groups_with_other_edges_stand_over_their_own_names(tmp_path, monkeypatch):
    figures = figures_of(monkeypatch)
    groups = [{"name": "<=64", "responses": 9, "share": 1.0, "accuracy": 0.25}]
    one, other = evaluation(0.6), evaluation(0.3) | {"length_groups": groups}
    evaluation_figure(other, epath.Path(tmp_path / "pair.png"), before=one)
    runs = [{"name": "a", **one}, {"name": "b", **other}]
    evaluations_figure({"evaluations": runs, "differences": []}, epath.Path(tmp_path / "all.png"))
    for figure in figures:
        (axes,) = [a for a in figure.axes if a.get_title(loc="left") == "by length of the response"]
        bars = bars_of(axes)
        assert bars["<=64"] == [0.25]
        assert bars["<32"] == [pytest.approx(0.75)]


def test_a_low_score_is_legible(tmp_path, monkeypatch):
    """White on a bar of 1% would be white on white."""
    figures = figures_of(monkeypatch)
    runs = [{"name": name, **evaluation(score)} for name, score in (("a", 0.01), ("b", 0.6))]
    evaluations_figure({"evaluations": runs, "differences": []}, epath.Path(tmp_path / "all.png"))
    colors = {text.get_text(): text.get_color() for text in figures[0].axes[0].texts}
    assert colors["60.0%"] == "white" != colors["1.0%"]


def test_equal_numbers_give_equal_pictures(tmp_path):
    for name in ("a.png", "b.png"):
        difficulty_figure(CALIBRATE, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def scored(**changed):
    """The text of an eval.json."""
    return json.dumps(evaluation(0.5) | changed)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("stages.json", "[1]", "[0]: int, expected an object"),
        ("stages.json", '[{"stage": 0}]', "[0]: no field 'first_step'"),
        ("stages.json", "{}", "dict, expected a list"),
        ("eval.json", "{}", "no field 'avg@k'"),
        ("eval.json", "null", "NoneType, expected an object"),
        ("my_eval.json", '{"a": 1}', "no field 'avg@k'"),
        ("eval.json", scored(checkpoint=5), "checkpoint: int, expected str"),
        ("eval.json", scored(**{"pass@k": {"x": 1}}), "pass@k: 'x': 1, expected numbers"),
        ("eval.json", scored(**{"maj@k": {"1": None}}), "maj@k: '1': None, expected numbers"),
        ("eval.json", scored(budget_curve=[{"budget": 0, "accuracy": 0}]), "budget_curve: budget"),
        ("calibrate.json", '{"shape": "J"}', "no field 'histogram'"),
        ("probe.json", "[1]", "list, expected an object"),
        ("run.json", '"x"', "str, expected an object"),
        ("metrics.jsonl", '{"step": "a"}\n', "line 1: step: str, expected int"),
        ("timing.jsonl", '{"step": 0, "time/rollout_s": "x"}\n', "line 1: time/rollout_s: str"),
        ("timing.jsonl", '{"step": 0, "a/by_process": [1, "x"]}\n', "line 1: a/by_process[1]: "),
        ("timing.jsonl", '{"step": 0, "a/by_rows": [1, "x"]}\n', "line 1: a/by_rows[1]: str"),
        ("metrics.jsonl", '{"step": 1, "update/skipped": [1]}\n', "line 1: update/skipped: list"),
    ],
)
def test_a_file_of_another_shape_counts_as_absent(run_dir, name, text, reason):
    (run_dir / name).write_text(text)
    assert f"damaged: {reason}" in read_run(epath.Path(run_dir)).absent[name]
    make_report(run_dir)


BEFORE = evaluation(0.36) | {"checkpoint": "base"}
AFTER = evaluation(0.68)


def test_equal_settings_give_a_gain():
    assert pair_names(BEFORE, AFTER) == ("before RL", "after RL")
    assert gain_text(BEFORE, AFTER) == "+32.0 ± 2.7 points"
    assert "same problems" in caption(BEFORE, AFTER)


def test_a_gain_on_the_same_problems_is_paired():
    before = BEFORE | {"problem_scores": {"a": 0.0, "b": 0.5, "c": 1.0}}
    after = AFTER | {"problem_scores": {"a": 0.5, "b": 1.0, "c": 1.0}}
    assert gain_text(before, after) == "+33.3 ± 16.7 points, paired"
    others = AFTER | {"problem_scores": {"a": 0.5, "b": 1.0, "d": 1.0}}
    assert gain_text(before, others) == "not comparable: other problems"
    assert gain_text(BEFORE, others) == gain_text(BEFORE, AFTER)  # earlier files name none


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"temperature": 1.3}, "temperature 1 and 1.3"),
        ({"k": 4}, "n 8 and 4"),
        ({"correct_at": 0.5}, "correct_at 1 and 0.5"),
        ({"max_response_tokens": 48}, "budget 96 and 48"),
        ({"problems": 30}, "problems 256 and 30"),
        ({"top_p": 0.9}, "top_p None and 0.9"),
        ({"rope": "on", "yarn_factor": 2.0}, "YaRN off and x 2"),
        ({"checkpoint": "base"}, "both of the base model"),
        ({"temperature": 1.3, "k": 4}, "temperature 1 and 1.3, n 8 and 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_other_settings_do_not(change, reason):
    after = AFTER | change
    assert not_comparable(BEFORE, after) == reason
    assert gain_text(BEFORE, after) == f"not comparable: {reason}"
    assert "same problems" not in caption(BEFORE, after)


@pytest.mark.parametrize("name", ["pass@k", "length_groups", "budget_curve"])
@pytest.mark.parametrize("value", [None, []], ids=["null", "empty"])
def test_a_score_that_lacks_a_figure_stands_beside_one_that_has_it(run_dir, name, value):
    """Files of earlier versions, or of others."""
    value = {} if name == "pass@k" and value == [] else value
    (run_dir / "eval.json").write_text(scored(**{name: value}))
    run = read_run(epath.Path(run_dir))
    record = chart_record(evaluation_chart(run))
    assert all(series["x"] for panel in record["panels"] for series in panel["series"])
    evaluation_figure(run.evaluation, run_dir / "eval.png", before=run.before)
    assert "after RL" in "".join(evaluations_table(run))


def test_a_budget_curve_with_yarn_beside_it_changes_no_score():
    assert not_comparable(BEFORE | {"rope": "off"}, AFTER | {"rope": "both"}) == ""


def test_two_scores_of_one_checkpoint():
    assert not_comparable(AFTER, AFTER) == "both of one checkpoint"
    assert pair_names(AFTER, AFTER) == ("after RL, tag before", "after RL")


def test_names_come_from_the_weights():
    assert score_name(AFTER | {"checkpoint": "/runs/4b/checkpoints/120"}) == (
        "checkpoint checkpoints/120"
    )
    assert pair_names(None, BEFORE)[1] == "base model"
    assert caption(None, BEFORE) == "Held-out problems."


def test_steps_that_one_file_lacks_are_said(run_dir):
    steps = (run_dir / "metrics.jsonl").read_text().count("\n")
    timing = run_dir / "timing.jsonl"
    timing.write_text("".join(timing.read_text().splitlines(keepends=True)[:-1]))
    summary = make_report(run_dir)
    assert (
        "timing.jsonl",
        f"no line for 1 of {steps} steps, the first of them {steps - 1}",
    ) in summary.absent
    assert "no line for 1 of" in summary.html.read_text()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_counts_as_absent(run_dir, make):
    (run_dir / "timing.jsonl").unlink()
    make(run_dir / "timing.jsonl")
    reason = read_run(epath.Path(run_dir)).absent["timing.jsonl"]
    assert "expected a regular file" in reason


def test_a_metric_that_is_no_number_is_unknown(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text()
    line = json.dumps({"step": 10**6, "update/skipped": float("nan"), "update/loss": float("inf")})
    (run_dir / "metrics.jsonl").write_text(lines + line + "\n")
    found = read_run(epath.Path(run_dir))
    assert "metrics.jsonl" not in found.absent
    assert found.metrics[-1] == {"step": 10**6, "update/skipped": None, "update/loss": None}
    make_report(run_dir)
