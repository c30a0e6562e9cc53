"""What an equation or inequality names, and when two of them have the same solutions."""

from __future__ import annotations

from polaris_jax.reward import numeric
from polaris_jax.reward.syntax import Node, symbols
from polaris_jax.reward.vocabulary import FUNCTION_NAMES

_ORDERS = frozenset({"<", ">", "leq", "geq"})
FLIPPED = {"<": ">", ">": "<", "leq": "geq", "geq": "leq", "neq": "neq"}


def is_name(node: Node) -> bool:
    """Whether a left-hand side only names the value: x, x_1, AB, f(x), (p, q), some words."""
    kind = node[0]
    if kind in ("sym", "words", "call", "decor"):
        return True
    if kind == "const":
        return node[1] in ("e", "i")
    if kind == "mul":
        heads = node[1]
        capitals = all(h[0] == "sym" and len(h[1]) == 1 and h[1].isupper() for h in heads)
        if capitals:
            return True
        if len(heads) != 2:
            return False
        inverse = heads[0][0] in ("pow", "decor") and heads[0][-1 if heads[0][0] == "decor" else 1]
        if inverse and inverse[0] == "sym" and inverse[1] in FUNCTION_NAMES:  # `f^{-1}(x)`, `f'(x)`
            return heads[1][0] == "sym"
        return heads[0][0] == "sym" and heads[1][0] == "tuple"
    if kind == "ratio":
        return all(is_name(part) for part in node[1])
    if kind == "tuple":
        return all(is_name(part) for part in node[3])
    return False


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
    if len(sides) >= 2 and not symbols(node):  # a computation: `2 + 3 = 5`
        return ("words", ""), sides[-1]
    return None


def values(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """Items with the names of `x = 1` gone."""
    found: list[Node] = []
    for item in items:
        named = named_value(item) if item[0] == "rel" else None
        found.append(item if named is None else named[1])
    return tuple(found)


def names_of(items: tuple[Node, ...]) -> set[Node] | None:
    """The names that all the items give values to, or None where one names nothing."""
    named = [named_value(item) if item[0] == "rel" else None for item in items]
    return None if None in named else {name for name, _ in filter(None, named)}


def names_differ(ours: Node, theirs: Node) -> bool:
    """Whether two single names are two different ones."""
    return ours[0] == theirs[0] == "sym" and ours != theirs


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
