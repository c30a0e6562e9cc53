"""Answers in words: spelt numbers, plain words, choices with their letters, times and dates."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from polaris_jax.reward.math.normalize import Token
from polaris_jax.reward.math.policy import Policy
from polaris_jax.reward.math.vocabulary import (
    ASSENTING_WORDS,
    CHANGING_WORDS,
    CHOICES,
    NUMBER_WORDS,
    SCALES,
    SEPARATORS,
    SHORT_WORDS,
    is_unit_word,
    word_set,
)

# ---- numbers in English words: `twenty-one`, `one hundred and five`, `two thirds`, `one half`

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


# ---- answers in words: equal letter for letter; a choice letter counts in any dress

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
    # A word that was read as text is in lower case already, so case cannot be compared.
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


# ---- a choice with its letter and its text: `\textbf{(C)}\ 12`, `(C) 12`, `C) 12`

_VALUE_STARTS = frozenset({("cmd", "frac"), ("cmd", "sqrt"), ("cmd", "pi"), ("op", "dollar")})
_TEXT_STARTS = frozenset({("op", "dollar"), ("op", "-")})
_JOINS = frozenset({",", ";", ":", "=", "neq", "<", ">", "leq", "geq", "in", "approx"})
_VERBS = word_set(
    "is are was were be has have had does do seems means makes fails must may would "
    "unlikely crossed struck ruled"
)
_SPACED = re.compile(r"[\s$]{0,8}\(?\s{0,8}[A-J]\s{0,8}\)\s{0,8}(?:[\s~]|\\[ ,;:]|\\q?quad)")
_OPERATORS = frozenset({"+", "-", "*", "!", "^", "(", "["})


class Choice(NamedTuple):
    """A choice letter and the tokens behind it; marked: the letter is set as text, no factor."""

    letter: str
    rest: tuple[Token, ...]
    marked: bool


def labelled_choice(found: tuple[Token, ...], text: str) -> Choice | None:
    """The choice that an answer is, where it has its letter and one value or text; else None.

    A letter in plain brackets counts before a space and a number alone: `(A)2`, `(A) x` and
    `(A) 3!` are no choices, nor is what names another letter, denies the first, or says something
    of it.

    Args:
        found: the answer's tokens.
        text: the answer as it was written, for its spaces.
    """
    opened = bool(found) and found[0] == ("op", "(")
    head = found[opened : opened + 2]
    if len(head) != 2 or head[0][1] not in CHOICES or head[1] != ("op", ")"):
        return None
    (kind, letter), rest = head[0], found[opened + 2 :]
    marked = kind == "tlet"
    if not rest or any(value in CHOICES or value in _JOINS for _, value in rest):
        return None
    words = {value.lower() for kind, value in rest if kind in ("word", "run")}
    if not words.isdisjoint(CHANGING_WORDS | SEPARATORS | _VERBS):
        return Choice(letter, rest, False) if words <= ASSENTING_WORDS else None
    starts_value = rest[0][0] == "num" or rest[0] in _VALUE_STARTS
    plain = starts_value and _SPACED.match(text) is not None
    plain = plain and all(
        kind not in ("let", "tlet") and value not in _OPERATORS for kind, value in rest
    )
    starts_text = (
        rest[0][0] in ("num", "let", "tlet", "word", "run", "cmd") or rest[0] in _TEXT_STARTS
    )
    return Choice(letter, rest, marked) if plain or (marked and starts_text) else None


# ---- times and dates in plain forms: `3:30 PM` is `15:30`, `May 5th, 2020` is `5 May 2020`

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september",
    "october", "november", "december",
)  # fmt: skip
_SILENT_WORDS = frozenset({"st", "nd", "rd", "th", "of", "the", "on", "at"})


def same_time(answer: tuple[Token, ...], gold: tuple[Token, ...]) -> bool | None:
    """Whether two times or two dates agree; None if either side is neither.

    A time without `am` or `pm` is on the 24-hour clock, and at least one side must have one of
    them: see `same_clock`.
    """
    ours, theirs = _parts(answer), _parts(gold)
    if ours is None or theirs is None:
        return None
    for read in (_minutes, _date):
        left, right = read(ours), read(theirs)
        if left is not None and right is not None:
            marked = read is _date or any(part in ("am", "pm") for part in (*ours, *theirs))
            return left == right if marked else None
    return None


_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)")
_DRESS = re.compile(r"\\[A-Za-z]{1,20}|[\s\\!${}()]|[.,;]\s{0,8}$")


def same_clock(answer: str, gold: str) -> bool | None:
    """Whether two texts like `10:30` agree in both parts; None if either is another text.

    They may be times of day or durations, and 5:15 is none of 10:30. `2:4` and `1:2` are ratios.
    """
    ours, theirs = (_CLOCK.fullmatch(_DRESS.sub("", text)) for text in (answer, gold))
    if ours is None or theirs is None:
        return None
    return [int(part) for part in ours.groups()] == [int(part) for part in theirs.groups()]


def _parts(tokens: tuple[Token, ...]) -> list[str] | None:
    """Numbers, words and colons in lower case, letters joined to words; None at anything else."""
    parts: list[str] = []
    joins = False
    for kind, value in tokens[:24]:
        if kind in ("let", "tlet"):
            if joins:
                parts[-1] += value.lower()
            else:
                parts.append(value.lower())
            joins = True
        elif (kind, value) != ("op", "."):  # `p.m.`
            joins = False
            if kind in ("num", "word", "run") or value == ":":
                parts.append(value.lower())
            elif value not in (",", "{", "}", "^"):
                return None
    return parts if len(tokens) <= 24 else None


def _minutes(parts: list[str]) -> int | None:
    """Minutes since midnight of `3`, `3:30` or `15:30` with or without am or pm."""
    mark = parts[-1] if parts and parts[-1] in ("am", "pm") else ""
    clock = parts[:-1] if mark else parts
    if len(clock) == 1 and mark and clock[0].isdigit():
        hour, minute = int(clock[0][:4]), 0
    elif len(clock) == 3 and clock[1] == ":" and clock[0].isdigit() and clock[2].isdigit():
        hour, minute = int(clock[0][:4]), int(clock[2][:4])
    else:
        return None
    if minute > 59 or hour > 23 or (mark and not 1 <= hour <= 12):
        return None
    if mark:
        hour = hour % 12 + (12 if mark == "pm" else 0)
    return 60 * hour + minute


def _date(parts: list[str]) -> tuple[int | None, int, int] | None:
    """(year or None, month, day)."""
    rest = [part for part in parts if part not in _SILENT_WORDS]
    months = [part for part in rest if _month(part)]
    numbers = [part for part in rest if part.isdigit() and len(part) <= 4]
    if len(months) != 1 or not 1 <= len(numbers) <= 2 or len(rest) != 1 + len(numbers):
        return None
    day = int(numbers[0])
    if not 1 <= day <= 31:
        return None
    return (int(numbers[1]) if len(numbers) == 2 else None), _month(months[0]), day


def _month(word: str) -> int:
    """1 to 12, or 0 for no month."""
    word = "sep" if word == "sept" else word
    known = (number for number, name in enumerate(_MONTHS, 1) if word in (name, name[:3]))
    return next(known, 0)
