"""What sympy says of a pair of answers: the worker's half of `polaris grade --audit=sympy`.

`judge` is run like a reward function, in a killable worker under the deadline and the memory limit.
Our own parser reads both texts, so that no text is ever evaluated; sympy then decides whether the
values are equal: `simplify(a - b)`, and its own `equals` if that leaves something. sympy's readers
of LaTeX are not used: on the pairs of docs/results/2026-11-30_sympy_audit.md they read half of the
texts. So the audit checks how values are compared, and not how texts are read.

The audit knows none of the grader's policies, except that it leaves out units, percent is a
hundredth, and a name before an equals sign is not part of a value.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy

from polaris_jax.reward.math.equivalence import gold_texts
from polaris_jax.reward.math.normalize import Unreadable, tokens
from polaris_jax.reward.math.parser import parses
from polaris_jax.reward.math.spelling import plain_text, readings
from polaris_jax.reward.math.syntax import Node, holds, render, symbols
from polaris_jax.reward.protocol import RewardInput

COMPLEX_NAMES = ("z", "w")  # other names stand for real numbers, as in the grader
_REGIONS = {"tuple", "set", "sym", "cup", "cap", "setminus", "both", "list", "rel"}
_NAMES = ("sym", "decor", "call")
_DEGREE = sympy.pi / 180
_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "inf": sympy.oo}
_ORDERS = {"<": sympy.Lt, ">": sympy.Gt, "leq": sympy.Le, "geq": sympy.Ge}
_ANGULAR = ["sin", "cos", "tan", "cot", "sec", "csc"]
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(sympy, name) for name in _ANGULAR},
    **{f"arc{name}": getattr(sympy, f"a{name}") for name in _ANGULAR},
    **{name: getattr(sympy, name) for name in ("sinh", "cosh", "tanh", "coth", "exp", "gcd")},
    **{f"arc{name}": getattr(sympy, f"a{name}") for name in ("sinh", "cosh", "tanh")},
    "lcm": sympy.lcm,
    "ln": sympy.log,
    "log": lambda value, base=10: sympy.log(value, base),
    "sqrt": sympy.sqrt,
    "root": lambda value, degree: sympy.real_root(value, degree),
    "binom": sympy.binomial,
    "fact2": sympy.factorial2,
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
    "max": sympy.Max,
    "min": sympy.Min,
    "Re": sympy.re,
    "Im": sympy.im,
    "arg": sympy.arg,
    "sgn": sympy.sign,
}


class Unjudged(Exception):
    """sympy has no verdict; the text says why."""


def judge(pair: RewardInput) -> float:
    """1.0 if sympy calls the answer equal to one of the golds, else 0.0.

    Args:
        pair: the extracted answer in `text`, the golds in `answer`.

    Raises:
        Unjudged: a text cannot be read, is no mathematics, or sympy does not decide.
    """
    golds = gold_texts(pair.answer)
    problem, judged = Unjudged("no gold"), False
    for gold in golds:
        try:
            if same_texts(pair.text, gold):
                return 1.0
            judged = True
        except Unjudged as error:
            problem = error
    if not judged:
        raise problem
    return 0.0


def same_texts(answer: str, gold: str) -> bool:
    """Whether any reading of an answer equals any reading of gold. Raises Unjudged."""
    if answer.strip() == gold.strip():
        return True
    problem, judged = Unjudged("no reading"), False
    for ours, theirs in itertools.product(_trees(answer), _trees(gold)):
        try:
            if _same(_without_name(ours, theirs), _without_name(theirs, ours)):
                return True
            judged = True
        except Unjudged as error:
            problem = error
    if not judged:
        raise problem
    return False


def _trees(text: str) -> list[Node]:
    found, problem = [], ""
    for reading in readings(plain_text(text)):
        try:
            found += parses(tokens(reading))
        except Unreadable as error:
            problem = str(error)
    if not found:
        raise Unjudged(f"not read: {problem}")
    return found


def _without_name(node: Node, other: Node) -> Node:
    """The right side of `x = 5`, if the other tree is no relation."""
    is_named = node[0] == "rel" and set(node[2]) <= {"=", "approx"} and node[1][0][0] in _NAMES
    return node[1][-1] if is_named and other[0] != "rel" else node


# ---- equality by kind


def _same(ours: Node, theirs: Node) -> bool:
    ours, theirs = _without_unit(ours), _without_unit(theirs)
    if ours == theirs:
        return True
    kinds = {ours[0], theirs[0]}
    if kinds & {"words", "based", "pm", "ratio"}:
        raise Unjudged(f"not compared as values: {', '.join(sorted(kinds))}")
    if _is_region(ours) or _is_region(theirs):
        return kinds <= _REGIONS and _same_regions(ours, theirs)
    if kinds <= {"set", "list"} and ours[-1] != "or" != theirs[-1]:
        return _same_unordered(ours[1], theirs[1])
    if kinds == {"tuple"}:
        return ours[1:3] == theirs[1:3] and _same_in_order(ours[3], theirs[3])
    if holds(ours, "matrix") and holds(theirs, "matrix"):
        left, right = _value(ours), _value(theirs)
        return left.shape == right.shape and all(map(_is_zero, left - right))
    if kinds == {"rel"}:
        return _same_equations(ours, theirs)
    if len(kinds) > 1 and kinds & {"set", "list", "tuple", "matrix", "rel"}:
        return False
    return _is_zero(_value(ours) - _value(theirs))


def _without_unit(node: Node) -> Node:
    while node[0] == "unit":
        node = node[1]
    return node


def _same_in_order(ours: Sequence[Node], theirs: Sequence[Node]) -> bool:
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _same_unordered(ours: Sequence[Node], theirs: Sequence[Node]) -> bool:
    left = list(theirs)
    for item in ours:
        found = next((n for n, other in enumerate(left) if _same(item, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _same_equations(ours: Node, theirs: Node) -> bool:
    if {*ours[2], *theirs[2]} != {"="} or len(ours[1]) != 2 or len(theirs[1]) != 2:
        raise Unjudged("a relation that is no equation of two sides")
    if all(side[0] in _NAMES for side in (ours[1][0], theirs[1][0])):
        if _same_in_order(ours[1], theirs[1]):
            return True
        if not symbols(ours[1][1]) and not symbols(theirs[1][1]):  # x = 5 and y = 5
            return False
    left, right = (_value(node[1][0]) - _value(node[1][1]) for node in (ours, theirs))
    if left == 0 or right == 0:
        return left == right
    quotient = sympy.simplify(left / right)
    return quotient != 0 and not quotient.free_symbols


def _is_zero(difference: Any) -> bool:
    """Whether an expression is zero; raises Unjudged if sympy does not know."""
    if difference.has(sympy.nan, sympy.zoo):
        raise Unjudged("no value")
    if difference == 0 or (simple := sympy.simplify(difference)) == 0:
        return True
    known = simple.equals(0)
    if known is None:
        raise Unjudged("sympy does not decide")
    return bool(known)


# ---- sets of reals


def _is_region(node: Node) -> bool:
    """Whether a tree is an interval by its brackets, a union, or an inequality."""
    if node[0] == "rel":
        return bool({"<", ">", "leq", "geq", "in"} & set(node[2]))
    is_interval = node[0] == "tuple" and len(node[3]) == 2 and "(" in node[1:3] and "]" in node[1:3]
    reaches_far = node[0] == "tuple" and any("inf" in part for part in map(render, node[3]))
    return is_interval or reaches_far or node[0] in ("cup", "cap", "setminus", "both")


def _same_regions(ours: Node, theirs: Node) -> bool:
    left, right = _region(ours), _region(theirs)
    return left == right or sympy.SymmetricDifference(left, right).is_empty is True


def _region(node: Node) -> Any:
    kind = node[0]
    if kind == "tuple" and len(node[3]) == 2:
        first, last = map(_value, node[3])
        return sympy.Interval(first, last, node[1] == "(", node[2] == ")")
    if kind == "set":
        return sympy.FiniteSet(*map(_value, node[1]))
    if node == ("sym", "mathbb:R"):
        return sympy.S.Reals
    if kind in ("cup", "cap", "setminus"):
        made = {"cup": sympy.Union, "cap": sympy.Intersection, "setminus": sympy.Complement}
        return made[kind](_region(node[1]), _region(node[2]))
    if kind == "both":
        return sympy.Intersection(*map(_region, node[1]))
    if kind == "list" and node[-1] == "or":
        return sympy.Union(*map(_region, node[1]))
    if kind == "rel" and node[2] == ("in",):
        return _region(node[1][1])
    if kind == "rel" and set(node[2]) <= set(_ORDERS) and len(symbols(node)) == 1:
        steps = [
            _ORDERS[order](_value(left), _value(right))
            for left, order, right in zip(node[1], node[2], node[1][1:], strict=False)
        ]
        return sympy.Intersection(*(step.as_set() for step in steps))
    raise Unjudged(f"no set of reals: {kind}")


# ---- values


def _symbol(name: str) -> Any:
    return sympy.Symbol(name, real=True) if name not in COMPLEX_NAMES else sympy.Symbol(name)


def _value(node: Node, *, in_angle: bool = False) -> Any:
    """The sympy expression of a tree. Raises Unjudged for a tree that has no value."""
    kind = node[0]
    if kind == "num":
        return sympy.Rational(node[1].numerator, node[1].denominator)
    if kind == "const":
        return _CONSTANTS[node[1]]
    if kind == "sym":
        return _symbol(node[1])
    if kind == "decor":
        return _symbol(render(node))
    if kind == "unit":
        is_degree = in_angle and node[2].startswith("deg")
        return _value(node[1]) * (_DEGREE if is_degree else 1)
    if kind == "percent":
        return _value(node[1]) / 100
    if kind in ("add", "mul"):  # of matrices, too, which sympy.Add does not take
        made = operator.add if kind == "add" else operator.mul
        return functools.reduce(made, (_value(part, in_angle=in_angle) for part in node[1]))
    if kind == "matrix" and node[1] == "matrix":
        return sympy.Matrix([[_value(cell) for cell in row] for row in node[2]])
    if kind == "neg":
        return -_value(node[1], in_angle=in_angle)
    if kind == "div":
        return _value(node[1], in_angle=in_angle) / _value(node[2], in_angle=in_angle)
    if kind == "pow":
        return _value(node[1]) ** _value(node[2])
    if kind == "fact":
        return sympy.factorial(_value(node[1]))
    if kind == "call":
        return sympy.Function(node[1])(*map(_value, node[2]))
    if kind == "func" and node[1] in _FUNCTIONS:
        values = [_value(part, in_angle=node[1] in _ANGULAR) for part in node[2] if part]
        return _FUNCTIONS[node[1]](*values)
    if kind in ("sum", "prod"):
        made = sympy.Sum if kind == "sum" else sympy.Product
        _, index, first, last, body = node
        bounds = (_symbol(index), _value(first), _value(last))
        return made(_value(body), bounds).doit()
    raise Unjudged(f"no value: {' '.join(map(str, node[:2]))[:40]}")
