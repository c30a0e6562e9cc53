"""Equality of whole answers: numbers with percent and units, lists, sets, intervals, relations.

`same(answer, gold)` takes two syntax trees. It is not symmetric: gold decides what precision, unit
or percent sign an answer may drop (the policies are in `equivalence`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from polaris_jax.reward import numeric
from polaris_jax.reward.exact import Undecidable, exact_value
from polaris_jax.reward.intervals import is_set_like, same_sets
from polaris_jax.reward.rounding import rounds_approximately, rounds_to
from polaris_jax.reward.syntax import Node, holds, symbols
from polaris_jax.reward.vocabulary import SILENT_UNITS

MAX_ITEMS = 200
MAX_PAIRS = 2500  # comparisons of two unordered collections
_ORDERS = frozenset({"<", ">", "leq", "geq"})
_COLLECTIONS = frozenset({"set", "tuple", "list", "cup", "cap", "setminus", "matrix", "rel"})
_FLIPPED = {"<": ">", ">": "<", "leq": "geq", "geq": "leq", "neq": "neq"}


def same(answer: Node, gold: Node) -> bool:
    """Whether an answer's tree says what gold's tree says."""
    if answer == gold:
        return True
    answer, gold = _spread(_unwrapped(answer)), _spread(_unwrapped(gold))
    if answer == gold:
        return True
    if "list" in (answer[0], gold[0]):
        return _same_list(answer, gold)
    if answer[0] == "rel" or gold[0] == "rel":
        return _same_relation(answer, gold)
    if answer[0] == "set" and len(answer[1]) == 1 and gold[0] not in _COLLECTIONS:
        return answer[1][0][0] != "rel" and same(answer[1][0], gold)
    if gold[0] == "set" and len(gold[1]) == 1 and answer[0] not in _COLLECTIONS:
        return same(answer, gold[1][0])
    if {answer[0], gold[0]} == {"set", "tuple"} or {answer[0], gold[0]} == {"set"}:
        return answer[0] == gold[0] and _same_set(answer[1], gold[1])
    if is_set_like(gold) or is_set_like(answer):
        if answer[0] == gold[0] == "tuple":
            return answer[1:3] == gold[1:3] and _same_sequence(answer[3], gold[3])
        return same_sets(answer, gold)
    if answer[0] == "tuple" or gold[0] == "tuple":
        if answer[0] == gold[0]:
            return answer[1:3] == gold[1:3] and _same_sequence(answer[3], gold[3])
        return _vector(answer) is not None and _same_sequence(_vector(answer), _vector(gold))
    if answer[0] == "matrix" or gold[0] == "matrix":
        return _same_matrix(answer, gold)
    if answer[0] == "ratio" or gold[0] == "ratio":
        return answer[0] == gold[0] and _same_ratio(answer[1], gold[1])
    if answer[0] in ("words", "based") or gold[0] in ("words", "based"):
        return False
    return same_scalar(answer, gold)


def _unwrapped(node: Node) -> Node:
    """A structure without the unit behind it: `(3, 4) \\text{ cm}`."""
    while node[0] == "unit" and node[1][0] in (*_COLLECTIONS, "based", "ratio", "words"):
        node = node[1]
    if node[0] == "rel" and node[2] == ("in",):
        return ("rel", (node[1][0], _unwrapped(node[1][1])), node[2])
    if node[0] in ("cup", "cap", "setminus"):
        return (node[0], _unwrapped(node[1]), _unwrapped(node[2]))
    return node


# -- plus-minus ---------------------------------------------------------------------------------


def _choose(node: Any, upper: bool) -> Any:
    """The tree with every plus-minus settled one way."""
    if not isinstance(node, tuple):
        return node
    if node and node[0] == "pm":
        inner = _choose(node[2], upper)
        return inner if (node[1] == "pm") == upper else ("neg", inner)
    return tuple(_choose(part, upper) for part in node)


def _spread(node: Node) -> Node:
    """A tree in which each item with a plus-minus has become two items."""
    if not holds(node, "pm"):
        return node
    if node[0] in ("list", "set"):
        items: list[Node] = []
        for item in node[1]:
            items.extend(_both(item))
        return (node[0], tuple(items))
    if node[0] == "rel" and set(node[2]) == {"="} and _is_name(node[1][0]):
        return _spread(node[1][-1])
    return ("list", _both(node))


def _both(item: Node) -> tuple[Node, ...]:
    if not holds(item, "pm"):
        return (item,)
    return (_choose(item, True), _choose(item, False))


# -- scalars --------------------------------------------------------------------------------------


def same_scalar(answer: Node, gold: Node) -> bool:
    """Whether two expressions have one value, under the policies on units, percent and decimals."""
    if _units_conflict(answer, gold):
        return False
    percent_answer, percent_gold = holds(answer, "percent"), holds(gold, "percent")
    if percent_answer and not percent_gold:
        answer = ("div", answer, ("num", Fraction(100), None))
    try:
        left, right = exact_value(answer), exact_value(gold)
    except Undecidable:
        return False
    if left is not None and right is not None:
        return left == right or rounds_to(answer, left, gold, right)
    if symbols(answer) or symbols(gold):
        return numeric.same_function(answer, gold)
    if numeric.same_constant(answer, gold):
        return True
    return rounds_approximately(answer, left, gold, right)


def _units(node: Any) -> set[str]:
    found: set[str] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple) and item:
            if item[0] == "unit" and item[2]:
                found.add(item[2])
            stack.extend(item)
    return found - {f"{unit}^1" for unit in SILENT_UNITS}


def _units_conflict(answer: Node, gold: Node) -> bool:
    ours = {unit.removesuffix("^1") for unit in _units(answer)}
    theirs = {unit.removesuffix("^1") for unit in _units(gold)}
    return bool(ours and theirs and ours.isdisjoint(theirs))


# -- collections ----------------------------------------------------------------------------------


def _same_sequence(answers: tuple[Node, ...] | None, golds: tuple[Node, ...] | None) -> bool:
    if answers is None or golds is None or len(answers) != len(golds) or len(golds) > MAX_ITEMS:
        return False
    return all(same(answer, gold) for answer, gold in zip(answers, golds, strict=True))


def _same_multiset(answers: tuple[Node, ...], golds: tuple[Node, ...]) -> bool:
    if len(answers) != len(golds) or len(golds) > MAX_ITEMS:
        return False
    rest = list(answers)
    waiting: list[Node] = []
    for gold in golds:  # equal trees first: most pairs of long lists are settled here
        if gold in rest:
            rest.remove(gold)
        else:
            waiting.append(gold)
    if len(waiting) ** 2 > MAX_PAIRS:
        return False
    for gold in waiting:
        match = next((answer for answer in rest if same(answer, gold)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _same_set(answers: tuple[Node, ...], golds: tuple[Node, ...]) -> bool:
    """Sets as sets: an element written twice counts once."""
    if max(len(answers), len(golds)) > MAX_ITEMS or len(answers) * len(golds) > MAX_PAIRS:
        return _same_multiset(answers, golds)
    return all(any(same(a, g) for a in answers) for g in golds) and all(
        any(same(a, g) for g in golds) for a in answers
    )


def _same_list(answer: Node, gold: Node) -> bool:
    ours = answer[1] if answer[0] in ("list", "set") else None
    theirs = gold[1] if gold[0] in ("list", "set") else None
    if ours is not None and theirs is not None:
        if _same_multiset(ours, theirs):
            return True
        return _same_multiset(_values(ours), _values(theirs))
    collection = answer if theirs is None else gold
    other = gold if theirs is None else answer
    if other[0] == "tuple":
        return other[1:3] == ("(", ")") and (
            _same_sequence(_values(answer[3] if answer[0] == "tuple" else answer[1]), gold[1])
            if theirs is not None
            else _same_sequence(_values(answer[1]), gold[3])
        )
    if all(_is_inequality(item) for item in collection[1]):
        return same_sets(answer, gold)
    if other[0] == "rel":  # `(p, q) = (3, 2)` against `p = 3, q = 2`
        named = _named_value(other)
        if named is not None and named[0][0] == "tuple" and named[1][0] == "tuple":
            pairs = zip(named[0][3], named[1][3], strict=False)
            spelt = tuple(("rel", (name, value), ("=",)) for name, value in pairs)
            return _same_multiset(spelt, collection[1])
        if named is not None and named[1][0] in ("set", "list"):
            return _same_multiset(named[1][1], collection[1])
    return False


def _values(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """Items with the names of `x = 1` gone."""
    values: list[Node] = []
    for item in items:
        named = _named_value(item) if item[0] == "rel" else None
        values.append(item if named is None else named[1])
    return tuple(values)


def _vector(node: Node) -> tuple[Node, ...] | None:
    """The entries of a tuple in round brackets or of a matrix of one row or column."""
    if node[0] == "tuple" and node[1:3] == ("(", ")"):
        return node[3]
    if node[0] == "matrix" and node[1] == "matrix":
        if len(node[2]) == 1:
            return node[2][0]
        if len(node[2][0]) == 1:
            return tuple(row[0] for row in node[2])
    return None


def _same_matrix(answer: Node, gold: Node) -> bool:
    if answer[0] != gold[0] or answer[1] != gold[1] or len(answer[2]) != len(gold[2]):
        return False
    rows = zip(answer[2], gold[2], strict=True)
    return all(_same_sequence(ours, theirs) for ours, theirs in rows)


def _same_ratio(answers: tuple[Node, ...], golds: tuple[Node, ...]) -> bool:
    """`2:4` is `1:2`: cross products agree."""
    if len(answers) != len(golds):
        return False
    return all(
        same_scalar(("mul", (answers[0], gold)), ("mul", (answer, golds[0])))
        for answer, gold in zip(answers[1:], golds[1:], strict=True)
    )


# -- relations ------------------------------------------------------------------------------------


def _is_name(node: Node) -> bool:
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
        return len(heads) == 2 and heads[0][0] == "sym" and heads[1][0] in ("tuple",)
    if kind == "ratio":
        return all(_is_name(part) for part in node[1])
    if kind == "tuple":
        return all(_is_name(part) for part in node[3])
    return False


def _named_value(node: Node) -> tuple[Node, Node] | None:
    """(name, value) of `x = 5`, `f(x) = ... = 5` or `5 = x`; None for a true equation."""
    sides, operators = node[1], node[2]
    if "approx" in operators[1:]:
        cut = 1 + operators[1:].index("approx")
        sides, operators = sides[: cut + 1], operators[:cut]
    if any(operator not in ("=", "approx") for operator in operators):
        return None
    if _is_name(sides[0]):
        return sides[0], sides[-1]
    if len(sides) == 2 and _is_name(sides[1]):
        return sides[1], sides[0]
    if len(sides) >= 2 and not symbols(node):  # a computation: `2 + 3 = 5`
        return ("words", ""), sides[-1]
    return None


def _is_inequality(node: Node) -> bool:
    return node[0] == "rel" and all(operator in _ORDERS for operator in node[2])


def _same_relation(answer: Node, gold: Node) -> bool:
    ours = _named_value(answer) if answer[0] == "rel" else None
    theirs = _named_value(gold) if gold[0] == "rel" else None
    if answer[0] == "rel" and gold[0] == "rel":
        if ours is not None and theirs is not None:
            if _names_differ(ours[0], theirs[0]):
                return False
            return same(ours[1], theirs[1]) or _same_equation(answer, gold)
        if answer[2] == gold[2] == ("=",):
            return _same_equation(answer, gold)
        if _same_chain(answer, gold):
            return True
        return same_sets(answer, gold)
    if ours is not None:
        return same(ours[1], gold)
    if theirs is not None:
        return same(answer, theirs[1])
    return same_sets(answer, gold)


def _names_differ(ours: Node, theirs: Node) -> bool:
    return ours[0] == theirs[0] == "sym" and ours != theirs


def _same_equation(answer: Node, gold: Node) -> bool:
    """Whether two equations have the same solutions because one is a multiple of the other."""
    if len(answer[1]) != 2 or len(gold[1]) != 2 or answer[2] != ("=",) or gold[2] != ("=",):
        return False
    if any(side[0] in ("tuple", "set", "list", "matrix") for side in answer[1] + gold[1]):
        return _same_sequence(answer[1], gold[1])
    return numeric.proportional(_left_minus_right(answer), _left_minus_right(gold))


def _left_minus_right(relation: Node) -> Node:
    return ("add", (relation[1][0], ("neg", relation[1][1])))


def _same_chain(answer: Node, gold: Node) -> bool:
    """Chains of inequalities side by side, read from either end."""
    if len(answer[2]) != len(gold[2]):
        return False
    if answer[2] == gold[2] and _same_sequence(answer[1], gold[1]):
        return True
    if any(operator not in _FLIPPED for operator in answer[2]):
        return False
    turned = tuple(_FLIPPED[operator] for operator in reversed(answer[2]))
    if turned == gold[2] and _same_sequence(answer[1][::-1], gold[1]):
        return True
    if len(gold[2]) == 1 and gold[2][0] in _FLIPPED:
        ours, theirs = _left_minus_right(answer), _left_minus_right(gold)
        if answer[2] == gold[2] and numeric.proportional(ours, theirs, positive=True):
            return True
        return turned == gold[2] and numeric.proportional(("neg", ours), theirs, positive=True)
    return False
