"""A run that a person looks at: alive, killed, ended; and its score before it trains."""

import json
import shutil
import time

import pytest

from polaris_jax.__main__ import main
from tests.support.kills import metrics
from tests.support.micro_run import finish, flags, make_base, start_train

pytestmark = pytest.mark.xdist_group("loop")
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


def line(base, *more, scored=True):
    fields = {
        "stages[0].steps": 3,
        "stages[1].steps": 2,
        "stages[1].temperature_rule": "fixed",
        "stages[1].rope_factor": 1.0,
        "evaluate.every_steps": 2 if scored else 0,
        "evaluate.problems": base[1],
        "evaluate.n": 2,
        "checkpoint.every_steps": 1,
        "checkpoint.keep_last": 5,
    }
    return flags(*base, *(f"--config.{name}={value}" for name, value in fields.items()), *more)


def wait_for(process, path, content, count=1):
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists() or path.read_bytes().count(content) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said(capsys, *words):
    assert main([*map(str, words)]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def scored(base, tmp_path_factory):
    """A run that is killed twice, and what it says at its end: (workdir, looks, output)."""
    workdir, looks = tmp_path_factory.mktemp("scored") / "run", []

    def look(process=None):
        from polaris_jax.commands.status import status_lines
        from polaris_jax.system.files import as_place

        looks.append((*status_lines(as_place(workdir), now_s=time.time()), process))

    process = start_train(workdir, line(base))
    wait_for(process, workdir / "metrics.jsonl", b'"step": -1')  # step 0 compiles for seconds
    look(process)
    process.kill()
    process.communicate()
    assert [row["step"] for row in metrics(workdir)] == [-1]
    look()
    process = start_train(workdir, line(base))
    wait_for(process, workdir / "metrics.jsonl", b'"step": 2')
    look(process)
    process.kill()
    again, _ = process.communicate()
    assert "before training" not in again  # the score is there
    look()
    out = finish(start_train(workdir, line(base)))
    look()
    return workdir, looks, out


def test_status_on_a_run_that_lives_has_died_and_has_ended(scored):
    _, looks, _ = scored
    assert [lives for lives, _, _ in looks] == [True, False, True, False, False]
    heads = [lines[0] for _, lines, _ in looks]
    for (lives, _, process), head in zip(looks, heads, strict=True):
        if lives:
            assert f"running (pid {process.pid} on " in head
    assert all("killed, or its machine lost" in heads[i] for i in (1, 3))
    assert heads[4].endswith(": finished")
    last = "\n".join(looks[4][1])
    assert "steps       5 of 5 done" in last
    assert "before training" in last and "after 4 steps" in last
    shown = ["process 0" in "\n".join(lines) for _, lines, _ in looks]
    assert shown == [True, True, True, True, False]  # where it stopped, if it has not finished


def test_show_on_a_run_that_was_killed_and_has_ended(scored, capsys):
    workdir, _, _ = scored
    out = said(capsys, "show", workdir, "--limit=0")
    assert out.startswith("step 4: 6 problems, 24 responses: ")
    assert out.count("=== problem p") == 6 and out.count("--- response") == 24
    assert "  | Start with " in out
    rescued = [
        path
        for path in sorted((workdir / "rollouts").iterdir())
        if b"rescue_text" in path.read_bytes()
    ]
    for path in rescued:
        assert "trained in its place: a response of step" in said(capsys, "show", path, "--rescued")


def test_rows_of_rollouts_carry_the_question_and_the_reason(scored, base):
    questions = {}
    for text in base[1].read_text().splitlines():
        problem = json.loads(text)
        questions[problem["id"]] = problem["problem"]
    for path in (scored[0] / "rollouts").iterdir():
        for text in path.read_text().splitlines():
            row = json.loads(text)
            assert row["question"] == questions[row["problem_id"]]
            assert bool(row["reason"]) == (row["reward"] == 0)
            assert (row["answer"] == row["gold"]) == (row["reward"] == 1)


def test_a_finished_run_says_what_it_has_reached_and_what_to_run_next(scored):
    workdir, _, out = scored
    *_, score, following = out.strip().splitlines()
    first, last = (row["eval/avg@2"] for row in metrics(workdir) if row["step"] in (-1, 3))
    assert f"avg@2 {first:.1%} before training, {last:.1%} after 4 steps" in score
    assert "tokens sampled in" in score
    assert f"polaris evaluate --config=... --workdir={workdir} --checkpoint=latest" in following


def test_the_score_before_training_changes_no_other_byte(scored, base, tmp_path):
    """Nor do two kills: a run without held-out scores has the same lines and rollouts."""
    workdir = tmp_path / "run"
    finish(start_train(workdir, line(base, scored=False)))
    first, *lines = metrics(scored[0])
    scores = {"eval/avg@2", "eval/diversity"}
    assert first.keys() == {"step", *scores} and first["step"] == -1
    without = [{k: v for k, v in row.items() if k not in scores} for row in lines]
    assert without == metrics(workdir)
    for name in ["stages.json", *(f"rollouts/step_{i:06d}.jsonl" for i in range(5))]:
        assert (workdir / name).read_bytes() == (scored[0] / name).read_bytes(), name
    # The later scores have the same noise: without an update they would be equal.
    assert [row["step"] for row in lines if "eval/avg@2" in row] == [1, 3]


def test_a_run_that_has_no_held_out_diversity_resumes(scored, base, tmp_path):
    """The lines that are there stay as they are; later ones have the metric."""
    workdir = tmp_path / "run"
    shutil.copytree(scored[0], workdir)
    expected = metrics(workdir)
    old = [{k: v for k, v in row.items() if k != "eval/diversity"} for row in expected]
    text = "".join(json.dumps(row) + "\n" for row in old)
    (workdir / "metrics.jsonl").write_text(text)
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    for step in steps[1:]:
        shutil.rmtree(workdir / "checkpoints" / str(step))
    assert steps[0] <= 3  # so that step 3, which is scored, is done again
    finish(start_train(workdir, line(base)))
    done = 1 + steps[0]  # lines that are kept; the first is that of step -1
    assert metrics(workdir) == [*old[:done], *expected[done:]]
