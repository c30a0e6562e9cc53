"""Exact rational values of syntax trees, every size bounded before it is computed."""

from __future__ import annotations

import math
from fractions import Fraction

from polaris_jax.reward.math.syntax import Node

MAX_BITS = 40_000  # of an exact value's numerator or denominator


class Undecidable(ArithmeticError):
    """A value that we refuse or are unable to compute."""


def exact_value(node: Node) -> Fraction | None:
    """The rational value of a tree, or None when it is not seen to be rational.

    Raises:
        Undecidable: the value is beyond MAX_BITS or undefined (a division by zero).
    """
    kind = node[0]
    if kind == "num":
        return _bounded(node[1])
    if kind in ("unit", "percent"):
        return exact_value(node[1])
    if kind == "neg":
        value = exact_value(node[1])
        return None if value is None else -value
    if kind in ("add", "mul"):
        total = Fraction(kind == "mul")
        for part in node[1]:
            value = exact_value(part)
            if value is None:
                return None
            total = _bounded(total + value if kind == "add" else total * value)
        return total
    if kind == "div":
        top, bottom = exact_value(node[1]), exact_value(node[2])
        if bottom == 0:
            raise Undecidable("a division by zero")
        return None if top is None or bottom is None else _bounded(top / bottom)
    if kind == "pow":
        return _exact_power(exact_value(node[1]), exact_value(node[2]))
    if kind == "fact":
        value = exact_value(node[1])
        return None if value is None else Fraction(_factorial(value))
    if kind == "func":
        return _exact_function(node[1], node[2])
    return None


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise Undecidable("a value of too many digits")
    return value


def _exact_power(base: Fraction | None, exponent: Fraction | None) -> Fraction | None:
    if base is None or exponent is None:
        return None
    if exponent.denominator != 1:
        return _exact_root(base, exponent)
    if base == 0 and exponent < 0:
        raise Undecidable("a division by zero")
    if base in (0, 1):
        return base if exponent != 0 else Fraction(1)
    if base == -1:
        return Fraction(-1 if exponent.numerator % 2 else 1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS:
        raise Undecidable("a power of too many digits")
    return base ** int(exponent)


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """base ** (p/q) where that is rational and base is not negative."""
    degree = exponent.denominator
    if base < 0 or degree > 64 or abs(exponent.numerator) > 64:
        return None
    top, bottom = _integer_root(base.numerator, degree), _integer_root(base.denominator, degree)
    if top is None or bottom is None or (top == 0 and exponent < 0):
        return None
    return _exact_power(Fraction(top, bottom), Fraction(exponent.numerator))


def _integer_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
    else:
        if value.bit_length() > 900:
            return None
        root = round(value ** (1 / degree))
    return root if root**degree == value else None


_EXACT_FUNCTIONS = frozenset(
    {"sqrt", "root", "binom", "abs", "floor", "ceil", "gcd", "lcm", "max", "min", "fact2"}
)


def _factorial(value: Fraction) -> int:
    if value.denominator != 1 or not 0 <= value <= 3000:
        raise Undecidable("a factorial out of range")
    return math.factorial(int(value))


def _exact_function(name: str, arguments: tuple[Node | None, ...]) -> Fraction | None:
    if name not in _EXACT_FUNCTIONS:
        return None
    values: list[Fraction] = []
    for argument in arguments:
        value = None if argument is None else exact_value(argument)
        if value is None:
            return None
        values.append(value)
    first = values[0]
    if name == "sqrt":
        return _exact_root(first, Fraction(1, 2))
    if name == "root":
        if values[1].denominator != 1 or values[1] < 1:
            return None
        degree = int(values[1])
        if first < 0 and degree % 2:
            positive = _exact_root(-first, Fraction(1, degree))
            return None if positive is None else -positive
        return _exact_root(first, Fraction(1, degree))
    if name == "fact2":
        if first.denominator != 1 or not 0 <= first <= 3000:
            raise Undecidable("a factorial out of range")
        return Fraction(math.prod(range(int(first), 1, -2)))
    if name == "abs":
        return abs(first)
    if name == "floor":
        return Fraction(math.floor(first))
    if name == "ceil":
        return Fraction(math.ceil(first))
    if name in ("max", "min"):
        return max(values) if name == "max" else min(values)
    if any(value.denominator != 1 for value in values):
        return None
    integers = [int(value) for value in values]
    if name == "binom":
        return _binomial(*integers)
    return Fraction(math.gcd(*integers) if name == "gcd" else math.lcm(*integers))


def _binomial(top: int, bottom: int) -> Fraction | None:
    if top < 0 or bottom < 0:
        return None
    smaller = min(bottom, top - bottom)
    if smaller > 0 and smaller * top.bit_length() > MAX_BITS:
        raise Undecidable("a binomial of too many digits")
    return Fraction(math.comb(top, bottom))
