"""The chains of steps that arithmetic problems narrate, and the six families of narration."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable

LARGEST_VALUE = 20
MAX_STEPS = 5
HELD_OUT_OF = 4  # one chain in 4 is reserved for held-out problems
PLAIN = {"=": "+"}  # what a step that an opening tells is in the chain


@dataclasses.dataclass(frozen=True)
class Family:
    """One way of telling a chain.

    Attributes:
        name: enters problem ids and sources.
        opening: first sentence; it tells the start value and the steps that `opening_ops` lists.
        changes: op -> the sentences that can tell such a step.
        question: last sentence.
        largest_start: upper bound of the start value.
        opening_ops: choices of ops that the opening itself tells; "=" adds the start value again.
    """

    name: str
    opening: dict[str, str]
    changes: dict[str, tuple[str, ...]]
    question: str
    largest_start: int = 9

    @property
    def min_steps(self) -> int:
        """Steps that the shortest problem of this family has."""
        return max(1, min(len(ops) for ops in self.opening))

    def ops(self, opening: str, done: int) -> list[str]:
        """What the step behind `done` others may be, after an opening that tells some itself."""
        return [opening[done]] if done < len(opening) else list(self.changes)


FAMILIES = (
    Family(
        "trade",
        {"": "{who} has {a}{thing}."},
        {
            "+": ("{Pro} buys {n} more.", "{Pro} finds {n} more."),
            "-": ("{Pro} gives away {n}.", "{Pro} loses {n}."),
        },
        " How many{thing} does{pro} have?",
    ),
    Family(
        "ride",
        {"": "A {ride} carries {a} people."},
        {"+": (" At a stop {n} get on.",), "-": (" At a stop {n} get off.",)},
        " How many people are on the {ride}?",
    ),
    Family(
        "groups",
        {"*": "{who} fills {a} bags with {b}{thing} each."},
        {"+": ("{Pro} adds {n}.",), "-": ("{Pro} takes out {n}.",)},
        " How many{thing} are there?",
        largest_start=5,
    ),
    Family(
        "compare",
        {
            "+=": "{who} has {a}{thing}.{other} has {b} more than {who}.",
            "-=": "{who} has {a}{thing}.{other} has {b} fewer than {who}.",
        },
        {"+": (" They get {n} more.",), "-": (" They lose {n}.",)},
        " How many{thing} do they have together?",
    ),
    Family(
        "box",
        {"": "A {box} holds {a}{thing}."},
        {"+": (" Then {n} are put in.",), "-": (" Then {n} are taken out.",)},
        " How many{thing} are in the {box}?",
        largest_start=19,
    ),
    Family(
        "number",
        {"": "Start with {a}."},
        {"+": (" Add {n}.",), "-": (" Subtract {n}.",), "*": (" Multiply by {n}.",)},
        " What is the result?",
    ),
)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A start value and its steps; `key` names it within all families.

    Attributes:
        family: name of the family that tells it.
        start: the first value.
        steps: (op, operand) pairs, op one of `+`, `-`, `*`.
    """

    family: str
    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        """Family and operands as text, e.g. `trade:7+5-4`."""
        return f"{self.family}:{self.start}" + "".join(f"{op}{n}" for op, n in self.steps)

    @property
    def held_out(self) -> bool:
        """Whether this chain belongs to the held-out side, whatever seed or count is asked for."""
        return hashlib.sha256(self.key.encode()).digest()[0] % HELD_OUT_OF == 0

    @property
    def answer(self) -> int:
        """The right result."""
        return run_steps(self.start, self.steps)[-1]


def run_steps(start: int, steps: Iterable[tuple[str, int]]) -> list[int]:
    """The value after each step."""
    values, value = [], start
    for op, n in steps:
        value = value + n if op == "+" else value - n if op == "-" else value * n
        values.append(value)
    return values


def operands_of(op: str, value: int, start: int) -> range:
    """The operands of `op` that keep the next value between 1 and the largest."""
    if op == "=":
        return range(start, start + 1) if value + start <= LARGEST_VALUE else range(0)
    if op == "+":
        return range(2, min(9, LARGEST_VALUE - value) + 1)
    if op == "-":
        return range(2, min(9, value - 1) + 1)
    return range(2, min(5, LARGEST_VALUE // value) + 1) if value > 1 else range(0)


@functools.cache
def chains_told() -> int:
    """How many chains all families can tell."""
    return sum(map(count_chains, FAMILIES))


def count_chains(family: Family, max_steps: int = MAX_STEPS) -> int:
    """How many chains a family can tell, counted by the values that they pass through."""
    count = 0
    for start, opening in itertools.product(range(2, family.largest_start + 1), family.opening):
        ways = {start: 1}  # value -> chains so far that end in it
        for done in range(max_steps):
            longer: collections.Counter[int] = collections.Counter()
            for (value, chains), op in itertools.product(ways.items(), family.ops(opening, done)):
                for n in operands_of(op, value, start):
                    longer[run_steps(value, [(PLAIN.get(op, op), n)])[0]] += chains
            ways = longer
            if done + 1 >= family.min_steps:
                count += sum(ways.values())
    return count
