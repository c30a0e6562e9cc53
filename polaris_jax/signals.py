"""SIGTERM, Ctrl-C and a lost terminal as a request that the loop answers at the next safe point."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import Any

from polaris_jax.interrupts import raise_interrupt
from polaris_jax.progress import say


class StopRequest:
    """Whether, and by which signal, this process has been asked to stop.

    The first signal sets `requested`; the loop then leaves a resumable checkpoint. Ctrl-C after it
    ends the process at once, another SIGTERM changes nothing. SIGHUP, which a lost terminal sends,
    counts as SIGTERM, and stays ignored under nohup. Install it after `jax.distributed.initialize`,
    whose own handler would swallow SIGTERM otherwise.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked_at_s = 0.0
        self._former: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """True from the first signal on."""
        return self.signal is not None

    @property
    def waited_s(self) -> float:
        """Seconds since the first signal; 0 without one."""
        return time.monotonic() - self._asked_at_s if self.requested else 0.0

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 0 after SIGTERM and SIGHUP (no failure) or without a signal."""
        return 130 if self.signal == signal.SIGINT else 0

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
