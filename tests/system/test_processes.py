"""What processes of a run must have in common, as told in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from etils import epath

import polaris_jax
from polaris_jax import assemble
from polaris_jax.__main__ import main
from polaris_jax.config import ConfigError, build_config, config_fields, default_config
from polaris_jax.data.problem_sets import PREPARED
from polaris_jax.data.problems import read_problems, write_problems
from polaris_jax.measure import evaluate, weights
from polaris_jax.models.weights import sources
from polaris_jax.models.weights.sources import weights_digest
from polaris_jax.system import processes
from polaris_jax.system.processes import agree, disagreement, run_facts, tells_of_peer_loss
from polaris_jax.system.progress import Progress
from tests.support.micro_run import flags, start_ranks


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([{"config": "a", "jax": "1"}] * 3, ""),
        (
            [{"config": "a", "jax": "1"}, {"config": "a", "jax": "2"}, {"config": "a", "jax": "1"}],
            "jax differs between the processes of this run: 1 in process 0, 2; 2 in process 1",
        ),
        (
            [{"config": "a"}, {"config": "b"}, {"config": "c"}],
            "config differs between the processes of this run: a in process 0; b in process 1; "
            "c in process 2",
        ),
        ([{"config": "a"}, {}], "config differs"),
    ],
    ids=["same", "one", "all", "absent"],
)
def test_the_first_difference_is_told_with_its_holders(facts, words):
    told = disagreement(facts)
    assert told.startswith(words)
    assert bool(told) == bool(words)


def test_one_process_agrees_with_itself():
    agree({"config": "a"})


ENTRY = "E1124 10:00:00.000000    4711 {file}:77] {text}"
FATAL = (
    "Polled an error from the service: absl::Status: UNAVAILABLE: task 1 is gone. "
    "The distributed service detected fatal errors"
)


def run(body: str) -> subprocess.CompletedProcess[str]:
    """A process with a guard; `log` writes to file descriptor 2 as the C++ runtime does.

    `nobody_reads` closes the other end of its stdout and stderr.
    """
    script = f"""
import os, sys, time
from polaris_jax.system import processes
from polaris_jax.system.processes import Guard
read_end, write_end = os.pipe()
def nobody_reads():
    os.close(read_end)
    for number in (1, sys.stderr.fileno()):
        os.dup2(write_end, number)
guard = Guard()
def log(line):
    os.write(2, (line + chr(10)).encode())
    time.sleep(0.05)
{body}
"""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


def entry(file: str, text: str) -> str:
    return ENTRY.format(file=file, text=text)


def test_ordinary_lines_pass_and_the_process_ends_as_it_would():
    other = entry("pjrt_client.cc", "slow operation")
    done = run(f"log('plain'); log({other!r}); print('mine', file=sys.stderr); sys.exit(7)")
    assert done.returncode == 7
    assert sorted(done.stderr.splitlines()) == sorted(["plain", other, "mine"])


def test_an_abort_after_the_news_is_one_line_and_status_1():
    news = [entry("coordination_service_agent.cc", "heartbeat failed"), "  more of that entry"]
    news.append(entry("client.h", f"Terminating: absl::Status: {FATAL}"))
    done = run("".join(f"log({line!r})\n" for line in news) + "os.abort()")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: lost another process of this run (")
    assert "rerun the same command" in line
    assert "heartbeat" not in line


def test_another_abort_takes_its_course_and_brings_out_what_was_held():
    held = entry("preemption_sync_manager.cc", "notice")
    done = run(f"log({held!r}); os.abort()")
    assert done.returncode == -6  # SIGABRT
    assert held in done.stderr.splitlines()
    assert "lost another process" not in done.stderr


def test_end_tells_the_first_reason_only():
    done = run(
        "import threading\n"
        "threads = [threading.Thread(target=guard.end, args=(f'reason {i}',)) for i in range(4)]\n"
        "[t.start() for t in threads]; time.sleep(5)"
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


LOST = entry("client.h", f"Terminating: absl::Status: {FATAL}")
ENTER = "import polaris_jax.__main__ as entered; processes._guard = guard\n"
AT_EXIT = "import atexit; atexit.register(os._exit, 99)\n"  # in the place of jax's wait for peers


@pytest.mark.parametrize(
    "body",
    [
        "guard.end('a reason')",
        "guard.end('half a character: \\ud800')",
        f"log('to nobody'); log({LOST!r}); os.abort()",
        "processes._guard = guard; sys.stdout = open(1, 'w', closefd=False)\n"
        "print('kept in the buffer'); processes.leave(1)",
        f"{ENTER}{AT_EXIT}entered.main = lambda: 1\nentered.entry()",
        f"{ENTER}{AT_EXIT}entered.main = lambda: print('x', flush=True)\nentered.entry()",
        f"{ENTER}{AT_EXIT}"
        "from polaris_jax.commands.run import run_command\n"
        "def fails(): raise RuntimeError('failed')\n"
        "entered.main = lambda: run_command(fails)\nentered.entry()",
    ],
    ids=["end", "surrogate", "abort", "leave", "status", "broken pipe", "failure"],
)
def test_a_process_of_several_ends_although_nobody_reads(body, monkeypatch):
    monkeypatch.delenv("POLARIS_NUM_PROCESSES", raising=False)  # as with POLARIS_DISTRIBUTED=auto
    done = run(f"nobody_reads()\n{body}")
    assert done.returncode == 1


def test_an_interrupt_ends_a_process_of_several_although_nobody_reads():
    done = run(
        f"{ENTER}{AT_EXIT}"
        "from polaris_jax.commands.run import run_command\n"
        "def fails(): raise KeyboardInterrupt\n"
        "nobody_reads()\n"
        "run_command(fails)"
    )
    assert done.returncode == 130


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4"), True),
        (RuntimeError("NCCL operation ncclAllReduce failed: unhandled system error"), True),
        (ValueError("shapes (2,) and (3,) differ"), False),
    ],
    ids=["gloo", "nccl", "other"],
)
def test_the_text_of_an_error_tells(error, lost):
    assert tells_of_peer_loss(error) is lost


def test_the_cause_of_an_error_tells_too():
    error = RuntimeError("step failed")
    error.__cause__ = ValueError("Heartbeat timed out")
    assert tells_of_peer_loss(error)


QUIET = Progress(enabled=False)
COMMAND = {"name": "train", "stage": -1, "workdir": "/runs/a"}


def configured(**fields):
    config = default_config()
    config.update_from_flattened_dict(fields)
    return build_config(config)


def facts(**fields):
    return run_facts(configured(**fields), COMMAND)


@pytest.fixture
def peer(monkeypatch):
    """`peer(change)`: a second process, which tells what `change` makes of this one's facts."""

    def join(change):
        monkeypatch.setattr(processes, "several", lambda: True)
        monkeypatch.setattr(processes, "gather_objects", lambda told: [told, change(told)])

    return join


@pytest.fixture
def files(tmp_path):
    """A base model's folder and a file of problems."""
    base, problems = tmp_path / "base", tmp_path / "problems.jsonl"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(bytes(3 << 20))
    problems.write_text('{"id": "a", "problem": "1 + 1?", "answer": "2"}\n')
    return base, problems


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("mesh.context", 2, "mesh.context=1 in process 0; mesh.context=2 in process 1"),
        ("checkpoint.every_steps", 3, "checkpoint.every_steps=3 in process 1"),
        ("rollout.slots", 8, "rollout.slots=8 in process 1"),
        ("evaluate.every_steps", 2, "evaluate.every_steps=2 in process 1"),
        ("rollout.trainer_state", "host", "rollout.trainer_state='host' in process 1"),
    ],
)
def test_a_field_that_a_resume_may_change_is_compared(field, value, words):
    told = disagreement([facts(), facts(**{field: value})])
    assert told.startswith("config differs between the processes of this run: ")
    assert words in told


def test_the_last_stages_steps_are_compared():
    more = default_config()
    more.stages[-1].steps += 1
    told = disagreement([facts(), run_facts(build_config(more), COMMAND)])
    assert f"stages[0].steps={more.stages[-1].steps} in process 1" in told


def test_every_field_is_told_but_a_hosts_own():
    told = facts()["config"].keys()
    assert config_fields(configured()).keys() - told == {"reward.workers"}
    assert disagreement([facts(), facts(**{"reward.workers": 3})]) == ""


@pytest.mark.parametrize("side", [0, 1])
def test_a_field_that_one_side_lacks_is_named(side):
    sides = [facts(), facts()]
    sides[side]["config"]["stages[1].steps"] = 5
    words = f"stages[1].steps=5 in process {side}"
    assert words in disagreement(sides)


@pytest.mark.parametrize("name", ["polaris_jax", "jax", "jaxlib"])
def test_a_version_is_compared(name):
    other = facts() | {name: "0.0"}
    assert f"{name} differs" in disagreement([facts(), other])
    assert "0.0 in process 1" in disagreement([facts(), other])
    assert facts()["polaris_jax"] == polaris_jax.__version__


@pytest.mark.parametrize("command", ["train", "calibrate", "probe", "evaluate", "prepare"])
def test_each_command_compares_its_config_before_it_begins(command, peer, tmp_path, capsys):
    def change(told):
        return told | {"config": told["config"] | {"mesh.context": 2}}

    peer(change)
    line = flags(tmp_path / "no base", tmp_path / "no problems")
    assert main([command, *line, f"--workdir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert "mesh.context=1 in process 0; mesh.context=2 in process 1" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["evaluate", "--checkpoint=latest"], "checkpoint"),
        (["evaluate"], "workdir"),
        (["train", "--overwrite"], "overwrite"),
    ],
    ids=["checkpoint", "workdir", "overwrite"],
)
def test_a_commands_own_flags_are_compared(command, flag, peer, tmp_path, capsys):
    peer(lambda told: told | {"command": told["command"] | {flag: "other"}})
    line = flags(tmp_path / "no base", tmp_path / "no problems")
    assert main([*command, *line, f"--workdir={tmp_path / 'run'}"]) == 2
    assert f"{flag}='other' in process 1" in capsys.readouterr().err


def read_to_calibrate(config, workdir):
    assemble.training_problems(config, workdir, QUIET, files=(PREPARED,))


def read_prepared(config, workdir):
    problems, _ = read_problems(config.data.problems)
    write_problems(problems, workdir / "problems.parquet")
    read_to_calibrate(config, workdir)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("problem set", lambda config, at: assemble.training_problems(config, at, QUIET)),
        ("problem set", read_to_calibrate),
        ("problem set", read_prepared),
        ("held-out problem set", lambda config, _: assemble.evaluation_problems(config, QUIET)),
        ("base model", lambda config, at: assemble.base_path(config, at, QUIET)),
        ("checkpoint", lambda config, at: evaluate._weights(config, at, config.model.path, QUIET)),
    ],
    ids=["trained on", "calibrated", "prepared", "held out", "base model", "checkpoint"],
)
def test_what_is_read_is_compared_where_it_is_read(name, read, files, peer, tmp_path):
    base, problems = files
    config = configured(
        **{
            "model.path": str(base),
            "data.problems": str(problems),
            "evaluate.problems": str(problems),
        }
    )
    asked = []

    def change(told):
        asked.append(told)
        return {fact: f"not {value}" for fact, value in told.items()}

    peer(change)
    with pytest.raises(ConfigError, match=f"^{name} differs between the processes"):
        read(config, epath.Path(tmp_path))
    assert len(asked) == 1


def test_the_first_processs_newest_step_is_compared(peer, tmp_path, monkeypatch):
    """A run beside it may save another one meanwhile."""
    for step in (3, 4):
        (tmp_path / str(step)).mkdir()
        (tmp_path / str(step) / "MANIFEST.json").write_text(str(step))
    monkeypatch.setattr(weights.Checkpointer, "steps", lambda self: [3, 4])
    compared = []
    monkeypatch.setattr(weights, "agree_on_weights", lambda path, name: compared.append(path))
    monkeypatch.setattr(processes, "gather_objects", lambda newest: [3, newest])
    assert weights.find_checkpoint(epath.Path("unused"), str(tmp_path)) == (tmp_path, 3)
    assert compared == [tmp_path / "3"]


@pytest.mark.parametrize("place", [0, 1 << 20, (3 << 20) - 1], ids=["first", "inner", "last"])
def test_other_weights_of_the_same_shapes_have_another_digest(files, place):
    base = epath.Path(files[0])
    before = weights_digest(base)
    assert weights_digest(base) == before
    tensor = b"\1" * ((3 << 20) // sources.SAMPLES)
    weights = bytes(place) + tensor + bytes(3 << 20)
    (base / "model.safetensors").write_bytes(weights[: 3 << 20])
    assert weights_digest(base) != before
    (base / "model.safetensors").write_bytes(bytes(3 << 20))
    (base / ".lock").write_text("a host's own")
    assert weights_digest(base) == before
    (base / "tokenizer.json").write_text("{}")
    assert weights_digest(base) != before


@pytest.mark.timeout(300)
def test_two_processes_that_differ_in_the_mesh_end_with_one_line_each(files, tmp_path):
    base, problems = files
    line = flags(base, problems, f"--config.evaluate.problems={problems}")
    lines = [[*line, f"--config.mesh.context={context}"] for context in (1, 2)]
    ranks = start_ranks("evaluate", tmp_path / "run", *lines)
    try:
        for process in ranks:
            _, err = process.communicate(timeout=200)
            errors = [said for said in err.splitlines() if said.startswith("error: ")]
            assert process.returncode == 2, err
            assert len(errors) == 1
            assert "mesh.context=1 in process 0; mesh.context=2 in process 1" in errors[0]
            assert "Traceback" not in err
    finally:
        for process in ranks:
            process.kill()
    assert not (tmp_path / "run").exists()
