"""What one layer says of a pair of answers."""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """Whether two answers are equal, which layer decided, and why not ("" for equal ones)."""

    equal: bool
    layer: str
    reason: str = ""
