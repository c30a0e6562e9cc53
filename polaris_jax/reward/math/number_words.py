"""Numbers in English words: `twenty-one`, `one hundred and five`, `two thirds`, `one half`."""

from __future__ import annotations

from fractions import Fraction

from polaris_jax.reward.math.vocabulary import NUMBER_WORDS, SCALES

PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
PARTS |= {
    ordinal + plural: value
    for ordinal, value in (
        ("third", 3), ("fourth", 4), ("fifth", 5), ("sixth", 6), ("seventh", 7), ("eighth", 8),
        ("ninth", 9), ("tenth", 10), ("twelfth", 12), ("hundredth", 100), ("thousandth", 1000),
    )
    for plural in ("", "s")
}  # fmt: skip


def spelt_number(words: list[str]) -> Fraction | None:
    """The value of some words in lower case, or None if they are not a number."""
    if not words or len(words) > 12:
        return None
    if words[-1] in PARTS and len(words) >= 2:
        top = _whole(words[:-1])
        return None if top is None else Fraction(top, PARTS[words[-1]])
    whole = _whole(words)
    return None if whole is None else Fraction(whole)


def _whole(words: list[str]) -> int | None:
    total = group = 0
    last = 1 << 30  # the size of the last word below a hundred: `twenty one`, never `one twenty`
    for place, word in enumerate(words):
        if word == "and":
            if place in (0, len(words) - 1):
                return None
        elif word in NUMBER_WORDS:
            value = NUMBER_WORDS[word]
            if last <= 10 or (last < 1 << 30 and (last < 20 or value >= 10 or value == 0)):
                return None
            group, last = group + value, value
        elif word == "hundred":
            if not 0 < group < 10:
                return None
            group, last = group * 100, 1 << 30
        elif word in SCALES:
            if not group:
                return None
            total, group, last = total + group * 10 ** SCALES[word], 0, 1 << 30
        else:
            return None
    return total + group
