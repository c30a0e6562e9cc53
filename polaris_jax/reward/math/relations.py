"""What an equation or inequality names, and when two of them have the same solutions."""

from __future__ import annotations

from typing import Any

from polaris_jax.reward.math import numeric
from polaris_jax.reward.math.names import is_name
from polaris_jax.reward.math.syntax import Node, holds, nodes, render, substitute, symbols
from polaris_jax.reward.math.vocabulary import FUNCTION_NAMES

_ORDERS = frozenset({"<", ">", "leq", "geq"})
FLIPPED = {"<": ">", ">": "<", "leq": "geq", "geq": "leq", "neq": "neq"}


def named_value(node: Node) -> tuple[Node, Node] | None:
    """(name, value) of `x = 5`, `f(x) = ... = 5` or `5 = x`; None for a true equation."""
    sides, operators = node[1], node[2]
    if "approx" in operators[1:]:
        cut = 1 + operators[1:].index("approx")
        sides, operators = sides[: cut + 1], operators[:cut]
    if any(operator not in ("=", "approx") for operator in operators):
        return None
    if is_name(sides[0]):
        return sides[0], sides[-1]
    if len(sides) == 2 and is_name(sides[1]):
        return sides[1], sides[0]
    if operators == ("approx",):  # `5\\sqrt2 \\approx 7.07`
        return ("words", ""), sides[0]
    if len(sides) >= 2 and not symbols(node) and _holds_true(sides[0], sides[-1]):
        return ("words", ""), sides[-1]  # a computation: `2 + 3 = 5`
    return None


def _holds_true(left: Node, right: Node) -> bool:
    """Whether two sides without symbols have one value, or the same to two digits: 1/3 = 0.33."""
    if holds((left, right), "unit", "percent"):
        return True
    ours, theirs = numeric.constant_value(left), numeric.constant_value(right)
    if ours is None or theirs is None:
        return left[0] == right[0]  # matrices, lists: as they are written
    return bool(abs(ours[0] - theirs[0]) <= abs(theirs[0]) * 0.02)


def values(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """Items with the names of `x = 1` gone."""
    found: list[Node] = []
    for item in items:
        named = named_value(item) if item[0] == "rel" else None
        found.append(item if named is None else named[1])
    return tuple(found)


def names_of(items: tuple[Node, ...]) -> set[Node] | None:
    """The names that all the items give values to, or None if one names nothing."""
    named = [named_value(item) if item[0] == "rel" else None for item in items]
    return None if None in named else {name for name, _ in filter(None, named)}


def without_subscripts(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """Named values with the subscripts of their names gone: `x_1 = 2` as `x = 2`."""
    found: list[Node] = []
    for item in items:
        named = named_value(item) if item[0] == "rel" else None
        if named is not None and named[0][0] == "sym":
            item = ("rel", (("sym", named[0][1].partition("_")[0]), named[1]), ("=",))
        found.append(item)
    return tuple(found)


def calls_as_products(node: Node, other: Node) -> Node:
    """The tree with `h(a + b)` as a product where the other tree has h as a number of its own.

    A side of a relation that is nothing but `f(x)` names a function and stays; `R(3) = 12` is a
    product beside `3R = 12`.
    """
    sides = node[1] if node[0] == "rel" else ()
    if not holds(node, "call") or any(
        side[0] == "call" and side[1] in FUNCTION_NAMES for side in sides
    ):
        return node
    plain = symbols(other) - {call[1] for call in _calls(other)}
    for call in _calls(node):
        if call[1] in plain and len(call[2]) == 1:
            node = substitute(node, call, ("mul", (("sym", call[1]), call[2][0])))
    return node


def constant_calls_as_letters(node: Node) -> Node:
    """The tree with a letter for each `P(2)`: what an equation like `2P(2) = 10` is about."""
    for call in _calls(node):
        if not symbols(call):
            node = substitute(node, call, ("sym", render(call)))
    return node


def called_names(trees: Any) -> frozenset[str]:
    """The names that trees call, without those that are functions everywhere."""
    found = {item[1] for item in nodes(trees) if item[0] == "call"}
    return frozenset(name for name in found - FUNCTION_NAMES if not set("'^") & set(name))


def _calls(node: Node) -> list[Node]:
    """The calls in a tree, the outer ones first."""
    return [item for item in nodes(node) if item[0] == "call"]


def in_order_of(names: tuple[Node, ...], node: tuple[Node, Node]) -> tuple[Node, Node]:
    """(names, value) of `(y, x) = (2, 1)` or `y : x = 2 : 1` with its parts in another order.

    Unchanged where it does not name just these.
    """
    kind = node[0][0]
    if kind not in ("tuple", "ratio") or node[1][0] != kind:
        return node
    own, parts = node[0][-1], node[1][-1]
    if len(own) != len(parts) or len(set(own)) != len(own) or set(own) != set(names):
        return node
    order = [own.index(name) for name in names]
    found = tuple(parts[place] for place in order)
    return (*node[0][:-1], names), (*node[1][:-1], found)


def usual_order(names: tuple[Node, ...]) -> tuple[Node, ...]:
    """Names in the order of a point's coordinates: x, y, z or x_1, x_2; else as given."""
    letters = [name[1] for name in names if name[0] == "sym"]
    if len(letters) != len(names):
        return names
    heads, _, tails = zip(*(letter.partition("_") for letter in letters), strict=True)
    if not any(tails):
        codes = sorted(ord(head) for head in heads if len(head) == 1)
        neighbours = codes == list(range(codes[0], codes[0] + len(names))) if codes else False
        return tuple(sorted(names)) if neighbours else names
    if len(set(heads)) == 1 and all(tail.isdecimal() for tail in tails):
        return tuple(sorted(names, key=lambda name: int(name[1].partition("_")[2])))
    return names


def ordered_values(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """`values` in the order that a point has them: 2, 1 of `y = 1, x = 2`."""
    named = [named_value(item) if item[0] == "rel" else None for item in items]
    pairs = [pair for pair in named if pair is not None]
    names = tuple(name for name, _ in pairs)
    if len(pairs) != len(items) or len(set(names)) != len(names):
        return values(items)
    found = dict(pairs)
    return tuple(found[name] for name in usual_order(names))


def is_inequality(node: Node) -> bool:
    """Whether a tree is a chain of `<`, `>`, `<=`, `>=`."""
    return node[0] == "rel" and all(operator in _ORDERS for operator in node[2])


def is_exclusion(node: Node) -> bool:
    r"""Whether a tree says `x \neq a`."""
    return node[0] == "rel" and node[2] == ("neq",)


def left_minus_right(relation: Node) -> Node:
    """The side that must be zero, or positive, of a relation of two sides."""
    return ("add", (relation[1][0], ("neg", relation[1][1])))


def proportional_inequalities(answer: Node, gold: Node) -> bool:
    """Whether one inequality is a positive multiple of the other, read from either end."""
    if len(answer[2]) != 1 or len(gold[2]) != 1 or gold[2][0] not in FLIPPED:
        return False
    ours, theirs = left_minus_right(answer), left_minus_right(gold)
    if answer[2] == gold[2] and numeric.proportional(ours, theirs, positive=True):
        return True
    turned = FLIPPED.get(answer[2][0])
    return turned == gold[2][0] and numeric.proportional(("neg", ours), theirs, positive=True)
