"""What stands behind a value: degree and percent signs, scale words, units with their powers."""

from __future__ import annotations

import itertools
from fractions import Fraction

from polaris_jax.reward.math.cursor import END, Cursor
from polaris_jax.reward.math.normalize import Unreadable
from polaris_jax.reward.math.number_words import PARTS
from polaris_jax.reward.math.syntax import Node, product
from polaris_jax.reward.math.vocabulary import (
    ASSENTING_WORDS,
    CHOICES,
    DENYING_WORDS,
    FINAL_WORDS,
    MULTIPLES,
    NUMBER_WORDS,
    PERCENT_WORDS,
    POWERS,
    SCALES,
    SEPARATORS,
    SINGLE_LETTER_UNITS,
    unit_name,
)

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
