"""The value of an expression tree at a point, to 50 digits and more."""

from __future__ import annotations

import math
import threading
import zlib
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath
from mpmath.libmp import NoConvergence

from polaris_jax.reward.math.policy import spend, steps_left
from polaris_jax.reward.math.syntax import Node, Undecidable, holds, render

# ---- values to 50 digits and more, every size bounded first

MAX_MAGNITUDE_BITS = 60_000  # of the exponent range of an approximate value
MAX_STEPS = 20_000  # for one value, a node is one or more: sums over many terms end here
MAX_TERMS = 2000

# A step is some microseconds. What costs more counts as more, by measurement.
FUNCTION_STEPS = 4
GAMMA_STEPS = 40  # at a whole number
GAMMA_STEPS_BETWEEN = 400  # elsewhere: a series
DIGITS_OF_A_STEP = 200  # the cost of a step grows by every 200 digits, and by their square

_TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_CHEAP = frozenset({"sqrt", "abs", "floor", "ceil", "max", "min", "sgn"})
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
    """One evaluation: values of the symbols, and the largest and least magnitudes on the way."""

    def __init__(self, ctx: Any, values: dict[str, Any]) -> None:
        self.ctx = ctx
        self.values = values
        self.magnitude_bits = 0
        self.smallness_bits = 0  # of the least value on the way, or a decimal's last place
        self.steps = 0
        self.max_steps = min(MAX_STEPS, steps_left())
        longer = ctx.dps // DIGITS_OF_A_STEP
        self.step = 1 + longer + longer * longer // 16
        self.function_steps = FUNCTION_STEPS * (1 + longer // 4)
        self.series_steps = GAMMA_STEPS_BETWEEN * (1 + longer)  # more terms, too
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
            self.smallness_bits = max(self.smallness_bits, -bits)
            if abs(bits) > MAX_MAGNITUDE_BITS:
                raise Undecidable("a value beyond every bound")
        return value

    def compute(self, node: Node) -> Any:
        ctx, kind = self.ctx, node[0]
        if kind == "num":
            self.smallness_bits = max(self.smallness_bits, node[1].denominator.bit_length())
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
        if kind == "unit":
            return self(node[1])
        if kind == "percent":
            return self(node[1]) / 100
        if kind == "div":
            bottom = self(node[2])
            if abs(bottom) < ctx.mpf(2) ** (self.magnitude_bits - ctx.prec + 20):
                raise Undecidable("a division by zero")
            if ctx.isinf(bottom):
                raise Undecidable("a division by infinity")
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
        if self.ctx.isint(value) and value > 0:  # exact, whatever the digits
            self.spend(1 + GAMMA_STEPS // self.step)
            return self.ctx.mpf(math.factorial(int(value) - 1))
        self.spend(GAMMA_STEPS if self.ctx.isint(value) else self.series_steps)
        return self.ctx.gamma(value)

    def function(self, name: str, nodes: tuple[Node | None, ...]) -> Any:
        ctx = self.ctx
        if name in _TRIGONOMETRIC:
            nodes = tuple(map(_in_radians, nodes))
        self.spend(FUNCTION_STEPS if name in _CHEAP else self.function_steps)
        if name == "ln" and nodes[0] is not None and nodes[0][0] == "pow":
            base, exponent = self(nodes[0][1]), self(nodes[0][2])
            if ctx.im(base) == 0 == ctx.im(exponent) and ctx.isfinite(base) and ctx.re(base) > 0:
                return exponent * ctx.log(base)  # a power of any size
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
            self.spend(3 * (GAMMA_STEPS if whole else self.series_steps))
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
        if name in ("tanh", "coth"):  # how far from 1 they are
            self.smallness_bits = max(self.smallness_bits, int(3 * min(abs(first), 10**5)))
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
        if value != nearest and abs(value - nearest) < self.ctx.mpf(10) ** -(self.ctx.dps * 2 // 5):
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


class Value(NamedTuple):
    """A computed value, and what its digits must show.

    Attributes:
        value: the number.
        magnitude_digits: digits of the largest magnitude on the way.
        range_digits: digits from the least magnitude on the way to the largest: a term that many
            digits below another one is seen by a computation of more digits alone.
    """

    value: Any
    magnitude_digits: int
    range_digits: int


def value_at(node: Node, values: dict[str, Any], *, real_throughout: bool = False) -> Value | None:
    """The value of a tree at a point; None if it has none.

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
    magnitude, smallness = max(0, evaluator.magnitude_bits), evaluator.smallness_bits
    return Value(value, int(magnitude * 0.30103), int((magnitude + smallness) * 0.30103))
