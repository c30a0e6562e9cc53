"""Answers in words: equal letter for letter; a choice letter counts in any dress."""

from __future__ import annotations

from polaris_jax.reward.normalize import Token
from polaris_jax.reward.policy import Policy

_CHOICES = frozenset("ABCDEFGHIJ")
_TRUTH = {"yes": "true", "no": "false"}


def same_words(answer: tuple[Token, ...], gold: tuple[Token, ...], policy: Policy) -> bool:
    """Whether two answers are the same words; False where either holds anything else.

    Brackets, points and hyphens do not count; case does where the policy says so.
    """
    ours, theirs = _letters(answer), _letters(gold)
    if ours is None or theirs is None:
        return False
    if len(theirs) == 1 and theirs in _CHOICES:
        return (ours if policy.case_counts else ours.upper()) == theirs
    if not any(kind in ("word", "run") for kind, _ in (*answer, *gold)):
        return False
    # A word inside text is lower case from the start: upper case tells nothing there.
    ours, theirs = ours.lower(), theirs.lower()
    if policy.yes_is_true:
        ours, theirs = _TRUTH.get(ours, ours), _TRUTH.get(theirs, theirs)
    return ours == theirs


def _letters(found: tuple[Token, ...]) -> str | None:
    """The letters of tokens that hold nothing else, brackets and points aside; else None."""
    letters: list[str] = []
    for kind, value in found:
        if kind in ("let", "tlet", "word", "run"):
            letters.append(value)
        elif kind != "op" or value not in ("(", ")", ".", "{", "}", "-"):
            return None
    return " ".join(letters) if any(kind == "word" for kind, _ in found) else "".join(letters)
