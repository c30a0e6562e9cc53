"""A signal is a request; the former handlers come back."""

import os
import signal

import pytest

from polaris_jax.signals import StopRequest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
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


def test_second_ctrl_c_ends_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
