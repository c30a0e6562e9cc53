r"""Whether an answer says the same as the gold answer, from cheap layers to dear ones.

1. The same characters; two plain numbers. Nothing is imported for these.
2. The same canonical tokens (`normalize`).
3. Syntax trees (`parser`): exact values, else values at 50 digits and at random points (`numeric`);
   lists, sets, intervals, matrices and relations part by part (`structures`, `intervals`).

No text is ever evaluated or given to `sympify`: the parser knows numbers, letters and the commands
of its tables, and nothing else. Differs from the recipe's sympy: `simplify` has no bound in time
and fails on equals; agreement at random points is decided in under a millisecond. The tests hold
it against sympy on generated expressions.

Policies:
    Units       an answer may add or drop a unit; two known units must be the same.
    Percent     gold 5% accepts 5% and 5, not 0.05; gold 5 refuses 5%; gold 0.05 accepts 5%.
    Decimals    exact unless gold is a decimal of 3 or more digits, to which an answer may round;
                a decimal of 12 or more digits stands for the fraction or root that it prints.
    Order       counts in (a, b), not in {a, b} nor in a bare list; a bare list keeps repetitions.
    Names       `x = 5` is 5; two different single names are not the same; no renaming.
    Equations   equal when one is a multiple of the other; inequalities when they are one set.
    Bases       204_5 equals only 204_5.
    Words       equal letter for letter but for case; a choice letter in any dress, (A) or \text{A}.
    log         without a base is base 10, ln is natural.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from polaris_jax.reward.normalize import (
    MAX_ANSWER_CHARS,
    Token,
    Unreadable,
    canonical_key,
    plain_text,
    readings,
    tokens,
)

MAX_GOLDS = 64
_PLAIN_NUMBER = re.compile(r"[+-]?(\d{1,40})(?:\.(\d{1,40}))?")
_CHOICES = frozenset("ABCDEFGHIJ")


def gold_texts(gold: object) -> tuple[str, ...]:
    """The alternatives of a gold answer as stripped texts, the empty ones left out.

    Args:
        gold: a string, a number, None, or a sequence of them (numpy values too).

    Raises:
        TypeError: gold is of another type.
    """
    if isinstance(gold, str):
        text = _unboxed(gold)
        return (text,) if text else ()
    if gold is None:
        return ()
    if isinstance(gold, bool):
        return (str(gold),)
    if isinstance(gold, int):
        return (str(gold),)
    if isinstance(gold, float):
        if gold != gold:
            return ()
        return (str(int(gold)),) if gold.is_integer() and abs(gold) < 1e15 else (repr(gold),)
    if (tolist := getattr(gold, "tolist", None)) is not None:  # numpy, without importing it
        return gold_texts(tolist())
    if isinstance(gold, Iterable):
        alternatives: list[str] = []
        for part in gold:
            alternatives.extend(gold_texts(part))
        return tuple(alternatives[:MAX_GOLDS])
    raise TypeError(
        f"gold={gold!r} of type {type(gold).__name__}: a gold answer is a string, a number, None "
        "or a sequence of these"
    )


def _unboxed(text: str) -> str:
    text = text.strip()
    if "\\boxed" in text or "\\fbox" in text:
        from polaris_jax.reward.extract import last_box

        return last_box(text) or ""
    return text


def answers_match(answer: object, gold: object) -> bool:
    """Whether an answer equals any of the gold alternatives, by the policies of this module.

    Bounded in time and memory for any input, but not by a deadline: `Grader` adds that.

    Args:
        answer: what stood in the box; a number is taken as its text.
        gold: a string, a number, None or a sequence of them.

    Raises:
        TypeError: answer or gold is of another type.
    """
    answers = gold_texts(answer)
    if len(answers) != 1:
        return False
    return any(_match(answers[0], text) for text in gold_texts(gold))


def quick_verdict(answer: str, golds: tuple[str, ...]) -> bool | None:
    """The verdict of the first layer alone, or None where it needs the later ones.

    The same rule that `answers_match` applies first, so a caller may decide these at once.
    """
    verdicts = [_quick(answer, gold) for gold in golds]
    if any(verdict is True for verdict in verdicts):
        return True
    return None if None in verdicts else False


def _quick(answer: str, gold: str) -> bool | None:
    if not answer or not gold:
        return False
    if answer == gold:
        return True if len(answer) > 1 or answer.isalnum() else None
    if max(len(answer), len(gold)) > MAX_ANSWER_CHARS:
        return False
    ours, theirs = _plain_number(answer), _plain_number(gold)
    if ours is None or theirs is None:
        return None
    if ours == theirs:
        return True
    return None if "." in gold else False


def _plain_number(text: str) -> Fraction | None:
    return Fraction(text) if _PLAIN_NUMBER.fullmatch(text) else None


def _match(answer: str, gold: str) -> bool:
    verdict = _quick(answer, gold)
    if verdict is not None:
        return verdict
    ours, theirs = _tokenised(answer), _tokenised(gold)
    for found in ours:
        for expected in theirs:
            if canonical_key(found) == canonical_key(expected):
                return True
    for found in ours:
        for expected in theirs:
            if _same_words(found, expected) or _match_trees(found, expected):
                return True
    return False


def _tokenised(text: str) -> list[tuple[Token, ...]]:
    found = []
    for reading in readings(plain_text(text)):
        try:
            tokenised = tokens(reading)
        except Unreadable:
            continue
        if any(kind != "op" or value == "S{" for kind, value in tokenised):
            found.append(tokenised)
    return found


def _same_words(answer: tuple[Token, ...], gold: tuple[Token, ...]) -> bool:
    """Words beside words, case and brackets aside; a choice letter in any dress."""
    ours, theirs = _letters(answer), _letters(gold)
    if ours is None or theirs is None:
        return False
    if len(theirs) == 1 and theirs in _CHOICES:
        return ours.upper() == theirs
    wordy = any(kind in ("word", "run") for kind, _ in (*answer, *gold))
    return wordy and ours.lower() == theirs.lower()


def _letters(found: tuple[Token, ...]) -> str | None:
    """The letters of tokens that hold nothing else, brackets and points aside; else None."""
    letters: list[str] = []
    for kind, value in found:
        if kind in ("let", "tlet", "word", "run"):
            letters.append(value)
        elif kind != "op" or value not in ("(", ")", ".", "{", "}", "-"):
            return None
    return " ".join(letters) if any(kind == "word" for kind, _ in found) else "".join(letters)


def _match_trees(answer: tuple[Token, ...], gold: tuple[Token, ...]) -> bool:
    # Here and not at the top: an answer that the first layers settle loads no mathematics.
    from polaris_jax.reward.parser import parse
    from polaris_jax.reward.structures import same

    try:
        trees: list[Any] = [parse(answer), parse(gold)]
        return same(trees[0], trees[1])
    except (Unreadable, RecursionError):  # the latter only under a caller that is deep already
        return False
