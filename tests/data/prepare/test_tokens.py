"""Tokens do not depend on how TeX was written, and different problems keep different tokens."""

import random

import pytest

from polaris_jax.config.data import PROMPT_SUFFIX
from polaris_jax.data.prepare.tokens import answer_key, math_tokens, numbers_key
from tests.support.planted import other_macros, respaced

TEXT = (
    "Let $f(x) = \\frac{1}{2}x^2 + \\left( x - 3 \\right)$ for $x \\leq 10{,}000$. "
    "If $a_1, \\ldots, a_n$ satisfy $a_1 \\cdot a_n = \\text{four}$, find $f(a)$ in $30^\\circ$."
)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("\\dfrac12 x", "\\frac{1}{2}x"),
        ("$x \\le 3$", "\\(x\\leq3\\)"),
        ("x ≤ 3 × 4 − 1", "x \\le 3 \\cdot 4 - 1"),
        ("1,000,000", "1{,}000{,}000"),
        ("1, 2, ..., n", "1,2,\\ldots,n"),
        ("$30^{\\circ}$", "30°"),
        ("$C^{}_{}$ and $D$", "$C$ AND $D$."),
        ("Q." + PROMPT_SUFFIX, "Q"),
        ("\\textbf{Find} $\\mathrm{AB}$", "Find $AB$"),
    ],
)
def test_equal(a, b):
    assert math_tokens(a) == math_tokens(b)


@pytest.mark.parametrize(
    ("a", "b"), [("x^2", "x_2"), ("1 + 2", "1 - 2"), ("\\sin x", "\\cos x"), ("12", "1 2")]
)
def test_different(a, b):
    assert math_tokens(a) != math_tokens(b)


@pytest.mark.parametrize("seed", range(5))
def test_other_white_space_and_other_macros_leave_the_tokens(seed):
    rng = random.Random(seed)
    assert math_tokens(respaced(TEXT, rng)) == math_tokens(TEXT)
    assert math_tokens(other_macros(TEXT, rng)) == math_tokens(TEXT)


def test_answers_and_numbers():
    assert answer_key("072") == answer_key(72) == answer_key(72.0) == answer_key(["72"])
    assert answer_key("\\dfrac12") == answer_key("$\\frac{1}{2}$")
    assert answer_key("1/2") != answer_key("2")
    assert answer_key(["a", "b"]) == answer_key(["b", "a"])
    assert numbers_key(math_tokens("7 of 12 and 7")) == "12 7 7"
