"""Plain lines in a pipe, bars on a terminal, nothing where it is turned off."""

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from polaris_jax.system import progress as module
from polaris_jax.system.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_are_rare(monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with Progress(stream=out).phase("work", 4) as phase:
        for done in range(1, 5):
            phase.advance_to(done, "note")
    assert out.getvalue().splitlines() == [
        "work: 2/4 note (0.182/s, 11 s left)",
        "work: 4/4 note (0.133/s, 0 s left)",
    ]


def test_the_rate_leaves_out_what_was_done_before(monkeypatch):
    clock = iter([0.0, 11.0, 30.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with Progress(stream=out).phase("work", 100, before=90) as phase:
        phase.advance_to(90)
        phase.advance_to(93)
    assert out.getvalue().splitlines() == ["work: 90/100", "work: 93/100 (0.1/s, 70 s left)"]


def test_a_terminal_gets_a_bar_and_lines_above_it():
    out = Terminal()
    progress = Progress(stream=out)
    with progress.phase("work", 2) as phase:
        progress.line("a line with [brackets]")
        phase.advance_to(2)
    assert "a line with [brackets]" in out.getvalue()
    assert "work" in out.getvalue()
    progress.line("after")
    assert out.getvalue().endswith("after\n")


def test_a_line_that_nobody_reads_ends_nothing():
    body = (
        "from polaris_jax.system.progress import Progress\n"
        "progress = Progress()\n"
        "for _ in range(2):\n"
        "    progress.line('to nobody')\n"
    )
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-c", body], stdout=write_end, stderr=subprocess.PIPE, text=True
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


BAR = """
import os, sys, time
from polaris_jax.system.progress import Progress

progress, test = Progress(), int(sys.argv[1])
try:
    with progress.phase("work", 4) as phase:
        phase.advance_to(1)
        assert progress.rich is not None
        os.write(test, b"x")  # the bar stands
        sys.stdin.read()  # until the terminal is gone
        time.sleep(0.3)  # the bar is drawn meanwhile
        phase.advance_to(2)
        progress.line("to nobody")
        print("to nobody", file=sys.stderr)
        raise KeyError("abandoned")
except KeyError:
    pass
with progress.phase("more work", 4) as phase:
    progress.line("to nobody")
os.write(test, b"saved")
"""


def test_a_terminal_that_is_lost_under_a_bar_ends_nothing():
    """The body's own exception comes out, and the next bar ends nothing either."""
    master, slave = pty.openpty()
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", BAR, str(write_end)],
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=subprocess.PIPE,
        pass_fds=[write_end],
        start_new_session=True,  # no SIGHUP: the terminal is not the process's own
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(slave)
    os.close(write_end)
    assert os.read(read_end, 1) == b"x"
    os.close(master)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error, os.read(read_end, 9)) == (0, b"", b"saved")
    os.close(read_end)


FULL = """
import os, sys
from polaris_jax.system.progress import Progress

full, good = os.open("/dev/full", os.O_WRONLY), os.dup(1)
progress = Progress()
progress.line("first")
os.dup2(full, 1)
for number in range(2000):
    progress.line(f"dropped {number}")
os.dup2(good, 1)
progress.line("last")
os.dup2(full, 1)
progress.line("dropped")
"""


def test_a_full_disk_drops_lines_and_keeps_the_stream():
    done = subprocess.run(
        [sys.executable, "-c", FULL],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": ""},  # a buffer keeps what the disk refused
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "first\nlast\n"


def test_a_bar_says_the_rate_the_time_left_and_that_it_compiles(monkeypatch):
    out, compiling = Terminal(), [True]
    monkeypatch.setenv("COLUMNS", "160")
    with Progress(stream=out, compiling=lambda: compiling[0]).phase("work", 4) as phase:
        bars = phase._console.rich
        bars.refresh()
        assert "compiling" in out.getvalue()
        compiling[0] = False
        for done in (1, 2):
            phase.sampling(2, 2)(done, 4, 1234 * done)  # a process that samples a share
            time.sleep(0.01)
        bars.refresh()
    said = out.getvalue().rpartition("compiling")[2]
    assert "3/4" in said and "2,468 tokens" in said
    assert re.search(r"[\d.e+]+/s .*left", said)


class Watch:
    def __init__(self):
        self.done, self.warnings = [], []

    def doing(self, text):
        self.done.append(text)

    def warned(self, text):
        self.warnings.append(text)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_watcher_hears_of_work_and_warnings_in_every_process(enabled):
    watch = Watch()
    progress = Progress(enabled=enabled, stream=io.StringIO(), watcher=watch)
    progress.line("a line")
    progress.line("warning: look here")
    with progress.phase("work", 4) as phase:
        phase.advance_to(3)
    assert watch.warnings == ["look here"]
    assert watch.done == ["work", "work: 3/4"]


def test_disabled_is_silent():
    out = io.StringIO()
    progress = Progress(enabled=False, stream=out)
    with progress.phase("work", 1) as phase:
        phase.advance_to(1)
    progress.line("x")
    assert out.getvalue() == ""


def test_a_line_cannot_steer_the_terminal():
    for out in (io.StringIO(), Terminal()):
        progress = Progress(stream=out)
        progress.line("left out: \x1b[31mred\r\u202e\ud800\n\tnext")
        assert out.getvalue() == "left out: \\x1b[31mred\\r\\u202e\\ud800\n\tnext\n"
