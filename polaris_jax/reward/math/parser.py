"""Canonical tokens -> a syntax tree. The only reader of answers: nothing is ever evaluated as code,
and depth, size and number of digits are bounded while parsing.
"""

from __future__ import annotations

from polaris_jax.reward.math.atoms import AtomReader
from polaris_jax.reward.math.cursor import END, RELATIONS
from polaris_jax.reward.math.named_lists import point_or_system, with_systems
from polaris_jax.reward.math.normalize import Token, Unreadable
from polaris_jax.reward.math.relations import is_inequality
from polaris_jax.reward.math.syntax import (
    Node,
    number,
    product,
    quotient,
    render,
    signed,
    tree_depth,
)
from polaris_jax.reward.math.vocabulary import CURRENCIES, SEPARATORS, unit_name
from polaris_jax.reward.math.words import spelt_number

MAX_TREE_DEPTH = 120
_STARTS_ATOM = frozenset({"(", "[", "{", "S{", "|", "dollar", "pounds"})
_INFIX = ("choose", "over")


def parse(tokens: tuple[Token, ...]) -> Node:
    """The tree of an answer, the first of `parses`.

    Raises:
        Unreadable: the tokens are no expression, relation, list, set, interval, matrix or words.
    """
    return parses(tokens)[0]


def parses(tokens: tuple[Token, ...], functions: frozenset[str] = frozenset()) -> list[Node]:
    r"""The trees of an answer: two where `\ln 2/3` may be the logarithm of 2/3 or a third of one.

    Args:
        functions: names that are functions wherever brackets follow, and no factors.

    Raises:
        Unreadable: the tokens have no tree; see `parse`.
    """
    parser = _Parser(tokens)
    parser.functions = functions
    found = [_whole(parser)]
    if parser.met_quotient:
        parser = _Parser(tokens)
        parser.functions = functions
        parser.takes_quotient = False
        found.append(_whole(parser))
    return found


def _whole(parser: _Parser) -> Node:
    node = parser.answer()
    if parser.peek() != END:
        raise Unreadable(f"left over: {parser.peek()}")
    if tree_depth(node) > MAX_TREE_DEPTH:
        raise Unreadable("nested too deep")
    return node


class _Parser(AtomReader):
    """Recursive descent with one token of look-ahead (a second one for mixed numbers)."""

    # -- structure ------------------------------------------------------------------------------
    def answer(self) -> Node:
        parts = [self.alternatives()]
        while self.is_op(";"):
            self.next()
            parts.append(self.alternatives())
        if len(parts) == 1:
            return self.list_of(parts[0])
        lists = [tuple(item for items in part for item in items) for part in parts]
        if all(len(items) == 1 for items in lists):
            return ("list", tuple(items[0] for items in lists))
        return ("list", tuple(map(point_or_system, lists)))

    def list_of(self, alternatives: list[list[Node]]) -> Node:
        """One item as itself; several as a list, inequalities joined by "and" alone as "both".

        A list that says `or` keeps that: it is no point.
        """
        items = [item for part in alternatives for item in part]
        if len(items) == 1:
            return items[0]
        others = {("op", ","), ("word", "or")}
        both = not others & set(self.tokens) and all(is_inequality(item) for item in items)
        if both:
            return ("both", tuple(items))
        found = with_systems(alternatives)
        return ("list", found, "or") if ("word", "or") in self.tokens else ("list", found)

    def separator(self) -> str:
        """Passes one separator of a list, `,` or `and` or `, or`; "" if there is none."""
        found = ""
        if self.is_op(","):
            found = self.next()[1]
        if self.peek()[0] == "word" and self.peek()[1] in SEPARATORS:
            found = self.next()[1]
        return found

    def alternatives(self) -> list[list[Node]]:
        """The items of a list, those between two `or` together."""
        found = [[self.relation()]]
        while joined := self.separator():
            if joined == "or":
                found.append([])
            found[-1].append(self.relation())
        return found

    def relation(self) -> Node:
        self.enter()
        sides, operators = [self.called_name() or self.ratio()], []
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
        if self.is_cmd(*_INFIX):  # `{n \choose 2}`, `{a \over b}`: all that stands on either side
            name = self.next()[1]
            other = self.expression()
            return ("func", "binom", (node, other)) if name == "choose" else ("div", node, other)
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
                node = quotient(node, signed(self.sign(), self.factor()))
            elif self.is_cmd(*_INFIX):
                return node
            elif self.is_cmd("pmod", "bmod", "mod", "wedge"):
                raise Unreadable(self.peek()[1])
            elif (suffixed := self.suffix(node)) is not None:
                node = suffixed
            elif self.starts_factor():
                if node[0] == "num" and (self.peek()[0] == "num" or self.shown_as_digits()):
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

    def shown_as_digits(self) -> bool:
        r"""Whether a group of digits stands right behind a number: `1{2}` is shown as 12."""
        before = self.tokens[self.position - 1]
        behind_number = before[0] == "num" or before == ("op", "}")
        return behind_number and self.is_op("{") and self.peek(1)[0] == "num"

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
        elif self.peek(1)[0] == "num" and unit_name(self.peek()[1]) in CURRENCIES:
            name = str(unit_name(self.next()[1]))
            node = ("unit", self.factor(), name)
        else:
            node = self.postfix(self.atom())
        self.depth -= 1
        return node

    def postfix(self, node: Node) -> Node:
        primes = 0
        raised = False
        while True:
            if self.is_op("^"):
                if self.degree_sign():
                    node = ("unit", node, self.degree_unit())
                    continue
                if raised:
                    raise Unreadable("a power on a power without braces")
                self.next()
                node, raised = ("pow", node, self.argument()), True
            elif self.is_op("_"):
                self.next()
                node = self.subscript(node)
            elif self.is_op("!"):
                node = self.factorial(node)
            elif self.is_op("'"):
                self.next()
                primes += 1
                node = ("decor", "'", node)
            elif self.is_op("%"):
                self.next()
                node = ("percent", node)
            elif self.is_cmd("circ"):
                node = ("unit", node, self.degree_unit())
            elif node[0] == "sym" and node[1] in self.functions and self.is_op("("):
                node = ("call", node[1], self.parenthesised(self.next()[1]))
            else:
                return node

    def factorial(self, node: Node) -> Node:
        """`5!`, or the double factorial `5!!`."""
        signs = 0
        while self.is_op("!"):
            self.next()
            signs += 1
        if signs > 2:
            raise Unreadable("more than two factorial signs")
        return ("fact", node) if signs == 1 else ("func", "fact2", (node,))

    def subscript(self, node: Node) -> Node:
        start = self.position
        self.argument(with_sign=False)
        label = " ".join(value for kind, value in self.tokens[start : self.position]).strip("{ }")
        if node[0] == "num" and (base := spelt_number(label.split())) is not None:
            label = str(base)
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
