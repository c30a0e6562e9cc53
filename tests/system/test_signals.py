"""A signal is a request; the former handlers come back."""

from __future__ import annotations

import errno
import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from polaris_jax.commands.train import exit_status
from polaris_jax.config import ConfigError
from polaris_jax.system import signals
from polaris_jax.system import signals as module
from polaris_jax.system.signals import StopRequest, stopped_status


@pytest.fixture(autouse=True)
def _with_a_terminal():
    """Whatever started the tests: nohup ignores SIGHUP, a shell's background job SIGQUIT."""
    former = {n: signal.signal(n, signal.SIG_DFL) for n in signals.LIKE_SIGTERM}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "interrupts"),
    [
        (signal.SIGTERM, False),
        (signal.SIGINT, True),
        (signal.SIGHUP, False),
        (signal.SIGUSR1, False),
        (signal.SIGUSR2, False),
        (signal.SIGQUIT, False),
        (signal.SIGXCPU, False),
    ],
)
def test_first_signal_is_a_request(number, interrupts, capsys):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        assert not stop.interrupted
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.interrupted == interrupts
    assert signal.getsignal(number) is before
    assert "stopping at the next safe point" in capsys.readouterr().err


def test_under_nohup_a_lost_terminal_is_no_request():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO], ids=["pipe", "terminal"])
def test_a_signal_that_ended_the_log_too_is_a_request(number, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, "stderr", Gone())
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.interrupted


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), RuntimeError("reentrant call inside <_io.BufferedWriter>")],
    ids=["full disk", "within a write"],
)
def test_a_line_that_cannot_be_printed_stops_no_stop(error, monkeypatch):
    class Refuses(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr(sys, "stderr", Refuses())
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_counts(first, monkeypatch, capsys):
    clock = iter([100.0, 130.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == first
        assert stop.waited_s == 30.0
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_second_ctrl_c_ends_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("finished", "interrupted", "status"),
    [(False, False, 143), (True, False, 0), (False, True, 130), (True, True, 130)],
)
def test_the_status_of_a_stop_is_for_runs_with_steps_left(finished, interrupted, status):
    assert exit_status(finished, interrupted=interrupted, when_stopped=143) == status


def test_a_stopped_run_ends_with_0_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("POLARIS_STOPPED_STATUS", raising=False)
    assert stopped_status() == 0
    monkeypatch.setenv("POLARIS_STOPPED_STATUS", "143")
    assert stopped_status() == 143


@pytest.mark.parametrize("value", ["", "256", "-1", "SIGTERM", "1.0", "²"])
def test_a_status_that_is_none_is_refused(value, monkeypatch):
    monkeypatch.setenv("POLARIS_STOPPED_STATUS", value)
    with pytest.raises(ConfigError, match=r"POLARIS_STOPPED_STATUS=.*from 0 to 255"):
        stopped_status()


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
        "from polaris_jax.system.signals import end_at_once\n"
        "end_at_once()\n"
        "print('half a line', end='')\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "finally: print('unwound')"
    )
    assert process.communicate(timeout=60) == ("half a line", f"{signals.INTERRUPTED}\n")
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
    assert (out, error) == ("", f"{signals.INTERRUPTED}\n")
    assert process.returncode == 130


def test_work_unwinds():
    signals.end_at_once()
    signals.begin_work()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_in_the_garbage_collector_it_comes_a_moment_later():
    signals.end_at_once()
    signals.begin_work()
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
    signals.end_at_once()
    signals.begin_work()
    assert signal.getsignal(signal.SIGINT) is other


def test_nothing_changes_for_who_calls_main():
    signals.begin_work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
