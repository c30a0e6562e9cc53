r"""The kind of an answer, and whether the math grader can read a gold answer at all.

The grader compares numbers, formulas and short words. Unit tests, programs and proofs are golds for
a reward function of your own: a math answer never equals them.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from polaris_jax.records import Problem
from polaris_jax.reward.math.equivalence import gold_texts
from polaris_jax.reward.math.normalize import MAX_ANSWER_CHARS

Kind = Literal["number", "formula", "choice", "words"]

MAX_WORDS = 12  # of an answer in words, which must be equal letter for letter; more is prose
MAX_LINES = 6
_CHOICE = re.compile(r"\W{0,4}(?:\\(?:text|textbf|mathrm|mathbf)\W{0,3})?[A-J]\W{0,4}")
_COMMAND = re.compile(r"\\(?!text|math|operatorname|boxed)[A-Za-z]+")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_NAMED = re.compile(r"[A-Za-z]\w?\s{0,4}=(?!=)")  # `x = 5` counts as 5
_IN_WORDS = re.compile(r"[\w\s.,;:!?'’()\\{}$~-]*")
_CODE = re.compile(
    # Every repeat has a limit: golds and answers are other people's.
    r"\b(?:def|class)\s{1,9}\w{1,99}\s{0,9}[(:]"
    r"|^[ \t]{0,40}(?:assert|import|from|return|print|for|while|#include)\b"
    r"|\b(?:assert|lambda)\b.{0,200}[=:]|\bprint\(|\bint\s{1,9}main\b|[;{][ \t]{0,9}$"
    r"|\bfunction\s{0,9}\w{0,99}\(|=>|\"\s{0,9}:",
    re.MULTILINE,
)


def answer_kind(text: str) -> Kind | None:
    """The kind of an answer; None if the math grader cannot read it.

    "number" is anything without letters: values, lists, intervals, matrices. "formula" has letters,
    "choice" is the letter of a multiple choice, and "words" is a short text.
    """
    text = text.strip()
    if not text or len(text) > MAX_ANSWER_CHARS or _CODE.search(text):
        return None
    if named := _NAMED.match(text):
        text = text[named.end() :].strip()
    words = _WORD.findall(_COMMAND.sub(" ", text))
    if len(words) > MAX_WORDS or ("\\begin" not in text and text.count("\n") >= MAX_LINES):
        return None
    if _CHOICE.fullmatch(text):
        return "choice"
    # Imported here, since most callers decide plain numbers alone.
    from polaris_jax.reward.math.normalize import Unreadable, tokens
    from polaris_jax.reward.math.parser import parse
    from polaris_jax.reward.math.spelling import plain_text, readings
    from polaris_jax.reward.math.syntax import holds
    from polaris_jax.reward.math.words import labelled_choice

    for reading in readings(plain_text(text)):
        try:
            found = tokens(reading)
            if labelled_choice(found, text) is not None:
                return "choice"
            tree = parse(found)
        except (Unreadable, RecursionError):
            continue
        if tree[0] == "words" or (len(words) > 1 and holds(tree, "words", "sym")):
            return "words"
        return "formula" if holds(tree, "sym", "decor", "call") else "number"
    return "words" if words and _IN_WORDS.fullmatch(text) else None


def gold_kinds(gold: object) -> set[Kind]:
    """The kinds of a gold answer's alternatives; empty if the math grader can read none of them."""
    return {kind for text in gold_texts(gold) if (kind := answer_kind(text)) is not None}


def foreign_golds(problems: Sequence[Problem], *, seed: int) -> list[Problem]:
    """The problems, each with another problem's gold: nothing about the problems can be learned.

    A gold takes the other columns of its problem along: a reward function may read those. If all
    answers are equal, the columns alone are the golds. Every gold is used once. A problem keeps a
    gold equal to its own only if more than half of all problems have that gold.

    Args:
        problems: the training problems.
        seed: seed of the exchange.
    """
    order = np.random.default_rng(seed).permutation(len(problems)).tolist()
    golds = [repr(problem.answer) for problem in problems]
    if len(set(golds)) == 1:
        golds = [repr(dict(problem.extra)) for problem in problems]
    order.sort(key=lambda i: golds[i])  # equal golds stand together, each run in random order
    most = max(Counter(golds).values(), default=0)  # a shift by this leaves every run of equals
    exchanged = list(problems)
    for place, i in enumerate(order):
        source = problems[order[(place + most) % len(order)]]
        exchanged[i] = dataclasses.replace(problems[i], answer=source.answer, extra=source.extra)
    return exchanged
