"""What must not grow: time over tokens faster than a line, a step over steps, compiles at all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

MAX_OFF_LINE = 0.10  # of the fitted seconds
MAX_STEP_GROWTH = 0.10  # of the first quarter's median
WARM_STEPS = 2  # of a stage, which may compile


def off_line(tokens: Sequence[int], seconds: Sequence[float]) -> float:
    """The largest distance of a time to the fitted line, as a share of the line's value."""
    slope, start = np.polyfit(tokens, seconds, 1)
    fitted = start + slope * np.asarray(tokens)
    return float(np.abs(np.asarray(seconds) / fitted - 1).max())


def step_growth(seconds: Sequence[float]) -> float:
    """The last quarter's median step over the first quarter's, minus 1."""
    quarter = max(1, len(seconds) // 4)
    return statistics.median(seconds[-quarter:]) / statistics.median(seconds[:quarter]) - 1


def linear(tokens: Sequence[int], seconds: Sequence[float]) -> str:
    """A line about `off_line`."""
    found = off_line(tokens, seconds)
    return _verdict(
        found <= MAX_OFF_LINE,
        f"update time lies within {found:.1%} of a line in tokens over {len(tokens)} sizes, "
        f"{min(tokens):,} to {max(tokens):,} tokens (at most {MAX_OFF_LINE:.0%})",
    )


def flat(seconds: Sequence[float]) -> str:
    """A line about `step_growth`."""
    found = step_growth(seconds)
    return _verdict(
        found <= MAX_STEP_GROWTH,
        f"step time changed by {found:+.1%} over {len(seconds)} steps, last quarter over first "
        f"(at most {MAX_STEP_GROWTH:+.0%})",
    )


def compiled_once(compiles: Sequence[int]) -> str:
    """A line about compiles after the second step."""
    late = sum(compiles[WARM_STEPS:])
    return _verdict(
        not late,
        f"{late} compiles after step {WARM_STEPS} of {len(compiles)} (before it "
        f"{sum(compiles[:WARM_STEPS])})",
    )


def _verdict(kept: bool, text: str) -> str:
    return f"{'kept' if kept else 'BROKEN'}: {text}"
