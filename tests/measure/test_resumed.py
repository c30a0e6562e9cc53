"""calibrate, probe and evaluate that end in their middle go on there, to the same results."""

import dataclasses
import json

import numpy as np
import pytest

from polaris_jax.__main__ import main
from polaris_jax.data import prompt_child
from polaris_jax.measure import respond
from polaris_jax.measure.policy import Policy
from polaris_jax.system.child import Child
from tests.support.micro_run import flags, make_base

pytestmark = pytest.mark.xdist_group("resumed commands")  # one worker makes the base

# Each samples three times or more; the first file keeps what is done.
RESULTS = {
    "calibrate": (
        "calibrate_progress.jsonl",
        "calibrate.json",
        "difficulty.parquet",
        "curated.parquet",
    ),
    "probe": ("probe_progress.jsonl", "probe.json"),
    "evaluate": ("responses.jsonl", "eval.json"),
}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    base = make_base(tmp_path_factory.mktemp("base"))
    fields = {
        "mesh.fsdp": 8,  # this process's devices
        "batch.rows": 8,
        "calibrate.n": 4,
        "calibrate.batch_prompts": 4,
        "probe.start": 0.6,
        "probe.stop": 1.0,
        "probe.step": 0.2,
        "evaluate.problems": base[1],
        "evaluate.n": 2,
    }
    return flags(*base, *(f"--config.{name}={value}" for name, value in fields.items()))


@pytest.mark.parametrize(
    "command",
    ["calibrate", *(pytest.param(name, marks=pytest.mark.slow) for name in ("probe", "evaluate"))],
)
def test_what_is_done_is_not_sampled_again(command, line, tmp_path, monkeypatch):
    solve, asked, fails = Policy.solve, [], []

    def noted(self, problems, *, temperature, **options):
        asked.append(([problem.id for problem in problems], temperature))
        if fails and len(asked) == 2:
            raise RuntimeError("killed in its middle")
        return solve(self, problems, temperature=temperature, **options)

    monkeypatch.setattr(Policy, "solve", noted)
    monkeypatch.setattr(respond, "BATCH_PROMPTS", 4)

    def run(name: str) -> tuple[int, list]:
        asked.clear()
        status = main([command, *line, f"--workdir={tmp_path / name}"])
        return status, list(asked)

    started = []

    class Counted(Child):
        def __init__(self, *arguments, **options):
            started.append(arguments)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(prompt_child, "Child", Counted)
    assert run("whole")[0] == 0
    assert len(started) == 1  # it renders every prompt, and no batch renders them again
    of_whole = list(asked)
    assert len(of_whole) >= 3  # a probe refines the borders that it finds
    done, result, *_ = RESULTS[command]
    fails.append(True)
    assert run("cut") == (1, of_whole[:2])
    first = (tmp_path / "cut" / done).read_bytes()
    assert (tmp_path / "whole" / done).read_bytes().startswith(first)
    assert first.count(b"\n") > 0
    assert not (tmp_path / "cut" / result).exists()
    fails.clear()
    assert run("cut") == (0, of_whole[1:])
    for name in RESULTS[command]:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((tmp_path / "cut" / result).read_text())["problems"] in (4, 12)


@pytest.mark.parametrize("command", ["calibrate", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_what_could_not_be_graded_is_said_and_sampled_again(
    command, line, tmp_path, monkeypatch, capsys
):
    solve, asked, fails = Policy.solve, [], [True]

    def noted(self, problems, *, temperature, **options):
        graded = solve(self, problems, temperature=temperature, **options)
        asked.append([problem.id for problem in problems])
        if not fails or len(asked) > 1:
            return graded
        failed = [[p == r == 0 for r in range(len(group))] for p, group in enumerate(graded.texts)]
        reward_PR = np.where(failed, 0.0, graded.reward_PR)
        return dataclasses.replace(graded, failed=failed, reward_PR=reward_PR)

    monkeypatch.setattr(Policy, "solve", noted)
    monkeypatch.setattr(respond, "BATCH_PROMPTS", 4)

    def run(name: str) -> tuple[dict, str]:
        asked.clear()
        assert main([command, *line, f"--workdir={tmp_path / name}"]) == 0
        result = json.loads((tmp_path / name / RESULTS[command][1]).read_text())
        return result, capsys.readouterr().out

    failed, said = run("failed")
    first = asked[0]
    assert failed["grading_failed"] == 1
    assert "warning: grading failed for 1 of " in said
    fails.clear()
    mended, said = run("failed")
    assert asked == [first[:1]]
    assert "are made anew" in said
    assert "grading failed" not in said
    assert run("whole")[0] == mended
    assert "grading_failed" not in mended
