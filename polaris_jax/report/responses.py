"""A bounded sample of a run's responses for the page, by step and group.

The sample is even: steps at equal distances, and in each step groups at equal distances, whatever
came out. So its shares are estimates of the run's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.records import correct_rewards
from polaris_jax.run.response_rows import (
    ResponseRows,
    groups_of,
    number_of,
    plain_text,
    rollout_paths,
    shortened,
    word,
)
from polaris_jax.system.foreign import ForeignFileError, printable

STEPS = 24
MOST_RESPONSES = 16  # of a group
MOST_CHARS = 1_500_000  # of all responses together
LEAST_CHARS = 400  # of one response
QUESTION_CHARS = 2_000
READ_BYTES = 1 << 28  # of rollouts/, all steps together


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The responses that a page shows of one run.

    Attributes:
        groups: one record a group, in the order of the steps; `_group` has their fields.
        steps: steps that they come from.
        all_steps: steps that rollouts/ has.
        seen: groups of these steps.
        damaged: lines of these steps that cannot be read.
    """

    groups: tuple[dict[str, Any], ...] = ()
    steps: tuple[int, ...] = ()
    all_steps: int = 0
    seen: int = 0
    damaged: int = 0

    def text(self, *, wanted: int) -> str:
        """How much of how much this is, in words.

        Args:
            wanted: largest number of groups that was asked for.
        """
        if not self.all_steps:
            return "The run has no rollouts/step_N.jsonl."
        if not wanted:
            return "Left out (--groups=0)."
        damaged = f"; {self.damaged} lines cannot be read" if self.damaged else ""
        return (
            f"{len(self.groups):,} of the {self.seen:,} groups in {len(self.steps)} of "
            f"{self.all_steps:,} recorded steps, at equal distances{damaged}."
        )


def sample_responses(
    run_dir: epath.Path,
    *,
    groups: int,
    correct_at: float,
    substituted: Mapping[int, int],
    chars: int = MOST_CHARS,
) -> Sampled:
    """An even sample of rollouts/.

    Args:
        run_dir: directory of the run.
        groups: largest number of groups; 0: none is read.
        correct_at: reward from which a response counts as correct.
        substituted: {step: groups that the step replaced by copies}, by metrics.jsonl.
        chars: largest number of characters of all texts together; longer ones lose their middle.
    """
    paths = rollout_paths(run_dir)
    if not groups or not paths:
        return Sampled(all_steps=len(paths))
    chosen = evenly(list(paths), min(STEPS, groups, _affordable(list(paths.values()))))
    found: list[dict[str, Any]] = []
    seen = damaged = 0
    for number, step in enumerate(chosen):
        # The steps share the groups; the first ones take what is left over.
        wanted = groups // len(chosen) + (number < groups % len(chosen))
        here, unread = _read(paths[step])
        # Earlier versions did not say which groups were replaced.
        known = any("substituted_by" in group[0] for group in here)
        inferred = set() if known else _replaced(here, substituted.get(step, 0))
        for at in evenly(range(len(here)), wanted):
            found.append(_group(here[at], step, correct_at, inferred=at in inferred))
        seen += len(here)
        damaged += unread
    shown = sum(len(group["responses"]) for group in found)
    each = max(LEAST_CHARS, chars // max(1, shown))
    for group in found:
        _shorten(group, each)
    return Sampled(tuple(found), tuple(chosen), len(paths), seen, damaged)


def evenly(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items at equal distances, the first and the last among them."""
    if count >= len(items):
        return list(items)
    if count < 2:
        return list(items[-1:]) if count else []
    at = np.linspace(0, len(items) - 1, count).round().astype(int)
    return [items[i] for i in dict.fromkeys(at.tolist())]


def _affordable(paths: Sequence[epath.Path]) -> int:
    """How many of the files may be read, at least one, so that a report ends soon."""
    largest = max(path.stat().length for path in (paths[0], paths[len(paths) // 2], paths[-1]))
    return max(1, READ_BYTES // max(1, largest))


def _read(path: epath.Path) -> tuple[list[list[dict[str, Any]]], int]:
    """The groups of a step, and the number of lines that cannot be read."""
    rows = ResponseRows(path)
    try:
        return list(groups_of(rows)), rows.damaged
    except (OSError, ForeignFileError):
        return [], rows.damaged + 1


def _replaced(groups: Sequence[list[dict[str, Any]]], count: int) -> set[int]:
    """Which groups of a step copies of others replaced, if its rows do not say so.

    They are inferred: the last batch's first uninformative ones.

    Args:
        groups: the step's groups, in the order of the batch.
        count: how many were replaced, by metrics.jsonl.
    """
    if not count:
        return set()
    last = max(_attempt(group) for group in groups)
    poor = [
        at
        for at, group in enumerate(groups)
        if _attempt(group) == last
        and len({row.get("rescue_reward", row.get("reward")) for row in group}) == 1
    ]
    return set(poor[:count])


def _attempt(group: list[dict[str, Any]]) -> int:
    attempt = group[0].get("attempt", 0)
    return attempt if isinstance(attempt, int) else 0


def _group(
    rows: list[dict[str, Any]], step: int, correct_at: float, *, inferred: bool
) -> dict[str, Any]:
    """A group for the page. Every text is printable: marks that could mislead are escaped.

    Args:
        rows: its rows.
        step: number of its step.
        correct_at: reward from which a response counts as correct.
        inferred: True if a copy of another group has probably replaced it.
    """
    first = rows[0]
    donor = first.get("substituted_by")
    return {
        "step": step,
        "attempt": _attempt(rows),
        "id": word(first.get("problem_id")),
        "question": shortened(_text(first.get("question")), QUESTION_CHARS),
        "gold": word(plain_text(first.get("gold"))),
        "substituted": inferred or donor is not None,
        "donor": None if donor is None else word(donor),
        "left_out": max(0, len(rows) - MOST_RESPONSES),
        "responses": [_response(row, correct_at) for row in rows[:MOST_RESPONSES]],
    }


def _response(row: dict[str, Any], correct_at: float) -> dict[str, Any]:
    reward = number_of(row.get("reward"))
    found: dict[str, Any] = {
        "text": _text(row.get("text")),
        "answer": None if row.get("answer") is None else word(row["answer"]),
        "reason": word(row["reason"]) if row.get("reason") else "",
        "reward": None if reward is None else round(reward, 6),
        "right": reward is not None and bool(correct_rewards(np.array(reward), correct_at)),
        "cut": row.get("finish_reason") == "length",
        "tokens": row["tokens"] if isinstance(row.get("tokens"), int) else None,
    }
    if "rescue_text" in row:
        found["rescue"] = {
            "text": _text(row["rescue_text"]),
            "step": row["rescue_step"] if isinstance(row.get("rescue_step"), int) else None,
        }
    return found


def _shorten(group: dict[str, Any], chars: int) -> None:
    for response in group["responses"]:
        response["text"] = shortened(response["text"], chars)
        if "rescue" in response:
            response["rescue"]["text"] = shortened(response["rescue"]["text"], chars)


def _text(value: Any) -> str:
    return "" if value is None else printable(plain_text(value), lines=True)
