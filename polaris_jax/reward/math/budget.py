"""The steps that one pair of answers may cost, however many values its comparison takes.

A list of fifty sums against another is thousands of values, each within its own limit. Kept by
thread, as mpmath's context is; no mathematics is imported here.
"""

from __future__ import annotations

import threading

MAX_PAIR_STEPS = 100_000  # some tenths of a second

_LEFT = threading.local()


def start_pair() -> None:
    """Gives this thread the steps of a new pair of answers."""
    _LEFT.steps = MAX_PAIR_STEPS


def steps_left() -> int:
    """What this thread's pair has left, below zero where its last value took more."""
    return getattr(_LEFT, "steps", MAX_PAIR_STEPS)


def spend(steps: int) -> None:
    """Takes the steps of one value off."""
    _LEFT.steps = steps_left() - steps
