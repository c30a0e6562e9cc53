"""The smallest units of an answer: numbers, letters, words, groups, brackets, matrices."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from fractions import Fraction

from polaris_jax.reward.math.cursor import END, PREFIX_FUNCTIONS, FunctionReader
from polaris_jax.reward.math.normalize import Unreadable
from polaris_jax.reward.math.relations import is_called
from polaris_jax.reward.math.syntax import Node, number, render
from polaris_jax.reward.math.vocabulary import (
    CHOICES,
    FUNCTION_NAMES,
    GREEK,
    SEPARATORS,
    unit_name,
)
from polaris_jax.reward.math.words import folded, spelt_number

_CLOSERS = {"(": (")", "]"), "[": (")", "]"), "S{": ("S}",), "{": ("}",)}
MAX_NUMBER_WORDS = 12
_DECORATIONS = frozenset(
    {"vec", "hat", "bar", "tilde", "dot", "ddot", "overline", "angle", "triangle", "mathring"}
)
_UNSUPPORTED = frozenset({"int", "lim", "cases", "forall", "exists"})
_ENDS = frozenset({("op", ","), ("op", ";"), ("word", "and"), ("word", "or")})
_BEFORE_ITEM = _ENDS | {END} | {("op", sign) for sign in ("(", "[", "{", "S{", "=", "approx", "in")}
_AFTER_ITEM = _ENDS | {END} | {("op", sign) for sign in (")", "]", "}", "S}", "%")}
_PROBABILITIES = {"mathbb:E": "E", "mathbb:P": "P", "Pr": "P"}
_CONSTANTS = {"e": "e", "i": "i", "pi": "pi"}


class AtomReader(FunctionReader):
    """A cursor that reads atoms; lists of relations are the parser's."""

    @abstractmethod
    def separator(self) -> str: ...

    @abstractmethod
    def fraction(self) -> Node: ...

    def atom(self) -> Node:
        kind, value = self.peek()
        if kind == "num":
            self.next()
            return number(value)
        if kind in ("let", "tlet"):
            self.next()
            if value in FUNCTION_NAMES and self.is_op("("):
                return ("call", value, self.parenthesised(self.next()[1]))
            return ("const", _CONSTANTS[value]) if value in _CONSTANTS else ("sym", value)
        if (kind, value) == ("run", "NO") and self.holds_equation:  # a side, as in `NO = 2`
            self.next()
            return ("mul", (("sym", "N"), ("sym", "O")))
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
        if value == "||":
            self.next()
            node = self.expression()
            self.expect("||")
            return ("func", "abs", (node,))
        raise Unreadable(f"unexpected {value!r}")

    def words(self) -> Node:
        """A number in words, or the words up to the next thing that is none."""
        if self.peek()[1].lower() in ("minus", "negative"):
            start = self.position
            self.next()
            if self.peek()[0] == "num":
                return ("neg", number(self.next()[1]))
            if self.peek()[0] in ("word", "run") and (value := self.number_in_words()) is not None:
                return ("neg", ("num", value, None))
            self.position = start
        if (value := self.number_in_words()) is not None:
            return ("num", value, None)
        words = [folded(self.next()[1])]
        while self.peek()[0] in ("word", "run") and self.peek()[1] not in SEPARATORS:
            words.append(folded(self.next()[1]))
        return ("words", " ".join(words))

    def number_in_words(self) -> Fraction | None:
        """Passes `twenty-one` or `two thirds` where no other word follows but a unit."""
        words: list[str] = []
        end = self.position
        while end < len(self.tokens) and len(words) < MAX_NUMBER_WORDS:
            kind, value = self.tokens[end]
            if kind in ("word", "run"):
                words.append(value.lower())
            elif (kind, value) != ("op", "-") or not words:
                break
            end += 1
        number = spelt_number(words)
        while words and number is None:
            words.pop()
            number = spelt_number(words)
        if not words:
            return None
        start, left = self.position, len(words)
        while left:
            left -= self.next()[0] != "op"
        kind, follower = self.peek()
        if kind in ("word", "run", "let", "tlet") and not (
            follower in SEPARATORS or unit_name(follower)
        ):
            self.position = start
            return None
        return number

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
        start = self.position
        opener = self.next()[1]
        closers = _CLOSERS[opener]
        items: list[Node] = []
        builder = opener == "S{" and self.set_builder_head()
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
            if builder:
                if not items or any(item[0] != "rel" for item in items):
                    raise Unreadable("a set of all that is no condition")
                return items[0] if len(items) == 1 else ("list", tuple(items))
            return ("set", tuple(items))
        if not items:
            raise Unreadable("empty brackets")
        if len(items) == 1:
            if (opener, closer) == ("[", "]") and self.is_list_of_one(start, items[0]):
                return ("tuple", "[", "]", tuple(items))
            if (opener, closer) in (("(", ")"), ("[", "]")):
                return items[0]
            raise Unreadable("an interval of one end")
        return ("tuple", opener, closer, tuple(items))

    def is_list_of_one(self, start: int, item: Node) -> bool:
        """Whether square brackets from `start` to here are an answer's own, and group no factor.

        Around a matrix, words, a choice letter or a figure's corners (an area) they are a dress.
        """
        before = self.tokens[start - 1] if start else END
        if item[0] in ("matrix", "words") or (item[0] == "sym" and item[1] in CHOICES):
            return False
        if item[0] == "mul" and all(part[0] == "sym" and part[1].isupper() for part in item[1]):
            return False
        return before in _BEFORE_ITEM and self.peek() in _AFTER_ITEM

    def set_builder_head(self) -> bool:
        r"""Passes `x :`, `x \mid` or `x \in \mathbb{R} :` after a brace; False if there is none."""
        ahead = 1
        if self.peek(1) == ("op", "in") and self.peek(2)[1] in ("mathbb:R", "R"):
            ahead = 3
        if self.peek()[0] != "let" or not self.is_op(":", "|", ahead=ahead):
            return False
        self.position += ahead + 1
        return True

    def parenthesised(self, opener: str) -> tuple[Node, ...]:
        items = [self.relation()]
        while self.is_op(",", ";"):
            self.next()
            items.append(self.relation())
        self.expect({"(": ")", "[": "]"}[opener])
        return tuple(items)

    def called_name(self) -> Node | None:
        """`P(2)`, `f'(x)` or `E[X]` with an equals sign behind it; None, nothing passed, else.

        Elsewhere the brackets are a factor, but for those of FUNCTION_NAMES.
        """
        if not self.may_call:
            return None
        start, depth, bars = self.position, self.depth, self.bars
        self.may_call = False
        try:
            found = self._called_name()
        except Unreadable:
            found = None
        self.may_call = True
        if found is None:
            self.position, self.depth, self.bars = start, depth, bars
        return found

    def _called_name(self) -> Node | None:
        kind, value = self.peek()
        greek = kind == "cmd" and (value in GREEK or value in _PROBABILITIES)
        if not (kind in ("let", "tlet", "run") or greek or (kind == "word" and len(value) > 1)):
            return None
        self.next()
        name = _PROBABILITIES.get(value, value)
        label = marks = ""
        while self.is_op("_", "^", "'"):
            mark = self.next()[1]
            if mark == "'":
                marks += mark
            elif mark == "^":
                marks += f"^{render(self.argument())}"
            else:
                first = self.position
                self.argument(with_sign=False)
                parts = " ".join(part for _, part in self.tokens[first : self.position])
                label = f"_{parts.strip('{ }')}"
        end = self.closing() if self.is_op("(", "[") else None
        if end is None or self.tokens[end + 1 : end + 2] not in ([("op", "=")], [("op", "approx")]):
            return None
        first = self.position + 1
        if first == end:
            return None
        try:
            arguments = self.parenthesised(self.next()[1])
        except Unreadable:  # `P(A|B)`
            raw = " ".join(value for _, value in self.tokens[first:end])
            arguments = (("words", raw),)
        self.position = end + 1
        sides = list(
            itertools.takewhile(lambda token: token not in _ENDS, [*self.tokens[end + 1 :], END])
        )
        rest = {  # `V_0` is no V
            value for (_, value), after in itertools.pairwise(sides) if after != ("op", "_")
        }
        called = is_called(name + label, marks, arguments, rest)
        return ("call", name + label + marks, arguments) if called else None

    def closing(self) -> int | None:
        """Where the bracket closes that is next."""
        depth = 0
        for place in range(self.position, len(self.tokens)):
            value = self.tokens[place][1]
            depth += (value in ("(", "[")) - (value in (")", "]"))
            if depth == 0:
                return place
        return None

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
        if name in PREFIX_FUNCTIONS:
            return self.function(name)
        if name == "pi":
            return ("const", "pi")
        if name == "infty":
            return ("const", "inf")
        if name == "emptyset":
            return ("set", ())
        if name in _DECORATIONS:
            return ("decor", name, self.decorated())
        if name in ("sum", "prod"):
            return self.big_operator(name)
        if name in _UNSUPPORTED:
            raise Unreadable(name)
        return ("sym", name)

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
