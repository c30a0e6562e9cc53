"""Answers in words: equal letter for letter; a choice letter counts in any dress."""

from __future__ import annotations

from polaris_jax.reward.math.normalize import Token
from polaris_jax.reward.math.policy import Policy
from polaris_jax.reward.math.vocabulary import (
    CHOICES,
    NUMBER_WORDS,
    SHORT_WORDS,
    is_unit_word,
    word_set,
)

_PLAIN_WORDS = word_set(
    "true false even odd none undefined infinite finite never always sometimes north south east "
    "west left right monday tuesday wednesday thursday friday saturday sunday"
)
_TRUTH = {"yes": "true", "no": "false"}


def same_words(answer: tuple[Token, ...], gold: tuple[Token, ...], policy: Policy) -> bool:
    """Whether two answers are the same words; False if either holds anything else.

    Brackets, points and hyphens between words do not count. Nor does case, but for plain letters
    that are no known word: `abcd` may be a product, and is not `ABCD`; `Dayton` is `dayton`.
    """
    ours, theirs = _letters(answer), _letters(gold)
    if ours is None or theirs is None:
        return False
    if len(theirs) == 1 and theirs in CHOICES:
        return (ours if policy.case_counts else ours.upper()) == theirs
    if not any(kind in ("word", "run") for kind, _ in (*answer, *gold)):
        return False
    # A word inside text is lower case from the start: upper case tells nothing there.
    both = (*answer, *gold)
    in_text = any(kind == "word" for kind, _ in both)
    if in_text or all(folded(value) == value.lower() for kind, value in both if kind == "run"):
        ours, theirs = ours.lower(), theirs.lower()
    if policy.yes_is_true:
        ours, theirs = _TRUTH.get(ours, ours), _TRUTH.get(theirs, theirs)
    return ours == theirs


def folded(run: str) -> str:
    """Plain letters in lower case where they are written as a word or are one that we know."""
    word = run.lower()
    known = word in _PLAIN_WORDS or word in SHORT_WORDS or word in NUMBER_WORDS or is_unit_word(run)
    return word if known or run.istitle() else run


def _letters(found: tuple[Token, ...]) -> str | None:
    """The letters of tokens that hold nothing else, brackets and points aside; else None.

    A minus counts unless it joins two words: `well-known`, never `-A`.
    """
    letters: list[str] = []
    for place, (kind, value) in enumerate(found):
        if kind in ("let", "tlet", "word", "run"):
            letters.append(value)
        elif (kind, value) == ("op", "-"):
            beside = found[max(place - 1, 0) : place] + found[place + 1 : place + 2]
            if len(beside) != 2 or any(kind not in ("word", "run") for kind, _ in beside):
                return None
        elif kind != "op" or value not in ("(", ")", ".", "{", "}"):
            return None
    return " ".join(letters) if any(kind == "word" for kind, _ in found) else "".join(letters)
