"""Sets of real numbers as sorted pieces: intervals, unions, complements, inequalities of one name.

`x < 3`, `(-\\infty, 3)` and `\\mathbb{R} \\setminus [3, \\infty)` become the same pieces.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from polaris_jax.reward.math.points import bends, constant_range
from polaris_jax.reward.math.relations import FLIPPED, is_exclusion
from polaris_jax.reward.math.scalars import AGREEMENT_DIGITS, BASE_DPS, agree, digits_for
from polaris_jax.reward.math.syntax import Node, holds, render, substitute, symbols
from polaris_jax.reward.math.values import context, value_at

MAX_PIECES = 200
# An expression of one name that is a straight line through these is taken for one: whole numbers,
# numbers between them, both signs.
LINEAR_POINTS = (0, 1, 2, 5, -1, -6, 0.375, 2.625, -3.25, 1000, -1000)

# An interval's end: (value, side). side -1: just below the value, +1: just above it. A closed
# left end is (a, -1), an open one (a, +1); a closed right end is (b, +1), an open one (b, -1).
End = tuple[Any, int]
Piece = tuple[End, End]

_REALS = frozenset({"mathbb:R", "R"})


class NotASet(ValueError):
    """The tree is no set of real numbers that we can lay out."""


def is_set_like(node: Node) -> bool:
    """Whether a tree must be read as a set of reals: a union, an interval that is half open."""
    if node[0] in ("cup", "cap", "setminus"):
        return True
    if node[0] == "sym" and node[1] in _REALS:
        return True
    return node[0] == "tuple" and node[1:3] != ("(", ")") and len(node[3]) == 2


def same_sets(answer: Node, gold: Node) -> bool:
    """Whether two trees lay out to the same set of reals; False if either does not."""
    ours_named, theirs_named = _names(answer), _names(gold)
    if max(len(ours_named), len(theirs_named)) > 1:
        return False
    if ours_named and theirs_named and ours_named != theirs_named:
        return False
    ctx = context()
    ctx.dps = BASE_DPS
    dps = digits_for(constant_range((answer, gold)))
    if dps is None:
        return False
    ctx.dps = dps
    try:
        ours, theirs = _pieces(answer), _pieces(gold)
    except NotASet:
        return False
    if len(ours) != len(theirs):
        return False
    for (low_a, high_a), (low_b, high_b) in zip(ours, theirs, strict=True):
        if low_a[1] != low_b[1] or high_a[1] != high_b[1]:
            return False
        if not (_equal(low_a[0], low_b[0]) and _equal(high_a[0], high_b[0])):
            return False
    return True


def _names(node: Node) -> set[str]:
    """What relations are about: names of variables, and `f(x)` as it is written."""
    if node[0] in ("list", "both", "set"):
        return {name for item in node[1] for name in _names(item)}
    if node[0] != "rel":
        return set()
    found: set[str] = set()
    for side in node[1][:1] if node[2] == ("in",) else node[1]:
        found |= {render(side)} if side[0] == "call" else symbols(side)
    return found


def _equal(a: Any, b: Any) -> bool:
    return a == b or agree(a, b, 0, context().dps - BASE_DPS + AGREEMENT_DIGITS)


def _value(node: Node) -> Any:
    if symbols(node):
        raise NotASet("an end that is no number")
    found = value_at(node, {})
    if found is None or context().im(found.value) != 0:
        raise NotASet("an end that is no real number")
    return context().re(found.value)


def _pieces(node: Node) -> list[Piece]:
    """Disjoint pieces in ascending order, neighbours merged."""
    ctx = context()
    kind = node[0]
    if kind == "tuple" and len(node[3]) == 2:
        low, high = _value(node[3][0]), _value(node[3][1])
        if not low < high and not (low == high and node[1:3] == ("[", "]")):
            raise NotASet("ends out of order")
        left = (low, -1 if node[1] == "[" else 1)
        right = (high, 1 if node[2] == "]" else -1)
        return [(_at_infinity(left), _at_infinity(right))]
    if kind == "set":
        return _merge([((value, -1), (value, 1)) for value in map(_value, node[1])])
    if kind == "sym" and node[1] in _REALS:
        return [((-ctx.inf, 1), (ctx.inf, -1))]
    if kind == "cup":
        return _merge(_pieces(node[1]) + _pieces(node[2]))
    if kind == "cap":
        return _common([_pieces(node[1]), _pieces(node[2])])
    if kind == "setminus":
        outside = _merge(_complement(_pieces(node[1])) + _pieces(node[2]))
        return _complement(outside)
    if kind in ("list", "both"):
        parts = [_pieces(item) for item in node[1]]
        if len(node) == 2 or all(is_exclusion(item) for item in node[1]):
            common = _common(parts)
            if common:  # `x < 1, x > 5` can only mean both parts of a union
                return common
        return _merge([piece for part in parts for piece in part])
    if kind == "rel":
        return _relation_pieces(node)
    raise NotASet(kind)


def _at_infinity(end: End) -> End:
    """Infinity belongs to no interval, whatever bracket stands beside it."""
    if context().isinf(end[0]):
        return end[0], 1 if end[0] < 0 else -1
    return end


def _merge(pieces: list[Piece]) -> list[Piece]:
    if len(pieces) > MAX_PIECES:
        raise NotASet("too many pieces")
    merged: list[Piece] = []
    for low, high in sorted(pieces):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _common(parts: list[list[Piece]]) -> list[Piece]:
    """The intersection of some sets."""
    return _complement(_merge([piece for part in parts for piece in _complement(_merge(part))]))


def _complement(pieces: list[Piece]) -> list[Piece]:
    """The rest of the line: a cut (a, s) is the same cut seen from its other side."""
    ctx = context()
    gaps: list[Piece] = []
    start: End = (-ctx.inf, 1)
    for low, high in pieces:
        if low > start:
            gaps.append((start, low))
        start = high
    if start < (ctx.inf, -1):
        gaps.append((start, (ctx.inf, -1)))
    return gaps


def _relation_pieces(node: Node) -> list[Piece]:
    sides, operators = node[1], node[2]
    if operators == ("in",):
        return _pieces(sides[1])
    if len(operators) == 1:
        return _one_inequality(sides[0], operators[0], sides[1])
    if len(operators) == 2:
        return _common([_one_inequality(sides[i], operators[i], sides[i + 1]) for i in range(2)])
    raise NotASet("a long chain")


def _one_inequality(left: Node, operator: str, right: Node) -> list[Piece]:
    """The solutions of a relation that is linear in one name, or in one |...| of it."""
    ctx = context()
    if operator not in ("<", ">", "leq", "geq", "neq"):
        raise NotASet(operator)
    difference = ("add", (left, ("neg", right)))
    names = symbols(difference)
    if holds(difference, "call"):
        opaque = [side for side in (left, right) if side[0] == "call"]
        if len(opaque) != 1 or symbols(right if opaque[0] is left else left):
            raise NotASet("a function inside an inequality")
        difference = substitute(difference, opaque[0], ("sym", "value"))
        names = {"value"}
    if len(names) != 1:
        raise NotASet("not one name")
    modulus = _only_modulus(difference)
    if modulus is not None:
        difference = substitute(difference, modulus, ("sym", "value"))
        if symbols(difference) != {"value"}:
            raise NotASet("a name beside its absolute value")
        root, slope = _linear_root(difference, "value")
        return _modulus_pieces(modulus[2][0], operator if slope > 0 else FLIPPED[operator], root)
    if bends(difference):
        raise NotASet("a floor or a root of the name")
    root, slope = _linear_root(difference, names.pop())
    if operator == "neq":
        return [((-ctx.inf, 1), (root, -1)), ((root, 1), (ctx.inf, -1))]
    above = (operator in (">", "geq")) == (slope > 0)
    closed = operator in ("leq", "geq")
    if above:
        return [((root, -1 if closed else 1), (ctx.inf, -1))]
    return [((-ctx.inf, 1), (root, 1 if closed else -1))]


def _only_modulus(node: Any) -> Node | None:
    """The one absolute value of a symbol in a tree; None if there is none or several."""
    found: set[Node] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple) and item:
            if item[:2] == ("func", "abs") and symbols(item):
                found.add(item)
            else:
                stack.extend(item)
    return found.pop() if len(found) == 1 else None


def _modulus_pieces(inner: Node, operator: str, bound: Any) -> list[Piece]:
    """The solutions of `|inner| operator bound`."""
    top = ("num", _fraction(bound), None)
    upper = _one_inequality(inner, operator, top)
    lower = _one_inequality(inner, FLIPPED[operator], ("neg", top))
    if operator in ("<", "leq", "neq"):
        return _common([upper, lower])
    return _merge(upper + lower)


def _fraction(value: Any) -> Fraction:
    """A computed real, exactly."""
    if not context().isfinite(value):
        raise NotASet("no finite bound")
    sign, mantissa, exponent, _ = value._mpf_
    return (-1) ** sign * int(mantissa) * Fraction(2) ** exponent


def _linear_root(node: Node, name: str) -> tuple[Any, Any]:
    ctx = context()
    values = []
    for point in LINEAR_POINTS:
        value = value_at(node, {name: ctx.mpf(point)})
        if value is None or ctx.im(value.value) != 0:
            raise NotASet("no value")
        values.append(ctx.re(value.value))
    slope = values[1] - values[0]
    if slope == 0 or not all(
        _equal(value, values[0] + point * slope)
        for point, value in zip(LINEAR_POINTS, values, strict=True)
    ):
        raise NotASet("not linear")
    return -values[0] / slope, slope
