"""Benchmark problems are found however they are written, and common phrases are no proof."""

import pytest

from polaris_jax.data.prepare.overlap import BenchmarkIndex
from polaris_jax.data.prepare.tokens import math_tokens
from polaris_jax.records import Problem
from tests.support.planted import PLANTED

PHRASE = "where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
LONG = Problem(
    "long",
    "A cube of side $\\frac{5}{2}$ is cut by a plane at $30^\\circ$ to its base. The area of the "
    f"cross section can be written as $\\frac{{m}}{{n}}$, {PHRASE}",
    "7",
)
SHORT = Problem("short", "Compute $\\sin 15^\\circ + \\cos 75^\\circ - \\tan 5^\\circ$.", "1")
SENTENCES = Problem("two", "Let $k>1$ be an integer. Find the least $k$ with $k! > 1000$.", "7")
INDEX = BenchmarkIndex([("b", [LONG, SHORT]), ("c", [SENTENCES])])


def hit(text):
    return INDEX.find([math_tokens(text)])[0]


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("problem", [LONG, SENTENCES], ids=lambda p: p.id)
def test_planted(name, problem):
    import random

    found = hit(PLANTED[name](problem.problem, random.Random(0)))
    assert found is not None
    assert found.problem is problem
    assert found.share == 1.0
    assert found.benchmark == {"long": "b", "two": "c"}[problem.id]


def test_within_a_longer_row_and_with_a_few_words_changed():
    assert hit(f"(AIME) Problem 3. {LONG.problem} Answer as a number between 0 and 999.")
    assert hit(LONG.problem.replace("A cube of side", "A box of length"))
    assert hit(f"{SHORT.problem} Give an exact value in terms of square roots of integers.")


@pytest.mark.parametrize(
    "text",
    [
        f"The probability of two heads in three throws of a coin is $\\frac{{m}}{{n}}$, {PHRASE}",
        "Let $k$ be an integer.",
        "Compute $\\sin 15^\\circ + \\cos 75^\\circ$.",
        "Find the least $k$ such that $2^k > 1000$, and write down all of its digits in order.",
        "",
    ],
    ids=["phrase", "other beginning", "part of a sentence", "another", "empty"],
)
def test_no_hit(text):
    assert hit(text) is None


def test_rows_of_a_batch_are_apart():
    rows = [LONG.problem, "What is 1 + 1?", SHORT.problem]
    found = INDEX.find([math_tokens(row) for row in rows])
    assert [h.problem.id if h else None for h in found] == ["long", None, "short"]


def test_no_benchmarks():
    assert BenchmarkIndex([]).find([["a"] * 20]) == [None]
