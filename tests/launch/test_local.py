"""launch/local.sh: what it would run, whose end it reports, and how signals travel.

A stand-in for the interpreter plays the processes; test_two_processes.py drives the real thing.
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCAL = ROOT / "launch" / "local.sh"
TIMEOUT_S = 60


def environment(python: pathlib.Path | str, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("POLARIS_")}
    return kept | {"POLARIS_PYTHON": str(python), "JAX_PLATFORMS": "cpu"} | more


@pytest.fixture
def stand_in(tmp_path):
    """Makes an executable that runs `body` (shell) as one process; $1 $2 are `-m polaris_jax`."""

    def make(body: str) -> pathlib.Path:
        path = tmp_path / "python"
        path.write_text(f"#!/usr/bin/env bash\nrank=${{POLARIS_PROCESS_ID:-none}}\n{body}\n")
        path.chmod(0o755)
        return path

    return make


def launch(python, *arguments, **more):
    return subprocess.run(
        [str(LOCAL), *arguments],
        env=environment(python, **more),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def when_there(folder: pathlib.Path, ranks: Iterable[str]) -> str:
    """Shell that waits until each of `ranks` has left its mark, `ready<rank>`, in `folder`."""
    marks = " && ".join(f"-e {folder}/ready{rank}" for rank in ranks)
    return f"until [[ {marks} ]]; do sleep 0.05; done"


def wait_until_gone(pid: int) -> None:
    """Fails unless the process has ended within 5 s."""
    deadline_s = time.monotonic() + 5
    while time.monotonic() < deadline_s and pathlib.Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def planned(stdout: str) -> list[tuple[dict[str, str], list[str]]]:
    """(environment, command) of each line of a dry run."""
    found = []
    for line in stdout.splitlines():
        words = shlex.split(line)
        if words[0] == "env":
            words = words[1:]
        variables = {}
        while re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        found.append((variables, words))
    return found


def test_one_process_is_the_plain_command(stand_in):
    python = stand_in("exit 9")
    done = launch(python, "--dry-run", "--", "train", "--workdir=a b")
    assert done.returncode == 0
    assert planned(done.stdout) == [
        ({}, [str(python), "-m", "polaris_jax", "train", "--workdir=a b"])
    ]


def test_each_rank_learns_its_place(stand_in):
    python = stand_in("exit 9")
    done = launch(
        python, "--processes", "3", "--devices", "2", "--port", "5000", "--dry-run", "--", "train",
        XLA_FLAGS="--xla_force_host_platform_device_count=8 --xla_cpu_enable_fast_math=false",
    )  # fmt: skip
    plans = planned(done.stdout)
    assert [variables["POLARIS_PROCESS_ID"] for variables, _ in plans] == ["0", "1", "2"]
    for variables, command in plans:
        assert variables["POLARIS_COORDINATOR"] == "127.0.0.1:5000"
        assert variables["POLARIS_NUM_PROCESSES"] == "3"
        flags = variables["XLA_FLAGS"].split()
        assert flags == [
            "--xla_cpu_enable_fast_math=false",
            "--xla_force_host_platform_device_count=2",
        ]
        assert command == [str(python), "-m", "polaris_jax", "train"]


def test_gpus_are_dealt_evenly(stand_in, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nfor i in 0 1 2 3; do echo GPU $i; echo '  MIG 1g.10gb'; done\n")
    smi.chmod(0o755)
    machine = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JAX_PLATFORMS": ""}
    arguments = ("--port", "5000", "--dry-run", "--", "train")
    done = launch(stand_in("exit 9"), "--processes", "2", *arguments, **machine)
    shares = [variables["JAX_LOCAL_DEVICE_IDS"] for variables, _ in planned(done.stdout)]
    assert shares == ["0,1", "2,3"]
    done = launch(stand_in("exit 9"), "--processes", "3", *arguments, **machine)
    assert done.returncode == 2
    assert "does not divide the 4 visible GPUs" in done.stderr
    for visible, dealt in (("5,7", ["0", "1"]), ("5,7,-1,0", ["0", "1"]), ("-1", None)):
        done = launch(
            *(stand_in("exit 9"), "--processes", "2", *arguments),
            **machine,
            CUDA_VISIBLE_DEVICES=visible,
        )
        if dealt is None:
            assert done.returncode == 0
            assert "JAX_LOCAL_DEVICE_IDS" not in done.stdout
            continue
        shares = [variables["JAX_LOCAL_DEVICE_IDS"] for variables, _ in planned(done.stdout)]
        assert shares == dealt
    smi.write_text("#!/bin/sh\necho no driver >&2\nexit 9\n")
    done = launch(stand_in("exit 9"), "--processes", "2", *arguments, **machine)
    assert done.returncode == 0
    assert "JAX_LOCAL_DEVICE_IDS" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--processes", "0", "--", "train"], "--processes=0: expected a whole number above 0"),
        (["--processes", "two", "--", "train"], "--processes=two"),
        (["--processes"], "--processes needs a value"),
        (["--port", "65536", "--", "train"], "--port=65536: expected a port, 1 to 65535"),
        (["--port", "99999999999999999999", "--", "train"], "expected a port"),
        (["--proceses", "2", "--", "train"], "--proceses: there is no such option"),
        (["--processes", "2"], "which polaris command?"),
    ],
)
def test_a_bad_argument_is_one_line_and_status_2(stand_in, arguments, words):
    done = launch(stand_in("exit 0"), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_interpreter_names_the_remedy(tmp_path):
    done = launch(tmp_path / "nothing", "--", "train")
    assert done.returncode == 2
    assert "make venv" in done.stderr


def test_help_prints_the_head_comment(stand_in):
    done = launch(stand_in("exit 9"), "--help")
    assert done.returncode == 0
    assert "--processes N" in done.stdout
    assert "set -euo" not in done.stdout


def test_all_well_is_status_0_with_marked_lines(stand_in):
    done = launch(
        stand_in('echo "out $rank"; echo "err $rank" >&2'),
        "--processes", "2", "--port", "5000", "--", "train",
    )  # fmt: skip
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ["[1] err 1", "[1] out 1", "out 0"]
    assert done.stderr.splitlines() == ["err 0"]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_first_dead_rank_is_named_and_its_status_returned(stand_in, tmp_path, first):
    others = {str(rank) for rank in range(3) if rank != first}
    body = f"""
if [[ $rank == {first} ]]; then {when_there(tmp_path, others)}; exit 7; fi
trap 'echo stopped $rank; exit 4' TERM
touch {tmp_path}/ready$rank
for i in $(seq 300); do sleep 0.1; done"""
    began_s = time.monotonic()
    done = launch(stand_in(body), "--processes", "3", "--port", "5000", "--", "train")
    assert done.returncode == 7
    assert f"process {first} of 3 ended first, with status 7" in done.stderr
    assert time.monotonic() - began_s < 25  # far below the 30 s that the others would go on
    assert set(re.findall(r"stopped (\d)", done.stdout)) == others


def test_a_killed_rank_has_its_signals_status(stand_in):
    body = "if [[ $rank == 1 ]]; then kill -9 $$; fi; for i in $(seq 300); do sleep 0.1; done"
    done = launch(stand_in(body), "--processes", "2", "--port", "5000", "--", "train")
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr.splitlines() == [
        "process 1 of 2 ended first, with status 137; stopping the others"
    ]


def test_a_rank_whose_shell_is_killed_counts_as_ended(stand_in, tmp_path):
    body = f"""
echo $$ > {tmp_path}/pid$rank; touch {tmp_path}/ready$rank
if [[ $rank == 1 ]]; then {when_there(tmp_path, "0")}; kill -9 $PPID; fi
exec sleep 30"""
    done = launch(stand_in(body), "--processes", "2", "--port", "5000", "--", "train")
    assert done.returncode == 128 + signal.SIGKILL
    assert "process 1 of 2 ended first, with status 137" in done.stderr
    for rank in range(2):
        wait_until_gone(int((tmp_path / f"pid{rank}").read_text()))


def test_a_rank_that_will_not_end_is_killed_after_the_grace(stand_in, tmp_path):
    body = f"""
if [[ $rank == 0 ]]; then {when_there(tmp_path, "1")}; exit 3; fi
trap '' TERM; echo $$ > {tmp_path}/stubborn; touch {tmp_path}/ready1
for i in $(seq 300); do sleep 0.1; done"""
    done = launch(
        stand_in(body), "--processes", "2", "--port", "5000", "--grace", "1", "--", "train"
    )
    assert done.returncode == 3
    wait_until_gone(int((tmp_path / "stubborn").read_text()))


@pytest.fixture
def start(stand_in, tmp_path):
    """Starts two ranks that answer signals by `body`, and returns once both are ready for them."""
    started = []

    def begin(body: str, **more: str) -> subprocess.Popen[str]:
        # bash names the sleep that the signal ends, too
        body = f"exec 2>/dev/null\n{body}\ntouch {tmp_path}/ready$rank"
        python = stand_in(f"{body}\nfor i in $(seq 300); do sleep 0.1; done")
        # nohup, or a shell in the background, has some ignored, and the script would inherit that.
        former = {number: signal.signal(number, signal.SIG_DFL) for number in STOPS}
        process = subprocess.Popen(
            [str(LOCAL), "--processes", "2", "--port", "5000", "--", "train"],
            env=environment(python, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        for number, handler in former.items():
            signal.signal(number, handler)
        wait_for(tmp_path, "ready")
        return process

    yield begin
    for process in started:  # after a failed test
        for _ in range(2):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                time.sleep(0.5)
        process.communicate(timeout=TIMEOUT_S)


STOPS = {
    signal.SIGINT: "ctrl-c",
    signal.SIGTERM: "sigterm",
    signal.SIGHUP: "lost-terminal",
    signal.SIGUSR1: "sigusr1",
    signal.SIGUSR2: "sigusr2",
    signal.SIGQUIT: "sigquit",
    signal.SIGXCPU: "sigxcpu",
}


def wait_for(folder: pathlib.Path, mark: str) -> None:
    """Fails unless both ranks leave `mark` in `folder` within 20 s."""
    deadline_s = time.monotonic() + 20
    while not all((folder / f"{mark}{rank}").exists() for rank in range(2)):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize("sent", STOPS, ids=STOPS.values())
def test_a_signal_reaches_every_rank_and_their_status_is_the_scripts(start, sent):
    name, status = ("INT", 130) if sent == signal.SIGINT else ("TERM", 0)
    process = start(f"trap 'echo got {name}; exit {status}' {name}")
    process.send_signal(sent)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == status
    assert sorted(out.splitlines()) == [f"[1] got {name}", f"got {name}"]
    assert err == ""


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGUSR1, signal.SIGHUP),
    ],
    ids=["sigterm-twice", "ctrl-c-then-sigterm", "lost-terminal-then-sigterm", "sigusr1-then-lost"],
)
def test_a_later_signal_does_not_end_the_ranks_while_they_save(start, tmp_path, first, later):
    saving = f"touch {tmp_path}/saving$rank; for i in 1 2 3 4 5 6 7 8; do sleep 0.1; done"
    process = start(f"trap '{saving}; echo saved; exit 5' INT TERM")
    process.send_signal(first)
    wait_for(tmp_path, "saving")
    for _ in range(2):
        process.send_signal(later)
        time.sleep(0.1)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 5, err
    assert sorted(set(out.splitlines())) == ["[1] saved", "saved"]


def test_a_second_ctrl_c_ends_the_ranks_at_once(start, tmp_path):
    process = start(f"trap 'touch {tmp_path}/got$rank' INT; echo $$ > {tmp_path}/pid$rank")
    began_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    wait_for(tmp_path, "got")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGKILL
    assert time.monotonic() - began_s < 20  # far below the 30 s that the ranks would go on
    for rank in range(2):
        wait_until_gone(int((tmp_path / f"pid{rank}").read_text()))


def test_a_signal_to_the_launchers_whole_group_leaves_its_count_of_ranks(start, tmp_path):
    """Ctrl-C goes to all of the group. A program that the launcher asks must not be missed then."""
    (tmp_path / "wc").write_text(f'#!/bin/sh\nsleep 1\nexec {shutil.which("wc")} "$@"\n')
    (tmp_path / "wc").chmod(0o755)
    process = start(
        "trap 'sleep 0.5; echo saved; exit 130' INT", PATH=f"{tmp_path}:{os.environ['PATH']}"
    )
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert sorted(out.splitlines()) == ["[1] saved", "saved"]
    assert err == ""
