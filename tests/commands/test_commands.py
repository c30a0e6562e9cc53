"""Every command once, in order, in one workdir, on a base model of seconds."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest

from polaris_jax.__main__ import main
from polaris_jax.checkpoint import Checkpointer
from polaris_jax.data.problems import read_problems
from polaris_jax.measure import held_out
from polaris_jax.models import load_pretrained
from tests.support.micro_run import final_state, flags, make_base

pytestmark = pytest.mark.xdist_group("commands")  # one worker makes what its tests share


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def line(base):
    # All eight virtual devices: the rows of an update are split over them.
    more = [
        "--config.mesh.fsdp=8",
        "--config.batch.rows=8",
        "--config.stages[0].steps=1",
        "--config.stages[1].steps=1",
        "--config.probe.start=0.5",
        "--config.probe.stop=1.5",
        "--config.probe.step=0.5",
        "--config.calibrate.batch_prompts=6",
        f"--config.evaluate.problems={base[1]}",
        "--config.evaluate.every_steps=1",  # scored before and after the scaling changes
        "--config.evaluate.n=4",
    ]
    return flags(*base, *more)


@pytest.fixture(scope="module")
def workdir(line, tmp_path_factory):
    """A workdir in which prepare, calibrate, probe, evaluate, train and evaluate have run."""
    workdir = tmp_path_factory.mktemp("commands") / "run"
    where = f"--workdir={workdir}"
    for command in (
        ["prepare"],
        ["calibrate"],
        ["probe"],
        ["evaluate", "--tag=before"],
        ["train"],
        ["evaluate", "--checkpoint=latest", "--config.evaluate.yarn=both"],
        ["report"],
    ):
        assert main([command[0], *line, where, *command[1:]]) == 0, command
    return workdir


def read(path):
    return json.loads(path.read_text())


def test_prepare_and_calibrate(workdir):
    prepared, difficulty = (
        read_problems(workdir / name)[0] for name in ("problems.parquet", "difficulty.parquet")
    )
    assert [p.id for p in prepared] == [p.id for p in difficulty]
    assert read(workdir / "prepare.json")["kept"] == len(prepared) == 12
    summary = read(workdir / "calibrate.json")
    assert sum(summary["histogram"]) == 12
    rates = [p.pass_rate for p in difficulty]
    assert np.mean(rates) == pytest.approx(summary["mean"])
    tokens = [p.response_tokens for p in difficulty]
    assert all(n is not None and 0 < n <= summary["max_response_tokens"] for n in tokens)
    curated = read_problems(workdir / "curated.parquet")[0]
    assert [p.id for p in curated] == [p.id for p in difficulty if p.pass_rate < 1]
    assert (workdir / "difficulty.png").stat().st_size > 1000


def test_probe(workdir):
    summary = read(workdir / "probe.json")
    assert summary["temperatures"] == [0.5, 1.0, 1.5]
    assert summary["initial_temperature"] in summary["temperatures"]
    assert len(summary["zones"]["labels"]) == 3
    assert summary["note"].startswith("16 samples a temperature (4 problems x 4)")
    assert (workdir / "probe.png").stat().st_size > 1000


def test_train_over_eight_devices(workdir):
    before, *lines = (json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines())
    assert before.keys() == {"step", "eval/avg@4", "eval/diversity"}
    assert before["step"] == -1
    assert len(lines) == 2
    assert all("eval/avg@4" in line for line in lines)
    for kind in ("correct", "incorrect"):
        for name in (f"rollout/mean_length_{kind}", f"rollout/clip_ratio_{kind}"):
            assert all(name in line for line in lines), name
    assert max(x["rollout/logp_gap_mean"] or 0 for x in lines) < 1e-4
    assert list((workdir / "tensorboard").iterdir())


def test_a_stop_while_scoring_resumes_with_the_score(workdir, line, tmp_path, monkeypatch):
    solve, calls = held_out.solve, []

    def stopped(*args, **options):
        calls.append(options["should_abort"]())
        if len(calls) in (2, 4):  # after a stage's last step, and after the run's
            os.kill(os.getpid(), signal.SIGTERM)
        return solve(*args, **options)

    monkeypatch.setattr(held_out, "solve", stopped)
    monkeypatch.setenv("POLARIS_STOPPED_STATUS", "143")
    for ended, status in ((1, 143), (2, 143), (2, 0), (2, 0)):  # the last one is complete already
        assert main(["train", *line, f"--workdir={tmp_path}"]) == status
        assert Checkpointer(tmp_path / "checkpoints").latest() == ended
    assert calls == [False] * 5  # the one before training; the others once in vain, once taken
    for name in ("metrics.jsonl", "stages.json"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()
    rollouts = sorted(path.name for path in (workdir / "rollouts").iterdir())
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == rollouts


def test_evaluate(workdir):
    before, after = read(workdir / "before_eval.json"), read(workdir / "eval.json")
    assert before["checkpoint"] == "base"
    assert after["checkpoint"] == "latest"
    for summary in (before, after):
        assert summary["problems"] == 12
        assert summary["budget_curve"][-1]["accuracy"] == pytest.approx(summary["avg@k"])
        assert summary["pass@k"]["1"] == pytest.approx(summary["avg@k"])
        assert summary["pass@k"]["4"] >= summary["pass@k"]["1"]
    assert after["budget_curve"][-1]["accuracy_yarn"] == pytest.approx(after["yarn"]["avg@k"])
    rows = [json.loads(x) for x in (workdir / "responses.jsonl").read_text().splitlines()]
    assert np.mean([row["reward"] for row in rows]) == pytest.approx(after["avg@k"])


def test_a_rerun_has_nothing_left_to_do(workdir, line, capsys):
    for command in ("calibrate", "probe"):
        before = (workdir / f"{command}.json").read_bytes()
        assert main([command, *line, f"--workdir={workdir}"]) == 0
        assert (workdir / f"{command}.json").read_bytes() == before
    assert main(["train", *line, f"--workdir={workdir}"]) == 0
    assert "already complete" in capsys.readouterr().out


def test_report(workdir):
    html = (workdir / "report.html").read_text()
    assert "damaged" not in html
    assert html.count("<figure") >= 8
    assert "src=" not in html.partition("<script")[0]


def test_start_at_a_later_stage(workdir, line, tmp_path, capsys):
    start = ["--stage=1", f"--from={workdir / 'checkpoints'}"]
    assert main(["train", *line, f"--workdir={tmp_path / 'later'}", *start]) == 0
    assert "starting stage 1" in capsys.readouterr().out
    stages = read(tmp_path / "later" / "stages.json")
    assert [s["stage"] for s in stages] == [1]
    # The other run's visits of stage 1 have dropped what they had to and are not counted as ours.
    visits = dict(final_state(tmp_path / "later")[1]["accuracy"]["visits"])
    assert sum(row[2] for row in visits[1]) == 6 * 4


def test_a_resume_with_other_memory_settings_continues_and_warns(workdir, line, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    changed = {
        "batch.rows": 16,
        "batch.row_len": 256,
        "model.remat": "layer",
        "optimizer.moments_in_host_memory": True,
        "rollout.total_tokens": 10**9,
        "stages[1].steps": 2,
    }
    before = read(again / "run.json")
    flags = [f"--config.{name}={value}" for name, value in changed.items()]
    assert main(["train", *line, f"--workdir={again}", *flags]) == 0
    captured = capsys.readouterr()
    assert "finished: 3 steps" in captured.out
    after = read(again / "run.json")
    rows, tokens, remat = (after["numerics"][n] for n in ("microbatch rows", "row tokens", "remat"))
    assert (rows, tokens, remat) == (16, 256, "layer")
    said = captured.err.partition(" differ from the run's last start")[0].removeprefix("warning: ")
    assert {"microbatch rows", "remat", "row tokens"} <= set(said.split(", "))
    assert before["deterministic"] and not after["deterministic"]
    host = final_state(again)[1]
    assert host["step"] == 3 and host["stage"]["finished"]


def test_of_other_problems_with_the_same_ids_nothing_is_taken_over(
    workdir, line, base, tmp_path, capsys
):
    rows = [json.loads(text) for text in base[1].read_text().splitlines()]
    for row in rows[1:]:
        row["answer"] = "7"
    others = tmp_path / "others.jsonl"
    others.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = ["--stage=1", f"--from={workdir / 'checkpoints'}", f"--config.data.problems={others}"]
    more = ["--config.data.use=problems", f"--workdir={tmp_path / 'later'}"]
    assert main(["train", *line, *start, *more]) == 0
    said = capsys.readouterr().out
    known = {p.id for p in read_problems(workdir / "curated.parquet")[0]}
    count = len(known - {rows[0]["id"]})
    assert f"{count} ids of {workdir / 'checkpoints'} are other problems here" in said
    host = final_state(tmp_path / "later")[1]
    former = dict(final_state(workdir)[1]["accuracy"]["visits"])
    visits = dict(host["accuracy"]["visits"])
    assert len(former[0]) > 1
    assert {row[0] for row in visits.get(0, [])} <= {rows[0]["id"]}
    assert set(host["stage"]["dropped_ids"]) <= {rows[0]["id"]}


def test_without_a_probe_the_stage_says_what_it_begins_at(line, tmp_path, capsys):
    rule = "--config.stages[0].temperature_rule=probe"
    assert main(["train", *line, f"--workdir={tmp_path / 'run'}", rule]) == 0
    assert "no probe.json" in capsys.readouterr().out
    stages = read(tmp_path / "run" / "stages.json")
    assert stages[0]["temperature"] == 1.0
    assert "no probe.json" in stages[0]["decisions"][0]["reason"]


def test_convert_and_generate(workdir, tmp_path, capsys):
    export, back, again = (str(tmp_path / name) for name in ("hf", "orbax", "hf2"))
    assert main(["convert", "--from", str(workdir / "checkpoints"), "--to", export]) == 0
    assert main(["convert", "--from", export, "--to", back]) == 0
    assert main(["convert", "--from", back, "--to", again]) == 0
    one, two = (load_pretrained(path)[0].params() for path in (export, again))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert main(["convert", "--from", export, "--to", export]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["generate", "--model", export, "--prompt", "Start with 3.", "--n", "2"]) == 0
    assert "1 of 2" in capsys.readouterr().out


def refused(args, capsys) -> str:
    """The one line of a command that must end with exit code 2."""
    capsys.readouterr()
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert "Traceback" not in out + err
    return err


def test_bad_inputs_are_one_line(base, line, tmp_path, capsys):
    where = f"--workdir={tmp_path / 'run'}"
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "empty.jsonl" in refused(
        ["train", *line, where, f"--config.data.problems={empty}"], capsys
    )
    bare = tmp_path / "bare"
    shutil.copytree(base[0], bare)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / name).unlink(missing_ok=True)
    assert "tokenizer" in refused(["train", *line, where, f"--config.model.path={bare}"], capsys)
    missing = f"--config.model.path={tmp_path / 'nowhere'}"
    assert "nowhere" in refused(["train", *line, where, missing], capsys)
    (tmp_path / "file").write_text("")
    blocked = f"--workdir={tmp_path / 'file' / 'run'}"
    assert "file" in refused(["train", *line, blocked], capsys)
    none = ["evaluate", *line, where, "--checkpoint=latest"]
    assert "does not exist" in refused(none, capsys)


def test_a_checkpoint_of_another_architecture_is_refused(workdir, line, tmp_path, capsys):
    other, _ = make_base(tmp_path, hidden_size=48)
    start = ["--stage=1", f"--from={workdir / 'checkpoints'}", f"--config.model.path={other}"]
    text = refused(["train", *line, f"--workdir={tmp_path / 'run'}", *start], capsys)
    assert "another architecture" in text
    assert "hidden_size" in text


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_malformed_row_is_named_and_counted_and_the_run_goes_on(command, line, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    good = [json.dumps({"problem": f"Start with {i}.", "answer": i}) for i in range(3)]
    rows.write_text("\n".join([good[0], "{not json", json.dumps({"problem": "x"}), *good[1:]]))
    where = tmp_path / "run"
    more = [f"--config.data.problems={rows}", "--config.evaluate.every_steps=0"]
    assert main([command, *line, f"--workdir={where}", *more]) == 0
    out = capsys.readouterr().out
    assert "rows.jsonl:2" in out
    assert "rows.jsonl:3" in out
    if command == "train":
        assert "rows.jsonl: 3 of 5 rows kept (2 malformed)" in out
        assert len((where / "metrics.jsonl").read_text().splitlines()) == 2
        visits = final_state(where)[1]["accuracy"]["visits"]
        assert {len(rows_of_stage) for _, rows_of_stage in visits} == {3}
    else:
        summary = read(where / "prepare.json")
        assert summary["counts"]["malformed"] == 2
        assert summary["kept"] == 3


def test_a_prompt_that_is_too_long_is_named_and_counted(line, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    long = {"problem": "Start with 1." * 40, "answer": "1", "id": "long"}
    rows.write_text(json.dumps({"problem": "Start with 2.", "answer": 2}) + "\n" + json.dumps(long))
    where = tmp_path / "run"
    assert main(["prepare", *line, f"--workdir={where}", f"--config.data.problems={rows}"]) == 0
    assert re.search(
        r"left out 1 problems .* over data.max_prompt_tokens=\d+, the longest long \(\d+ tokens\)",
        capsys.readouterr().out,
    )
    summary = read(where / "prepare.json")
    assert summary["counts"] == {"prompt_too_long": 1}
    assert summary["rows"] == summary["kept"] + sum(summary["counts"].values()) == 2
