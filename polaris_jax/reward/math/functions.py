"""Functions, roots, floors, decorated letters, sums and products in an answer's tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction

from polaris_jax.reward.math.normalize import Unreadable
from polaris_jax.reward.math.syntax import Node, product, signed, substitute
from polaris_jax.reward.math.units import UnitCursor
from polaris_jax.reward.math.vocabulary import FUNCTIONS

_OF_SETS = frozenset({"min", "max", "gcd", "lcm"})
PREFIX_FUNCTIONS = FUNCTIONS - {"deg"} | {"arcsec"}


class FunctionReader(UnitCursor, ABC):
    """A cursor that reads what stands behind a command; the grammar below it is abstract."""

    @abstractmethod
    def relation(self) -> Node: ...

    @abstractmethod
    def expression(self) -> Node: ...

    @abstractmethod
    def term(self) -> Node: ...

    @abstractmethod
    def factor(self) -> Node: ...

    @abstractmethod
    def argument(self, *, with_sign: bool = True, split: bool = False) -> Node: ...

    @abstractmethod
    def sign(self) -> str: ...

    @abstractmethod
    def starts_factor(self) -> bool: ...

    @abstractmethod
    def bracketed(self) -> Node: ...

    def decorated(self) -> Node:
        """What a hat or an angle sign stands on: a group, or the letters that follow."""
        if self.is_op("{"):
            return self.argument(with_sign=False)
        letters: list[Node] = []
        while self.peek()[0] in ("let", "tlet"):
            letters.append(("sym", self.next()[1]))
        if not letters:
            return self.argument(with_sign=False)
        return letters[0] if len(letters) == 1 else ("mul", tuple(letters))

    def root(self) -> Node:
        if not self.is_op("["):
            return ("func", "sqrt", (self.argument(),))
        self.next()
        degree = self.expression()
        self.expect("]")
        return ("func", "root", (self.argument(), degree))

    def delimited(self, name: str) -> Node:
        closer = {"lfloor": "rfloor", "lceil": "rceil", "langle": "rangle"}[name]
        items = [self.relation()]
        while self.is_op(","):
            self.next()
            items.append(self.relation())
        if not self.is_cmd(closer):
            raise Unreadable(f"no {closer}")
        self.next()
        if name == "langle":
            return ("tuple", "(", ")", tuple(items))
        if len(items) > 1:
            raise Unreadable("a list in a floor")
        return ("func", {"lfloor": "floor", "lceil": "ceil"}[name], (items[0],))

    def function(self, name: str) -> Node:
        power: Node | None = None
        base: Node | None = None
        while self.is_op("^", "_"):
            if self.next()[1] == "^":
                power = self.argument()
            else:
                base = self.argument()
        if power == ("neg", ("num", Fraction(1), None)) and name in FUNCTIONS:
            name, power = f"arc{name}", None
        if self.is_op("(", "[") or (self.is_op("S{") and name in _OF_SETS):
            node = self.bracketed()
            arguments = {"tuple": node[-1], "set": node[1]}.get(node[0], (node,))
            if not arguments:
                raise Unreadable(f"{name} of nothing")
        elif self.is_op("{"):
            node = self.argument()
            arguments = node[1] if node[0] == "list" else (node,)
        else:
            arguments = (self.function_argument(),)
        if name in ("lg",) or (name == "log" and base is None):
            base = ("num", Fraction(10), None)
        if name in ("log", "lg"):
            result: Node = ("func", "log", (*arguments, base))
        elif name == "cis":
            sine = ("mul", (("const", "i"), ("func", "sin", arguments)))
            result = ("add", (("func", "cos", arguments), sine))
        else:
            result = ("func", name, arguments)
        return result if power is None else ("pow", result, power)

    def function_argument(self) -> Node:
        """`\\sin 2x` takes the product up to the next sign or function."""
        sign = self.sign()
        node = self.factor()
        while self.starts_factor() and not (
            self.peek()[0] in ("word", "run")
            or (self.peek()[0] == "cmd" and self.peek()[1] in PREFIX_FUNCTIONS)
            or self.is_op("(", "[", "S{")
        ):
            node = product(node, self.factor())
        if self.is_op("/") and self.peek(1)[0] == "num":
            self.met_quotient = True
            if not self.takes_quotient:
                return signed(sign, node)
            self.next()
            node = ("div", node, self.factor())
        return signed(sign, node)

    def big_operator(self, name: str) -> Node:
        """`\\sum_{k=1}^{n} k`: ("sum" or "prod", k, 1, n, body), the body one term."""
        first: Node | None = None
        last: Node | None = None
        while self.is_op("_", "^"):
            if self.next()[1] == "_":
                first = self.argument()
            else:
                last = self.argument()
        if first is None or last is None or first[0] != "rel" or first[2] != ("=",):
            raise Unreadable(f"a {name} without bounds")
        index, start = first[1]
        if index[0] not in ("sym", "const") or index[1] in ("pi", "inf"):
            raise Unreadable(f"a {name} over no index")
        body = self.term()
        if index[0] == "const":  # `i` counts here, and is no imaginary unit
            body = substitute(body, index, ("sym", index[1]))
        return (name, index[1], start, last, body)
