"""What a preparation is given, and the reasons for which it leaves rows out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence, Set

from polaris_jax.data.sources import Row
from polaris_jax.records import Problem

REASONS = (
    "",
    "malformed",
    "needs_image",
    "proof",
    "choice_without_options",
    "answer_too_long",
    "answer_unreadable",
    "pass_rate_outside",
    "duplicate",
    "prompt_too_long",
    "in_benchmark",
    "near_duplicate",
    "over_cap",
)
MALFORMED = "malformed"
# What is counted: the reasons, a part of the duplicates, and rows that stay under another id.
COUNTED = (*REASONS[1:], "duplicate_with_other_answer", "renamed_id")


@dataclasses.dataclass(frozen=True)
class SourceRows:
    """A source that is read.

    Attributes:
        name: its name, unique in a call.
        text: how it was given.
        rows: opens it; rows, or problems that need no parsing.
        count: about how many rows it has, for the progress bar.
        cap: most problems of it that stay; None: all.
        beside: names of files that are not read.
        rules: the row rules and "near" that apply to it.
        marks: True if its problems without a source of their own get its name.
    """

    name: str
    text: str
    rows: Callable[[], Iterable[Row | Problem]]
    count: int = 0
    cap: int | None = None
    beside: str = ""
    rules: Set[str] = frozenset()
    marks: bool = False


@dataclasses.dataclass(frozen=True)
class Rules:
    """What applies to all sources.

    Attributes:
        math_reward: see `row_rules`.
        near_similarity: share of grams from which two problems are near duplicates.
        benchmarks: problems that must not stay, by the name of their benchmark.
        prompt_tokens: returns how many tokens each problem's prompt has.
        max_prompt_tokens: the most that one may have.
        pass_rates: lowest and highest pass rate of a problem whose row has one.
    """

    math_reward: bool
    near_similarity: float
    benchmarks: Sequence[tuple[str, Sequence[Problem]]]
    prompt_tokens: Callable[[Sequence[Problem]], Sequence[int]]
    max_prompt_tokens: int
    pass_rates: tuple[float, float] = (0.0, 1.0)
