"""What stands behind the value of an answer: its units and its percent sign."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from polaris_jax.reward.math.policy import Policy
from polaris_jax.reward.math.syntax import Node, holds
from polaris_jax.reward.math.vocabulary import SILENT_UNITS, UNIT_SCALES

HUNDRED: Node = ("num", Fraction(100), None)


def percentage(node: Node) -> Node | None:
    r"""The number of percent that a tree is: 5 of `5\%`, `-5\%` or `2\% + 3\%`; None for others.

    A percent sign within an expression is a hundredth: `2 + 3\%` is 2.03, and no percentage.
    """
    kind = node[0]
    if kind == "percent":
        return node[1]
    if kind in ("neg", "unit"):
        inner = percentage(node[1])
        return None if inner is None else (kind, inner, *node[2:])
    if kind == "div":
        inner = percentage(node[1])
        return None if inner is None or holds(node[2], "percent") else (kind, inner, node[2])
    if kind == "add":
        parts = tuple(filter(None, map(percentage, node[1])))
        return (kind, parts) if len(parts) == len(node[1]) else None
    if kind == "mul":
        signed_ones = [part for part in node[1] if holds(part, "percent")]
        inner = percentage(signed_ones[0]) if len(signed_ones) == 1 else None
        if inner is not None:
            return (kind, tuple(inner if part == signed_ones[0] else part for part in node[1]))
    return None


def units_of(node: Any) -> set[str]:
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


def units_refusal(answer: Node, gold: Node, policy: Policy) -> str:
    """Why the units forbid equality, or ""."""
    ours, theirs = units_of(answer), units_of(gold)
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


def converted(node: Node) -> Node:
    """A quantity in the first unit of its dimension, where we know how."""
    if node[0] == "neg":
        return ("neg", converted(node[1]))
    if node[0] != "unit" or _dimension({node[2]}) is None:
        return node
    name, _, power = node[2].partition("^")
    factor = UNIT_SCALES[name][1] ** int(power or "1")
    return ("mul", (node[1], ("num", factor, None)))
