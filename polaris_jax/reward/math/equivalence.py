r"""Decides whether an answer equals the gold answer, in layers from cheap to expensive.

1. Equal characters, or two plain numbers. Nothing is imported for this layer.
2. Equal canonical tokens (`normalize`).
3. Syntax trees (`parser`): exact values, else values at 50 digits and at random points (`scalars`);
   lists, sets, intervals, matrices and relations part by part (`structures`, `intervals`).

No text is ever evaluated or given to `sympify`: the parser accepts only numbers, letters and the
commands in its tables. Differs from the recipe's sympy: `simplify` has no time limit and fails on
some equal expressions, while agreement at random points is decided in under a millisecond. The
tests compare this module with sympy on generated expressions.

Policies (of the default preset; `policy` has a stricter and a more lenient preset):
    Units       an answer may add or drop a unit; two known units must be equal.
    Percent     gold 5% accepts 5% and 5, not 0.05; gold 5 refuses 5%; gold 0.05 accepts 5%.
    Decimals    exact unless gold is a decimal of 3 or more digits, to which an answer may round;
                a decimal of 12 or more digits stands for the fraction or root that it prints.
    Fractions   need not be reduced.
    Order       counts in (a, b), not in {a, b} nor in a bare list; a bare list keeps repetitions.
    Names       `x = 5` equals 5; two different single names differ; names are never renamed.
    Equations   equal if one is a multiple of the other; inequalities if they have one solution set.
    Bases       204_5 equals only 204_5.
    Words       equal letter for letter except case; a choice letter in any form, (A) or \text{A}.
    log         has base 10 if no base is given; ln is natural.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import struct
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from polaris_jax.reward.math.normalize import (
    MAX_ANSWER_CHARS,
    Token,
    Unreadable,
    canonical_key,
    tokens,
)
from polaris_jax.reward.math.policy import Policy, Verdict, policy_named, start_pair
from polaris_jax.reward.math.spelling import plain_text, readings
from polaris_jax.reward.math.words import labelled_choice, same_clock, same_time, same_words

MAX_GOLDS = 64
MAX_FORM_CHARS = 200
_PLAIN_NUMBER = re.compile(r"[+-]?(\d{1,40})(?:\.(\d{1,40}))?")


def gold_texts(gold: object) -> tuple[str, ...]:
    """The alternatives of a gold answer as stripped texts, without empty ones.

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
        return (str(int(gold)),) if gold.is_integer() and abs(gold) < 1e15 else (_decimal(gold),)
    if (tolist := getattr(gold, "tolist", None)) is not None:  # numpy, without importing it
        return gold_texts(tolist())
    if isinstance(gold, Iterable) and not isinstance(gold, Mapping | bytes | bytearray):
        alternatives: list[str] = []
        for part in gold:
            alternatives.extend(gold_texts(part))
        return tuple(alternatives[:MAX_GOLDS])
    raise TypeError(
        f"gold={gold!r} of type {type(gold).__name__}: a gold answer is a string, a number, None "
        "or a sequence of these"
    )


def _decimal(number: float) -> str:
    """The number as it was written: of a widened float32 3.14, not 3.140000104904175."""
    text = repr(float(number))
    if not math.isfinite(number) or _as_float32(number) != number:
        return text
    digits = (f"{number:.{count}g}" for count in range(1, 10))  # 9 tell any two float32 apart
    return next((d for d in digits if _as_float32(float(d)) == number), text)


def _as_float32(number: float) -> float:
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return math.inf


def _unboxed(text: str) -> str:
    text = text.strip()
    if "\\boxed" in text or "\\fbox" in text:
        from polaris_jax.reward.extract import boxed_list

        return boxed_list(text) or ""
    return text


class Explanation(NamedTuple):
    """The verdict on a pair, and how it was reached.

    Attributes:
        equal: True if the answer equals the gold answer.
        layer: the deciding layer: empty, text, number, length, tokens, words, time, tree, exact,
            rounding, numeric, units, percent, structure, unreadable.
        reason: one line that says why the pair differs; "" if it is equal.
        answer, gold: the normal forms that were compared, cut to MAX_FORM_CHARS.
    """

    equal: bool
    layer: str
    reason: str
    answer: str
    gold: str


def answers_match(answer: object, gold: object, *, preset: str = "default") -> bool:
    """True if an answer equals any of the gold alternatives, by the policies of this module.

    Time and memory are bounded for any input, but there is no deadline: `Grader` adds one.

    Args:
        answer: the content of the box; a number is converted to text.
        gold: a string, a number, None or a sequence of them.
        preset: "strict", "default" or "lenient"; see `policy`.

    Raises:
        TypeError: answer or gold has another type.
        ValueError: the preset is unknown.
    """
    return explain(answer, gold, preset=preset).equal


def explain(answer: object, gold: object, *, preset: str = "default") -> Explanation:
    """The verdict of `answers_match` with the deciding layer, the normal forms and the reason.

    If there are several golds, the result shows the first equal one, else the last.
    """
    policy = policy_named(preset)
    answers, golds = gold_texts(answer), gold_texts(gold)
    if len(answers) != 1 or not golds:
        return Explanation(False, "empty", "no gold" if answers else "no answer", "", "")
    found = None
    for text in golds:
        found = _compare(answers[0], text, policy)
        if found.equal:
            break
    assert found is not None
    return found


# Layers in the order in which they are tried. Layers on one line belong to one tree comparison.
_LADDER = (
    ("empty",),
    ("text",),
    ("length",),
    ("number",),
    ("unreadable",),
    ("tokens",),
    ("words",),
    ("time",),
    ("tree",),
    ("units", "percent", "exact", "rounding", "numeric", "structure"),
)


def explain_path(answer: str, gold: str, *, preset: str = "default") -> str:
    """A report for a person: normal forms, the layers that were tried, verdict and reason."""
    found = explain(answer, gold, preset=preset)
    lines = [f"answer   {found.answer}", f"gold     {found.gold}"]
    for layers in _LADDER:
        if found.layer in layers:
            lines.append(f"{found.layer:<12} {'equal' if found.equal else 'not equal'}")
            break
        if layers[0] not in ("empty", "length", "unreadable"):
            lines.append(f"{layers[0]:<12} undecided")
    return "\n".join([*lines, f"because  {found.reason}"] if found.reason else lines)


def quick_verdict(answer: str, golds: tuple[str, ...]) -> Explanation | None:
    """The verdict of the first layer, or None if later layers are needed.

    `explain` applies this rule first under every preset, so a caller may decide such pairs at once.
    """
    found = [_quick(answer, gold) for gold in golds]
    equal = next((one for one in found if one is not None and one.equal), None)
    return equal if equal is not None or None in found or not found else found[-1]


def _shown(equal: bool, layer: str, reason: str, answer: str, gold: str) -> Explanation:
    return Explanation(equal, layer, reason, answer[:MAX_FORM_CHARS], gold[:MAX_FORM_CHARS])


def _quick(answer: str, gold: str) -> Explanation | None:
    if not answer or not gold:
        return _shown(False, "empty", "no answer" if gold else "no gold", answer, gold)
    if answer == gold:
        told = len(answer) > 1 or answer.isalnum()
        return _shown(True, "text", "", answer, gold) if told else None
    if max(len(answer), len(gold)) > MAX_ANSWER_CHARS:
        reason = f"more than {MAX_ANSWER_CHARS} characters"
        return _shown(False, "length", reason, answer, gold)
    ours, theirs = _plain_number(answer), _plain_number(gold)
    if ours is None or theirs is None:
        return None
    if ours == theirs:
        return _shown(True, "number", "", answer, gold)
    return None if "." in gold else _shown(False, "number", "another number", answer, gold)


def _plain_number(text: str) -> Fraction | None:
    return Fraction(text) if _PLAIN_NUMBER.fullmatch(text) else None


def _compare(answer: str, gold: str, policy: Policy) -> Explanation:
    if (quick := _quick(answer, gold)) is not None:
        return quick
    ours, theirs = _tokenised(answer, is_gold=False), _tokenised(gold, is_gold=True)
    if not ours or not theirs:
        reason = f"{'gold' if ours else 'the answer'} holds nothing that can be read"
        return _shown(False, "unreadable", reason, answer, gold)
    start_pair()
    pairs = [(found, expected) for found in ours for expected in theirs]
    verdict, shown = Verdict(False, "unreadable"), pairs[0]
    for found, expected in pairs:
        if canonical_key(found) == canonical_key(expected):
            verdict, shown = Verdict(True, "tokens"), (found, expected)
            break
    else:
        for found, expected in pairs:
            verdict = _compare_meaning((found, expected), (answer, gold), policy)
            shown = found, expected
            if verdict.equal:
                break
    return _shown(*verdict, _spelt(shown[0]), _spelt(shown[1]))


def _spelt(found: tuple[Token, ...]) -> str:
    """Canonical tokens as one line."""
    parts = (f"\\{value}" if kind == "cmd" else value for kind, value in found[:MAX_FORM_CHARS])
    return " ".join(parts)


def _tokenised(text: str, *, is_gold: bool) -> list[tuple[Token, ...]]:
    found = []
    for reading in readings(plain_text(text), is_gold=is_gold):
        try:
            tokenised = tokens(reading)
        except Unreadable:
            continue
        if any(kind != "op" or value == "S{" for kind, value in tokenised):
            found.append(tokenised)
    return found


def _compare_meaning(
    pair: tuple[tuple[Token, ...], tuple[Token, ...]], texts: tuple[str, str], policy: Policy
) -> Verdict:
    answer, gold = pair
    ours, theirs = labelled_choice(answer, texts[0]), labelled_choice(gold, texts[1])
    if (ours is None) != (theirs is None):  # `(C) 12` is C, and also 12 if C is set as text
        choice, other = (ours or theirs), (gold if ours else answer)
        assert choice is not None
        if same_words((("let", choice.letter),), other, policy) or same_words(
            other, (("let", choice.letter),), policy
        ):
            return Verdict(True, "words")
        if choice.marked:
            answer, gold = (choice.rest, gold) if ours else (answer, choice.rest)
    if same_words(answer, gold, policy):
        return Verdict(True, "words")
    verdict = same_time(answer, gold)
    if verdict is None:
        verdict = same_clock(*texts)
    if verdict is not None:
        return Verdict(verdict, "time", "" if verdict else "another time")
    # Imported here, so that an answer that the first layers decide loads no mathematics.
    from polaris_jax.reward.math.parser import parses
    from polaris_jax.reward.math.relations import called_names
    from polaris_jax.reward.math.structures import compare

    trees: list[list[Any]] = []
    for side, found in (("the answer", answer), ("gold", gold)):
        try:
            trees.append(parses(found))
        except (Unreadable, RecursionError) as error:  # RecursionError: a deep caller
            reason = f"{side}: {error}" if isinstance(error, Unreadable) else f"{side}: too deep"
            return Verdict(False, "unreadable", reason)
    if functions := called_names(
        tuple(map(tuple, trees))
    ):  # `5 = P(2)` and `2P(2) = 10` beside `P(2) = 5`
        with contextlib.suppress(Unreadable, RecursionError):
            trees = [parses(found, functions) for found in (answer, gold)]
    verdict = Verdict(False, "unreadable")
    try:
        for ours, theirs in itertools.product(*trees):
            verdict = compare(ours, theirs, policy)
            if verdict.equal:
                break
    except RecursionError:
        return Verdict(False, "unreadable", "nested too deep")
    return verdict
