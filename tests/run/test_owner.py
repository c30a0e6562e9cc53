"""Two commands that write the same files do not run at once; others may."""

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from polaris_jax.config import ConfigError
from polaris_jax.run.owner import TakenOver, alone, is_free, own, owned
from polaris_jax.system.files import write_bytes
from polaris_jax.system.progress import Progress

WORDS = {"busy": "workdir=w: `polaris calibrate` already runs in it", "remedy": "choose another"}


def test_the_same_files_are_refused_and_others_are_not(tmp_path):
    place = epath.Path(tmp_path)
    with owned(place, "calibrate", **WORDS):
        with pytest.raises(ConfigError, match=r"already runs in it \(pid \d+ on .*\); wait for it"):
            owned(place, "calibrate", **WORDS).__enter__()
        with owned(place, "probe", **WORDS):
            pass
    with owned(place, "calibrate", **WORDS):  # released
        pass


def test_a_kill_releases(tmp_path):
    code = (
        "import sys, time; from etils import epath; from polaris_jax.run.owner import own\n"
        f"kept = own(epath.Path({str(tmp_path)!r}) / '.x.lock', busy='b', remedy='r', writes=())\n"
        "print('owns', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "owns\n"
    lock = epath.Path(tmp_path) / ".x.lock"
    with pytest.raises(ConfigError, match=f"pid {process.pid} on"):
        own(lock, busy="b", remedy="r", writes=())
    process.kill()
    process.wait()
    own(lock, busy="b", remedy="r", writes=()).release()


def test_what_a_kill_left_of_our_files_is_deleted_and_nothing_else(tmp_path):
    left = ["a.json.0123abcd.partial", "a.json.partial"]
    stays = ["b.json.0123abcd.partial", "a.json.backup", "a.json", "notes.partial"]
    for name in (*left, *stays):
        (tmp_path / name).write_text("x")
    with owned(epath.Path(tmp_path), "calibrate", **WORDS, writes=["a.json"]):
        assert {p.name for p in tmp_path.iterdir()} == {*stays, ".calibrate.lock"}


def test_a_pipe_in_the_place_of_the_lock_is_named(tmp_path):
    os.mkfifo(tmp_path / ".calibrate.lock")
    with pytest.raises(ConfigError, match=r"\.calibrate\.lock: is a named pipe, .*; delete it"):
        owned(epath.Path(tmp_path), "calibrate", **WORDS).__enter__()


def _write_often(path: str, letter: str) -> None:
    for _ in range(200):
        write_bytes(path, letter.encode() * 5000)


def test_two_writers_of_one_file_leave_one_of_the_two_contents(tmp_path):
    path = tmp_path / "file"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_often, args=(str(path), x)) for x in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= {b"a" * 5000, b"b" * 5000}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def _make(folder: str, name: str, ready: Any) -> None:
    ready.wait()  # a process takes seconds to start on a busy machine
    with alone(epath.Path(folder), "model", Progress(enabled=True)):
        record = Path(folder) / "log"
        with record.open("a") as file:
            file.write(f"{name} in\n")
        time.sleep(0.5)
        with record.open("a") as file:
            file.write(f"{name} out\n")


def test_what_several_commands_need_is_made_by_one_after_the_other(tmp_path, capfd):
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    makers = [context.Process(target=_make, args=(str(tmp_path), x, ready)) for x in "ab"]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    first, second = (tmp_path / "log").read_text().split()[::4]
    expected = [f"{x} {what}" for x in (first, second) for what in ("in", "out")]
    assert (tmp_path / "log").read_text().splitlines() == expected
    out, err = capfd.readouterr()
    assert "waiting for model, which pid" in out + err


def test_free_while_nobody_makes_it(tmp_path):
    place = epath.Path(tmp_path)
    assert is_free(place, "model")
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(1)
    maker = context.Process(target=_make, args=(str(tmp_path), "a", ready))
    maker.start()
    while not (tmp_path / "log").exists():
        assert maker.is_alive()
        time.sleep(0.02)
    assert not is_free(place, "model")
    assert is_free(place, "score")
    maker.join()
    assert is_free(place, "model")


def test_on_a_disk_without_locks_nothing_is_held(tmp_path, monkeypatch):
    """`alone` does not lock there either, and `own` says so by name."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".model.lock").touch()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert is_free(epath.Path(tmp_path), "model")


def test_in_a_store_the_newest_command_wins(bucket):
    assert is_free(epath.Path("gs://bucket/run"), "model")
    place = epath.Path("gs://bucket/run")
    with owned(place, "calibrate", **WORDS) as older:
        older.check()
        with owned(place, "calibrate", **WORDS) as newer:
            newer.check()
            with pytest.raises(TakenOver, match="another run has taken it over"):
                older.check()
            assert set(json.loads((place / ".calibrate.lock").read_text())) == {
                "host",
                "pid",
                "token",
            }
