"""A signal is a request; the former handlers come back."""

import errno
import io
import os
import signal
import sys

import pytest

from polaris_jax import signals as module
from polaris_jax.signals import StopRequest


@pytest.fixture(autouse=True)
def _with_a_terminal():
    """Whatever started the tests: nohup ignores SIGHUP."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)]
)
def test_first_signal_is_a_request(number, code, capsys):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.exit_code == code
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
        assert stop.exit_code == 130


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
