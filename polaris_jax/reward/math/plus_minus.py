"""Values with a plus-minus: `1 \\pm \\sqrt{2}` is two values."""

from __future__ import annotations

from typing import Any

from polaris_jax.reward.math.relations import is_name
from polaris_jax.reward.math.syntax import Node, holds


def _choose(node: Any, upper: bool) -> Any:
    """The tree with every plus-minus settled one way."""
    if not isinstance(node, tuple):
        return node
    if node and node[0] == "pm":
        inner = _choose(node[2], upper)
        return inner if (node[1] == "pm") == upper else ("neg", inner)
    return tuple(_choose(part, upper) for part in node)


def spread(node: Node) -> Node:
    """A tree in which each item with a plus-minus has become two items."""
    if not holds(node, "pm"):
        return node
    if node[0] in ("list", "set"):
        items: list[Node] = []
        for item in node[1]:
            items.extend(_both(item))
        return (node[0], tuple(items), *node[2:])
    if node[0] == "rel" and set(node[2]) == {"="} and is_name(node[1][0]):
        name, value = node[1][0], node[1][-1]
        if value[0] in ("list", "set"):
            return spread(value)
        return ("list", tuple(("rel", (name, part), ("=",)) for part in _both(value)))
    return ("list", _both(node))


def _both(item: Node) -> tuple[Node, ...]:
    if not holds(item, "pm"):
        return (item,)
    return (_choose(item, True), _choose(item, False))
