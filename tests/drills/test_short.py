"""The drills' short form, and what the drill run itself promises."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.drills import runner
from tests.drills.drill import MARK, ROOT, Case, Drill, Place, marked, refusal_fault, sweep
from tests.support.hostile_answers import HOSTILE

WORDS = [sys.executable, "-m", "tests.drills"]


def start(out, *more):
    line = [*WORDS, "--seed=0", f"--out={out}", *more]
    return subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_some_of_each_kind_pass(tmp_path):
    process = start(tmp_path, "--short")
    said, _ = process.communicate(timeout=3500)
    assert process.returncode == 0, said
    for row in runner.ROWS[:-1]:
        assert f"| {row} |" in said
    assert marked((tmp_path / "token").read_text(), prefix=True) == {}


@pytest.mark.slow
def test_a_stopped_drill_run_leaves_nothing_and_continues(tmp_path):
    process = start(tmp_path, "--short", "--kinds=load,answers")
    while not (tmp_path / "drills.jsonl").exists():
        time.sleep(0.2)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert marked((tmp_path / "token").read_text(), prefix=True) == {}
    first = (tmp_path / "drills.jsonl").read_bytes()
    process = start(tmp_path, "--short", "--kinds=load,answers")
    said, _ = process.communicate(timeout=1000)
    assert process.returncode == 0, said
    assert (tmp_path / "drills.jsonl").read_bytes().startswith(first)
    lines = runner.finished(tmp_path)
    assert len({(line["kind"], line["name"]) for line in lines}) == len(lines) == 4


def test_what_leaves_its_session_is_found_and_swept():
    mark = f"test-{os.getpid()}"
    inner = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    subprocess.run([sys.executable, "-c", inner], env={**os.environ, MARK: mark}, check=True)
    assert list(marked(mark).values()) == ["sleep 60"]
    sweep(mark)
    assert marked(mark) == {}


def test_a_torn_line_counts_as_not_finished(tmp_path):
    line = json.dumps({"kind": "load", "name": "a"})
    (tmp_path / "drills.jsonl").write_text(f"{line}\n{line[:9]}")
    assert len(runner.finished(tmp_path)) == 1
    assert (tmp_path / "drills.jsonl").read_text() == f"{line}\n"


def test_a_drill_that_broke_is_done_again(tmp_path):
    file = tmp_path / "drills.jsonl"
    broken = {"kind": "load", "name": "a", "cases": [{"row": runner.ROWS[-1]}]}
    fine = broken | {"cases": []}
    file.write_text(json.dumps(broken) + "\n")
    assert [runner._broke(line) for line in runner.finished(tmp_path)] == [True]
    file.write_text(file.read_text() + json.dumps(fine) + "\n")
    assert runner.finished(tmp_path) == [fine]


def test_the_stock_is_made_once_and_anew_after_a_kill(tmp_path):
    place, made = Place(tmp_path / "stock", tmp_path / "own"), []
    (tmp_path / "stock" / "x").mkdir()
    (tmp_path / "stock" / "x" / "torn").touch()
    for _ in range(2):
        folder = place.made("x", lambda folder: made.append(list(folder.iterdir())))
    assert made == [[]]
    assert list(folder.iterdir()) == []


def test_the_table_counts_what_fell_short():
    cases = [Case("damages", "a", count=3, note="mended"), Case("damages", "b", "no line", 2)]
    line = {**vars(Drill("damages", "train", 1, 5)), "seconds": 3.0, "commit": "abc"}
    text = runner.table([line | {"cases": [vars(case) for case in cases]}])
    assert "| damages | 5 | 3 | 2 | 3 mended |" in text
    assert "- damages (2), seed 1, damages train, b: no line" in text


@pytest.mark.parametrize(
    ("status", "said", "fault"),
    [
        (2, "error: run.json: not a record; restore it\n", ""),
        (0, "fine\n", "status 0"),
        (1, "Traceback (most recent call last):\nerror: run.json: x\n", "a traceback"),
        (1, "error: run.json: x\nerror: run.json: y\n", "2 error lines"),
        (1, "error: something else; mend it\n", "none of"),
        (1, "error: run.json: \x1b[31m; mend it\n", "control characters"),
    ],
)
def test_a_refusal_is_one_line_with_the_name(status, said, fault):
    found = refusal_fault(status, said, ["run.json"])
    assert found.startswith(fault) if fault else not found


def test_the_table_of_answers_is_long_and_has_no_answer_twice():
    assert len(HOSTILE) >= 400
    assert len(set(HOSTILE.values())) == len(HOSTILE)
