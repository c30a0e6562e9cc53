"""Canonical tokens -> a syntax tree. The only reader of answers: nothing is ever evaluated as code,
and depth, size and number of digits are bounded while parsing.
"""

from __future__ import annotations

from fractions import Fraction

from polaris_jax.reward.cursor import END
from polaris_jax.reward.normalize import Token, Unreadable
from polaris_jax.reward.syntax import Node, number, product, render, signed, tree_depth
from polaris_jax.reward.units import RELATIONS, UnitCursor
from polaris_jax.reward.vocabulary import FUNCTIONS, NUMBER_WORDS, SCALES, SEPARATORS, unit_name

MAX_TREE_DEPTH = 120

_CLOSERS = {"(": (")", "]"), "[": (")", "]"), "S{": ("S}",), "{": ("}",)}
_STARTS_ATOM = frozenset({"(", "[", "{", "S{", "|", "dollar", "pounds"})
_CALLED = frozenset({"f", "g", "h", "F", "G", "H"})
_DECORATIONS = frozenset(
    {"vec", "hat", "bar", "tilde", "dot", "ddot", "overline", "angle", "triangle", "mathring"}
)
_UNSUPPORTED = frozenset({"sum", "prod", "int", "lim", "cases", "over", "forall", "exists"})
_CONSTANTS = {"e": "e", "i": "i", "pi": "pi"}
_PREFIX_FUNCTIONS = FUNCTIONS - {"deg"} | {"arcsec"}


def parse(tokens: tuple[Token, ...]) -> Node:
    """The tree of an answer.

    Raises:
        Unreadable: the tokens are no expression, relation, list, set, interval, matrix or words.
    """
    parser = _Parser(tokens)
    node = parser.answer()
    if parser.peek() != END:
        raise Unreadable(f"left over: {parser.peek()}")
    if tree_depth(node) > MAX_TREE_DEPTH:
        raise Unreadable("nested too deep")
    return node


class _Parser(UnitCursor):
    """Recursive descent with one token of look-ahead (a second one for mixed numbers)."""

    # -- structure ------------------------------------------------------------------------------
    def answer(self) -> Node:
        groups = [self.comma_list()]
        while self.is_op(";"):
            self.next()
            groups.append(self.comma_list())
        if len(groups) == 1:
            items = groups[0]
            return items[0] if len(items) == 1 else ("list", tuple(items))
        if all(len(group) == 1 for group in groups):
            return ("list", tuple(group[0] for group in groups))
        return ("list", tuple(("tuple", "(", ")", tuple(group)) for group in groups))

    def separator(self) -> bool:
        """Passes one separator of a list, `,` or `and` or `, or`."""
        start = self.position
        if self.is_op(","):
            self.next()
        if self.peek()[0] == "word" and self.peek()[1] in SEPARATORS:
            self.next()
        return self.position > start

    def comma_list(self) -> list[Node]:
        items = [self.relation()]
        while self.separator():
            items.append(self.relation())
        return items

    def relation(self) -> Node:
        self.enter()
        sides, operators = [self.ratio()], []
        while self.peek()[0] == "op" and self.peek()[1] in RELATIONS:
            operators.append(self.next()[1])
            sides.append(self.ratio())
        self.depth -= 1
        return sides[0] if not operators else ("rel", tuple(sides), tuple(operators))

    def ratio(self) -> Node:
        parts = [self.union()]
        while self.is_op(":"):
            self.next()
            parts.append(self.union())
        return parts[0] if len(parts) == 1 else ("ratio", tuple(parts))

    def union(self) -> Node:
        node = self.expression()
        while self.is_op("cup", "cap", "setminus"):
            operator = self.next()[1]
            node = (operator, node, self.expression())
        return node

    # -- arithmetic -----------------------------------------------------------------------------
    def expression(self) -> Node:
        self.enter()
        sign = self.sign()
        terms = [signed(sign, self.term())]
        while self.is_op("+", "-", "pm", "mp"):
            terms.append(signed(self.sign(), self.term()))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("add", tuple(terms))

    def sign(self) -> str:
        sign = "+"
        while self.is_op("+", "-", "pm", "mp"):
            value = self.next()[1]
            if value == "-":
                sign = {"+": "-", "-": "+"}.get(sign, sign)
            elif value != "+":
                sign = value
        return sign

    def term(self) -> Node:
        node = self.mixed_number() or self.factor()
        while True:
            if self.is_op("*"):
                self.next()
                node = product(node, signed(self.sign(), self.factor()))
            elif self.is_op("/"):
                self.next()
                node = ("div", node, signed(self.sign(), self.factor()))
            elif self.is_cmd("choose", "pmod", "bmod", "mod", "wedge"):
                raise Unreadable(self.peek()[1])
            elif (suffixed := self.suffix(node)) is not None:
                node = suffixed
            elif self.starts_factor():
                if self.peek()[0] == "num" and node[0] == "num":
                    raise Unreadable("two numbers side by side")
                node = product(node, self.factor())
            else:
                return node

    def starts_factor(self) -> bool:
        kind, value = self.peek()
        if kind in ("num", "let", "tlet", "run", "word", "begin"):
            return not (kind == "word" and value in SEPARATORS)
        if kind == "cmd":
            return value not in ("rfloor", "rceil", "rangle", "to", "iff")
        if value == "|":
            return self.bars == 0
        return kind == "op" and value in _STARTS_ATOM

    def mixed_number(self) -> Node | None:
        """`2 1/2`, `2\\frac12`: a whole number and a proper fraction side by side are a sum."""
        if self.peek()[0] != "num" or not self.peek()[1].isdigit():
            return None
        start = self.position
        whole = number(self.next()[1])
        part: Node | None = None
        if self.peek()[0] == "num" and self.is_op("/", ahead=1):
            top = self.next()[1]
            self.next()
            if self.peek()[0] == "num" and top.isdigit() and self.peek()[1].isdigit():
                part = ("div", number(top), number(self.next()[1]))
        elif self.is_cmd("frac"):
            part = self.fraction()
        if part is not None and part[1][0] == part[2][0] == "num" and not self.is_op("^", "!"):
            top, bottom = part[1][1], part[2][1]
            if top.denominator == bottom.denominator == 1 and 0 < top < bottom:
                return ("num", whole[1] + top / bottom, None)
        self.position = start
        return None

    def factor(self) -> Node:
        self.enter()
        if self.is_op("dollar", "pounds"):
            name = {"dollar": "dollar", "pounds": "pound sterling"}[self.next()[1]]
            node: Node = ("unit", self.factor(), name)
        else:
            node = self.postfix(self.atom())
        self.depth -= 1
        return node

    def postfix(self, node: Node) -> Node:
        primes = 0
        while True:
            if self.is_op("^"):
                if self.degree_sign():
                    node = ("unit", node, self.degree_unit())
                    continue
                self.next()
                node = ("pow", node, self.argument())
            elif self.is_op("_"):
                self.next()
                node = self.subscript(node)
            elif self.is_op("!"):
                self.next()
                node = ("fact", node)
            elif self.is_op("'"):
                self.next()
                primes += 1
                node = ("decor", "'", node)
            elif self.is_op("%"):
                self.next()
                node = ("percent", node)
            elif self.is_cmd("circ"):
                node = ("unit", node, self.degree_unit())
            else:
                return node

    def subscript(self, node: Node) -> Node:
        start = self.position
        self.argument(with_sign=False)
        label = " ".join(value for kind, value in self.tokens[start : self.position]).strip("{ }")
        if node[0] == "num" and label.isdigit():
            return ("based", str(node[1]), label)
        if node[0] in ("sym", "decor", "const"):
            return ("sym", f"{render(node)}_{label}")
        if node[0] == "words" or (node[0] == "mul" and label.isdigit()):
            return ("based", render(node), label)
        if node[0] == "tuple" or node[0] == "add":
            return ("based", render(node), label)
        raise Unreadable("a subscript on an expression")

    def argument(self, *, with_sign: bool = True, split: bool = False) -> Node:
        """What `^`, `\\frac` and the like take: a group, or one token.

        split: a number gives up its first digit only, as TeX reads `\\frac12`.
        """
        self.enter()
        sign = self.sign() if with_sign and self.is_op("-", "+") else "+"
        kind, value = self.peek()
        if self.is_op("{"):
            self.next()
            node = self.relation()
            if self.is_op(","):
                items = [node]
                while self.separator():
                    items.append(self.relation())
                node = ("list", tuple(items))
            self.expect("}")
        elif kind == "num" and split and len(value) > 1 and value.isdigit():
            self.tokens[self.position] = ("num", value[1:])
            node = number(value[0])
        elif kind == "num":
            node = number(self.next()[1])
        elif self.is_op("*", "+", "-"):
            node = ("sym", self.next()[1])
        else:
            node = self.atom()
        self.depth -= 1
        return signed(sign, node)

    def fraction(self) -> Node:
        self.next()
        return ("div", self.argument(split=True), self.argument(split=True))

    # -- atoms ----------------------------------------------------------------------------------
    def atom(self) -> Node:
        kind, value = self.peek()
        if kind == "num":
            self.next()
            return number(value)
        if kind in ("let", "tlet"):
            self.next()
            if value in _CALLED and self.is_op("("):
                return ("call", value, self.parenthesised())
            return ("const", _CONSTANTS[value]) if value in _CONSTANTS else ("sym", value)
        if kind in ("word", "run"):
            return self.words()
        if kind == "begin":
            return self.matrix()
        if kind == "cmd":
            return self.command(value)
        if value == "{":
            return self.group()
        if value in ("(", "[", "S{"):
            return self.bracketed()
        if value == "|":
            self.next()
            self.bars += 1
            node = self.expression()
            self.expect("|")
            self.bars -= 1
            return ("func", "abs", (node,))
        raise Unreadable(f"unexpected {value!r}")

    def words(self) -> Node:
        """A number word, or the words up to the next thing that is none."""
        value = self.next()[1].lower()
        kind, follower = self.peek()
        counts = kind not in ("word", "run", "let", "tlet")
        if value in NUMBER_WORDS and (counts or follower in SCALES or unit_name(follower)):
            return ("num", Fraction(NUMBER_WORDS[value]), None)
        words = [value]
        while self.peek()[0] in ("word", "run") and self.peek()[1] not in SEPARATORS:
            words.append(self.next()[1].lower())
        return ("words", " ".join(words))

    def group(self) -> Node:
        self.enter()
        self.expect("{")
        if self.is_op("}"):
            self.next()
            raise Unreadable("an empty group")
        items = [self.relation()]
        while self.separator():
            items.append(self.relation())
        self.expect("}")
        self.depth -= 1
        return items[0] if len(items) == 1 else ("set", tuple(items))

    def bracketed(self) -> Node:
        self.enter()
        bars, self.bars = self.bars, 0
        opener = self.next()[1]
        closers = _CLOSERS[opener]
        items: list[Node] = []
        if not self.is_op(*closers):
            items.append(self.relation())
            while self.separator() or self.is_op(";"):
                if self.is_op(";"):
                    self.next()
                items.append(self.relation())
        closer = self.expect(*closers)
        self.depth -= 1
        self.bars = bars
        if opener == "S{":
            return ("set", tuple(items))
        if not items:
            raise Unreadable("empty brackets")
        if len(items) == 1:
            if (opener, closer) in (("(", ")"), ("[", "]")):
                return items[0]
            raise Unreadable("an interval of one end")
        return ("tuple", opener, closer, tuple(items))

    def parenthesised(self) -> tuple[Node, ...]:
        self.expect("(")
        items = [self.relation()]
        while self.is_op(",", ";"):
            self.next()
            items.append(self.relation())
        self.expect(")")
        return tuple(items)

    def command(self, name: str) -> Node:
        if name == "frac":
            return self.fraction()
        self.next()
        if name == "sqrt":
            return self.root()
        if name == "binom":
            return (
                "func",
                "binom",
                (self.argument(split=True), self.argument(split=True)),
            )
        if name in ("lfloor", "lceil", "langle"):
            return self.delimited(name)
        if name in _PREFIX_FUNCTIONS:
            return self.function(name)
        if name == "pi":
            return ("const", "pi")
        if name == "infty":
            return ("const", "inf")
        if name == "emptyset":
            return ("set", ())
        if name in _DECORATIONS:
            return ("decor", name, self.decorated())
        if name in _UNSUPPORTED:
            raise Unreadable(name)
        return ("sym", name)

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
        if self.is_op("(", "["):
            node = self.bracketed()
            arguments = node[3] if node[0] == "tuple" else (node,)
        elif self.is_op("{"):
            node = self.argument()
            arguments = node[1] if node[0] == "list" else (node,)
        else:
            arguments = (self.function_argument(),)
        if name in ("lg",) or (name == "log" and base is None):
            base = ("num", Fraction(10), None)
        if name in ("log", "lg"):
            result: Node = ("func", "log", (*arguments, base))
        else:
            result = ("func", name, arguments)
        return result if power is None else ("pow", result, power)

    def function_argument(self) -> Node:
        """`\\sin 2x` takes the product up to the next sign or function."""
        sign = self.sign()
        node = self.factor()
        while self.starts_factor() and not (
            self.peek()[0] in ("word", "run")
            or (self.peek()[0] == "cmd" and self.peek()[1] in _PREFIX_FUNCTIONS)
            or self.is_op("(", "[", "S{")
        ):
            node = product(node, self.factor())
        if self.is_op("/") and self.peek(1)[0] == "num":
            self.next()
            node = ("div", node, self.factor())
        return signed(sign, node)

    def matrix(self) -> Node:
        self.enter()
        bars, self.bars = self.bars, 0
        kind = self.next()[1]
        if kind in ("cases", "aligned", "align", "gathered", "split"):
            raise Unreadable(kind)
        rows: list[tuple[Node, ...]] = []
        row: list[Node] = []
        while True:
            if self.peek()[0] == "end":
                break
            row.append(self.relation())
            if self.is_op("&"):
                self.next()
                continue
            rows.append(tuple(row))
            row = []
            if not self.is_op("\\\\"):
                break
            self.next()
        if self.next()[0] != "end" or row or not rows or len({len(r) for r in rows}) != 1:
            raise Unreadable("a ragged matrix")
        self.depth -= 1
        self.bars = bars
        family = "determinant" if kind == "vmatrix" else "matrix"
        return ("matrix", family, tuple(rows))
