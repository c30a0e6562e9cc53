"""Chains of arithmetic steps, the families that word them, and which of them a set draws."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np

from polaris_jax.config import ConfigError
from polaris_jax.config.data import ArithmeticSection

LARGEST_VALUE = 20
HELD_OUT_OF = 4  # one chain in 4 is reserved for held-out problems
PLAIN = {"=": "+"}  # op of an opening -> op in the chain


@dataclasses.dataclass(frozen=True)
class Family:
    """Templates of the sentences that word a chain.

    Attributes:
        name: part of problem ids and sources.
        opening: first sentences, by the ops of the steps that they state beside the start value,
            one character an op; "" states the start value only, "=" adds the start value again.
        changes: sentences for one further step, by op.
        question: last sentence.
        largest_start: upper bound of the start value.
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
        """The ops that the next step may have.

        Args:
            opening: ops of the opening, a key of `self.opening`.
            done: number of steps before it.
        """
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
class Mix:
    """Which problems a set draws.

    Attributes:
        min_steps: fewest steps of a problem.
        max_steps: most steps of a problem.
        families: names of the families; (): all.
        hard_from: steps from which a problem is hard; 0: lengths are drawn evenly.
        hard_share: share of hard problems, if `hard_from` is not 0.

    Raises:
        ConfigError: a family is unknown, or none of them has problems of such lengths.
    """

    min_steps: int = 1
    max_steps: int = 5
    families: tuple[str, ...] = ()
    hard_from: int = 0
    hard_share: float = 0.5

    def __post_init__(self) -> None:
        known = [family.name for family in FAMILIES]
        for name in self.families:
            if name not in known:
                raise ConfigError(
                    f"families={self.families}: there is no family {name!r}; take some of "
                    f"{', '.join(known)}, or () for all"
                )
        if not self.fitting(self.max_steps):
            raise ConfigError(
                f"max_steps={self.max_steps}: the shortest problem of {', '.join(self.families)} "
                "has more; raise it, or name further families"
            )

    @staticmethod
    def of(section: ArithmeticSection) -> Mix:
        """The mix that a config's `data.arithmetic` describes."""
        names = [field.name for field in dataclasses.fields(Mix)]
        return Mix(**{name: getattr(section, name) for name in names})

    def fitting(self, steps: int) -> list[Family]:
        """The families of the mix that have problems with this number of steps."""
        return [
            family
            for family in FAMILIES
            if family.min_steps <= steps and (not self.families or family.name in self.families)
        ]

    def draw_steps(self, rng: np.random.Generator, least: int = 1) -> int:
        """The number of steps of the next problem, at least `least`."""
        low, high = self.min_steps, self.max_steps
        if self.hard_from:
            hard = rng.random() < self.hard_share
            low, high = (self.hard_from, high) if hard else (low, self.hard_from - 1)
        return int(rng.integers(max(low, least), max(high, least) + 1))

    def chains(self) -> int:
        """The number of distinct chains of the mix, both sides together."""
        families = self.fitting(self.max_steps)
        return sum(_count_chains(family, self.min_steps, self.max_steps) for family in families)


DEFAULT_MIX = Mix()


@dataclasses.dataclass(frozen=True)
class Chain:
    """A start value and its steps; `key` names it within all families.

    Attributes:
        family: name of the family that words the chain.
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


def _count_chains(family: Family, min_steps: int, max_steps: int) -> int:
    """The number of distinct chains of a family, by its number of ways to reach each value."""
    total = 0
    for opening in family.opening:
        for start in range(2, family.largest_start + 1):
            ways = {start: 1}  # value -> chains that have reached it
            for done in range(max_steps):
                reached: dict[int, int] = {}
                for value, count in ways.items():
                    for op in family.ops(opening, done):
                        for n in operands_of(op, value, start):
                            after = run_steps(value, [(PLAIN.get(op, op), n)])[-1]
                            reached[after] = reached.get(after, 0) + count
                ways = reached
                if done + 1 >= max(min_steps, family.min_steps):
                    total += sum(ways.values())
    return total


def draw_chain(rng: np.random.Generator, family: Family, steps: int) -> Chain:
    openings = list(family.opening)
    while True:
        start = value = int(rng.integers(2, family.largest_start + 1))
        done: list[tuple[str, int]] = []
        opening = openings[rng.integers(len(openings))]
        while len(done) < steps:
            ops = family.ops(opening, len(done))
            choices = [(op, n) for op in ops for n in operands_of(op, value, start)]
            if not choices:
                break
            op = ops[rng.integers(len(ops))]
            operands = [n for candidate, n in choices if candidate == op]
            if not operands:
                continue
            n = operands[rng.integers(len(operands))]
            done.append((PLAIN.get(op, op), n))
            value = run_steps(value, done[-1:])[0]
        if len(done) == steps:
            return Chain(family.name, start, tuple(done))
