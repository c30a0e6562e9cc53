"""`polaris ablate` from the command line: killed in its middle, it ends like one that was not."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from polaris_jax.__main__ import main
from polaris_jax.ablate.outcome import (
    ASKED,
    FINISHED,
    TAKEN,
    Outcome,
    read_outcome,
    refuse_others,
    write_outcome,
)
from polaris_jax.ablate.table import load_table
from polaris_jax.commands import ablate, ablate_worker
from polaris_jax.commands.ablate_worker import (
    BASE,
    FAILED,
    SCORE,
    all_runs,
    asked_of,
    score_base,
)
from polaris_jax.config import ConfigError
from polaris_jax.run.owner import alone, lock_name
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.system.progress import Progress
from tests.support import micro_run

TABLE = """
from polaris_jax.ablate import Arm, Table

TABLE = Table(
    config={config!r},
    overrides={overrides!r},
    arms=(Arm("plain", {{"batch.rescue": False}}), Arm("rescue", {{"batch.rescue": True}})),
    seeds=(0, 1),
)
"""


def write_table(directory: Path) -> Path:
    base, problems = micro_run.make_base(directory)
    config, *words = micro_run.flags(base, problems)
    overrides = dict(word.removeprefix("--config.").split("=", 1) for word in words)
    overrides |= {
        "stages[0].steps": 2,
        "stages[1].steps": 1,
        "evaluate.every_steps": 1,
        "evaluate.problems": str(problems),
        "evaluate.n": 2,
    }
    path = directory / "table.py"
    path.write_text(TABLE.format(config=config.removeprefix("--config="), overrides=overrides))
    return path


def start(table: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "polaris_jax", "ablate", str(table), f"--out={out}", "--workers=2"],
        cwd=micro_run.ROOT,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_table_that_was_killed_gives_the_result_of_one_that_was_not(tmp_path):
    table, whole, cut = write_table(tmp_path), tmp_path / "whole", tmp_path / "cut"
    said = micro_run.finish(start(table, whole), timeout_s=900)
    assert "4 of 4 runs are finished, from 1 bases." in said
    process = start(table, cut)
    while not list(cut.glob("runs/*/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)  # the workers end with it, and leave checkpoints
    process.wait()
    refused = start(table, cut)  # at once: workers that still save are waited for by their locks
    refused.communicate(timeout=900)
    said = micro_run.finish(start(table, cut), timeout_s=900)
    assert "4 runs, " in said
    for name in ("ablations.json", "ablations.md"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    summary = json.loads((whole / "ablations.json").read_text())
    assert [arm["name"] for arm in summary["arms"]] == ["plain", "rescue"]
    assert all(len(outcome["scores"]) == 3 for outcome in summary["outcomes"])
    assert all(outcome["sampled_tokens"] > 0 for outcome in summary["outcomes"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "TABLE.py: needed"),
        (["none.py", "--out=x"], "none.py: there is no such file"),
        (["T"], "--out: needed"),
        (["T", "--out=gs://b/x"], "name a directory on a disk"),
        (["T", "--out=x", "--workers=-1"], "--workers"),
    ],
    ids=["nothing", "no file", "no out", "store", "workers"],
)
def test_mistakes_are_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.py").write_text(TABLE.format(config="c.py", overrides={}))
    assert main(["ablate", *(word.replace("T", "t.py") for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("TABLE = 5", "t.py: has no TABLE = Table(...)"),
        ("raise OSError('x')", "t.py: OSError: x; mend the file"),
        (TABLE.format(config="none.py", overrides={}), "base 'base': --config=none.py"),
    ],
    ids=["no table", "raises", "config"],
)
def test_a_table_with_a_mistake_is_refused_before_any_run(
    text, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("t.py").write_text(text)
    assert main(["ablate", "t.py", "--out=x"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("x").exists()


def test_a_run_without_held_out_scores_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = str(micro_run.ROOT / "configs" / "tiny_cpu.py")
    Path("t.py").write_text(TABLE.format(config=config, overrides={}))
    assert main(["ablate", "t.py", "--out=x"]) == 2
    assert "base 'base': evaluate.every_steps=0" in capsys.readouterr().err
    late = {"evaluate.every_steps": 9, "stages[0].steps": 4, "stages[1].steps": 4}
    Path("t.py").write_text(TABLE.format(config=config, overrides=late))
    assert main(["ablate", "t.py", "--out=x"]) == 2
    said = "arm 'plain': evaluate.every_steps=9: its 8 steps end before the first held-out score"
    assert said in capsys.readouterr().err


def test_every_tuned_value_is_checked_before_any_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tuning = "Tuning('optimizer.learning_rate', (-1.0, 1e-3), {'t': {}})"
    path = write_table(tmp_path)
    text = path.read_text().replace("TABLE = Table(", f"TABLE = Table(tuning={tuning},")
    path.write_text("from polaris_jax.ablate import Tuning\n" + text)
    assert main(["ablate", str(path), "--out=x"]) == 2
    assert "optimizer.learning_rate=-1.0" in capsys.readouterr().err
    assert not Path("x").exists()


def test_a_list_of_runs_that_depend_on_others_is_refused_before_anything_is_printed(capsys):
    table = str(micro_run.ROOT / "configs" / "ablations" / "headline.py")
    assert main(["ablate", table, "--out=x", "--list"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "depends on other runs" in said.err


def finish_all(path: Path, out: Path) -> None:
    """Leaves the outcome of every run of a table, as if each had been trained."""
    table = load_table(str(path))
    for run in all_runs(table):
        outcome = Outcome(run.arm, run.base, run.seed, 0.1, ((0, 0.2), (1, 0.3)), 10, updates=2)
        (out / run.name).mkdir(parents=True)
        write_outcome(epath.Path(out / run.name), outcome, asked_of(table, run, epath.Path(out)))


def test_finished_runs_of_another_table_are_refused_by_name(tmp_path, capsys):
    """They would stand under the new settings' name."""
    path, out = write_table(tmp_path), tmp_path / "out"
    finish_all(path, out)
    assert main(["ablate", str(path), f"--out={out}"]) == 0
    assert "4 of 4 runs are finished" in capsys.readouterr().out
    before = (out / "ablations.json").read_bytes()
    text = path.read_text()
    arm = '{"batch.rescue": True, "optimizer.learning_rate": 0.5}'
    path.write_text(text.replace('{"batch.rescue": True}', arm))
    assert main(["ablate", str(path), f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert "runs/rescue/base-0: it was made with --config.optimizer.learning_rate=" in error
    assert "now gives it --config.optimizer.learning_rate=0.5; name another directory" in error
    assert (out / "ablations.json").read_bytes() == before


def finished_run(workdir: Path, *scores: tuple[int, float]) -> None:
    """Leaves what `polaris train` leaves, as far as an outcome needs it."""
    workdir.mkdir(parents=True)
    record = {"starts": [{"ended": "finished"}], "counts": {"sampled_tokens": 7}}
    (workdir / "run.json").write_text(json.dumps(record))
    lines = [json.dumps({"step": step, "eval/avg@2": score}) for step, score in scores]
    (workdir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_a_run_that_was_killed_before_its_last_weights_were_scored_is_not_finished(tmp_path):
    run = all_runs(load_table(str(write_table(tmp_path))))[0]
    out, workdir = epath.Path(tmp_path / "out"), tmp_path / "out" / run.name
    finished_run(workdir, (-1, 0.25), (0, 0.5))
    found = read_outcome(out, run)  # by its own command
    assert found is not None
    assert (found.before, found.scores, found.after) == (0.25, ((0, 0.5),), None)
    (workdir / "eval.json").write_text('{"checkpoint": "latest", "avg@k": 0.75}')
    assert read_outcome(out, run) == dataclasses.replace(found, after=0.75)
    (workdir / lock_name(TAKEN)).write_text("")  # a worker has had it, which says when it ends
    assert read_outcome(out, run) is None


def test_a_run_without_a_score_of_its_own_is_named(tmp_path):
    run = all_runs(load_table(str(write_table(tmp_path))))[0]
    finished_run(tmp_path / "out" / run.name, (-1, 0.25))
    with pytest.raises(ValueError, match=r"plain/base-0: the run ended without a held-out score"):
        read_outcome(epath.Path(tmp_path / "out"), run)


def test_flags_in_another_order_are_the_same_run(tmp_path):
    (tmp_path / FINISHED).write_text(json.dumps({ASKED: ["--config=c", "--config.a.b=1"]}))
    refuse_others(epath.Path(tmp_path), ["--config.a.b=1", "--config=c"])
    with pytest.raises(ConfigError, match=r"made with --config.a.b=1, and the table now gives it"):
        refuse_others(epath.Path(tmp_path), ["--config.a.b=2", "--config=c"])


def test_a_run_that_fails_is_tried_once_by_all_workers_and_others_are_run(tmp_path, monkeypatch):
    """Also if its settings are at fault."""
    table = load_table(str(write_table(tmp_path)))
    out, runs, tried = epath.Path(tmp_path / "out"), all_runs(table), []

    def train(table, run, out, before):
        tried.append(run.name)
        later = out / runs[-1].name  # meanwhile another worker fails with the last run
        later.mkdir(parents=True, exist_ok=True)
        (later / FAILED).write_text("no memory")
        raise ConfigError("data.problems=x: no problem remains")

    for name in ("_take_cores", "_end_with_parent", "keep_programs"):
        monkeypatch.setattr(ablate_worker, name, lambda *_: None)
    monkeypatch.setattr(ablate_worker, "score_base", lambda *_: 0.5)
    monkeypatch.setattr(ablate_worker, "_train", train)
    monkeypatch.setenv(ablate_worker.WORKER, "0/1")
    assert ablate_worker.work(table, out) == 0
    assert tried == [run.name for run in runs[:-1]]
    assert (out / runs[0].name / FAILED).read_text() == "data.problems=x: no problem remains"
    assert (out / runs[-1].name / FAILED).read_text() == "no memory"


def test_a_failure_is_forgotten_once_the_run_has_finished(tmp_path, capsys):
    path, out = write_table(tmp_path), tmp_path / "out"
    finish_all(path, out)
    run = all_runs(load_table(str(path)))[0]
    (out / run.name / FAILED).write_text("no memory")
    assert main(["ablate", str(path), f"--out={out}"]) == 0
    assert "Failed:" not in capsys.readouterr().out


def test_a_killed_worker_is_named(tmp_path, monkeypatch, capsys):
    path, out, begin = write_table(tmp_path), tmp_path / "out", subprocess.Popen

    def killed(words, **more):
        return begin(["sh", "-c", "kill -9 $$"], **more)

    monkeypatch.setattr(ablate.subprocess, "Popen", killed)
    assert main(["ablate", str(path), f"--out={out}", "--workers=1"]) == 1
    said = capsys.readouterr().out
    assert "worker 0 was killed (Killed); if memory ran out, take fewer --workers" in said
    assert "4 of 4 runs are not finished" in said


def test_the_list_has_every_command_that_a_result_needs(tmp_path, capsys):
    path = write_table(tmp_path)
    text = path.read_text()
    for more, commands in (
        ("evaluate=True", ["train", "evaluate"] * 4),
        ("train=False", ["evaluate"] * 5),  # of the base, too
    ):
        path.write_text(text.replace("TABLE = Table(", f"TABLE = Table({more},"))
        assert main(["ablate", str(path), f"--out={tmp_path / 'out'}", "--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines] == commands
    assert f"--workdir={tmp_path / 'out' / 'bases' / 'base'}" in lines[0]


def test_tables_share_the_bases_of_a_folder(tmp_path, capsys):
    """The second table finds the first one's base, if it asks for the same."""
    path, shared = write_table(tmp_path), tmp_path / "shared"
    for name in ("one", "two"):
        finish_all(path, tmp_path / name)
        assert main(["ablate", str(path), f"--out={tmp_path / name}", f"--bases={shared}"]) == 0
        assert (tmp_path / name / "bases").resolve() == shared.resolve()
    table, out = load_table(str(path)), epath.Path(tmp_path / "two")
    workdir = ensure_workdir(epath.Path(shared) / "base")
    write_json(workdir / "eval.json", {"avg@k": 0.25})
    write_json(workdir / BASE, {ASKED: table.base_run("base").flags()})
    assert score_base(table, "base", out) == 0.25
    other = dataclasses.replace(table, overrides={**table.overrides, "evaluate.n": 3})
    with pytest.raises(ConfigError, match=r"bases/base: it was made with --config.evaluate.n=2"):
        score_base(other, "base", out)
    path.write_text(path.read_text().replace("'evaluate.n': 2", "'evaluate.n': 3"))
    assert main(["ablate", str(path), f"--out={out}"]) == 2  # in one line, before any run
    assert "bases/base: it was made with --config.evaluate.n=2" in capsys.readouterr().err


def test_a_worker_makes_another_base_while_one_is_made(tmp_path, monkeypatch):
    """It takes a run on a base that is free, and the others when theirs is."""
    table = load_table(str(write_table(tmp_path)))
    table = dataclasses.replace(table, bases={"a": {}, "b": {"warmstart.seed": 1}}, seeds=(0,))
    out, order = epath.Path(tmp_path / "out"), []
    made = multiprocessing.get_context("spawn").Process(target=_hold_base, args=(str(out), "a"))

    def run_of(table, run, out):
        order.append(run.name)
        if run.base == "b" and made.is_alive():
            made.kill()
            made.join()
        (out / run.name / FINISHED).write_text("{}")
        return True

    for name in ("_take_cores", "_end_with_parent", "keep_programs"):
        monkeypatch.setattr(ablate_worker, name, lambda *_: None)
    monkeypatch.setattr(ablate_worker, "_do", run_of)
    monkeypatch.setenv(ablate_worker.WORKER, "0/1")
    made.start()
    while not (out / "held").exists():
        assert made.is_alive()
        time.sleep(0.1)
    assert ablate_worker.work(table, out) == 0
    first = next(run.name for run in all_runs(table) if run.base == "b")
    assert order[0] == first
    assert sorted(order) == sorted(run.name for run in all_runs(table))


def _hold_base(out: str, name: str) -> None:
    with alone(ensure_workdir(epath.Path(out) / "bases" / name), SCORE, Progress(enabled=False)):
        (epath.Path(out) / "held").write_text("")
        time.sleep(600)


def test_runs_that_began_from_other_bases_are_not_moved(tmp_path, capsys):
    path, out = write_table(tmp_path), tmp_path / "out"
    (out / "bases").mkdir(parents=True)
    assert main(["ablate", str(path), f"--out={out}", f"--bases={tmp_path / 'shared'}"]) == 2
    assert f"the runs in {out} began from" in capsys.readouterr().err


def test_an_interrupt_before_any_run_has_finished_leaves_no_result(tmp_path, monkeypatch, capsys):
    path, out = write_table(tmp_path), tmp_path / "out"
    path.write_text(path.read_text().replace("TABLE = Table(", "TABLE = Table(notes=notes,"))
    path.write_text("def notes(out):\n    raise AssertionError\n" + path.read_text())
    monkeypatch.setattr(ablate, "_run_workers", lambda *_: 130)
    assert main(["ablate", str(path), f"--out={out}"]) == 130
    assert not list(out.glob("ablations*"))
    assert capsys.readouterr().out == "4 runs, 0 of them finished\n"
