"""SIGTERM, Ctrl-C and a lost terminal as a request that the loop answers at the next safe point."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Any

from polaris_jax.config import ConfigError
from polaris_jax.system.interrupts import raise_interrupt
from polaris_jax.system.progress import say

STOPPED_STATUS = "POLARIS_STOPPED_STATUS"


def stopped_status() -> int:
    """The exit status of a run that a signal stopped before its end: 0, or POLARIS_STOPPED_STATUS.

    Raises:
        ConfigError: the variable holds no whole number from 0 to 255.
    """
    value = os.environ.get(STOPPED_STATUS, "0")
    if not (value.isascii() and value.isdigit() and int(value) <= 255):
        raise ConfigError(
            f"{STOPPED_STATUS}={value!r}: an exit status is a whole number from 0 to 255; unset it "
            "for 0, or set 143 for schedulers that restart only what has failed"
        )
    return int(value)


class StopRequest:
    """Records whether a signal has asked this process to stop, and which one.

    The first signal sets `requested`; the loop then saves a resumable checkpoint. A later Ctrl-C
    ends the process at once. A later SIGTERM changes nothing. SIGHUP, which a lost terminal sends,
    counts as SIGTERM, and stays ignored under nohup. Install it after `jax.distributed.initialize`,
    whose own handler would otherwise replace this one for SIGTERM.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked_at_s = 0.0
        self._former: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """True after the first signal."""
        return self.signal is not None

    @property
    def waited_s(self) -> float:
        """Seconds since the first signal; 0 if there was none."""
        return time.monotonic() - self._asked_at_s if self.requested else 0.0

    @property
    def interrupted(self) -> bool:
        """True if Ctrl-C was the first signal."""
        return self.signal == signal.SIGINT

    def __enter__(self) -> StopRequest:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise_interrupt(frame)
            return
        self.signal = signal.Signals(number)
        self._asked_at_s = time.monotonic()
        say(f"{self.signal.name}: stopping at the next safe point with a checkpoint", sys.stderr)
