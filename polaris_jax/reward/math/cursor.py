"""The lower half of the parser: a place in the tokens, units behind a value, functions."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from fractions import Fraction

from polaris_jax.reward.math.normalize import Token, Unreadable
from polaris_jax.reward.math.syntax import Node, product, signed, substitute
from polaris_jax.reward.math.vocabulary import (
    ASSENTING_WORDS,
    CHOICES,
    DENYING_WORDS,
    FINAL_WORDS,
    FUNCTIONS,
    MULTIPLES,
    NUMBER_WORDS,
    PERCENT_WORDS,
    POWERS,
    SCALES,
    SEPARATORS,
    SINGLE_LETTER_UNITS,
    unit_name,
)
from polaris_jax.reward.math.words import PARTS

# ---- a place in the tokens: look ahead, take, insist

MAX_DEPTH = 100  # of the parser: some 25 levels of nesting
END: Token = ("end-of-answer", "")


class Cursor:
    """Where a parser stands, how deep, and how many absolute values are open."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = list(tokens)
        self.position = 0
        self.depth = 0
        self.bars = 0
        # `\\ln 2/3`: whether a function takes the quotient, and whether that was ever the question.
        self.takes_quotient = True
        self.met_quotient = False
        # `P(2) = 5`: whether a name may be called here; not within what another one holds.
        self.holds_equation = ("op", "=") in tokens
        self.may_call = self.holds_equation
        # The names that are functions wherever brackets follow, besides FUNCTION_NAMES.
        self.functions: frozenset[str] = frozenset()

    def peek(self, ahead: int = 0) -> Token:
        """The token some places ahead, END behind the last."""
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else END

    def next(self) -> Token:
        """Takes a token."""
        token = self.peek()
        self.position += 1
        return token

    def is_op(self, *values: str, ahead: int = 0) -> bool:
        """Whether a sign out of some is next."""
        kind, value = self.peek(ahead)
        return kind == "op" and value in values

    def is_cmd(self, *values: str) -> bool:
        """Whether a command out of some is next."""
        kind, value = self.peek()
        return kind == "cmd" and value in values

    def expect(self, *values: str) -> str:
        """Takes a sign out of some. Raises Unreadable at another."""
        if not self.is_op(*values):
            raise Unreadable(f"expected one of {values}, found {self.peek()}")
        return self.next()[1]

    def enter(self) -> None:
        """Counts a level of nesting. Raises Unreadable past the limit."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deep")


# ---- behind a value: degree and percent signs, scale words, units with their powers

RELATIONS = frozenset({"=", "<", ">", "leq", "geq", "neq", "in", "approx"})


def changes(node: Node, words: list[str]) -> bool:
    """Whether words behind a value say more than what it counts: they deny, bound or rebase it.

    A number that ends them belongs to the value: `5 per hundred`, `101 base two`. Behind a choice
    letter only assent is silent: `A is correct`, never `A is ruled out`.
    """
    if node[0] == "sym" and node[1] in CHOICES and not any(map(unit_name, words)):
        return not ASSENTING_WORDS.issuperset(words)
    if denies(words) or words[:1] == ["basis"]:
        return True
    last = words[-1] if words else ""
    if last in NUMBER_WORDS or last in SCALES:
        return words[-2:] != ["base", "ten"]
    return last in FINAL_WORDS


def denies(words: list[str]) -> bool:
    """Whether words deny what they stand beside, or say that it is a bound."""
    bounds = {("at", "most"), ("at", "least")}
    return not DENYING_WORDS.isdisjoint(words) or not bounds.isdisjoint(itertools.pairwise(words))


class UnitCursor(Cursor):
    """A cursor that can read units."""

    def suffix(self, node: Node) -> Node | None:
        """Percent, scale words and units behind a value; None if there are none."""
        kind, value = self.peek()
        if (kind, value) == ("op", "dollar") and node[0] in ("num", "neg"):  # `5\\$`
            self.next()
            return ("unit", node, "dollar")
        if kind == "op" and value == "%":
            self.next()
            return ("percent", node)
        if kind in ("word", "run") and value.lower() in PERCENT_WORDS:
            self.next()
            return ("percent", node)
        if self.peek() == ("word", "per") and self.peek(1) == ("word", "cent"):
            self.position += 2
            return ("percent", node)
        if kind in ("word", "run") and value.lower() in SCALES:
            self.next()
            return product(node, ("num", Fraction(10 ** SCALES[value.lower()]), None))
        if node[0] == "words" or value in ("am", "pm"):  # `12 pm` is no length of 12
            return None
        if kind in ("word", "run") and (scaled := self.scaled(node, value.lower())) is not None:
            return scaled
        if (kind, value) == ("op", "{") and self.peek(1)[0] in ("word", "run", "tlet"):
            self.open_group()
            kind, value = self.peek()
        start = self.position
        if (kind in ("word", "run") and value not in SEPARATORS) or self.unit_letter():
            name = self.unit()
            words = [value.lower() for _, value in self.tokens[start : self.position]]
            fails = words[:1] == ["fails"] and self.holds_equation  # `x = 5 fails`
            if name is not None and self.ends_item() and not fails and not changes(node, words):
                return ("unit", node, name)
            self.position = start
        return None

    def open_group(self) -> None:
        r"""Drops the braces that are next where they hold a unit alone: `3 {\rm cm}`."""
        end = self.position + 1
        while self.peek(end - self.position)[0] in ("word", "run", "tlet"):
            end += 1
        first = self.peek(1)
        if self.tokens[end : end + 1] == [("op", "}")] and (
            first[0] != "tlet" or first[1] in SINGLE_LETTER_UNITS
        ):
            del self.tokens[end], self.tokens[self.position]

    def scaled(self, node: Node, word: str) -> Node | None:
        """A value under a word that changes it: `5 dozen`, `3 halves`, `5 squared`; else None."""
        found: Node | None = None
        if word in MULTIPLES:
            found = product(node, ("num", Fraction(MULTIPLES[word]), None))
        elif word in PARTS:
            found = ("div", node, ("num", Fraction(PARTS[word]), None))
        elif word == "factorial":
            found = ("fact", node)
        elif word in POWERS and self.ends_item(ahead=1):  # `5 squared cm` is a unit's power
            found = ("pow", node, ("num", Fraction(POWERS[word]), None))
        if found is not None:
            self.next()
        return found

    def unit_letter(self) -> bool:
        return self.peek()[0] == "tlet" and self.peek()[1] in SINGLE_LETTER_UNITS

    def ends_item(self, ahead: int = 0) -> bool:
        kind, value = self.peek(ahead)
        return (
            (kind, value) == END
            or (kind == "word" and value in SEPARATORS)
            or (kind == "op" and value in RELATIONS)
            or (kind == "op" and value in (",", ";", ")", "]", "}", "S}", "+", "-", "&", ":"))
            or kind == "end"
        )

    def unit(self) -> str | None:
        """Passes unit words with their powers; their canonical name, "" for words of no unit."""
        parts: list[str] = []
        inverse, power_next, known = 1, 1, True
        while True:
            kind, value = self.peek()
            if kind in ("word", "run", "tlet") and value not in SEPARATORS:
                self.next()
                word = value.lower() if kind != "tlet" else value
                if word in ("square", "sq", "squared", "cubic", "cubed"):
                    power = 2 if word.startswith("sq") else 3
                    if word.endswith("ed") and parts:
                        parts[-1] = f"{parts[-1].partition('^')[0]}^{power * inverse}"
                    else:
                        power_next = power
                    continue
                if word == "per":
                    inverse = -1
                    continue
                name = unit_name(value)
                known = known and name is not None
                power = power_next
                if self.is_op("^"):
                    self.next()
                    power = self.unit_power()
                parts.append(f"{name}^{power * inverse}")
                power_next = 1
            elif self.is_op("^") and parts:
                self.next()
                parts[-1] = f"{parts[-1].partition('^')[0]}^{self.unit_power() * inverse}"
            elif self.is_op("/") and self.peek(1)[0] in ("word", "run", "tlet"):
                self.next()
                inverse = -1
            elif (self.is_op("*", ".") and self.peek(1)[0] in ("word", "tlet")) or self.is_op("."):
                self.next()
            else:
                return " ".join(sorted(parts)) if known else ""

    def degree_sign(self) -> bool:
        after = 1
        while self.is_op("{", ahead=after):
            after += 1
        return self.peek(after) == ("cmd", "circ")

    def degree_unit(self) -> str:
        """Passes `^\\circ`, `^{\\circ}` or `\\circ`, and the letter of a temperature scale."""
        braces = 0
        while not self.is_cmd("circ"):
            braces += self.next()[1] == "{"
        self.next()
        for _ in range(braces):
            self.expect("}")
        if self.peek()[0] in ("let", "tlet") and self.peek()[1] in "CF":
            return f"deg{self.next()[1]}"
        return "deg"

    def unit_power(self) -> int:
        """Passes `2`, `-1`, `{2}` or `{-1}`."""
        grouped = self.is_op("{")
        if grouped:
            self.next()
        sign = 1
        if self.is_op("-"):
            self.next()
            sign = -1
        kind, value = self.next()
        if kind != "num" or not value.isdigit() or len(value) > 2:
            raise Unreadable("the power of a unit")
        if grouped:
            self.expect("}")
        return sign * int(value)


# ---- functions, roots, floors, decorated letters, sums and products

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
