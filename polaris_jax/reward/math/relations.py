"""Equations and inequalities: the names that they give to values, and which two say the same."""

from __future__ import annotations

from typing import Any

from polaris_jax.reward.math.cursor import denies
from polaris_jax.reward.math.scalars import constant_value, proportional, same_constant
from polaris_jax.reward.math.syntax import Node, holds, nodes, render, substitute, symbols
from polaris_jax.reward.math.vocabulary import CHANGING_WORDS, FUNCTION_NAMES, word_set

# ---- names. A derivative, an inverse or an iterate is another function than the one it is made
# of, and a mean or a conjugate another number: what stands on a letter counts, but for arrows,
# bars over two points and angle signs.

# Letters that stand for a function wherever brackets and an equals sign follow; other small ones
# do so only where the other side holds the bracket's letter: `a(n) = n^2`, never `x(y) = 5`.
_FUNCTION_LETTERS = frozenset("pqrsuvw") | word_set(
    "phi psi sigma tau mu zeta omega rho chi eta Gamma Phi Psi Lambda Omega"
)
_MUTE = frozenset({"vec", "angle", "triangle"})
_FALSE_WORDS = word_set("wrong false untrue incorrect incorrectly invalid no none")
_INVERSE = "^(neg 1)"


def is_name(node: Node) -> bool:
    """Whether a left-hand side only names the value: x, x_1, AB, f(x), (p, q), some words."""
    kind = node[0]
    if kind == "words":  # never "the answer is not = 5"
        words = node[1].lower().removeprefix("the ").removeprefix("a ").split()
        return not denies(words) and _FALSE_WORDS.isdisjoint(words[:1] + words[-1:])
    if kind in ("sym", "call", "decor"):
        return True
    if kind == "const":
        return node[1] in ("e", "i")
    if kind == "mul":
        heads = node[1]
        if all(_is_capital(head) for head in heads) or _plain(node) != node:
            return True
        return len(heads) == 2 and heads[0][0] == "sym" and heads[1][0] == "tuple"
    if kind == "ratio":
        return all(is_name(part) for part in node[1])
    if kind == "tuple":
        return all(is_name(part) for part in node[3])
    return False


def is_called(name: str, marks: str, arguments: tuple[Node, ...], rest: set[str]) -> bool:
    """Whether a name with brackets before an equals sign is a function of them, and no factor.

    Args:
        name: a letter with its subscript, a Greek letter's name, or a word.
        marks: its primes, or its power.
        arguments: what the brackets hold.
        rest: the letters of the other sides.
    """
    base = name.partition("_")[0]
    if marks.startswith("^"):
        return base in FUNCTION_NAMES and (marks == _INVERSE or arguments[0][0] == "sym")
    if base in FUNCTION_NAMES:
        return True
    own = symbols(arguments)
    if base in own | rest or (holds(arguments, "add") and own):  # `x(x+1) = 6`
        return False
    if marks or base in _FUNCTION_LETTERS or base.isupper() or (len(base) > 1 and base.islower()):
        return base not in CHANGING_WORDS
    if base == "n" and own and all(letter.isupper() for letter in own):  # elements of a set
        return True
    return len(arguments) == 1 and arguments[0][0] == "sym" and arguments[0][1] in rest


def names_differ(ours: Node, theirs: Node, held: set[str]) -> bool:
    r"""Whether two names are different ones: x and y, f(x) and g(x), f and f', x and f(x).

    Names of different kinds may be one thing (y and f(x), y and the inverse of f, an area in words
    and A); so are y and its estimate `\hat{y}` where the values are formulas.

    Args:
        held: the letters of both values.
    """
    ours, theirs = (_plain(_estimated(name) if held else name) for name in (ours, theirs))
    if ours[0] != theirs[0]:
        ours, theirs = _undressed(ours), _undressed(theirs)
    kinds = {ours[0], theirs[0]}
    if ours == theirs or "words" in kinds:
        return False
    marks = _marks(ours), _marks(theirs)
    if marks[0] != marks[1]:
        call, name = (ours, theirs) if ours[0] == "call" else (theirs, ours)
        inverse = call[0] == "call" and call[1].endswith(_INVERSE) and name[0] == "sym"
        return not inverse or call[1].startswith(name[1])
    if kinds <= {"sym", "const"} or kinds in ({"decor"}, {"tuple"}, {"ratio"}):
        return True
    if kinds <= {"mul", "call"} and "mul" in kinds:  # `P(A)` may be written `PA`
        return _factors(ours) != _factors(theirs)
    if kinds == {"call"}:
        if ours[1] != theirs[1] or len(ours[2]) != 1 or len(theirs[2]) != 1:
            return True
        if not symbols((ours, theirs)) and same_constant(ours[2][0], theirs[2][0]):
            return False
        pair = (ours[2][0], theirs[2][0])
        return not all(
            part[0] == "sym" and part[1].islower() and part[1] not in held for part in pair
        )
    if kinds == {"call", "sym"}:
        call, name = (ours, theirs) if ours[0] == "call" else (theirs, ours)
        own = symbols(call)
        if name[1] in own or call[1].partition("_")[0] in FUNCTION_NAMES:
            return name[1] in own
        return not own or not own <= held  # `A(3) = 12` is not `A = 12`, nor `y = 12`
    return False


def _estimated(node: Node) -> Node:
    return node[2] if node[:2] == ("decor", "hat") else node


def _is_capital(node: Node) -> bool:
    return node[0] == "sym" and len(node[1]) == 1 and node[1].isupper()


def _plain(node: Node) -> Node:
    r"""A product that writes a name as that name: `f'(x)`, `f^{-1}(x)`, `m\angle A`."""
    if node[0] != "mul" or len(node[1]) != 2:
        return node
    head, other = node[1]
    if head == ("sym", "m") and other[:2] == ("decor", "angle"):
        return other
    if other[0] != "sym":
        return node
    marks = ""
    if head[0] == "pow":
        head, marks = head[1], f"^{render(head[2])}"
    while head[:2] == ("decor", "'"):
        head, marks = head[2], f"'{marks}"
    named = bool(marks) and head[0] == "sym" and head[1] in FUNCTION_NAMES
    return ("call", f"{head[1]}{marks}", (other,)) if named else node


def _undressed(node: Node) -> Node:
    """A name without arrow, angle sign, or a bar over two points."""
    while node[0] == "decor" and (
        node[1] in _MUTE or (node[1] == "overline" and node[2][0] == "mul")
    ):
        node = node[2]
    return node


def _marks(node: Node) -> str:
    """What makes another thing of a name: primes, dots, a bar, an inverse's or iterate's power."""
    if node[0] == "call":
        cut = min((node[1].find(sign) for sign in "'^" if sign in node[1]), default=None)
        return "" if cut is None else node[1][cut:]
    marks = ""
    while node[0] == "decor":
        marks, node = marks + ("" if node[1] in _MUTE else node[1]), node[2]
    return marks


def _factors(node: Node) -> list[str]:
    parts = node[1] if node[0] == "mul" else (("sym", node[1]), *node[2])
    return sorted(map(repr, parts))


# ---- relations

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
    ours, theirs = constant_value(left), constant_value(right)
    if ours is None or theirs is None:
        return left[0] == right[0]  # matrices, lists: as they are written
    return bool(abs(ours[0] - theirs[0]) <= abs(theirs[0]) * 0.02)


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
    if answer[2] == gold[2] and proportional(ours, theirs, positive=True):
        return True
    turned = FLIPPED.get(answer[2][0])
    return turned == gold[2][0] and proportional(("neg", ours), theirs, positive=True)
