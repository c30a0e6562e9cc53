"""Expressions compared by their values: constants at 50 digits, functions at random points.

Two expressions are one function when they agree at random points: a difference of two distinct
algebraic or elementary functions vanishes at a random point with probability nearly zero, while
`simplify` may run for minutes or fail on equals. Every size is bounded before it is computed.
"""

from __future__ import annotations

from typing import Any

from polaris_jax.reward.math.evaluator import context, value_at
from polaris_jax.reward.math.points import Point, points
from polaris_jax.reward.math.syntax import Node, symbols

MAX_SYMBOLS = 16
BASE_DPS = 50
MAX_DPS = 2000  # to which a value is computed again that lies below the rounding
MIN_POINTS = 2

# Agreement of two values computed with 50 digits: far above their rounding, far below what two
# different expressions of an answer's size leave by chance.
AGREEMENT_DIGITS = 25
LOST_DIGITS = 15  # of a constant that is compared as far as it was computed
SPARE_DIGITS = 15  # of rounding that functions and quotients may add to that of the largest term


def constant_value(node: Node, dps: int = BASE_DPS) -> tuple[Any, int] | None:
    """The value of a tree without symbols to about `dps` digits, and the digits of its magnitude.

    Returns:
        None if no finite or infinite value can be computed.
    """
    context().dps = dps
    return value_at(node, {})


def agree(a: Any, b: Any, magnitude_digits: int, digits: int) -> bool:
    """Whether two computed values are one number, given the largest magnitude on the way.

    Two values below the rounding count as one: `same_constant` and `same_function` look closer.
    """
    return _agreement(a, b, magnitude_digits, digits) is not False


def _agreement(a: Any, b: Any, magnitude_digits: int, digits: int) -> bool | None:
    """Whether two computed values are one number; None if both lie below the rounding."""
    ctx = context()
    if ctx.isinf(a) or ctx.isinf(b):
        return bool(a == b)
    largest = max(abs(a), abs(b))
    if abs(a - b) <= largest * ctx.mpf(10) ** -digits:
        return True
    noise = ctx.mpf(10) ** (magnitude_digits - ctx.dps + 8)
    return None if largest <= noise * 10 else False


def _same_value(a: Node, b: Node, point: Point, digits: int | None) -> bool | None:
    """Whether two trees have one value at a point; None if either has none there.

    Where both values lie below the rounding they are computed again with as many digits more as
    they are small: zero by cancellation shrinks with the rounding, e^{-100} stays.

    Args:
        a: a tree.
        b: the other one.
        point: the values of their symbols.
        digits: number of digits that must agree; None: all computed digits except LOST_DIGITS.
    """
    ctx = context()
    dps = BASE_DPS
    raised = False
    while True:
        ctx.dps = dps
        left = value_at(a, point.values, real_throughout=point.real_throughout)
        right = value_at(b, point.values, real_throughout=point.real_throughout)
        if left is None or right is None:
            return None
        magnitude_digits = max(left[1], right[1])
        if digits is None and magnitude_digits > dps - BASE_DPS + 12 and dps == BASE_DPS:
            dps = magnitude_digits + BASE_DPS
            continue
        wanted = dps - LOST_DIGITS if digits is None else digits
        found = _agreement(left[0], right[0], magnitude_digits, wanted)
        if found is not None:
            break
        if raised:
            return True
        smallness = -int(ctx.log10(max(abs(left[0]), abs(right[0]))))
        dps, raised = max(dps, magnitude_digits + BASE_DPS + smallness), True
        if dps > MAX_DPS:
            return None
    if not found or digits is None or ctx.isinf(left[0]):
        return found
    # A relative bound alone would take x^30 + 0.001 for x^30 where x is large.
    rounding = ctx.mpf(10) ** (magnitude_digits - ctx.dps + SPARE_DIGITS)
    return bool(abs(left[0] - right[0]) <= rounding)


def same_constant(a: Node, b: Node) -> bool:
    """Whether two trees without symbols have one value."""
    return _same_value(a, b, Point({}, False), None) is True


def same_function(a: Node, b: Node) -> bool:
    """Whether two trees agree at random points, positive ones first.

    A point where either has no value is passed over; at points with negative coordinates so is one
    where either leaves the reals on the way (branches of roots and logarithms are a convention, and
    the product of the roots of x and y is the root of xy where both are real).
    """
    names = symbols(a) | symbols(b)
    if not names:
        return same_constant(a, b)
    if len(names) > MAX_SYMBOLS:
        return False
    context().dps = BASE_DPS
    counted = 0
    for point in points(a, b):
        found = _same_value(a, b, point, AGREEMENT_DIGITS)
        if found is False:
            return False
        counted += found is True
    return counted >= MIN_POINTS


def proportional(a: Node, b: Node, *, positive: bool = False) -> bool:
    """Whether a = c b for one constant c, not zero (above zero if `positive`)."""
    names = symbols(a) | symbols(b)
    if not names or symbols(a) != symbols(b) or len(names) > MAX_SYMBOLS:
        return False
    ctx = context()
    ctx.dps = BASE_DPS
    first: Any = None
    counted = 0
    for point in points(a, b):
        left = value_at(a, point.values, real_throughout=point.real_throughout)
        right = value_at(b, point.values, real_throughout=point.real_throughout)
        if left is None or right is None:
            continue
        if abs(left[0]) < 1e-30 or abs(right[0]) < 1e-30:
            return False
        ratio = left[0] / right[0]
        if positive and not (ctx.im(ratio) == 0 and ctx.re(ratio) > 0):
            return False
        tolerance = abs(ratio) * ctx.mpf(10) ** (5 - AGREEMENT_DIGITS)
        if first is not None and not abs(first - ratio) <= tolerance:
            return False
        first = ratio
        counted += 1
    return counted >= MIN_POINTS + 1
