"""Values of expression trees at 50 digits and more, and functions compared at random points.

Two expressions are one function when they agree at random points: a difference of two distinct
algebraic or elementary functions vanishes at a random point with probability nearly zero, while
`simplify` may run for minutes or fail on equals. Every size is bounded before it is computed.
"""

from __future__ import annotations

import random
import threading
import zlib
from typing import Any

import mpmath
from mpmath.libmp import NoConvergence

from polaris_jax.reward.exact import Undecidable
from polaris_jax.reward.syntax import Node, holds, render, symbols

MAX_MAGNITUDE_BITS = 60_000  # of the exponent range of an approximate value
MAX_SYMBOLS = 16
MAX_STEPS = 20_000  # nodes computed for one value: sums over many terms end here
MAX_TERMS = 2000
BASE_DPS = 50
POSITIVE_POINTS = 3
SIGNED_POINTS = 3
MIN_POINTS = 2

# Agreement of two values computed with 50 digits: far above their rounding, far below what two
# different expressions of an answer's size leave by chance.
AGREEMENT_DIGITS = 25


_CONTEXTS = threading.local()


def context() -> Any:
    """This thread's own mpmath context: the global one belongs to whoever calls us."""
    if not hasattr(_CONTEXTS, "value"):
        _CONTEXTS.value = mpmath.mp.clone()
    return _CONTEXTS.value


class Evaluator:
    """One evaluation: values of the symbols, and the largest magnitude met on the way."""

    def __init__(self, ctx: Any, values: dict[str, Any]) -> None:
        self.ctx = ctx
        self.values = values
        self.magnitude_bits = 0
        self.steps = 0

    def __call__(self, node: Node) -> Any:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Undecidable("a computation of too many steps")
        value = self.compute(node)
        if self.ctx.isinf(value):
            return value
        if self.ctx.isnan(value):
            raise Undecidable("not a number")
        if value:
            bits = int(self.ctx.mag(value))
            self.magnitude_bits = max(self.magnitude_bits, bits)
            if abs(bits) > MAX_MAGNITUDE_BITS:
                raise Undecidable("a value beyond every bound")
        return value

    def compute(self, node: Node) -> Any:
        ctx, kind = self.ctx, node[0]
        if kind == "num":
            return ctx.mpf(node[1].numerator) / node[1].denominator
        if kind == "const":
            return {"pi": +ctx.pi, "e": +ctx.e, "i": ctx.j, "inf": ctx.inf}[node[1]]
        if kind in ("sym", "words", "decor", "based"):
            return self.values[node[1] if kind == "sym" else render(node)]
        if kind == "add":
            return sum((self(part) for part in node[1]), ctx.mpf(0))
        if kind == "mul":
            total = ctx.mpf(1)
            for part in node[1]:
                total = total * self(part)
            return total
        if kind == "neg":
            return -self(node[1])
        if kind in ("unit", "percent"):
            return self(node[1])
        if kind == "div":
            bottom = self(node[2])
            if abs(bottom) < ctx.mpf(2) ** (self.magnitude_bits - ctx.prec + 20):
                raise Undecidable("a division by zero")
            return self(node[1]) / bottom
        if kind == "pow":
            return self.power(self(node[1]), self(node[2]))
        if kind == "fact":
            return self.gamma(self(node[1]) + 1)
        if kind == "func":
            return self.function(node[1], node[2])
        if kind in ("sum", "prod"):
            return self.accumulated(kind, *node[1:])
        if kind == "call":
            return self.unknown_function(node[1], node[2])
        raise Undecidable(f"no value: {kind}")

    def accumulated(self, kind: str, index: str, first: Node, last: Node, body: Node) -> Any:
        """A finite sum or product between integer bounds."""
        ctx = self.ctx
        start, end = self.real(self(first)), self.real(self(last))
        if not (ctx.isint(start) and ctx.isint(end)) or end - start > MAX_TERMS:
            raise Undecidable(f"a {kind} that is too long or has no integer bounds")
        outer = self.values
        total = ctx.mpf(0 if kind == "sum" else 1)
        for count in range(int(start), int(end) + 1):
            self.values = {**outer, index: ctx.mpf(count)}
            term = self(body)
            total = total + term if kind == "sum" else total * term
        self.values = outer
        return total

    def power(self, base: Any, exponent: Any) -> Any:
        ctx = self.ctx
        if base == 0:
            if ctx.re(exponent) > 0:
                return ctx.mpf(0)
            raise Undecidable("zero to a power that is not positive")
        if ctx.isinf(base) or ctx.isinf(exponent):
            raise Undecidable("a power of infinity")
        bits = abs(float(ctx.mag(base))) + 2
        if float(abs(exponent)) * bits > MAX_MAGNITUDE_BITS:
            raise Undecidable("a power beyond every bound")
        return ctx.power(base, exponent)

    def gamma(self, value: Any) -> Any:
        if abs(value) > 5000:
            raise Undecidable("a factorial out of range")
        return self.ctx.gamma(value)

    def function(self, name: str, nodes: tuple[Node | None, ...]) -> Any:
        ctx = self.ctx
        values = [self(node) for node in nodes if node is not None]
        first = values[0]
        if name == "log":
            base = values[1] if len(values) > 1 else ctx.mpf(10)
            if first == 0 or base in (0, 1):
                raise Undecidable("a logarithm of zero")
            return ctx.log(first) / ctx.log(base)
        if name == "ln":
            if first == 0:
                raise Undecidable("a logarithm of zero")
            return ctx.log(first)
        if name == "exp":
            return self.power(+ctx.e, first)
        if name == "sqrt":
            return ctx.sqrt(first)
        if name == "root":
            return self.root(first, values[1])
        if name == "binom":
            if any(abs(value) > 5000 for value in values):
                raise Undecidable("a binomial out of range")
            return ctx.binomial(first, values[1])
        if name in ("floor", "ceil"):
            return self.rounded(name, first)
        if name in ("max", "min"):
            return (max if name == "max" else min)(self.real(value) for value in values)
        if name in ("abs", "arg", "Re", "Im", "sgn"):
            simple = {"abs": abs, "arg": ctx.arg, "Re": ctx.re, "Im": ctx.im, "sgn": ctx.sign}
            return simple[name](first)
        own_name = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot"}
        own_name |= {"arcsec": "asec", "arccsc": "acsc"}
        own_name |= {n: n for n in ("sin", "cos", "tan", "cot", "sec", "csc")}
        own_name |= {n: n for n in ("sinh", "cosh", "tanh", "coth")}
        own_name |= {"arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh"}
        if name not in own_name or len(values) != 1:
            raise Undecidable(f"no value: {name}")
        if abs(first) > 10**6:
            raise Undecidable("a function of a huge argument")
        return getattr(ctx, own_name[name])(first)

    def root(self, value: Any, degree: Any) -> Any:
        ctx = self.ctx
        if degree == 0:
            raise Undecidable("a root of degree zero")
        odd = ctx.isint(degree) and int(degree) % 2 == 1 and abs(degree) < 1000
        if odd and ctx.im(value) == 0 and ctx.re(value) < 0:
            return -self.power(-ctx.re(value), 1 / ctx.mpf(degree))
        return self.power(value, 1 / degree)

    def rounded(self, name: str, value: Any) -> Any:
        value = self.real(value)
        nearest = self.ctx.nint(value)
        if value != nearest and abs(value - nearest) < self.ctx.mpf(10) ** -20:
            raise Undecidable("a floor at a jump")
        return self.ctx.floor(value) if name == "floor" else self.ctx.ceil(value)

    def real(self, value: Any) -> Any:
        if self.ctx.im(value) != 0:
            raise Undecidable("an order of complex numbers")
        return self.ctx.re(value)

    def unknown_function(self, name: str, nodes: tuple[Node, ...]) -> Any:
        """A smooth stand-in for `f(...)`: the same function wherever the same name occurs."""
        total = self.ctx.mpf(zlib.crc32(name.encode()) % 1009) / 1009 + 1
        for index, node in enumerate(nodes):
            total += self.ctx.cos(self(node) * (index + 2) / 3 + total)
        return total


_DOMAIN_ERRORS = (
    Undecidable,
    ZeroDivisionError,
    ValueError,
    OverflowError,
    TypeError,
    NoConvergence,
)


def constant_value(node: Node, dps: int = BASE_DPS) -> tuple[Any, int] | None:
    """The value of a tree without symbols to about `dps` digits, and the digits of its magnitude.

    Returns:
        None where there is no finite or infinite value to be had.
    """
    ctx = context()
    ctx.dps = dps
    evaluator = Evaluator(ctx, {})
    try:
        value = evaluator(node)
    except (*_DOMAIN_ERRORS, KeyError):
        return None
    return value, max(0, int(evaluator.magnitude_bits * 0.30103))


def agree(a: Any, b: Any, magnitude_digits: int, digits: int) -> bool:
    """Whether two computed values are one number, given the largest magnitude on the way."""
    ctx = context()
    if ctx.isinf(a) or ctx.isinf(b):
        return bool(a == b)
    difference = abs(a - b)
    if difference <= max(abs(a), abs(b)) * ctx.mpf(10) ** -digits:
        return True
    noise = ctx.mpf(10) ** (magnitude_digits - ctx.dps + 8)
    return bool(difference <= noise and max(abs(a), abs(b)) <= noise * 10)


def same_constant(a: Node, b: Node) -> bool:
    """Whether two trees without symbols have one value."""
    dps = BASE_DPS
    for _ in range(2):
        left, right = constant_value(a, dps), constant_value(b, dps)
        if left is None or right is None:
            return False
        digits = max(left[1], right[1])
        if digits <= dps - BASE_DPS + 12:
            break
        dps = digits + BASE_DPS
    return agree(left[0], right[0], digits, dps - 20)


def _bounds(node: Any) -> set[str]:
    """Names that stand in the bounds of a sum or product: they are integers."""
    found: set[str] = set()
    if isinstance(node, tuple):
        if node and node[0] in ("sum", "prod"):
            found |= symbols(node[2:4])
        for part in node:
            found |= _bounds(part)
    return found


def sample(names: set[str], point: int, integers: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The values of the symbols at one of the fixed random points, the first ones positive."""
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


def value_at(node: Node, values: dict[str, Any]) -> tuple[Any, int] | None:
    evaluator = Evaluator(context(), values)
    try:
        value = evaluator(node)
    except _DOMAIN_ERRORS:
        return None
    return value, max(0, int(evaluator.magnitude_bits * 0.30103))


def same_function(a: Node, b: Node) -> bool:
    """Whether two trees agree at random points, positive ones first.

    A point where either has no value is passed over; at points with negative coordinates a pair
    that is not real is passed over too (branches of roots and logarithms are a convention).
    """
    names = symbols(a) | symbols(b)
    if not names:
        return same_constant(a, b)
    if len(names) > MAX_SYMBOLS:
        return False
    ctx = context()
    ctx.dps = BASE_DPS
    integers = frozenset(_bounds(a) | _bounds(b)) if holds((a, b), "sum", "prod") else frozenset()
    counted = 0
    for point in range(POSITIVE_POINTS + SIGNED_POINTS):
        values = sample(names, point, integers)
        left, right = value_at(a, values), value_at(b, values)
        if left is None or right is None:
            continue
        real = ctx.im(left[0]) == 0 and ctx.im(right[0]) == 0
        if point >= POSITIVE_POINTS and not real:
            continue
        if not agree(left[0], right[0], max(left[1], right[1]), AGREEMENT_DIGITS):
            return False
        counted += 1
    return counted >= MIN_POINTS


def proportional(a: Node, b: Node, *, positive: bool = False) -> bool:
    """Whether a = c b for one constant c, not zero (above zero if `positive`)."""
    names = symbols(a) | symbols(b)
    if not names or symbols(a) != symbols(b) or len(names) > MAX_SYMBOLS:
        return False
    ctx = context()
    ctx.dps = BASE_DPS
    first: Any = None
    counted = 0
    for point in range(POSITIVE_POINTS + SIGNED_POINTS):
        values = sample(names, point)
        left, right = value_at(a, values), value_at(b, values)
        if left is None or right is None:
            continue
        if abs(left[0]) < 1e-30 or abs(right[0]) < 1e-30:
            return False
        ratio = left[0] / right[0]
        if positive and not (ctx.im(ratio) == 0 and ctx.re(ratio) > 0):
            return False
        if first is not None and not agree(first, ratio, 0, AGREEMENT_DIGITS - 5):
            return False
        first = ratio
        counted += 1
    return counted >= MIN_POINTS + 1
