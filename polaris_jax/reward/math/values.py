"""The value of an expression tree at a point, and the points at which two trees are compared."""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath
from mpmath.libmp import NoConvergence

from polaris_jax.reward.math.policy import spend, steps_left
from polaris_jax.reward.math.syntax import Node, Undecidable, holds, nodes, render, symbols
from polaris_jax.reward.math.vocabulary import word_set

# ---- values to 50 digits and more, every size bounded first

MAX_MAGNITUDE_BITS = 60_000  # of the exponent range of an approximate value
MAX_STEPS = 20_000  # for one value, a node is one or more: sums over many terms end here
MAX_TERMS = 2000

# A step is some microseconds. What costs more counts as more, by measurement.
FUNCTION_STEPS = 4
GAMMA_STEPS = 40  # at a whole number
GAMMA_STEPS_BETWEEN = 400  # elsewhere: a series
DIGITS_OF_A_STEP = 200  # every 200 further digits of precision count as one more step

_TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_DEGREE = ("div", ("const", "pi"), ("num", Fraction(180), None))

_CONTEXTS = threading.local()


def context() -> Any:
    """This thread's own mpmath context: the global one belongs to whoever calls us."""
    if not hasattr(_CONTEXTS, "value"):
        _CONTEXTS.value = mpmath.mp.clone()
    return _CONTEXTS.value


def _in_radians(node: Any) -> Any:
    """The argument of a sine with its degrees turned into radians."""
    if not isinstance(node, tuple):
        return node
    if node and node[0] == "unit" and node[2] in ("deg", "deg^1"):
        return ("mul", (node[1], _DEGREE))
    return tuple(map(_in_radians, node)) if holds(node, "unit") else node


class Evaluator:
    """One evaluation: values of the symbols, and the largest magnitude met on the way."""

    def __init__(self, ctx: Any, values: dict[str, Any]) -> None:
        self.ctx = ctx
        self.values = values
        self.magnitude_bits = 0
        self.steps = 0
        self.max_steps = min(MAX_STEPS, steps_left())
        self.step = 1 + ctx.dps // DIGITS_OF_A_STEP
        self.left_the_reals = False

    def spend(self, steps: int) -> None:
        """Counts steps. Raises Undecidable past the limit of the value or of the pair."""
        self.steps += steps * self.step
        if self.steps > self.max_steps:
            raise Undecidable("a computation of too many steps")

    def __call__(self, node: Node) -> Any:
        self.spend(1)
        value = self.compute(node)
        if self.ctx.isinf(value):
            return value
        if self.ctx.isnan(value):
            raise Undecidable("not a number")
        if value:
            self.left_the_reals |= self.ctx.im(value) != 0
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
        self.spend(GAMMA_STEPS if self.ctx.isint(value) else GAMMA_STEPS_BETWEEN)
        return self.ctx.gamma(value)

    def function(self, name: str, nodes: tuple[Node | None, ...]) -> Any:
        ctx = self.ctx
        if name in _TRIGONOMETRIC:
            nodes = tuple(map(_in_radians, nodes))
        self.spend(FUNCTION_STEPS)
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
            whole = all(ctx.isint(value) for value in values)
            self.spend(3 * (GAMMA_STEPS if whole else GAMMA_STEPS_BETWEEN))
            return ctx.binomial(first, values[1])
        if name == "fact2":
            self.gamma(first)  # the same bounds
            return ctx.fac2(first)
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


DOMAIN_ERRORS = (
    Undecidable,
    ZeroDivisionError,
    ValueError,
    OverflowError,
    TypeError,
    KeyError,
    NoConvergence,
)


def value_at(
    node: Node, values: dict[str, Any], *, real_throughout: bool = False
) -> tuple[Any, int] | None:
    """The value of a tree at a point and the digits of its magnitude; None if it has none.

    real_throughout: a value is none as well when anything on the way to it is not real.
    """
    evaluator = Evaluator(context(), values)
    try:
        value = evaluator(node)
    except DOMAIN_ERRORS:
        return None
    finally:
        spend(evaluator.steps)
    if real_throughout and evaluator.left_the_reals:
        return None
    return value, max(0, int(evaluator.magnitude_bits * 0.30103))


# ---- points: fixed random ones, first near 1, then far out. Two analytic expressions that agree
# near 1 agree everywhere. One with a bend does not: |x - 3| is 3 - x up to 3. Such a pair is looked
# at on both sides of zero up to the size of its own constants.

POSITIVE_POINTS = 3
SIGNED_POINTS = 3
FAR_SCALES = (10, 100, 1000)
MAX_SCALE = 10**6
INTEGER_POINTS = (-7, -2, 2, 5, 12)
COMPLEX_POINTS = 2

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
        for scale in _scales((a, b)):
            for sign in (1, -1):
                yield Point(_far(names, scale, sign, integers), True)
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


def _scales(node: Any) -> tuple[int, ...]:
    """FAR_SCALES, and one beyond the largest constant where that is larger."""
    largest = max((abs(item[1]) for item in nodes(node) if item[0] == "num"), default=Fraction(0))
    beyond = 4 * int(min(largest, MAX_SCALE))
    return (*FAR_SCALES, beyond) if beyond > FAR_SCALES[-1] else FAR_SCALES


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
