"""Expressions compared by their values: constants at 50 digits, functions at random points.

Two expressions are one function when they agree at random points: a difference of two distinct
algebraic or elementary functions vanishes at a random point with probability nearly zero, while
`simplify` may run for minutes or fail on equals. Every size is bounded before it is computed.
"""

from __future__ import annotations

import random
from typing import Any

from polaris_jax.reward.evaluator import DOMAIN_ERRORS, Evaluator, context, value_at
from polaris_jax.reward.syntax import Node, holds, symbols

MAX_SYMBOLS = 16
BASE_DPS = 50
POSITIVE_POINTS = 3
SIGNED_POINTS = 3
MIN_POINTS = 2

# Agreement of two values computed with 50 digits: far above their rounding, far below what two
# different expressions of an answer's size leave by chance.
AGREEMENT_DIGITS = 25
SPARE_DIGITS = 15  # of rounding that functions and quotients may add to that of the largest term


def constant_value(node: Node, dps: int = BASE_DPS) -> tuple[Any, int] | None:
    """The value of a tree without symbols to about `dps` digits, and the digits of its magnitude.

    Returns:
        None where there is no finite or infinite value to be had.
    """
    ctx = context()
    ctx.dps = dps
    evaluator = Evaluator(ctx, {})
    try:
        value = evaluator(node)
    except (*DOMAIN_ERRORS, KeyError):
        return None
    return value, max(0, int(evaluator.magnitude_bits * 0.30103))


def agree(a: Any, b: Any, magnitude_digits: int, digits: int) -> bool:
    """Whether two computed values are one number, given the largest magnitude on the way."""
    ctx = context()
    if ctx.isinf(a) or ctx.isinf(b):
        return bool(a == b)
    difference = abs(a - b)
    if difference <= max(abs(a), abs(b)) * ctx.mpf(10) ** -digits:
        return True
    noise = ctx.mpf(10) ** (magnitude_digits - ctx.dps + 8)
    return bool(difference <= noise and max(abs(a), abs(b)) <= noise * 10)


def _agree_at(left: tuple[Any, int], right: tuple[Any, int]) -> bool:
    """Whether two values at a point are one: within rounding of the largest magnitude on the way.

    A relative bound alone would take x^30 + 0.001 for x^30 where x is large.
    """
    ctx = context()
    magnitude_digits = max(left[1], right[1])
    if not agree(left[0], right[0], magnitude_digits, AGREEMENT_DIGITS):
        return False
    if ctx.isinf(left[0]):
        return True
    rounding = ctx.mpf(10) ** (magnitude_digits - ctx.dps + SPARE_DIGITS)
    return bool(abs(left[0] - right[0]) <= rounding)


def same_constant(a: Node, b: Node) -> bool:
    """Whether two trees without symbols have one value."""
    dps = BASE_DPS
    for _ in range(2):
        left, right = constant_value(a, dps), constant_value(b, dps)
        if left is None or right is None:
            return False
        digits = max(left[1], right[1])
        if digits <= dps - BASE_DPS + 12:
            break
        dps = digits + BASE_DPS
    return agree(left[0], right[0], digits, dps - 20)


def _bounds(node: Any) -> set[str]:
    """Names that stand in the bounds of a sum or product: they are integers."""
    found: set[str] = set()
    if isinstance(node, tuple):
        if node and node[0] in ("sum", "prod"):
            found |= symbols(node[2:4])
        for part in node:
            found |= _bounds(part)
    return found


def sample(names: set[str], point: int, integers: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The values of the symbols at one of the fixed random points, the first ones positive."""
    ctx = context()
    values: dict[str, Any] = {}
    for name in names:
        source = random.Random(f"{name}:{point}")
        if name in integers:
            values[name] = ctx.mpf(3 * point + source.randint(2, 4))
            continue
        value = ctx.mpf(source.randrange(10**18, 24 * 10**17)) / 10**18
        if source.random() < 0.5:
            value = value / 3
        if point >= POSITIVE_POINTS and source.random() < 0.6:
            value = -value
        values[name] = value
    return values


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
    ctx = context()
    ctx.dps = BASE_DPS
    integers = frozenset(_bounds(a) | _bounds(b)) if holds((a, b), "sum", "prod") else frozenset()
    counted = 0
    for point in range(POSITIVE_POINTS + SIGNED_POINTS):
        values = sample(names, point, integers)
        signed = point >= POSITIVE_POINTS
        left = value_at(a, values, real_throughout=signed)
        right = value_at(b, values, real_throughout=signed)
        if left is None or right is None:
            continue
        if not _agree_at(left, right):
            return False
        counted += 1
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
    for point in range(POSITIVE_POINTS + SIGNED_POINTS):
        values = sample(names, point)
        left, right = value_at(a, values), value_at(b, values)
        if left is None or right is None:
            continue
        if abs(left[0]) < 1e-30 or abs(right[0]) < 1e-30:
            return False
        ratio = left[0] / right[0]
        if positive and not (ctx.im(ratio) == 0 and ctx.re(ratio) > 0):
            return False
        if first is not None and not agree(first, ratio, 0, AGREEMENT_DIGITS - 5):
            return False
        first = ratio
        counted += 1
    return counted >= MIN_POINTS + 1
