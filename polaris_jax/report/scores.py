"""What an eval.json is a score of, and whether two of them may be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

BASE = "base model"
Score = Mapping[str, Any]


def score_name(score: Score) -> str:
    """`base model`, `after RL` or `checkpoint a/b`: by the weights that were scored."""
    checkpoint = score.get("checkpoint") or "base"
    if checkpoint == "base":
        return BASE
    if checkpoint == "latest":
        return "after RL"
    return f"checkpoint {'/'.join(PurePosixPath(checkpoint).parts[-2:])}"


def pair_names(before: Score | None, after: Score | None) -> tuple[str, str]:
    """Names of before_eval.json and eval.json; only the base of another score is `before RL`."""
    first, last = ("" if score is None else score_name(score) for score in (before, after))
    if first == BASE and last != BASE:
        return "before RL", last
    return f"{first}, tag before", last


def not_comparable(before: Score, after: Score) -> str:
    """Why the difference of two scores is no gain: `temperature 0.6 and 1.3`; empty if it is."""
    names = score_name(before), score_name(after)
    reasons = []
    if before.get("checkpoint") == after.get("checkpoint"):
        reasons.append(f"both of the {BASE}" if names[0] == BASE else "both of one checkpoint")
    for name, key in (
        ("problems", "problems"),
        ("temperature", "temperature"),
        ("n", "k"),
        ("budget", "max_response_tokens"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
    ):
        if before.get(key) != after.get(key):
            reasons.append(f"{name} {_text(before.get(key))} and {_text(after.get(key))}")
    yarn = _yarn(before), _yarn(after)
    if yarn[0] != yarn[1]:
        reasons.append(f"YaRN {yarn[0]} and {yarn[1]}")
    return ", ".join(reasons)


def gain_text(before: Score, after: Score) -> str:
    """`+32.0 ± 2.7 points`, or why there is none to tell."""
    reason = not_comparable(before, after)
    if reason:
        return f"not comparable: {reason}"
    error = math.hypot(*(score.get("stderr") or 0.0 for score in (before, after)))
    return f"{100 * (after['avg@k'] - before['avg@k']):+.1f} ± {100 * error:.1f} points"


def caption(before: Score | None, after: Score | None) -> str:
    """What the figure of held-out scores shows."""
    if before is None or after is None:
        return "Held-out problems."
    reason = not_comparable(before, after)
    if reason:
        return f"Held-out problems. The two scores are not comparable: {reason}."
    return "Held-out problems: same problems, seeds, temperature and budget before and after."


def _yarn(score: Score) -> str:
    """Under which scaling the score itself was sampled; `both` scores without it first."""
    if score.get("rope") != "on":
        return "off"
    factor = score.get("yarn_factor")
    return "on" if factor is None else f"x {_text(factor)}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
