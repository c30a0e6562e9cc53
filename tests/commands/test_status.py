"""`polaris status`: a run that lives, has died or has ended, by its files alone."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from polaris_jax.__main__ import main
from polaris_jax.commands import status as module
from polaris_jax.run.standing import duration
from tests.commands.test_show import BARE, HOSTILE
from tests.tolerances import STATUS_S

NOW_S = 1.8e9


def make_run(workdir, *, steps=3, start=None, processes=1, metrics=(), **record):
    """The files of a run of two stages of 4 and 6 steps."""
    workdir.mkdir(exist_ok=True)
    lines = [{"step": i, "rollout/reward_mean": 0.25} for i in range(steps)]
    fields = {
        "config": {"stages[0].steps": 4, "stages[1].steps": 6},
        "processes": processes,
        "starts": [{"host": socket.gethostname()} | (start or {})],
    }
    (workdir / "run.json").write_text(json.dumps(fields | record))
    jsonl = {
        "metrics": [*metrics, *lines],
        "timing": [
            {
                "step": i,
                "time/rollout_s": 6.0 if i else 100.0,
                "time/update_s": 4.0,
                "time/weight_sync_s": 3.0,
                "throughput/rollout_tokens_per_s": 1000.0,
            }
            for i in range(steps)
        ],
    }
    for name, rows in jsonl.items():
        path = workdir / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(path, (NOW_S - 3600, NOW_S - 3600))
    stage = {"first_step": 0, "temperature": 1.4, "max_response_tokens": 96, "dropped_ids_count": 0}
    ends = [3, 9]
    stages = [
        {
            **stage,
            "stage": k,
            "first_step": 4 * k,
            "last_step": ends[k] if steps > ends[k] else None,
        }
        for k in range(1 + (steps > 4))
    ]
    (workdir / "stages.json").write_text(json.dumps(stages))
    return workdir


def status(workdir, now_s=NOW_S):
    lives, lines = module.status_lines(epath.Path(workdir), now_s=now_s)
    return lives, {line[:12].strip(): line[12:] for line in lines}


def test_a_run_that_was_killed(tmp_path):
    lives, said = status(make_run(tmp_path))
    assert not lives
    assert "killed, or its machine lost; rerun the same command" in said["run"]
    assert said["steps"] == "3 of 10 done"
    assert said["stage"].startswith("0 (of 0 to 1), temperature 1.4, up to 96 response tokens")
    assert said["pace"] == "10.0 s a step; 2 min 4 s so far"  # without the first, which compiles
    assert said["sampling"] == "1,000 tokens/s"
    assert said["last step"].startswith("reward 0.25, informative groups -")
    assert said["checkpoint"] == "none yet"


def test_a_run_that_lives_holds_its_lock(tmp_path):
    make_run(tmp_path)
    (tmp_path / ".lock").write_text("pid 7 on there\n")
    assert not status(tmp_path)[0]  # the file alone says nothing
    with open(tmp_path / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lives, said = status(tmp_path)
    assert lives
    assert said["run"].endswith("running (pid 7 on there)")
    assert said["time left"] == "at most 1 min 10 s (7 steps at 10.0 s a step); 2 min 4 s so far"
    assert not status(tmp_path)[0]


@pytest.mark.parametrize(
    ("steps", "start", "words"),
    [
        (10, {"ended": "finished"}, ": finished"),
        (10, {}, ": finished"),  # versions up to 0.2 did not record how a start ended
        (10, {"ended": "stopped by SIGTERM", "ended_at": "T"}, ": stopped by SIGTERM at T; rerun"),
        (2, {"ended": "finished"}, ": finished"),  # rollout.total_tokens were spent
        (3, {"ended": "failed: OSError: disk", "ended_at": "T"}, ": failed: OSError: disk at T"),
    ],
)
def test_a_run_that_has_ended(tmp_path, steps, start, words):
    workdir = make_run(tmp_path, steps=steps, start=start)
    alive(workdir, 0, 20)
    lives, said = status(workdir)
    assert not lives
    assert words in said["run"]
    assert ("process 0" in said) == (words != ": finished")  # where an unfinished one stopped


def test_a_later_start_that_was_killed_is_not_the_end_of_an_earlier_one(tmp_path):
    starts = [{"ended": "stopped", "ended_at": "T"}, {"host": socket.gethostname()}]
    assert "killed" in status(make_run(tmp_path, steps=10, starts=starts))[1]["run"]


def alive(workdir, process, age_s, **fields):
    sign = {"process": process, "host": f"host{process}", "pid": 7, "time_s": NOW_S - age_s}
    (workdir / "alive").mkdir(exist_ok=True)
    path = workdir / "alive" / f"{process}.json"
    path.write_text(json.dumps(sign | {"doing": f"step 3 rollout: {process}/8"} | fields))


def test_each_process_has_its_last_sign_of_life(tmp_path):
    make_run(tmp_path, processes=2, start={"host": "elsewhere"})
    for process, age_s in ((0, 20), (1, 200), (2, 5)):  # an earlier start had three
        alive(tmp_path, process, age_s)
    lives, said = status(tmp_path)
    assert lives  # its lock may not be seen from this machine
    assert said["run"].endswith("running, by a sign of life 20 s ago")
    assert said["process 0"] == "20 s ago: step 3 rollout: 0/8 (pid 7 on host0)"
    assert said["process 1"].startswith("3 min 20 s ago")
    assert "process 2" not in said
    assert said["sampling"].endswith("tokens/s in the first process")
    assert not status(tmp_path, NOW_S + 3600)[0]


def test_scores_checkpoint_and_warnings(tmp_path):
    make_run(tmp_path, metrics=[{"step": -1, "eval/avg@8": 0.25}], deterministic=False)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "eval/avg@8": 0.5}\n{"step": 4}\n{"step": 5, "torn')
    for step in (2, 4, 6):
        folder = tmp_path / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        if step < 6:  # the last one is being written
            (folder / "MANIFEST.json").write_text("{}")
            os.utime(folder / "MANIFEST.json", (NOW_S - 60 * step, NOW_S - 60 * step))
    warnings = [
        {"text": f"w{i}", "count": 1 + i % 2, "first_s": NOW_S, "last_s": NOW_S - 9}
        for i in range(7)
    ]
    (tmp_path / "warnings.json").write_text(json.dumps(warnings))
    lines = module.status_lines(epath.Path(tmp_path), now_s=NOW_S)[1]
    said = {line[:12].strip(): line[12:] for line in lines}
    assert said["steps"] == "5 of 10 done"
    assert said["held-out"] == "avg@8 25.0% before training, 50.0% after 4 steps (+25.0 points)"
    assert said["checkpoint"] == "step 4, 4 min 0 s ago"
    assert said["warnings"] == "2 older ones are in warnings.json"
    told = [line[12:] for line in lines if line.startswith("warning ")]
    assert told[0].startswith("not deterministic")
    assert told[1:3] == ["9 s ago: w2", "9 s ago (2 times): w3"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_harmless(tmp_path, text, capsys):
    make_run(tmp_path, start={"ended": text, "ended_at": text})
    alive(tmp_path, 0, 1, host=text, doing=text)
    warning = {"text": text, "count": 1, "first_s": 0, "last_s": 0}
    (tmp_path / "warnings.json").write_text(json.dumps([warning]))
    assert main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert BARE.search(out) is None
    assert all(line[:1].isalpha() for line in out.splitlines())  # one line each


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "timing.jsonl", "stages.json"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"{}\n", b"[" * 9999 + b"\n", b'[{"stage": "x"}]']
)
def test_a_damaged_file_leaves_its_part_unknown(tmp_path, name, content):
    make_run(tmp_path)
    (tmp_path / name).write_bytes(content)
    lives, said = status(tmp_path)
    assert not lives
    assert "steps" in said


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(tmp_path):
    make_run(tmp_path)
    os.mkfifo(tmp_path / ".lock")
    running, rows = status(tmp_path)
    assert not running and "steps" in rows


def test_a_directory_without_a_run_is_refused(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert "holds no run (no run.json)" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "away")]) == 2
    assert "there is no such directory" in capsys.readouterr().err


def test_watching_ends_with_the_run(tmp_path, capsys, monkeypatch):
    make_run(tmp_path)
    lock = open(tmp_path / ".lock", "a")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            lock.close()

    monkeypatch.setattr(module.time, "sleep", sleep)
    assert main(["status", str(tmp_path), "--watch", "--every=3"]) == 0
    assert slept == [3, 3]
    assert capsys.readouterr().out.count("steps  ") == 3


def test_it_needs_no_jax_writes_nothing_and_is_fast(tmp_path):
    make_run(tmp_path)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    body = (
        "import sys\nfrom polaris_jax.__main__ import main\n"
        "for command in ('status', 'show'):\n    main([command, sys.argv[1]])\n"
        "assert 'jax' not in sys.modules\n"
    )
    began_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", body, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began_s < STATUS_S
    assert sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (273_600, "3 d 4 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
