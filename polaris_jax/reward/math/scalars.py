"""Equality of two numbers or expressions: value, percent sign, units and rounding."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from polaris_jax.reward.math import numeric
from polaris_jax.reward.math.exact import Undecidable, exact_value
from polaris_jax.reward.math.policy import Policy
from polaris_jax.reward.math.rounding import rounds_approximately, rounds_to
from polaris_jax.reward.math.syntax import Node, holds, symbols
from polaris_jax.reward.math.verdict import Verdict
from polaris_jax.reward.math.vocabulary import SILENT_UNITS, UNIT_SCALES

_HUNDRED = ("num", Fraction(100), None)


def compare_scalars(answer: Node, gold: Node, policy: Policy) -> Verdict:
    """Whether two expressions have one value, under the policies on units, percent and decimals."""
    if refusal := _units_refusal(answer, gold, policy):
        return Verdict(False, "units", refusal)
    if policy.units_are_converted and _units(answer) and _units(gold):
        answer, gold = _converted(answer), _converted(gold)
    percent = holds(answer, "percent"), holds(gold, "percent")
    if percent in ((True, False), (False, True)) and _units(gold if percent[0] else answer):
        return Verdict(False, "units", "a percentage against another unit")
    if percent == (False, True) and not policy.plain_for_percent and not policy.ratio_for_percent:
        return Verdict(False, "percent", "gold is a percentage, the answer is not")
    if percent == (True, False):
        if not policy.percent_for_ratio:
            return Verdict(False, "percent", "the answer is a percentage, gold is not")
        answer = ("div", answer, _HUNDRED)
    verdict = _compare_values(answer, gold, policy)
    if percent == (False, True):
        if verdict.equal and not policy.plain_for_percent:
            return Verdict(False, "percent", "gold is a percentage, the answer is not")
        if not verdict.equal and policy.ratio_for_percent:
            return _compare_values(answer, ("div", gold, _HUNDRED), policy)
    return verdict


def same_scalar(answer: Node, gold: Node, policy: Policy) -> bool:
    """`compare_scalars` without the reason."""
    return compare_scalars(answer, gold, policy).equal


def _compare_values(answer: Node, gold: Node, policy: Policy) -> Verdict:
    try:
        left, right = exact_value(answer), exact_value(gold)
    except Undecidable as refusal:
        return Verdict(False, "exact", str(refusal))
    if left is not None and right is not None:
        if left == right:
            return Verdict(True, "exact")
        if rounds_to(answer, left, gold, right, policy):
            return Verdict(True, "rounding")
        return Verdict(False, "exact", "another value")
    if symbols(answer) or symbols(gold):
        equal = numeric.same_function(answer, gold)
        return Verdict(equal, "numeric", "" if equal else "another value at some point")
    if numeric.same_constant(answer, gold):
        return Verdict(True, "numeric")
    if rounds_approximately(answer, left, gold, right, policy):
        return Verdict(True, "rounding")
    return Verdict(False, "numeric", "another value")


# -- units ----------------------------------------------------------------------------------------


def _units(node: Any) -> set[str]:
    """The units in a tree, without the power 1; "" stands for words that are no known unit."""
    found: set[str] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple) and item:
            if item[0] == "unit":
                found.add(item[2].removesuffix("^1"))
            if item[0] != "func":  # the degrees of a sine are not the answer's
                stack.extend(item)
    return found - SILENT_UNITS


def _units_refusal(answer: Node, gold: Node, policy: Policy) -> str:
    """Why the units forbid equality, or ""."""
    ours, theirs = _units(answer), _units(gold)
    if bool(ours) != bool(theirs) and not policy.units_may_be_dropped:
        return f"{'the answer' if ours else 'gold'} alone has a unit"
    ours, theirs = ours - {""}, theirs - {""}
    if not ours or not theirs or not ours.isdisjoint(theirs):
        return ""
    if policy.units_are_converted and _dimension(ours) == _dimension(theirs) is not None:
        return ""
    return f"units differ: {', '.join(sorted(ours))} and {', '.join(sorted(theirs))}"


def _dimension(units: set[str]) -> tuple[str, str] | None:
    """What a single unit measures, with its power: ("length", "2") for cm^2."""
    if len(units) != 1:
        return None
    name, _, power = next(iter(units)).partition("^")
    return (UNIT_SCALES[name][0], power or "1") if name in UNIT_SCALES else None


def _converted(node: Node) -> Node:
    """A quantity in the first unit of its dimension, where we know how."""
    if node[0] == "neg":
        return ("neg", _converted(node[1]))
    if node[0] != "unit" or _dimension({node[2]}) is None:
        return node
    name, _, power = node[2].partition("^")
    factor = UNIT_SCALES[name][1] ** int(power or "1")
    return ("mul", (node[1], ("num", factor, None)))
