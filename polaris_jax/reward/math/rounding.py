"""When a decimal stands for the exact value that it was rounded from."""

from __future__ import annotations

from fractions import Fraction

from polaris_jax.reward.math import numeric
from polaris_jax.reward.math.evaluator import context
from polaris_jax.reward.math.exact import Undecidable, exact_value
from polaris_jax.reward.math.policy import Policy
from polaris_jax.reward.math.syntax import Node

FLOAT_DIGITS = 12  # from here a decimal is a float's print: right to one in the last place
PRINT_DIGITS = 15  # from here a float's complete print: right to some roundings of 2^-53
FLOAT_ERROR = Fraction(1, 1 << 50)


def _bare(node: Node) -> Node:
    """The literal under units, percent and sign."""
    while node[0] in ("unit", "percent", "neg"):
        node = node[1]
    return node


def _last_place(node: Node) -> tuple[Fraction, int, Fraction] | None:
    """The unit in the last place of a decimal literal, its significant digits and its value's size.

    None for what is no decimal literal.

    `2.50`, `1.5e-3` and `2.88 * 10^16` are decimal literals; `250` and `5/2` are not.
    """
    node = _bare(node)
    scale = Fraction(1)
    if node[0] == "mul" and len(node[1]) == 2 and node[1][1][0] == "pow":
        literal, power = _bare(node[1][0]), node[1][1]
        try:
            base, exponent = exact_value(power[1]), exact_value(power[2])
        except Undecidable:
            return None
        if base != 10 or exponent is None or exponent.denominator != 1 or abs(exponent) > 400:
            return None
        scale = Fraction(10) ** int(exponent)
        node = literal
    if node[0] != "num" or node[2] is None or abs(node[2]) > 500:
        return None
    place = Fraction(1) / Fraction(10) ** node[2]
    return place * scale, len(str(abs(node[1] / place).numerator)), abs(node[1] * scale)


def _tolerance(node: Node, least_digits: int | None) -> Fraction | None:
    """How far from a decimal literal the value lies that it was rounded from; None: it is exact."""
    places = _last_place(node)
    if places is None or least_digits is None or places[1] < least_digits:
        return None
    if places[1] >= PRINT_DIGITS:  # the last place says more than a float's sum of a few terms
        return max(places[0], places[2] * FLOAT_ERROR)
    return places[0] if places[1] >= FLOAT_DIGITS else places[0] / 2


def rounds_to(answer: Node, left: Fraction, gold: Node, right: Fraction, policy: Policy) -> bool:
    """Whether two rational values are one, rounded as the gold, or a long enough answer, is.

    Args:
        answer: the answer, as written.
        left: value of the answer.
        gold: the gold answer, as written.
        right: value of the gold answer.
        policy: says how many digits are enough.
    """
    if _last_place(gold) is not None:
        tolerance = _tolerance(gold, policy.gold_digits)
        return tolerance is not None and abs(left - right) <= tolerance
    tolerance = _tolerance(answer, policy.answer_digits)
    return tolerance is not None and right.denominator != 1 and abs(left - right) <= tolerance


def rounds_approximately(
    answer: Node, left: Fraction | None, gold: Node, right: Fraction | None, policy: Policy
) -> bool:
    """`rounds_to` where one side is irrational: its value is None."""
    if (left is None) == (right is None):
        return False
    literal, exact = (gold, answer) if right is not None else (answer, gold)
    least_digits = policy.gold_digits if right is not None else policy.answer_digits
    tolerance = _tolerance(literal, least_digits)
    known = right if right is not None else left
    other = numeric.constant_value(exact)
    if tolerance is None or known is None or other is None:
        return False
    ctx = context()
    value = ctx.mpf(known.numerator) / known.denominator
    return bool(abs(other[0] - value) <= ctx.mpf(tolerance.numerator) / tolerance.denominator)
