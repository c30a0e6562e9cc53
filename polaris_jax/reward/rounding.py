"""When a decimal stands for the exact value that it was rounded from."""

from __future__ import annotations

from fractions import Fraction

from polaris_jax.reward import numeric
from polaris_jax.reward.exact import Undecidable, exact_value
from polaris_jax.reward.syntax import Node

FULL_PRECISION_DIGITS = 12  # a decimal of so many digits is a float's print of an exact value


def _bare(node: Node) -> Node:
    """The literal under units, percent and sign."""
    while node[0] in ("unit", "percent", "neg"):
        node = node[1]
    return node


def _last_place(node: Node) -> tuple[Fraction, int] | None:
    """The unit in the last place of a decimal literal and its significant digits, or None.

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
    return place * scale, len(str(abs(node[1] / place).numerator))


def rounds_to(answer: Node, left: Fraction, gold: Node, right: Fraction) -> bool:
    """Whether two rational values are one, rounded as the gold, or a full-precision answer, is.

    Args:
        answer: as written.
        left: its value.
        gold: as written.
        right: its value.
    """
    places = _last_place(gold)
    if places is not None and places[1] >= 3:
        return abs(left - right) * 2 <= places[0]
    written = _last_place(answer)
    if places is None and written is not None and right.denominator != 1:
        return written[1] >= FULL_PRECISION_DIGITS and abs(left - right) <= written[0]
    return False


def rounds_approximately(
    answer: Node, left: Fraction | None, gold: Node, right: Fraction | None
) -> bool:
    """`rounds_to` where one side is irrational: its value is None."""
    literal, exact = (gold, answer) if right is not None else (answer, gold)
    places = _last_place(literal)
    other = numeric.constant_value(exact)
    if places is None or other is None or (left is None) == (right is None):
        return False
    known = right if right is not None else left
    needed = 3 if right is not None else FULL_PRECISION_DIGITS
    if known is None or places[1] < needed:
        return False
    ctx = numeric.context()
    value = ctx.mpf(known.numerator) / known.denominator
    allowed = ctx.mpf(places[0].numerator) / places[0].denominator / (2 if needed == 3 else 1)
    return bool(abs(other[0] - value) <= allowed)
