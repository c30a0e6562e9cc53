r"""A choice with its letter and its text: `\textbf{(C)}\ 12`, `(C) 12`, `C) 12`."""

from __future__ import annotations

import re
from typing import NamedTuple

from polaris_jax.reward.math.normalize import Token
from polaris_jax.reward.math.vocabulary import (
    ASSENTING_WORDS,
    CHANGING_WORDS,
    CHOICES,
    SEPARATORS,
    word_set,
)

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
