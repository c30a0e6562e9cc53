"""The rules of a comparison: which unequal forms count as equal, what it says, what it may cost.

Training uses the preset `default`. Each field of a `Policy` is one decision; `docs/grading.md`
shows the three presets side by side. No mathematics is imported here.
"""

from __future__ import annotations

import dataclasses
import threading
from types import MappingProxyType
from typing import NamedTuple

# ---- presets


@dataclasses.dataclass(frozen=True)
class Policy:
    """The decisions that a mathematician could take either way.

    Attributes:
        name: name of the preset.
        units_may_be_dropped: an answer may add or leave out a unit, a currency or a degree sign.
        units_are_converted: 300 cm equals 3 m; otherwise two known units must be equal.
        plain_for_percent: gold 5% accepts 5.
        percent_for_ratio: gold 0.05 accepts 5%. Gold 5 never does.
        ratio_for_percent: gold 5% accepts 0.05.
        gold_digits: significant digits from which a gold decimal accepts what rounds to it; None: a
            gold decimal accepts only its exact value.
        answer_digits: significant digits from which an answer's decimal may stand for a gold that
            is a fraction or irrational; None: never.
        names_may_be_dropped: `x = 5` equals 5.
        brackets_may_be_dropped: `{1, 2}` equals `1, 2`, and `(1, 2)` the column of 1 and 2.
        case_counts: a choice letter must be a capital if the gold is a capital.
        yes_is_true: `yes` equals `true`, `no` equals `false`.
    """

    name: str
    units_may_be_dropped: bool = True
    units_are_converted: bool = False
    plain_for_percent: bool = True
    percent_for_ratio: bool = True
    ratio_for_percent: bool = False
    gold_digits: int | None = 3
    answer_digits: int | None = 12  # a float's print of an exact value
    names_may_be_dropped: bool = True
    brackets_may_be_dropped: bool = True
    case_counts: bool = False
    yes_is_true: bool = False


STRICT = Policy(
    "strict",
    units_may_be_dropped=False,
    plain_for_percent=False,
    percent_for_ratio=False,
    gold_digits=None,
    answer_digits=None,
    names_may_be_dropped=False,
    brackets_may_be_dropped=False,
    case_counts=True,
)
DEFAULT = Policy("default")
LENIENT = Policy(
    "lenient",
    units_are_converted=True,
    ratio_for_percent=True,
    gold_digits=2,
    answer_digits=4,
    yes_is_true=True,
)
PRESETS = MappingProxyType({policy.name: policy for policy in (STRICT, DEFAULT, LENIENT)})


def policy_named(preset: str) -> Policy:
    """The policy of the preset. Raises ValueError if there is no such preset."""
    if preset not in PRESETS:
        raise ValueError(
            f"preset={preset!r}: answers are compared as {', '.join(map(repr, PRESETS))}; "
            "pass one of them"
        )
    return PRESETS[preset]


# ---- what a layer says of a pair


class Verdict(NamedTuple):
    """Whether two answers are equal, which layer decided, and why not ("" for equal ones)."""

    equal: bool
    layer: str
    reason: str = ""


# ---- steps that one pair may cost: a list of fifty sums against another is thousands of values,
# each within its own limit; kept by thread, like mpmath's context

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
