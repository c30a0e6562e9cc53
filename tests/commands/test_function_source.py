"""A problem source of one's own through the commands, killed and resumed once."""

import json

import pytest

from polaris_jax.__main__ import main
from polaris_jax.data.problems import read_problems
from tests.support.kills import Life, assert_same_run
from tests.support.micro_run import flags, make_base

SOURCE = """
import json

def training():
    for line in open({path!r}):
        yield json.loads(line)

def held_out():
    return [{{"problem": "Start with 3.", "answer": "4", "id": "h"}}]

def broken():
    yield from training()
    raise ConnectionError("the data base is gone")
"""
MORE = [
    "--config.stages[0].steps=2",
    "--config.stages[1].steps=2",
    "--config.checkpoint.every_steps=1",
    "--config.probe.start=0.5",
    "--config.probe.stop=1.5",
    "--config.probe.step=0.5",
    "--config.probe.n=2",
    "--config.evaluate.n=2",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    model, problems = make_base(directory)
    (directory / "mine.py").write_text(SOURCE.format(path=str(problems)))
    return model, problems, directory / "mine.py"


@pytest.fixture(scope="module")
def line(base):
    model, _, source = base
    more = [*MORE, f"--config.evaluate.problems={source}:held_out"]
    return flags(model, f"{source}:training", *more)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prepare_calibrate_probe_train_and_evaluate_take_it(base, line, tmp_path, capsys):
    _, problems, source = base
    workdir = tmp_path / "run"
    where = f"--workdir={workdir}"
    assert main(["prepare", *line, where]) == 0
    assert read_problems(workdir / "problems.parquet")[0] == read_problems(problems)[0]
    assert json.loads((workdir / "prepare.json").read_text())["source"] == f"{source}:training"
    for command in ("calibrate", "probe", "evaluate"):
        assert main([command, *line, where]) == 0
    assert f"12 problems from {workdir / 'problems.parquet'}" in capsys.readouterr().out
    assert json.loads((workdir / "eval.json").read_text())["problems"] == 1

    Life(workdir, line, dies_after="update", nth=3).die()
    assert "resumed at step 2" in Life(workdir, line).finish()
    from_file = [word.replace(f"{source}:training", str(problems)) for word in line]
    whole = tmp_path / "whole"
    Life(whole, from_file).finish()
    assert_same_run(workdir, whole)


def test_one_that_fails_half_way_is_refused_before_anything_is_written(
    base, line, tmp_path, capsys
):
    _, _, source = base
    broken = f"{source}:broken"
    for command in ("prepare", "calibrate", "probe", "train"):
        where = tmp_path / command
        words = [command, *line, f"--config.data.problems={broken}", f"--workdir={where}"]
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(
            f"error: data.problems='{broken}': row 13: ConnectionError: the data"
        )
        assert said.count("\n") == 1
        left = list(where.iterdir()) if where.exists() else []
        assert all(path.name.endswith(".lock") for path in left)
    words = ["evaluate", *line, f"--config.evaluate.problems={broken}", f"--workdir={tmp_path}/e"]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: evaluate.problems='{broken}': row 13: ")
