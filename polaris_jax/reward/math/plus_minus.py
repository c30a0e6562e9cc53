r"""Values with a plus-minus: `1 \pm \sqrt{2}` is two values, `\pm 1 \pm i` is four.

A minus-plus says that the signs go together: `\pm 1 \mp i` is two values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from polaris_jax.reward.math.named_lists import is_system
from polaris_jax.reward.math.relations import is_name
from polaris_jax.reward.math.syntax import Node, holds, nodes

MAX_SIGNS = 5  # of one item, which is 32 values then; an item with more is left as it is


def spread(node: Node) -> Node:
    """A tree in which each item with a plus-minus has become its values."""
    if not holds(node, "pm"):
        return node
    if node[0] == "list" and is_system(node[1]) and "mp" in _signs(node):
        return ("list", _settled(node))  # `x = \pm 1, y = \mp 1`, two solutions
    if node[0] in ("list", "set"):
        items: list[Node] = []
        for item in node[1]:
            items.extend(_settled(item))
        return (node[0], tuple(items), *node[2:])
    if node[0] == "rel" and set(node[2]) == {"="} and is_name(node[1][0]):
        name, value = node[1][0], node[1][-1]
        if value[0] in ("list", "set"):
            return spread(value)
        return ("list", tuple(("rel", (name, part), ("=",)) for part in _settled(value)))
    found = _settled(node)
    return ("list", found) if len(found) > 1 else node


def _settled(item: Node) -> tuple[Node, ...]:
    """The item with its signs settled in every way."""
    signs = _signs(item)
    if not signs or ("mp" not in signs and len(signs) > MAX_SIGNS):
        return (item,)
    if "mp" in signs:
        ways = [(upper,) * len(signs) for upper in (True, False)]
    else:
        ways = list(itertools.product((True, False), repeat=len(signs)))
    return tuple(_chosen(item, iter(way)) for way in ways)


def _signs(tree: Node) -> list[str]:
    """The "pm" and "mp" of a tree."""
    return [item[1] for item in nodes(tree) if item[0] == "pm"]


def _chosen(node: Any, way: Iterator[bool]) -> Any:
    """The tree with each plus-minus settled as the next of `way` says: True is the upper sign."""
    if not isinstance(node, tuple):
        return node
    if node and node[0] == "pm":
        is_plus = next(way) == (node[1] == "pm")
        inner = _chosen(node[2], way)
        return inner if is_plus else ("neg", inner)
    return tuple(_chosen(part, way) for part in node)
