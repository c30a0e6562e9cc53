"""Runs that cannot learn are called so by `calibrate`, `probe` and `train`."""

import json

import pytest

from polaris_jax.__main__ import main
from tests.support.micro_run import flags, make_base

pytestmark = pytest.mark.xdist_group("hopeless")  # one worker makes what its tests share

REWARDS = '''
import hashlib

def never(response):
    return 0.0

def few_problems(response):
    """14 problems are solved half of the time, all others never."""
    digest = hashlib.sha256((response.problem_id + response.text).encode()).digest()
    return float(int(response.problem_id[1:]) < 14 and digest[0] % 2)

def one_in_a_hundred(response):
    digest = hashlib.sha256((response.problem_id + response.text).encode()).digest()
    return float(digest[0] % 128 == 0)

def two_in_a_hundred(response):
    digest = hashlib.sha256((response.problem_id + response.text).encode()).digest()
    return float(digest[0] % 50 == 0)
'''
SMALL = {
    "calibrate.n": 4,
    "calibrate.batch_prompts": 192,
    "probe.start": 1.0,
    "probe.stop": 1.7,
    "probe.step": 0.35,
    "probe.problems": 8,
    "stages[0].steps": 8,
    "stages[1].steps": 4,
    "stages[1].temperature_rule": "fixed",
    "stages[1].max_response_tokens": 12,
    "stages[1].rope_factor": 1.0,
    "rollout.prompts_per_step": 4,
    "rollout.responses_per_prompt": 2,
    "checkpoint.every_steps": 100,
    "metrics.tensorboard": False,
}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """The flags of a run on random weights and 192 problems."""
    directory = tmp_path_factory.mktemp("base")
    base, problems = make_base(directory, trained=False)
    rows = [
        {"id": f"p{i}", "problem": f"Start with {i}.", "answer": str(1 + i % 4)} for i in range(192)
    ]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "rewards.py").write_text(REWARDS)
    more = [f"--config.{name}={value}" for name, value in SMALL.items()]
    more += ["--config.mesh.fsdp=8", "--config.batch.rows=8"]
    return flags(base, problems, *more), directory / "rewards.py"


def run(command, line, workdir, capsys, **fields):
    """Exit status and stdout of a command."""
    more = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    status = main([command, *line, *more, f"--workdir={workdir}"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def calibrated(workdir):
    return json.loads((workdir / "calibrate.json").read_text())


def test_random_weights_are_no_mirrored_j(line, tmp_path, capsys):
    status, out, err = run("calibrate", line[0], tmp_path, capsys)
    assert status == 0, err
    assert calibrated(tmp_path)["shape"] == "unsolved"
    assert "mirrored J" not in out
    assert "pass rates: unsolved, mean 0.0%" in out
    assert "warning: nothing to learn: 0 of 192 groups inform" in out
    assert "gold: 1" in out


def test_178_of_192_never_solved_is_no_mirrored_j(line, tmp_path, capsys):
    function = f"{line[1]}:few_problems"
    _, out, _ = run("calibrate", line[0], tmp_path, capsys, reward__function=function)
    histogram = calibrated(tmp_path)["histogram"]
    assert histogram[0] >= 178
    assert calibrated(tmp_path)["shape"] == "unsolved"
    assert "nothing to learn" not in out  # 14 problems inform


def test_a_probe_at_a_hundredth_suggests_no_temperature(line, tmp_path, capsys):
    function = f"{line[1]}:one_in_a_hundred"
    status, out, err = run("probe", line[0], tmp_path, capsys, reward__function=function)
    assert status == 1
    assert "suggested initial temperature" not in out
    assert "two standard errors" in err
    assert "Traceback" not in err
    probed = json.loads((tmp_path / "probe.json").read_text())
    assert probed["initial_temperature"] is None
    assert len(probed["accuracies"]) == 3
    assert (tmp_path / "probe.png").exists()

    status, _, err = run(
        "train", line[0], tmp_path, capsys, **{"stages[0].temperature_rule": "probe"}
    )
    assert status == 2
    assert "`polaris probe` found no temperature" in err
    assert "stages[0].temperature_rule=fixed" in err


@pytest.mark.parametrize("stop", [False, True], ids=["warned", "stopped"])
def test_steps_without_reward_do_not_end_in_silence(line, tmp_path, capsys, stop):
    fields = {"reward__function": f"{line[1]}:never", "batch__on_scarce": "skip"}
    fields |= {"guards__stop": "uninformative"} if stop else {}
    status, out, err = run("train", line[0], tmp_path, capsys, **fields)
    assert "warning: nothing to learn: 0 of 4 groups inform" in out, err
    if stop:
        assert status == 1
        assert "guards.stop names uninformative" in err
        return
    assert status == 1, err
    assert "warning: step 4: every reward is 0" in out
    assert "warning: 12 of 12 steps taught nothing" in out
    assert "finished: 12 steps" in out
    status, out, _ = run("train", line[0], tmp_path, capsys, **fields)
    assert (status, "already complete: 12 steps" in out) == (0, True)


def test_rewards_of_two_per_cent_whose_groups_inform_get_no_warning(line, tmp_path, capsys):
    fields = {"reward__function": f"{line[1]}:two_in_a_hundred", "stages[0].steps": 1}
    fields |= {"stages[1].steps": 1, "rollout__responses_per_prompt": 64}
    status, out, err = run("train", line[0], tmp_path, capsys, **fields)
    assert status == 0, err
    assert "there is something to learn" in out
    assert "warning" not in out


def test_prepare_counts_what_rows_lose(line, tmp_path, capsys):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Start with 1."},
        {"role": "assistant", "content": "1"},
    ]
    rows = [
        {"prompt": chat, "answer": "1"},
        {"problem": "Start with 2.", "answer": "def f(x):\n    return x"},
        {"problem": "Start with 3.", "answer": "3"},
    ]
    problems = tmp_path / "chats.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"data__problems": problems}
    status, out, err = run("prepare", [*line[0], "--drop="], tmp_path / "a", capsys, **fields)
    assert status == 0, err
    assert "warning: 1 rows lose turns of their chat: what follows the last user turn" in out
    assert "warning: 1 rows lose their gold: the math grader cannot read it" in out
    assert json.loads((tmp_path / "a" / "prepare.json").read_text())["lost"] == {
        "gold": 1,
        "turns": 1,
    }

    status, out, err = run("prepare", line[0], tmp_path / "c", capsys, **fields)
    assert "their gold" not in out
    summary = json.loads((tmp_path / "c" / "prepare.json").read_text())
    assert summary["counts"]["answer_unreadable"] == 1

    fields["reward__function"] = f"{line[1]}:never"
    status, out, err = run("prepare", line[0], tmp_path / "b", capsys, **fields)
    assert "their gold" not in out
