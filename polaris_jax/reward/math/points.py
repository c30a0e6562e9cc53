"""The points at which two expressions are compared."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from polaris_jax.reward.math.policy import steps_left
from polaris_jax.reward.math.syntax import Node, holds, nodes, symbols
from polaris_jax.reward.math.values import context, value_at
from polaris_jax.reward.math.vocabulary import word_set

# ---- points: fixed random ones, first near 1, then far out. Two analytic expressions that agree
# near 1 agree everywhere. One with a bend does not: |x - 3| is 3 - x up to 3. Such a pair is looked
# at on both sides of zero beyond the size of its own constants, and between its bends.

POSITIVE_POINTS = 3
SIGNED_POINTS = 3
FAR_SCALES = (10, 100, 1000)
MAX_SCALE = 10**6
INTEGER_POINTS = (-7, -2, 2, 5, 12)
COMPLEX_POINTS = 2
MAX_SCALE_DIGITS = 200
MAX_BENT_NAMES = 4
MAX_BENT_ARGUMENTS = 8
MAX_BENDS = 24  # of one name
MAX_BEND_STEPS = 20_000  # of a pair's steps, to find them

_BENDS = word_set("abs max min floor ceil sgn sqrt arcsin arccos arctan arccot arcsec arccsc")
_JUMPS = frozenset({"floor", "ceil"})
_COMPLEX_PARTS = frozenset({"abs", "arg", "Re", "Im", "sgn"})


class Point(NamedTuple):
    """Values of the symbols; real_throughout: passed over where anything leaves the reals."""

    values: dict[str, Any]
    real_throughout: bool


def points(a: Node, b: Node) -> Iterator[Point]:
    """Where two trees are compared: positive points first, then signed ones, then those of bends.

    A tree with a bend adds points of both signs at each scale, a floor integers, and an absolute
    value of z or w points off the real line.
    """
    names = symbols(a) | symbols(b)
    integers = frozenset(_bounds(a) | _bounds(b)) if holds((a, b), "sum", "prod") else frozenset()
    for point in range(POSITIVE_POINTS + SIGNED_POINTS):
        yield Point(_near(names, point, integers), point >= POSITIVE_POINTS)
    bent = bends(a) | bends(b)
    if bent:
        spread = constant_range((a, b))
        for scale in _scales((a, b), spread):
            for sign in (1, -1):
                yield Point(_far(names, scale, sign, integers), True)
        for name in sorted(names - integers)[:MAX_BENT_NAMES]:
            for values in _between_bends((a, b), name, _near(names, 0, integers), spread):
                yield Point(values, True)
    if bent & _JUMPS:
        for whole in INTEGER_POINTS:
            yield Point(_whole(names, whole, integers), True)
    if bent & _COMPLEX_PARTS and all(name[:1] in "zw" for name in names):
        for point in range(COMPLEX_POINTS):
            yield Point(_complex(names, point), False)


def bends(node: Any) -> frozenset[str]:
    """The functions of a tree's symbols that are no analytic ones of a real: |x|, floors, roots.

    `root` and `sqrt` are named for even roots alone, Re, Im and arg for what they do off the line.
    """
    found: set[str] = set()
    for item in nodes(node):
        if item[0] == "func" and item[1] in _BENDS | _COMPLEX_PARTS and symbols(item[2]):
            found.add(item[1])
        elif item[0] == "func" and item[1] == "root" and symbols(item[2]):
            degree = item[2][1]
            if degree[0] != "num" or degree[1].denominator != 1 or degree[1] % 2 == 0:
                found.add("root")
        elif item[0] == "pow" and symbols(item[1]) and _is_even_root(item[2]):
            found.add("root")
    return frozenset(found)


def _is_even_root(exponent: Node) -> bool:
    """Whether an exponent's denominator is an even number."""
    while exponent[0] == "neg":
        exponent = exponent[1]
    if exponent[0] == "div":
        bottom = exponent[2]
        return bottom[0] == "num" and bottom[1] % 2 == 0
    return exponent[0] == "num" and exponent[1].denominator % 2 == 0


def _bounds(node: Any) -> set[str]:
    """Names that stand in the bounds of a sum or product: they are integers."""
    found: set[str] = set()
    for item in nodes(node):
        if item[0] in ("sum", "prod"):
            found |= symbols(item[2:4])
    return found


def constant_range(tree: Any) -> int:
    """Digits from the least to the largest magnitude in the constants of a tree; see `Value`."""
    found = 0
    stack = [tree]
    while stack:
        item = stack.pop()
        if not isinstance(item, tuple) or not item:
            continue
        if isinstance(item[0], str) and not symbols(item):
            value = value_at(item, {})
            if value is not None:
                found = max(found, value.range_digits)
                continue
        stack.extend(item)
    return found


def _scales(node: Any, spread: int) -> list[int]:
    """FAR_SCALES, and some beyond the largest constant, its square, and what a least one moves."""
    largest = max((abs(item[1]) for item in nodes(node) if item[0] == "num"), default=Fraction(0))
    beyond = 4 * int(min(largest, MAX_SCALE))
    scales = [*FAR_SCALES, beyond] if beyond > FAR_SCALES[-1] else [*FAR_SCALES]
    if spread >= len(str(FAR_SCALES[-1])) - 1:
        digits = min(spread + 1, MAX_SCALE_DIGITS)
        scales += [4 * 10 ** (digits * step // 2) for step in (1, 2, 3, 4)]
    return scales


def _between_bends(
    tree: Any, name: str, near: dict[str, Any], spread: int
) -> Iterator[dict[str, Any]]:
    """Points on each side of the bends along one name, the other names at values near 1.

    A bend is where the argument of |...| or a root is zero, two arguments of a maximum are equal,
    or a floor's argument is a whole number near zero; it is found where the argument is linear.
    """
    ctx = context()
    far = 4 * 10 ** min(spread + 1, MAX_SCALE_DIGITS)
    bends_at: set[Any] = set()
    arguments = [pair for pair in _bend_arguments(tree) if name in symbols(pair[0])]
    before = steps_left()
    for argument, wholes in arguments[:MAX_BENT_ARGUMENTS]:
        for start in (1, -1, far, -far):
            if before - steps_left() > MAX_BEND_STEPS or len(bends_at) >= MAX_BENDS:
                break
            first, step = ctx.mpf(start), ctx.mpf(start) / 2
            left = value_at(argument, {**near, name: first})
            right = value_at(argument, {**near, name: first + step})
            if left is None or right is None or left.value == right.value:
                continue
            slope = (right.value - left.value) / step
            for whole in wholes:
                place = first + (whole - left.value) / slope
                if ctx.isfinite(place) and ctx.im(place) == 0:
                    bends_at.add(ctx.re(place))
    ordered = sorted(bends_at)
    if ordered:
        ordered = [ordered[0] - 1, *ordered, ordered[-1] + 1]
    for low, high in itertools.pairwise(ordered):
        yield {**near, name: (low + high) / 2}


def _bend_arguments(tree: Any) -> list[tuple[Node, tuple[int, ...]]]:
    """What bends a tree where it passes a number, and these numbers."""
    found: dict[Node, tuple[int, ...]] = {}
    for item in nodes(tree):
        if item[0] != "func" or item[1] not in _BENDS:
            continue
        if item[1] in _JUMPS:
            found[item[2][0]] = (-1, 0, 1)
        elif item[1] in ("max", "min"):
            for one, other in itertools.combinations(item[2][:4], 2):
                found[("add", (one, ("neg", other)))] = (0,)
        else:
            inner = item[2][0]
            found[inner[1] if inner[0] == "pow" else inner] = (0,)
    return list(found.items())


def _near(names: set[str], point: int, integers: frozenset[str]) -> dict[str, Any]:
    ctx = context()
    values: dict[str, Any] = {}
    for name in names:
        source = random.Random(f"{name}:{point}")
        if name in integers:
            values[name] = ctx.mpf(3 * point + source.randint(2, 4))
            continue
        value = ctx.mpf(source.randrange(10**18, 24 * 10**17)) / 10**18
        if source.random() < 0.5:
            value = value / 3
        if point >= POSITIVE_POINTS and source.random() < 0.6:
            value = -value
        values[name] = value
    return values


def _far(names: set[str], scale: int, sign: int, integers: frozenset[str]) -> dict[str, Any]:
    """Values of magnitude scale / 2 to scale, negated if `sign` is -1; 2 to 9 for `integers`."""
    ctx = context()
    values: dict[str, Any] = {}
    for name in names:
        source = random.Random(f"{name}:far:{scale}")
        value = ctx.mpf(source.randrange(5 * 10**17, 10**18)) * scale / 10**18
        turned = sign * source.choice((1, -1))
        values[name] = ctx.mpf(source.randint(2, 9)) if name in integers else turned * value
    return values


def _whole(names: set[str], whole: int, integers: frozenset[str]) -> dict[str, Any]:
    ctx = context()
    values: dict[str, Any] = {}
    for name in names:
        shift = random.Random(f"{name}:whole:{whole}").randint(0, 3)
        values[name] = ctx.mpf(abs(whole) + shift if name in integers else whole + shift)
    return values


def _complex(names: set[str], point: int) -> dict[str, Any]:
    ctx = context()
    values: dict[str, Any] = {}
    for name in names:
        source = random.Random(f"{name}:complex:{point}")
        values[name] = ctx.mpc(source.uniform(-2, 2), source.uniform(0.3, 2))
    return values
