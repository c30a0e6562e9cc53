"""Metric files: deterministic bytes, JSON that any reader takes, and cutting back to a step."""

import json
import math
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.metrics import Mean, MetricsWriter, read_metrics, trackers
from polaris_jax.metrics.writer import reduce_metrics


def lines_of(path):
    return path.read_text().splitlines()


def test_means_add_up_to_the_mean_of_all_terms():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=20), rng.integers(1, 9, size=20)
    parts = [Mean(float(v * w), float(w)) for v, w in zip(values, weights, strict=True)]
    total = sum(parts[1:], parts[0])
    assert total.value == pytest.approx(np.average(values, weights=weights), rel=1e-12)


def test_what_is_reduced_already_stays_as_it_is():
    once = reduce_metrics({"z/mean": Mean(1.0, 2.0), "a/loss": math.nan, "p/note": "text"})
    again = reduce_metrics(json.loads(json.dumps(once)) | {"eval/late": math.inf})
    assert again["nonfinite"] == ["a/loss", "eval/late"]
    assert list(again) == ["a/loss", "eval/late", "p/note", "z/mean", "nonfinite"]


def test_mean_over_an_empty_class_is_null(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(0, {"rollout/mean_length_correct": Mean(0.0, 0), "a": Mean(jnp.float32(3), 2)})
    writer.close()
    assert lines_of(tmp_path / "metrics.jsonl") == [
        '{"step": 0, "a": 1.5, "rollout/mean_length_correct": null}'
    ]


def test_equal_numbers_give_equal_bytes_whatever_their_order_and_type(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, metrics in (
        (one, {"b": 0.1, "a": 2, "update/loss": np.float32(0.1), "stage": 1}),
        (other, {"stage": np.int64(1), "update/loss": jnp.float32(0.1), "a": 2, "b": Mean(0.1, 1)}),
    ):
        folder.mkdir()
        writer = MetricsWriter(folder)
        writer.write(3, metrics)
        writer.close()
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert lines_of(one / "metrics.jsonl")[0].startswith('{"step": 3, "a": 2, "b": 0.1, ')


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_non_finite_becomes_null_and_is_named(tmp_path, value):
    writer = MetricsWriter(tmp_path)
    writer.write(0, {"update/loss": value, "update/grad_norm": 1.0})
    writer.write(1, {"update/loss": 1.0})
    writer.close()
    first, second = (
        json.loads(x, parse_constant=pytest.fail) for x in lines_of(tmp_path / "metrics.jsonl")
    )
    assert first["update/loss"] is None
    assert first["nonfinite"] == ["update/loss"]
    assert "nonfinite" not in second


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.zeros(3), "shape"), ({"x": 1}, "dict"), (object(), "object")],
    ids=["array", "dict", "object"],
)
def test_what_is_no_metric_is_refused_by_name(tmp_path, value, words):
    writer = MetricsWriter(tmp_path)
    with pytest.raises(ValueError, match=rf"update/loss.*{words}"):
        writer.write(0, {"update/loss": value})
    writer.close()


def test_a_step_is_written_once(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(4, {})
    with pytest.raises(ValueError, match="step 4"):
        writer.write(4, {})
    writer.close()


def test_cut_back_then_redo_gives_the_bytes_of_a_run_that_was_not_interrupted(tmp_path):
    def metrics(step):
        return {"update/loss": Mean(math.sin(step), 3), "stage": step // 4}

    def run(folder, steps, writer=None):
        writer = writer or MetricsWriter(folder)
        for step in steps:
            writer.write(step, metrics(step))
            writer.write_timing(step, {"time/update_s": 0.1 * step})
        writer.close()

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run(whole, range(10))
    run(killed, range(7))
    with open(killed / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 7, "sta')  # the kill came in the middle of a write
    writer = MetricsWriter(killed)
    assert writer.cut_back(4) == (4, [])  # 4, 5, 6 and the torn 7
    assert [line["step"] for line in read_metrics(killed / "timing.jsonl")] == [0, 1, 2, 3]
    run(killed, range(4, 10), writer)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [line["step"] for line in read_metrics(killed / "timing.jsonl")] == list(range(10))


def test_cut_back_of_an_open_writer_goes_on_in_the_new_file(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(3):
        writer.write(step, {})
    writer.cut_back(1)
    writer.write(1, {"a": 1})
    writer.close()
    assert lines_of(tmp_path / "metrics.jsonl") == ['{"step": 0}', '{"step": 1, "a": 1}']


def test_cut_back_of_nothing_is_nothing(tmp_path):
    writer = MetricsWriter(tmp_path)
    assert writer.cut_back(0) == (0, [])
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_reader_leaves_out_a_torn_last_line_and_names_a_bad_one_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}')  # whole JSON, but its line end is missing
    assert read_metrics(path) == [{"step": 0}]
    path.write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2"):
        read_metrics(path)


def test_lines_that_were_lost_before_the_checkpoint_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 4}\n{"step": 5}\n')
    assert MetricsWriter(tmp_path).cut_back(5) == (1, [0, 2, 3])
    (tmp_path / "metrics.jsonl").unlink()
    assert MetricsWriter(tmp_path).cut_back(2) == (0, [0, 1])


@pytest.mark.parametrize(
    "line", ["nonsense", '{"step": "1"}', "[" * 100_000, "\x00", "5"], ids=ascii
)
def test_a_damaged_line_of_timing_stops_nothing(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    (tmp_path / "timing.jsonl").write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n{{"step": 3}}\n')
    assert MetricsWriter(tmp_path).cut_back(3) == (0, [2])
    assert lines_of(tmp_path / "timing.jsonl") == ['{"step": 0}', '{"step": 2}']
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:.*mend or delete the line"):
        MetricsWriter(tmp_path).cut_back(3)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_timing_that_cannot_be_written_is_a_warning(make, tmp_path, capsys):
    make(tmp_path / "timing.jsonl")
    writer = MetricsWriter(tmp_path)
    assert writer.cut_back(0) == (0, [])
    for step in range(3):
        writer.write(step, {})
        writer.write_timing(step, {})
    (warning,) = capsys.readouterr().err.splitlines()
    assert "timing.jsonl" in warning and "the run continues" in warning


def test_a_disabled_writer_touches_nothing(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True, enabled=False)
    writer.write(0, {"a": 1.0})
    writer.write_timing(0, {"b": 1.0})
    assert writer.cut_back(0) == (0, [])
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_every_number_and_no_heavy_framework(tmp_path):
    code = (
        "import sys, pathlib; from polaris_jax.metrics import MetricsWriter\n"
        "w = MetricsWriter(pathlib.Path(sys.argv[1]), tensorboard=True, first_step=5)\n"
        "w.write(5, {'update/loss': 0.25, 'note': 'x', 'none': None})\n"
        "w.write_timing(5, {'time/save_s': 2.0})\n"
        "w.close()\n"
        "print(sorted({'torch', 'tensorflow', 'jax'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"update/loss" in data
    assert b"time/save_s" in data
    assert b"none" not in data


def test_a_full_disk_ends_tensorboard_with_one_warning_and_the_run_continues(tmp_path):
    code = (
        "import pathlib, resource, sys; from polaris_jax.metrics import MetricsWriter\n"
        "w = MetricsWriter(pathlib.Path(sys.argv[1]), tensorboard=True)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "for step in range(300):\n"
        "    w.write(step, {'a': 1.0, 'b': 2.0, 'c': 3.0})\n"
        "w.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    warning, *others = done.stderr.splitlines()
    assert (done.returncode, done.stdout, others) == (0, "", [])
    assert warning == (
        f"warning: TensorBoard: {tmp_path}/tensorboard: File too large; the run continues without "
        "it until its next start"
    )
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 300


def test_a_place_that_takes_no_tensorboard_is_told_of_once(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file")
    writer = MetricsWriter(tmp_path, tensorboard=True, samples=1)
    writer.write(0, {"a": 1.0})
    writer.show_samples(0, [{"sample": 0, "text": "x"}])
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: TensorBoard: {tmp_path}/tensorboard: ")
    assert (tmp_path / "tensorboard").read_text() == "a file"


def test_a_store_that_refuses_events_ends_tensorboard_alone(bucket, capsys, monkeypatch):
    def refuse(path, data):
        raise TimeoutError(f"{path}: 503")

    writer = MetricsWriter("gs://bucket/run", tensorboard=True)
    writer.write(0, {"a": 1.0})
    monkeypatch.setattr(trackers, "write_bytes", refuse)
    for step in (1, 2, 3):
        writer.write(step, {"a": 1.0})
    writer.close()
    assert len(read_metrics("gs://bucket/run/metrics.jsonl")) == 4
    (warning,) = capsys.readouterr().err.splitlines()
    assert "503; the run continues without it until its next start" in warning
