"""Verdicts against sympy's on generated expressions: rewritten ones, perturbed ones."""

import random

import pytest
import sympy as sp

from polaris_jax.reward import answers_match

SYMBOLS = sp.symbols("x y n", positive=True)


def expression(source: random.Random, depth: int) -> sp.Expr:
    if depth == 0 or source.random() < 0.15:
        kind = source.random()
        if kind < 0.45:
            return sp.Integer(source.randint(1, 9))
        if kind < 0.6:
            return sp.Rational(source.randint(1, 9), source.randint(2, 9))
        return sp.pi if kind < 0.65 else source.choice(SYMBOLS)
    left = expression(source, depth - 1)
    kind = source.randint(0, 6)
    if kind == 5:
        return sp.sqrt(left)
    if kind == 6:
        return left ** source.randint(2, 3)
    right = expression(source, depth - 1)
    return [left + right, left * right, left - right, left / right if right != 0 else left, left][
        min(kind, 4)
    ]


REWRITES = (sp.expand, sp.factor, sp.together, sp.apart, lambda e: sp.Add(e, 0, evaluate=False))


def rewritten(source: random.Random, value: sp.Expr) -> sp.Expr:
    rewrite = source.choice(REWRITES)
    try:
        return rewrite(value)
    except (sp.PolynomialError, NotImplementedError):  # apart of several variables
        return sp.expand(value)


@pytest.mark.parametrize("seed", range(8))
def test_generated_expressions(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(25):
        value = expression(source, 3)
        if value.has(sp.zoo, sp.nan, sp.oo):
            continue
        gold = sp.latex(value)
        other = sp.latex(rewritten(source, value))
        assert answers_match(gold, gold)
        assert answers_match(other, gold), (other, gold)
        assert answers_match(gold, other), (gold, other)
        for wrong in (value + sp.Rational(1, 7), 2 * value + 3):
            if wrong != value:
                assert not answers_match(sp.latex(wrong), gold), (sp.latex(wrong), gold)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (r"\sin 2x", r"2\sin x\cos x"),
        (r"\cos^2 x-\sin^2 x", r"\cos 2x"),
        (r"\ln(xy)", r"\ln x+\ln y"),
        (r"e^{x+y}", r"e^xe^y"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\sqrt{x^2+2xy+y^2}", "|x+y|"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        (r"\log_2 x", r"\frac{\ln x}{\ln 2}"),
        (r"\frac{1}{x}-\frac{1}{x+1}", r"\frac{1}{x(x+1)}"),
        (r"\arctan x+\arctan\frac1x", r"\arctan x+\arctan(1/x)"),
    ],
)
def test_identities_and_near_misses(left: str, right: str) -> None:
    assert answers_match(left, right)
    assert answers_match(right, left)
    assert not answers_match(f"{left}+10^{{-6}}", right)
    assert not answers_match(left, f"({right})\\cdot 1.000001")
