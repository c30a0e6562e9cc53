"""Equality of two numbers or expressions: values, units, percent signs and rounding.

Two expressions are one function when they agree at random points: a difference of two distinct
algebraic or elementary functions vanishes at a random point with probability nearly zero, while
`simplify` may run for minutes or fail on equals. Every size is bounded before it is computed.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from polaris_jax.reward.math.points import Point, constant_range, points
from polaris_jax.reward.math.policy import Policy, Verdict
from polaris_jax.reward.math.syntax import Node, Undecidable, exact_value, holds, symbols
from polaris_jax.reward.math.units import HUNDRED, converted, percentage, units_of, units_refusal
from polaris_jax.reward.math.values import Value, context, value_at

# ---- constants at 50 digits, functions at random points

MAX_SYMBOLS = 16
BASE_DPS = 50
MAX_DPS = 2000  # to which a value is computed again that lies below the rounding
MAX_WIDE_DPS = 30_000  # to which values of magnitudes far apart are
MIN_POINTS = 2

# Agreement of two values computed with 50 digits: far above their rounding, far below what two
# different expressions of an answer's size leave by chance.
AGREEMENT_DIGITS = 25
LOST_DIGITS = 15  # of a constant that is compared as far as it was computed
SPARE_DIGITS = 15  # of rounding that functions and quotients may add to that of the largest term


# A term may lie this many digits below the others, and still change what is compared. Where it lies
# deeper, values are computed again with digits enough to see it, or what it does to second order.
SEEN_DIGITS = 8


def digits_for(range_digits: int) -> int | None:
    """Digits in which to compute what has magnitudes that far apart; None: too many."""
    if range_digits <= SEEN_DIGITS:
        return BASE_DPS
    dps = max(min(MAX_DPS, BASE_DPS + 3 * range_digits), BASE_DPS + 2 * range_digits)
    return dps if dps <= MAX_WIDE_DPS else None


def constant_value(node: Node, dps: int = BASE_DPS) -> Value | None:
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


def _same_value(
    a: Node, b: Node, point: Point, digits: int | None, dps: int = BASE_DPS
) -> bool | None:
    """Whether two trees have one value at a point; None if either has none there, or cannot tell.

    Both are computed again with more digits where magnitudes on the way lie far apart, so that a
    term of 10^{-60} counts beside x, and where both values lie below the rounding: zero by
    cancellation shrinks with the rounding, e^{-100} stays.

    Args:
        a: a tree.
        b: the other one.
        point: the values of their symbols.
        digits: number of digits that must agree; None: all computed digits except LOST_DIGITS.
        dps: digits of the first computation.
    """
    ctx = context()
    spread = 0  # digits between the magnitudes that the computation must show
    raised = False
    while True:
        ctx.dps = dps
        left = value_at(a, point.values, real_throughout=point.real_throughout)
        right = value_at(b, point.values, real_throughout=point.real_throughout)
        if left is None or right is None:
            return None
        if not spread:
            spread = max(left.range_digits, right.range_digits, 1)
            wide = digits_for(spread)
            if wide is None:
                return None
            if wide > dps:
                dps = wide
                continue
        magnitude_digits = max(left.magnitude_digits, right.magnitude_digits)
        lost = LOST_DIGITS + (spread if spread > SEEN_DIGITS else 0)
        wanted = dps - lost if digits is None else digits
        found = _agreement(left.value, right.value, magnitude_digits, wanted)
        if found is not None:
            break
        if raised:
            return True
        smallness = -int(ctx.log10(max(abs(left.value), abs(right.value))))
        limit = max(dps, MAX_DPS)
        dps, raised = max(dps, magnitude_digits + BASE_DPS + smallness), True
        if dps > limit:
            return None
    if not found or digits is None or ctx.isinf(left.value):
        return found
    # A relative bound alone would take x^30 + 0.001 for x^30 where x is large.
    largest = spread if spread > SEEN_DIGITS else magnitude_digits
    rounding = ctx.mpf(10) ** (largest - ctx.dps + SPARE_DIGITS)
    return bool(abs(left.value - right.value) <= rounding)


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
    dps = digits_for(constant_range((a, b)))
    if dps is None:
        return False
    counted = 0
    context().dps = dps
    for point in points(a, b):
        found = _same_value(a, b, point, AGREEMENT_DIGITS, dps)
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
    dps = digits_for(constant_range((a, b)))
    if dps is None:
        return False
    ctx.dps = dps
    places = list(points(a, b))
    found = _values_at(a, b, places, dps)
    spreads = [max(left.range_digits, right.range_digits) for left, right in found]
    wide = max((digits_for(spread) or 0 for spread in spreads), default=0)
    if wide > dps:
        dps = wide
        found = _values_at(a, b, places, dps)
    # A point at which the magnitudes lie too far apart tells nothing.
    known = [digits_for(spread) is not None for spread in spreads]
    found = [pair for pair, counts in zip(found, known, strict=False) if counts]
    spare = (dps - BASE_DPS) // 3
    first: Any = None
    for left, right in found:
        if min(abs(left.value), abs(right.value)) < ctx.mpf(10) ** -(30 + spare):
            return False
        ratio = left.value / right.value
        if positive and not (ctx.im(ratio) == 0 and ctx.re(ratio) > 0):
            return False
        tolerance = abs(ratio) * ctx.mpf(10) ** (5 - AGREEMENT_DIGITS - spare)
        if first is not None and not abs(first - ratio) <= tolerance:
            return False
        first = ratio
    return len(found) >= MIN_POINTS + 1


def _values_at(a: Node, b: Node, places: list[Point], dps: int) -> list[tuple[Value, Value]]:
    """The values of two trees wherever both have one."""
    found: list[tuple[Value, Value]] = []
    for point in places:
        context().dps = dps
        left = value_at(a, point.values, real_throughout=point.real_throughout)
        right = value_at(b, point.values, real_throughout=point.real_throughout)
        if left is not None and right is not None:
            found.append((left, right))
    return found


# ---- when a decimal stands for the exact value that it was rounded from

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
    other = constant_value(exact)
    if tolerance is None or known is None or other is None:
        return False
    ctx = context()
    value = ctx.mpf(known.numerator) / known.denominator
    return bool(abs(other[0] - value) <= ctx.mpf(tolerance.numerator) / tolerance.denominator)


# ---- two scalars


def compare_scalars(answer: Node, gold: Node, policy: Policy) -> Verdict:
    """Whether two expressions have one value, under the policies on units, percent and decimals."""
    if refusal := units_refusal(answer, gold, policy):
        return Verdict(False, "units", refusal)
    if policy.units_are_converted and units_of(answer) and units_of(gold):
        answer, gold = converted(answer), converted(gold)
    ours, theirs = percentage(answer), percentage(gold)
    percent = ours is not None, theirs is not None
    answer, gold = ours or answer, theirs or gold
    if percent == (False, True) and holds(answer, "percent"):  # `1 - 95\%` is no bare number
        gold, percent = ("div", gold, HUNDRED), (False, False)
    if percent in ((True, False), (False, True)) and units_of(gold if percent[0] else answer):
        return Verdict(False, "units", "a percentage against another unit")
    if percent == (False, True) and not policy.plain_for_percent and not policy.ratio_for_percent:
        return Verdict(False, "percent", "gold is a percentage, the answer is not")
    if percent == (True, False):
        if not policy.percent_for_ratio:
            return Verdict(False, "percent", "the answer is a percentage, gold is not")
        answer = ("div", answer, HUNDRED)
    verdict = _compare_values(answer, gold, policy)
    if percent == (False, True):
        if verdict.equal and not policy.plain_for_percent:
            return Verdict(False, "percent", "gold is a percentage, the answer is not")
        if not verdict.equal and policy.ratio_for_percent:
            return _compare_values(answer, ("div", gold, HUNDRED), policy)
    return verdict


def same_scalar(answer: Node, gold: Node, policy: Policy) -> bool:
    """`compare_scalars` without the reason."""
    return compare_scalars(answer, gold, policy).equal


def _compare_values(answer: Node, gold: Node, policy: Policy) -> Verdict:
    try:
        left, right = exact_value(answer), exact_value(gold)
    except Undecidable as refusal:
        return Verdict(False, "exact", str(refusal))
    if left is not None and right is not None:
        if left == right:
            return Verdict(True, "exact")
        if rounds_to(answer, left, gold, right, policy):
            return Verdict(True, "rounding")
        return Verdict(False, "exact", "another value")
    if symbols(answer) or symbols(gold):
        equal = same_function(answer, gold)
        return Verdict(equal, "numeric", "" if equal else "another value at some point")
    if same_constant(answer, gold):
        return Verdict(True, "numeric")
    if rounds_approximately(answer, left, gold, right, policy):
        return Verdict(True, "rounding")
    return Verdict(False, "numeric", "another value")
