"""Which way of writing a response takes, and how much of a gain each part explains.

The demo's base model writes in two ways (see `arithmetic`). A score may rise because the better way
is taken more often, or because more answers are right within a way. Only the second is skill.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal

Way = Literal["careful", "hurried", "other"]
WAYS: tuple[Way, ...] = ("careful", "hurried", "other")

_CAREFUL = re.compile(r"(?:Add|Take|Times) \d+: [^\n]*")
_HURRIED = re.compile(r"\d[^\n:]*=[^\n:]*")


def way_of(text: str) -> Way:
    """The way in which a response is written, right or wrong; "other" if it is neither.

    careful: every line of the thought names its step ("Add 5: 7 + 5 = 12"). hurried: one line
    without names. A response that the budget cut off counts by what it has written.
    """
    thought = text.partition("<think>")[2] if "<think>" in text else text
    thought = thought.partition("</think>")[0].strip()
    lines = thought.split("\n")
    if lines[-1:] and len(lines) > 1 and not _CAREFUL.fullmatch(lines[-1]):
        lines = lines[:-1]  # cut off within a line
    if thought and all(_CAREFUL.fullmatch(line) for line in lines):
        return "careful"
    if len(lines) == 1 and _HURRIED.fullmatch(lines[0]):
        return "hurried"
    return "other"


@dataclasses.dataclass(frozen=True)
class WayCount:
    """The responses of one way: their share of all, and the share of them that is right."""

    share: float
    right: float


@dataclasses.dataclass(frozen=True)
class Gain:
    """A gain and its parts, in shares of right responses.

    Attributes:
        before: {way: its responses} before.
        after: {way: its responses} after.
        total: right responses after minus before.
        choice: part of it that comes from other shares of the ways.
        within: part of it that comes from more right responses within each way.
    """

    before: dict[Way, WayCount]
    after: dict[Way, WayCount]
    total: float
    choice: float
    within: float


def count_ways(texts: Sequence[str], rewards: Sequence[float]) -> dict[Way, WayCount]:
    """Shares of the ways, and of right responses within each.

    Args:
        texts: responses.
        rewards: their rewards; 1 is right.

    Raises:
        ValueError: there is no response, or the numbers differ.
    """
    if not texts or len(texts) != len(rewards):
        raise ValueError(f"{len(texts)} texts, {len(rewards)} rewards: give each text its reward")
    ways = [way_of(text) for text in texts]
    found: dict[Way, WayCount] = {}
    for way in WAYS:
        own = [reward for w, reward in zip(ways, rewards, strict=True) if w == way]
        right = sum(own) / len(own) if own else 0.0
        found[way] = WayCount(len(own) / len(texts), right)
    return found


def decompose(before: dict[Way, WayCount], after: dict[Way, WayCount]) -> Gain:
    """The gain as a sum of choice and skill.

    Each way's part is split at the mean of before and after, so neither order of the two changes is
    preferred. A way without responses on one side is as right there as on the other.

    Source: Kitagawa 1955, "Components of a Difference Between Two Rates".
    """
    choice = within = total = 0.0
    for way in WAYS:
        old, new = before[way], after[way]
        old_right = old.right if old.share else new.right
        new_right = new.right if new.share else old.right
        choice += (new.share - old.share) * (old_right + new_right) / 2
        within += (new_right - old_right) * (old.share + new.share) / 2
        total += new.share * new_right - old.share * old_right
    return Gain(before, after, total, choice, within)


def count_rows(rows: Sequence[dict[str, Any]]) -> dict[Way, WayCount]:
    """`count_ways` of the rows of a responses.jsonl of `polaris evaluate`."""
    return count_ways([row["text"] for row in rows], [row["reward"] for row in rows])


def gain_lines(gain: Gain) -> list[str]:
    """The gain and its parts as lines for a person."""
    lines = [
        f"gain {100 * gain.total:+.1f} points: {100 * gain.within:+.1f} within a way of writing, "
        f"{100 * gain.choice:+.1f} by the choice of the way"
    ]
    for way in WAYS:
        old, new = gain.before[way], gain.after[way]
        if max(old.share, new.share) >= 0.005:
            lines.append(
                f"  {way:<8} {old.share:6.1%} of the responses, {old.right:6.1%} right  ->  "
                f"{new.share:6.1%}, {new.right:6.1%} right"
            )
    return lines
