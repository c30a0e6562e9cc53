"""Ctrl-C ends a start at once, unwinds work, and is not lost in the garbage collector."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from polaris_jax.system import interrupts

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _python_s_own_handler():
    """Whatever started the tests: a shell's background job ignores Ctrl-C."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def call(text, **more):
    own = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    return subprocess.Popen(
        [sys.executable, "-c", own + text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **more,
    )


def test_a_start_ends_at_once_with_one_line():
    """Within an import, whose finally and except do not run."""
    process = call(
        "import os, signal\n"
        "from polaris_jax.system.interrupts import end_at_once\n"
        "end_at_once()\n"
        "print('half a line', end='')\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "finally: print('unwound')"
    )
    assert process.communicate(timeout=60) == ("half a line", f"{interrupts.LINE}\n")
    assert process.returncode == 130


def test_a_command_that_imports_ends_at_once():
    process = call(
        "import sys\n"
        "from polaris_jax.__main__ import entry\n"
        "sys.argv = ['polaris', 'calibrate', '--config=configs/tiny_cpu.py', '--workdir=w']\n"
        "print('begun', flush=True)\n"
        "entry()",
        cwd=ROOT,
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (out, error) == ("", f"{interrupts.LINE}\n")
    assert process.returncode == 130


def test_work_unwinds():
    interrupts.end_at_once()
    interrupts.begin_work()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_in_the_garbage_collector_it_comes_a_moment_later():
    interrupts.end_at_once()
    interrupts.begin_work()
    left = []

    def _xla_gc_callback():
        os.kill(os.getpid(), signal.SIGINT)
        left.append(True)

    _xla_gc_callback()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)
    assert left == [True]


@pytest.mark.parametrize("other", [signal.SIG_IGN, lambda *_: None], ids=["nohup", "own"])
def test_another_handler_stays(other):
    signal.signal(signal.SIGINT, other)
    interrupts.end_at_once()
    interrupts.begin_work()
    assert signal.getsignal(signal.SIGINT) is other


def test_nothing_changes_for_who_calls_main():
    interrupts.begin_work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
