"""A run whose reward is a function of the user's: from prepare to report, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polaris_jax.data.problems import read_problems
from tests.support.kills import Life, assert_same_run, metrics
from tests.support.micro_run import ROOT, finish, flags, make_base, start_train

FUNCTIONS = '''
def ones(response):
    """The share of ones among four."""
    return min(1.0, response.text.count("1") / 4)

def moody(response):
    """A dict with parts; for some answers a hang, an exception or a NaN instead."""
    bad = "{4}" in response.text
    if bad and response.problem_id == "p5":
        while True:
            pass
    if bad and response.problem_id in ("p6", "p9"):
        raise ValueError(f"no 4 for {response.problem_id}")
    if bad and response.problem_id in ("p7", "p10"):
        return float("nan")
    return {
        "reward": float("1" in response.text),
        "level": response.extra["level"],
        "tokens": response.num_tokens,
        "never": None,
    }
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base model, problems with an extra column, and the functions' file."""
    directory = tmp_path_factory.mktemp("base")
    model, problems = make_base(directory)
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    lines = [json.dumps(row | {"level": i, "tags": ["x"]}) + "\n" for i, row in enumerate(rows)]
    problems.write_text("".join(lines))
    functions = directory / "mine.py"
    functions.write_text(FUNCTIONS)
    return model, problems, functions


def run(command: str, line: list[str], workdir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "polaris_jax", command, *line, f"--workdir={workdir}"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def rollouts(workdir: Path) -> list[dict[str, Any]]:
    files = sorted((workdir / "rollouts").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def expected(row: dict[str, Any], weights: tuple[float, float]) -> float:
    """The reward of a row of rollouts/, by the rules."""
    if "{4}" in row["text"] and row["problem_id"] in ("p5", "p6", "p7", "p9", "p10"):
        return 0.0
    ones = min(1.0, row["text"].count("1") / 4)
    return round(weights[0] * ones + weights[1] * ("1" in row["text"]), 6)


def test_a_step_of_training_on_two_functions(base, tmp_path):
    model, problems, functions = base
    spec = f"{functions}:ones*0.5,{functions}:moody*0.5"
    line = flags(
        model,
        problems,
        f"--config.reward.function={spec}",
        "--config.reward.correct_at=0.625",
        "--config.reward.timeout_s=3",
        "--config.rollout.total_tokens=1",  # one step
        "--config.rollout.save_every=1",
    )
    out = finish(start_train(tmp_path / "run", line))
    (step,) = metrics(tmp_path / "run")
    rows = rollouts(tmp_path / "run")
    for row in rows:
        assert row["reward"] == pytest.approx(expected(row, (0.5, 0.5))), row
        failed = "{4}" in row["text"] and row["problem_id"] in ("p5", "p6", "p7", "p9", "p10")
        parts = {"level": float(row["problem_id"][1:]), "tokens": row["tokens"], "never": None}
        assert row.get("parts") == (None if failed else parts), row
    given = [row["parts"] for row in rows if "parts" in row]
    for name in ("level", "tokens"):
        mean = sum(parts[name] for parts in given) / len(given)
        assert step[f"reward/{name}"] == pytest.approx(mean)
    assert step["reward/never"] is None
    assert 0 < step["rollout/reward_mean"] < 1
    right = [row["tokens"] for row in rows if row["reward"] >= 0.625]
    assert step["rollout/mean_length_correct"] == pytest.approx(sum(right) / len(right))
    (timing,) = (
        json.loads(text) for text in (tmp_path / "run/timing.jsonl").read_text().splitlines()
    )
    ends = {"timeouts": "p5", "errors": "p6 p9", "invalid": "p7 p10"}
    for kind, ids in ends.items():
        count = sum("{4}" in r["text"] and r["problem_id"] in ids.split() for r in rows)
        assert timing[f"reward/{kind}"] == count
        assert (count > 0) <= out.count(f"counted as {kind},") <= 1  # the stage's probe may say it


def test_a_function_that_cannot_be_used_ends_each_command_before_anything_runs(base, tmp_path):
    model, problems, functions = base
    line = flags(model, problems, f"--config.reward.function={functions}:nothing")
    for command in ("train", "calibrate"):
        ended = run(command, line, tmp_path / "run")
        assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
        (said,) = ended.stderr.splitlines()
        assert f"reward.function='{functions}:nothing': " in said
        assert "has no 'nothing'; name a function that it defines" in said
        assert not (tmp_path / "run").exists()


CARRY = (
    "--config.rollout.partial_rollouts=carry",
    "--config.objective.old_logprobs=sampler",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("carry", [False, True], ids=["wait", "carry"])
def test_from_prepare_to_report_killed_and_resumed(base, tmp_path, carry):
    model, problems, functions = base
    spec = f"{functions}:ones*0.5,{functions}:moody*0.5"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    line = flags(
        model,
        problems,
        f"--config.reward.function={spec}",
        "--config.reward.correct_at=0.625",
        "--config.reward.timeout_s=3",
        "--config.rollout.save_every=1",
        "--config.calibrate.n=4",
        "--config.calibrate.preset=full",
        *(CARRY if carry else ()),
    )
    assert run("prepare", line, whole).returncode == 0
    line.append("--config.data.problems=")  # the workdir's files from here on
    done = run("calibrate", line, whole)
    assert done.returncode == 0, done.stderr
    for name in ("problems", "difficulty", "curated"):
        for problem in read_problems(whole / f"{name}.parquet")[0]:
            assert problem.extra == {"level": int(problem.id[1:]), "tags": ["x"]}
    rates = [problem.pass_rate for problem in read_problems(whole / "difficulty.parquet")[0]]
    assert all(4 * rate == int(4 * rate) for rate in rates) and 0 < sum(rates) < len(rates)

    shutil.copytree(whole, killed)
    Life(whole, line).finish()
    Life(killed, line).kill(at=5, delay_s=0.1)
    Life(killed, line).finish()
    assert_same_run(killed, whole)
    for row in rollouts(whole):
        assert row["reward"] == pytest.approx(expected(row, (0.5, 0.5))), row
    assert all("reward/level" in step for step in metrics(whole))
    assert json.loads((whole / "run.json").read_text())["deterministic"] is not True
    report = run("report", line, whole)
    assert report.returncode == 0, report.stderr
    assert "reward/level" in (whole / "report.html").read_text()
