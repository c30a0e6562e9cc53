r"""Equations that say what a quantity of a figure is: `|AB| = 1`, `\frac{NO}{BO} = \frac{1}{2}`.

The left side is what the problem asks for, so a bare value answers it.
"""

from __future__ import annotations

from polaris_jax.reward.math.relations import is_name
from polaris_jax.reward.math.syntax import Node, symbols
from polaris_jax.reward.math.vocabulary import GREEK, SHORT_WORDS

_OF_ANGLES = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})


def is_measured(node: Node) -> bool:
    r"""Whether a left-hand side is a quantity of points, sides or angles: `|AB|`, `\frac{NO}{BO}`.

    That is a name, or sums, products, quotients and powers, of segments (two capitals or more),
    angles, subscripted capitals, lengths of vectors, and sines of angles. A quotient may have plain
    capitals too. `|x|`, `x + y` and `2AB` are none: a number is not what they are.
    """
    kind = node[0]
    if kind == "func" and node[1] == "abs":
        return all(_is_dressed(part) for part in _leaves(node[2][0]))
    if kind == "func" and node[1] in _OF_ANGLES:
        return all(_is_dressed(part) or part[1] in GREEK for part in _leaves(node[2][0]))
    if kind == "div":
        leaves = _leaves(node)
        letters = all(part[0] == "sym" for part in node[1:]) and any(map(_is_dressed, leaves))
        return letters or all(is_measured(part) or _is_dressed(part) for part in node[1:])
    if kind == "mul":  # `AB^2` is read as A times the square of B
        parts = [part[1] if part[0] == "pow" and part[2][0] == "num" else part for part in node[1]]
        return all(_is_dressed(part) or _is_noun(part) or is_measured(part) for part in parts)
    if kind == "add":
        terms = [part[1] if part[0] == "neg" else part for part in node[1]]
        return all(is_measured(part) for part in terms)
    if kind == "pow":
        return node[2][0] == "num" and node[1][0] in ("mul", "func") and is_measured(node[1])
    if kind == "based":  # `\text{Area}_{ABC}`
        return str(node[2])[:1].isupper()
    if kind in ("sym", "decor"):
        return _is_dressed(node) and (kind == "decor" or len(node[1]) > 1)
    return False


def _is_noun(node: Node) -> bool:
    return node[0] == "words" and is_name(node)


def _is_dressed(node: Node) -> bool:
    """Whether a leaf is a point, a figure, an angle or a vector: no unknown number."""
    if node[0] == "words":  # `ABCD`; the side NO is read as a word
        return node[1].isupper() or node[1] in SHORT_WORDS
    if node[0] == "decor":
        return node[1] in ("vec", "overline", "angle", "triangle", "hat")
    return node[0] == "sym" and node[1][:1].isupper()


def _leaves(node: Node) -> list[Node]:
    """What sums, products, quotients, signs and absolute values are made of."""
    if node[0] in ("add", "mul"):
        return [leaf for part in node[1] for leaf in _leaves(part)]
    if node[0] in ("div", "neg"):
        return [leaf for part in node[1:] for leaf in _leaves(part)]
    if node[:2] == ("func", "abs"):
        return _leaves(node[2][0])
    return [node]


def measured_value(relation: Node) -> Node | None:
    r"""The value of `|AB| = 1`: what a bare number must equal; None for other relations.

    `\tan\theta = 2\theta` says nothing of the kind: the value holds what is measured.
    """
    if set(relation[2]) != {"="}:
        return None
    *sides, value = relation[1]
    if not all(map(is_measured, sides)) and len(sides) == 1:
        sides, value = [value], sides[0]
    apart = symbols(value).isdisjoint(symbols(tuple(sides)))
    return value if apart and all(map(is_measured, sides)) else None


def as_lengths(relation: Node) -> Node:
    """The relation with `AB` for a side `|AB|`: the length has both names."""
    sides = tuple(
        side[2][0] if side[:2] == ("func", "abs") and _is_segment(side[2][0]) else side
        for side in relation[1]
    )
    return ("rel", sides, relation[2])


def _is_segment(node: Node) -> bool:
    if node[0] == "decor" and node[1] in ("vec", "overline"):
        node = node[2]
    return node[0] == "mul" and len(node[1]) == 2 and all(map(_is_point, node[1]))


def _is_point(node: Node) -> bool:
    return node[0] == "sym" and len(node[1]) == 1 and node[1].isupper()
