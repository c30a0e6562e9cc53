"""Syntax trees of answers: what nodes there are, and the small functions that read them.

A node is a tuple whose first entry names it:
    ("num", Fraction, decimals | None)      decimals: digits behind the point as written
    ("sym", name)  ("const", "pi"|"e"|"i"|"inf")  ("words", text)
    ("add", nodes)  ("mul", nodes)  ("div", a, b)  ("pow", a, b)  ("neg", a)  ("pm", sign, a)
    ("fact", a)  ("func", name, nodes)  ("call", name, nodes)  ("decor", name, a)
    ("based", digits, base)  ("ratio", nodes)  ("unit", a, name)  ("percent", a)
    ("tuple", open, close, nodes)  ("set", nodes)  ("list", nodes[, "or"])  ("both", inequalities)
    ("cup", a, b)  ("cap", a, b)  ("setminus", a, b)  ("matrix", kind, rows)
    ("rel", sides, operators)  ("sum" | "prod", index's name, first, last, body)
Trees are hashable, so structural equality is `==`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from polaris_jax.reward.math.normalize import Unreadable

Node = tuple[Any, ...]

MAX_DIGITS = 2000
MAX_EXPONENT = 10_000  # of scientific notation


def number(literal: str) -> Node:
    """The node of a numeric literal, exact. Raises Unreadable past the digit limits."""
    if len(literal) > MAX_DIGITS:
        raise Unreadable("a number of too many digits")
    mantissa, _, exponent = literal.partition("e")
    if exponent and abs(int(exponent)) > MAX_EXPONENT:
        raise Unreadable("an exponent beyond every bound")
    whole, _, fraction = mantissa.partition(".")
    value = Fraction(int(whole + fraction), 10 ** len(fraction))
    decimals = len(fraction) if "." in mantissa or exponent else None
    if exponent:
        value *= Fraction(10) ** int(exponent)
        decimals = (decimals or 0) - int(exponent)
    return ("num", value, decimals)


def signed(sign: str, node: Node) -> Node:
    """The node under "+", "-", "pm" or "mp"."""
    if sign == "+":
        return node
    return ("neg", node) if sign == "-" else ("pm", sign, node)


def product(left: Node, right: Node) -> Node:
    """left times right; a product to the left grows."""
    head = left[1] if left[0] == "mul" else (left,)
    return ("mul", (*head, right))


def quotient(top: Node, bottom: Node) -> Node:
    """top / bottom as written in a line: the percent sign of `1/3%` is the quotient's."""
    if bottom[0] == "percent" and not holds(top, "percent"):
        return ("percent", ("div", top, bottom[1]))
    return ("div", top, bottom)


def render(node: Node) -> str:
    """A short, stable spelling of a node: names of subscripted and decorated symbols."""
    if node[0] in ("sym", "const"):
        return str(node[1])
    if node[0] == "num":
        return str(node[1])
    return (
        "("
        + " ".join(render(part) if isinstance(part, tuple) else str(part) for part in node)
        + ")"
    )


def substitute(node: Any, target: Node, replacement: Node) -> Any:
    """The tree with every occurrence of a node replaced."""
    if node == target:
        return replacement
    if isinstance(node, tuple):
        return tuple(substitute(part, target, replacement) for part in node)
    return node


def symbols(node: Any) -> set[str]:
    """Names of the free symbols of a tree; words and decorated letters are symbols too."""
    found: set[str] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if not isinstance(item, tuple) or not item:
            continue
        if item[0] == "sym":
            found.add(item[1])
        elif item[0] in ("words", "decor", "based"):
            found.add(render(item))
        elif item[0] == "call":
            stack.extend(item[2])
        elif item[0] in ("sum", "prod"):
            found |= symbols(item[4]) - {item[1]}
            stack.extend(item[2:4])
        elif item[0] not in ("num", "const"):
            stack.extend(item)
    return found


def nodes(tree: Any) -> Iterator[tuple[Any, ...]]:
    """Every node of a tree, outer ones first, and the tuples of parts between them."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple) and item:
            yield item
            stack.extend(item)


def holds(node: Any, *names: str) -> bool:
    """Whether a node of one of these names occurs anywhere in the tree."""
    return any(item[0] in names for item in nodes(node))


def tree_depth(node: Node) -> int:
    """Nodes on the longest way down."""
    depth, level = 0, [node]
    while level:
        depth += 1
        level = [part for item in level for part in item if isinstance(part, tuple)]
    return depth


# ---- exact rational values, every size bounded before it is computed

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
    if kind == "unit":
        return exact_value(node[1])
    if kind == "percent":
        value = exact_value(node[1])
        return None if value is None else _bounded(value / 100)
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
