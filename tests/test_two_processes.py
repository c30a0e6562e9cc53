"""Two processes under jax.distributed on the CPU train what one trains; a dead one ends the other.

The runs are real: launch/local.sh, gloo collectives, one device a process.
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from polaris_jax.commands.status import status_lines
from tests.support.micro_run import (
    ROOT,
    final_leaves,
    finish,
    flags,
    free_port,
    make_base,
    start_ranks,
    start_train,
)
from tests.tolerances import SHARDED_PARAMS_LR_SHARE

HEARTBEAT_TIMEOUT_S = 10
# The time-out itself, the service's own delay, and a machine with other tests on it.
PEER_END_WITHIN_S = HEARTBEAT_TIMEOUT_S + 50
RUN_TIMEOUT_S = 500  # half a minute on two quiet cores
STEPS = 4
LEARNING_RATE = 3e-3
pytestmark = pytest.mark.timeout(1500)
ONE_LINE = "error: lost another process of this run"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


def line(base, *more: str) -> list[str]:
    """Two stages of two steps, a checkpoint after each."""
    return flags(
        *base,
        "--config.stages[0].steps=2",
        "--config.stages[1].steps=2",
        "--config.checkpoint.every_steps=1",
        f"--config.optimizer.learning_rate={LEARNING_RATE}",
        f"--config.distributed.heartbeat_timeout_s={HEARTBEAT_TIMEOUT_S}",
        *more,
    )


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """The same run in one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert f"finished: {STEPS} steps" in finish(start_train(workdir, line(base)), RUN_TIMEOUT_S)
    return workdir


def wait_for_steps(workdir: Path, steps: int, process: subprocess.Popen[str]) -> None:
    """Returns once so many steps are written, by what `process` is or has started."""
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + RUN_TIMEOUT_S
    while not path.exists() or path.read_bytes().count(b"\n") < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no step {steps} within {RUN_TIMEOUT_S} s"
        time.sleep(0.02)


class Pair:
    """`launch/local.sh --processes 2 -- train ...` and the two processes that it started."""

    def __init__(
        self, base, workdir: Path, *, devices: int = 1, fields: str = "mesh.fsdp=2", rows: int = 2
    ) -> None:
        self.port, self.workdir = free_port(), workdir
        overrides = [f"--config.{field}" for field in (*fields.split(), f"batch.rows={rows}")]
        self.launcher = subprocess.Popen(
            [
                *(ROOT / "launch" / "local.sh", "--processes", "2", "--devices", str(devices)),
                *("--port", str(self.port), "--", "train"),
                *line(base, *overrides, f"--workdir={workdir}"),
            ],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves no process behind a failed test: a second Ctrl-C makes the launcher kill both."""
        for _ in range(2):
            if self.launcher.poll() is None:
                self.launcher.send_signal(signal.SIGINT)
                time.sleep(1)
        for stream in (self.launcher.stdout, self.launcher.stderr):
            stream.close()
        self.launcher.wait(timeout=60)

    def pid(self, rank: int) -> int:
        """Of the trainer of this rank: not its launcher's shell, not its graders."""
        wanted = {f"POLARIS_PROCESS_ID={rank}", f"POLARIS_COORDINATOR=127.0.0.1:{self.port}"}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                variables = (path / "environ").read_text(errors="replace").split("\0")
                words = (path / "cmdline").read_text(errors="replace").split("\0")
            except OSError:  # not ours, or gone
                continue
            if wanted <= set(variables) and "polaris_jax" in words and "train" in words:
                return int(path.name)
        raise AssertionError(f"no process of rank {rank}")

    def wait_for_steps(self, steps: int) -> None:
        wait_for_steps(self.workdir, steps, self.launcher)

    def outcome(self, timeout_s: float = RUN_TIMEOUT_S) -> tuple[int, str, str]:
        out, err = self.launcher.communicate(timeout=timeout_s)
        return self.launcher.returncode, out, err


def assert_same_tokens(workdir: Path, alone: Path) -> None:
    """Equal responses in every step; the first difference is shown, not counted."""
    names = sorted(path.name for path in (alone / "rollouts").iterdir())
    assert sorted(path.name for path in (workdir / "rollouts").iterdir()) == names
    for name in names:
        here = (workdir / "rollouts" / name).read_text().splitlines()
        there = (alone / "rollouts" / name).read_text().splitlines()
        assert len(here) == len(there)
        for i, pair in enumerate(zip(here, there, strict=True)):
            assert pair[0] == pair[1], f"{name}, row {i}: two processes {pair[0]}, one {pair[1]}"


def assert_same_parameters(workdir: Path, alone: Path) -> None:
    got, want = final_leaves(workdir), final_leaves(alone)
    assert got.keys() == want.keys()
    tolerance = SHARDED_PARAMS_LR_SHARE * LEARNING_RATE * STEPS
    parameters = [name for name in want if "params" in name]
    assert parameters
    for name in parameters:
        gap = np.abs(got[name].astype(np.float64) - want[name]).max()
        assert gap <= tolerance, f"{name}: {gap:.2e}, over {tolerance:.2e}"


def graded_by_process(workdir: Path) -> list[list[int]]:
    """What each process graded in each step."""
    timing = [json.loads(text) for text in (workdir / "timing.jsonl").read_text().splitlines()]
    return [step["reward/graded_by_process"] for step in timing]


def assert_one_line(said: str) -> None:
    assert len([text for text in said.splitlines() if ONE_LINE in text]) == 1, said
    assert "Traceback" not in said
    assert "Check failure" not in said


def kill_one(base, workdir: Path, *, killed: int) -> None:
    """SIGKILL to one in mid-run: the other ends by itself, in time, with one line and status 1."""
    pair = start_ranks("train", workdir, *2 * [line(base, "--config.mesh.fsdp=2")])
    survivor = pair[1 - killed]
    try:
        wait_for_steps(workdir, 2, survivor)  # so that a checkpoint is there
        assert [process.poll() for process in pair] == [None, None]
        pair[killed].kill()
        began_s = time.monotonic()
        out, err = survivor.communicate(timeout=PEER_END_WITHIN_S + 30)
        assert time.monotonic() - began_s < PEER_END_WITHIN_S
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    assert survivor.returncode == 1, out + err
    assert_one_line(err)
    assert "finished:" not in out


@pytest.mark.slow
def test_a_killed_pair_resumes_and_ends_as_one_process_does(base, alone, tmp_path):
    workdir = tmp_path / "run"
    kill_one(base, workdir, killed=1)
    lives, lines = status_lines(epath.Path(workdir), now_s=time.time())
    assert not lives and "rerun the same command to continue" in lines[0]
    assert [text[:9] for text in lines if text.startswith("process ")] == ["process 0", "process 1"]

    with Pair(base, workdir) as pair:
        status, out, err = pair.outcome()
    assert status == 0, out + err
    assert re.search(r"^resumed at step [1-3]$", out, re.MULTILINE)
    assert f"finished: {STEPS} steps" in out
    # The second process is silent but for what gloo prints.
    assert [t for t in (out + err).splitlines() if t.startswith("[1] ") and "[Gloo]" not in t] == []
    assert_same_tokens(workdir, alone)
    assert_same_parameters(workdir, alone)
    shares = graded_by_process(workdir)
    assert [[sum(share)] for share in shares] == graded_by_process(alone)
    # Samples are dealt by the tokens that they may take, so the numbers are not always equal.
    assert [12, 12] in shares and all(min(share) >= 8 for share in shares)
    for name in ("metrics.jsonl", "stages.json"):
        assert (workdir / name).exists()
    lives, lines = status_lines(epath.Path(workdir), now_s=time.time())
    assert not lives and lines[0].endswith(": finished")


@pytest.mark.slow
def test_when_the_coordinator_is_killed_the_other_ends_too(base, tmp_path):
    kill_one(base, tmp_path / "run", killed=0)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_launcher_ends_both_and_tells_which_ended_first(base, tmp_path, killed):
    with Pair(base, tmp_path / "run") as pair:
        pair.wait_for_steps(2)
        survivor = pair.pid(1 - killed)
        os.kill(pair.pid(killed), signal.SIGKILL)
        status, out, err = pair.outcome(timeout_s=PEER_END_WITHIN_S)
    assert not Path(f"/proc/{survivor}").exists()
    assert f"process {killed} of 2 ended first, with status {128 + signal.SIGKILL}" in err
    assert status == 128 + signal.SIGKILL
    assert_one_line(out + err)


@pytest.mark.slow
def test_two_processes_of_two_devices(base, alone, tmp_path):
    workdir = tmp_path / "run"
    with Pair(base, workdir, devices=2, fields="mesh.data=2 mesh.fsdp=2", rows=4) as pair:
        status, out, err = pair.outcome()
    assert status == 0, out + err
    assert_same_tokens(workdir, alone)
    assert_same_parameters(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [0, 1], ids=["shared devices", "devices apart"])
def test_the_trainers_state_may_wait_in_host_memory(base, alone, tmp_path, apart):
    workdir = tmp_path / "run"
    fields = f"mesh.fsdp={4 - 2 * apart} rollout.devices={apart} rollout.trainer_state=host"
    with Pair(base, workdir, devices=2, fields=fields, rows=4) as pair:
        status, out, err = pair.outcome()
    assert status == 0, out + err
    assert_same_tokens(workdir, alone)
    assert_same_parameters(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    ["mesh.fsdp=2", "mesh.fsdp=2 rollout.processes=2 rollout.data=2"],
    ids=["a sampler each", "one sampler"],
)
def test_sigterm_to_one_stops_both_with_a_checkpoint(base, alone, tmp_path, fields, monkeypatch):
    workdir = tmp_path / "run"
    monkeypatch.setenv("POLARIS_STOPPED_STATUS", "143")
    with Pair(base, workdir, fields=fields) as pair:
        pair.wait_for_steps(2)  # so that a checkpoint is there
        os.kill(pair.pid(1), signal.SIGTERM)
        status, out, err = pair.outcome()
    assert status == 143, out + err
    assert "stopped; rerun" in out
    with Pair(base, workdir, fields=fields) as pair:
        status, out, err = pair.outcome()
    assert status == 0, out + err
    assert "resumed at step" in out
    assert_same_tokens(workdir, alone)
    assert_same_parameters(workdir, alone)


@pytest.mark.slow
def test_a_refused_workdir_ends_both(base, alone, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "run.json").write_text((alone / "run.json").read_text())
    record = json.loads((workdir / "run.json").read_text())
    record["config"]["seed"] = 7
    (workdir / "run.json").write_text(json.dumps(record))
    with Pair(base, workdir) as pair:
        status, out, err = pair.outcome()
    assert status == 2, out + err
    assert "seed=7 there" in err
    assert "Traceback" not in out + err


@pytest.mark.slow
def test_processes_with_different_configs_end_before_anything_is_written(base, tmp_path):
    lines = [line(base, "--config.mesh.fsdp=2", f"--config.seed={seed}") for seed in (0, 1)]
    for process in start_ranks("train", tmp_path / "run", *lines):
        _, err = process.communicate(timeout=RUN_TIMEOUT_S)
        assert process.returncode == 2, err
        assert "config differs between the processes of this run" in err
    assert not (tmp_path / "run" / "run.json").exists()
