"""Equality of complete answers: numbers, lists, sets, tuples, matrices, ratios, relations.

`same(answer, gold, policy)` takes two syntax trees. It is not symmetric: gold decides what
precision, unit or percent sign an answer may drop (`policy` says which of these are allowed).
"""

from __future__ import annotations

from polaris_jax.reward.math.intervals import is_set_like, same_sets
from polaris_jax.reward.math.matrices import worked_out
from polaris_jax.reward.math.measures import as_lengths, measured_value
from polaris_jax.reward.math.named_lists import (
    Items,
    by_name,
    has_several_names,
    in_usual_order,
    is_partly_named,
    names_of,
    values,
    without_subscripts,
)
from polaris_jax.reward.math.plus_minus import spread
from polaris_jax.reward.math.policy import Policy, Verdict
from polaris_jax.reward.math.relations import (
    FLIPPED,
    calls_as_products,
    constant_calls_as_letters,
    in_order_of,
    is_exclusion,
    is_inequality,
    left_minus_right,
    named_value,
    names_differ,
    proportional_inequalities,
)
from polaris_jax.reward.math.scalars import compare_scalars, proportional, same_scalar
from polaris_jax.reward.math.syntax import Node, symbols

MAX_ITEMS = 200
MAX_PAIRS = 2500  # comparisons of two unordered collections
_COLLECTIONS = frozenset(
    {"set", "tuple", "list", "both", "cup", "cap", "setminus", "matrix", "rel"}
)
_NO_SCALARS = _COLLECTIONS | {"ratio", "words", "based", "decor"}
_ROUND = ("(", ")")
_REALS = ("sym", "mathbb:R")
_SETS_IN_WORDS: dict[str, Node] = {
    **dict.fromkeys(("no solution", "no solutions", "no real solution"), ("set", ())),
    **dict.fromkeys(("no real solutions", "empty set", "the empty set"), ("set", ())),
    **dict.fromkeys(("all real numbers", "all reals", "real numbers"), _REALS),
}


def compare(answer: Node, gold: Node, policy: Policy) -> Verdict:
    """Whether an answer's tree says what gold's tree says, by which layer, and why not."""
    verdict = _compare(answer, gold, policy)
    if verdict.equal:
        return verdict
    products = calls_as_products(answer, gold), calls_as_products(gold, answer)
    return verdict if products == (answer, gold) else _compare(*products, policy)


def _compare(answer: Node, gold: Node, policy: Policy) -> Verdict:
    ours, theirs = spread(_unwrapped(answer)), spread(_unwrapped(gold))
    if ours == theirs:
        return Verdict(True, "tree")
    if ours[0] not in _NO_SCALARS and theirs[0] not in _NO_SCALARS:
        return compare_scalars(ours, theirs, policy)
    if same(ours, theirs, policy):
        return Verdict(True, "structure")
    return Verdict(False, "structure", _difference(ours, theirs))


def same(answer: Node, gold: Node, policy: Policy) -> bool:
    """`compare` without the reason."""
    if answer == gold:
        return True
    answer, gold = spread(_unwrapped(answer)), spread(_unwrapped(gold))
    if answer == gold:
        return True
    kinds = (answer[0], gold[0])
    if "list" in kinds or "both" in kinds:
        return _same_list(answer, gold, policy)
    if "rel" in kinds:
        return _same_relation(answer, gold, policy)
    if policy.brackets_may_be_dropped and kinds != ("set", "set"):
        if answer[0] == "set" and len(answer[1]) == 1 and gold[0] not in _COLLECTIONS:
            return answer[1][0][0] != "rel" and same(answer[1][0], gold, policy)
        if gold[0] == "set" and len(gold[1]) == 1 and answer[0] not in _COLLECTIONS:
            return same(answer, gold[1][0], policy)
    if policy.brackets_may_be_dropped and _of_one(gold):  # `[5]`, of which 5 is the one entry
        ours = answer[-1][0] if _of_one(answer) or _of_one_set(answer) else answer
        return same(ours, gold[3][0], policy)
    if policy.brackets_may_be_dropped and _of_one(answer) and _of_one_set(gold):
        return same(answer[3][0], gold[1][0], policy)
    if set(kinds) == {"set", "tuple"} or set(kinds) == {"set"}:
        return answer[0] == gold[0] and _same_set(answer[1], gold[1], policy)
    if is_set_like(gold) or is_set_like(answer):
        if kinds == ("tuple", "tuple"):
            return answer[1:3] == gold[1:3] and _same_sequence(answer[3], gold[3], policy)
        return same_sets(answer, gold)
    if "tuple" in kinds:
        if kinds == ("tuple", "tuple"):
            return answer[1:3] == gold[1:3] and _same_sequence(answer[3], gold[3], policy)
        if not policy.brackets_may_be_dropped or _vector(answer) is None:
            return False
        return _same_sequence(_vector(answer), _vector(gold), policy)
    if "matrix" in kinds:
        return _same_matrix(answer, gold, policy)
    if "ratio" in kinds:
        return answer[0] == gold[0] and _same_ratio(answer[1], gold[1], policy)
    if kinds[0] in ("words", "based") or kinds[1] in ("words", "based"):
        return False
    return same_scalar(answer, gold, policy)


def _of_one(node: Node) -> bool:
    """Whether a tree is a list of one entry in square brackets."""
    return node[0] == "tuple" and len(node[3]) == 1


def _of_one_set(node: Node) -> bool:
    return node[0] == "set" and len(node[1]) == 1


def _difference(answer: Node, gold: Node) -> str:
    """One line on where two trees part."""
    if answer[0] != gold[0]:
        return f"the answer is a {_kind(answer)}, gold a {_kind(gold)}"
    if answer[0] == "tuple" and answer[1:3] != gold[1:3]:
        return f"brackets {''.join(answer[1:3])} against {''.join(gold[1:3])}"
    items = {"tuple": 3, "matrix": 2}.get(answer[0], 1)
    if answer[0] in _COLLECTIONS | {"ratio"} and isinstance(answer[items], tuple):
        ours, theirs = len(answer[items]), len(gold[items])
        if ours != theirs:
            return f"{ours} parts against {theirs}"
        return f"a part of the {_kind(gold)} differs"
    return f"another {_kind(gold)}"


def _kind(node: Node) -> str:
    if node[0] not in _NO_SCALARS:
        return "value"
    names = {"rel": "relation", "both": "list", "decor": "symbol", "based": "numeral with a base"}
    names |= dict.fromkeys(("cup", "cap", "setminus"), "union or difference")
    return names.get(node[0]) or str(node[0])


def _unwrapped(node: Node) -> Node:
    """A structure without the unit behind it: `(3, 4) \\text{ cm}`."""
    while node[0] == "unit" and node[1][0] in (*_COLLECTIONS, "based", "ratio", "words"):
        node = node[1]
    node = worked_out(node)
    if _is_named_point(node):  # `A(1, 2)`
        return ("rel", node[1], ("=",))
    if node[0] == "words" and node[1] in _SETS_IN_WORDS:
        return _SETS_IN_WORDS[node[1]]
    if node[0] == "list":  # `k\\pi, k \\in \\mathbb{Z}` says what k is, and lists one thing
        items = tuple(item for item in node[1] if not _is_range(item))
        bounded = all(is_inequality(item) or is_exclusion(item) for item in items)
        if len(items) == len(node[1]) or bounded:  # the integers above 3 are no interval
            return node
        return items[0] if len(items) == 1 else ("list", items, *node[2:])
    if node[0] == "rel" and node[2] == ("in",):
        return ("rel", (node[1][0], _unwrapped(node[1][1])), node[2])
    if node[0] in ("cup", "cap", "setminus"):
        return (node[0], _unwrapped(node[1]), _unwrapped(node[2]))
    return node


def _is_named_point(node: Node) -> bool:
    if node[0] != "mul" or len(node[1]) != 2:
        return False
    name, point = node[1]
    capital = name[0] == "sym" and len(name[1]) == 1 and name[1].isupper()
    return capital and point[0] == "tuple" and point[1:3] == _ROUND and not symbols(point)


def _is_range(node: Node) -> bool:
    return (
        node[0] == "rel"
        and node[2] == ("in",)
        and node[1][1] in (("sym", "mathbb:Z"), ("sym", "mathbb:N"))
    )


# -- collections ----------------------------------------------------------------------------------


def _same_sequence(
    answers: tuple[Node, ...] | None, golds: tuple[Node, ...] | None, policy: Policy
) -> bool:
    if answers is None or golds is None or len(answers) != len(golds) or len(golds) > MAX_ITEMS:
        return False
    return all(same(answer, gold, policy) for answer, gold in zip(answers, golds, strict=True))


def _same_multiset(answers: tuple[Node, ...], golds: tuple[Node, ...], policy: Policy) -> bool:
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
        match = next((answer for answer in rest if same(answer, gold, policy)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _same_set(answers: tuple[Node, ...], golds: tuple[Node, ...], policy: Policy) -> bool:
    """Sets as sets: an element written twice counts once."""
    if max(len(answers), len(golds)) > MAX_ITEMS or len(answers) * len(golds) > MAX_PAIRS:
        return _same_multiset(answers, golds, policy)
    return all(any(same(a, g, policy) for a in answers) for g in golds) and all(
        any(same(a, g, policy) for g in golds) for a in answers
    )


def _same_list(answer: Node, gold: Node, policy: Policy) -> bool:
    lists = ("list", "both", "set") if policy.brackets_may_be_dropped else ("list", "both")
    if answer[0] in lists and gold[0] in lists:
        if _same_items(answer, gold, policy):
            return True
        return "set" not in (answer[0], gold[0]) and _same_solutions(answer, gold)
    is_gold = gold[0] in lists
    collection, other = (gold, answer) if is_gold else (answer, gold)
    items: Items = collection[1]
    if other[0] == "tuple" and other[1:3] == _ROUND and policy.brackets_may_be_dropped:
        if collection[-1] == "or" or is_partly_named(items):  # `3 or 1` is no point
            return False
        found, listed = values(in_usual_order(other[3])), values(in_usual_order(items))
        if _same_sequence(*((found, listed) if is_gold else (listed, found)), policy=policy):
            return True
    if _same_solutions(answer, gold):
        return True
    if other[0] == "rel" and policy.names_may_be_dropped:
        named = named_value(other)
        spelt: Node | None = None
        if other[2] == ("in",):
            spelt = other[1][1] if other[1][1][0] == "set" else None
        elif named is not None and named[0][0] == "tuple" == named[1][0]:
            # `(p, q) = (3, 2)` against `p = 3, q = 2`
            pairs = zip(named[0][3], named[1][3], strict=False)
            spelt = ("list", tuple(("rel", pair, ("=",)) for pair in pairs))
        elif named is not None and named[1][0] in ("set", "list"):
            spelt = named[1]
        if spelt is not None:
            pair = (spelt, collection) if is_gold else (collection, spelt)
            return _same_items(*pair, policy)
    return False


def _same_items(answer: Node, gold: Node, policy: Policy) -> bool:
    """Whether two lists or sets hold the same items, in any order if the items say what they are.

    Bare values of several names must have the names' order, and a set has none.
    """
    ours, theirs = answer[1], gold[1]
    several = has_several_names(ours) or has_several_names(theirs)
    bare = [side for side in (answer, gold) if any(item[0] != "rel" for item in side[1])]
    if several and (answer[-1] == "or") != (gold[-1] == "or"):  # `x = 1 or y = 2` is no system
        return False
    if several and bare:
        if any(side[0] == "set" or is_partly_named(side[1]) for side in bare):
            return False
        if _same_sequence(ours, theirs, policy):
            return True
        return _same_sequence(in_usual_order(ours), in_usual_order(theirs), policy)
    if in_order := by_name(ours, theirs):
        return _same_sequence(ours, in_order, policy)
    if _same_multiset(ours, theirs, policy):
        return True
    if not policy.names_may_be_dropped or _name_the_same(ours, theirs):
        return False
    if None in (names_of(ours), names_of(theirs)):
        ours, theirs = values(ours), values(theirs)
    else:  # the roots x_1 and x_2 are both an x
        ours, theirs = without_subscripts(ours), without_subscripts(theirs)
    return _same_multiset(ours, theirs, policy)


def _name_the_same(answers: Items, golds: Items) -> bool:
    """Whether both lists give values to the same several names: then a value keeps its name."""
    named = [names_of(answers), names_of(golds)]
    return named[0] is not None and named[0] == named[1] and len(named[0]) > 1


def _same_solutions(answer: Node, gold: Node) -> bool:
    """Whether two sides are one set of reals, where one of them lists inequalities."""
    listed = [node[1] for node in (answer, gold) if node[0] in ("list", "both")]
    return all(
        is_inequality(item) or is_exclusion(item) for items in listed for item in items
    ) and same_sets(answer, gold)


def _vector(node: Node) -> tuple[Node, ...] | None:
    """The entries of a tuple in round brackets or of a matrix of one row or column."""
    if node[0] == "tuple" and node[1:3] == _ROUND:
        return node[3]
    if node[0] == "matrix" and node[1] == "matrix":
        if len(node[2]) == 1:
            return node[2][0]
        if len(node[2][0]) == 1:
            return tuple(row[0] for row in node[2])
    return None


def _same_matrix(answer: Node, gold: Node, policy: Policy) -> bool:
    if answer[0] != gold[0] or answer[1] != gold[1] or len(answer[2]) != len(gold[2]):
        return False
    rows = zip(answer[2], gold[2], strict=True)
    return all(_same_sequence(ours, theirs, policy) for ours, theirs in rows)


def _same_ratio(answers: tuple[Node, ...], golds: tuple[Node, ...], policy: Policy) -> bool:
    """`2:4` is `1:2`: cross products agree."""
    if len(answers) != len(golds):
        return False
    return all(
        same_scalar(("mul", (answers[0], gold)), ("mul", (answer, golds[0])), policy)
        for answer, gold in zip(answers[1:], golds[1:], strict=True)
    )


# -- relations ------------------------------------------------------------------------------------


def _same_relation(answer: Node, gold: Node, policy: Policy) -> bool:
    if answer[0] == "rel" and gold[0] == "rel":
        answer, gold = as_lengths(answer), as_lengths(gold)
    ours = named_value(answer) if answer[0] == "rel" else None
    theirs = named_value(gold) if gold[0] == "rel" else None
    if answer[0] == "rel" and gold[0] == "rel":
        if ours is not None and theirs is not None:
            if theirs[0][0] in ("tuple", "ratio"):
                ours = in_order_of(theirs[0][-1], ours)
            held = symbols((ours[1], theirs[1]))
            if names_differ(ours[0], theirs[0], held):  # `y = x` is `x = y`
                return _same_equation(answer, gold, policy)
            same_names = policy.names_may_be_dropped or ours[0] == theirs[0]
            if same_names and same(ours[1], theirs[1], policy):
                return True
            solved = symbols(ours[0]).isdisjoint(symbols((ours[1], theirs[1])))
            return not solved and _same_equation(answer, gold, policy)  # `x = 2x - 5`
        if answer[2] == gold[2] == ("=",):
            return _same_equation(answer, gold, policy)
        return _same_chain(answer, gold, policy) or same_sets(answer, gold)
    our_value = measured_value(answer) if ours is None and answer[0] == "rel" else None
    their_value = measured_value(gold) if theirs is None and gold[0] == "rel" else None
    our_value, their_value = ours[1] if ours else our_value, theirs[1] if theirs else their_value
    if our_value is not None:
        return policy.names_may_be_dropped and same(our_value, gold, policy)
    if their_value is not None:
        return policy.names_may_be_dropped and same(answer, their_value, policy)
    return same_sets(answer, gold)


def _same_equation(answer: Node, gold: Node, policy: Policy) -> bool:
    """Whether two equations have the same solutions because one is a multiple of the other."""
    if len(answer[1]) != 2 or len(gold[1]) != 2 or answer[2] != ("=",) or gold[2] != ("=",):
        return False
    if any(side[0] in ("tuple", "set", "list", "matrix") for side in answer[1] + gold[1]):
        return _same_sequence(answer[1], gold[1], policy)
    answer, gold = constant_calls_as_letters(answer), constant_calls_as_letters(gold)
    return proportional(left_minus_right(answer), left_minus_right(gold))


def _same_chain(answer: Node, gold: Node, policy: Policy) -> bool:
    """Chains of inequalities side by side, read from either end."""
    if len(answer[2]) != len(gold[2]):
        return False
    if answer[2] == gold[2] and _same_sequence(answer[1], gold[1], policy):
        return True
    if any(operator not in FLIPPED for operator in answer[2]):
        return False
    turned = tuple(FLIPPED[operator] for operator in reversed(answer[2]))
    if turned == gold[2] and _same_sequence(answer[1][::-1], gold[1], policy):
        return True
    return proportional_inequalities(answer, gold)
