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
