"""What a config must know of a data set: its rows, its answers' kinds and its prompts' lengths."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from polaris_jax.data.problem_sets import cap_warnings
from polaris_jax.data.problems import ReadReport, read_problems
from polaris_jax.data.prompts import PromptFormat, lacks_question
from polaris_jax.data.sources import read_rows, resolve_source
from polaris_jax.records import Problem
from polaris_jax.reward.golds import gold_kinds
from polaris_jax.system.text import printable

MOST_LOOKED_AT = 2000  # problems whose prompt is rendered and whose gold is read
SHOWN_CHARS = 240  # of the example prompt
UNREADABLE = "unreadable"
NAMES = {
    "number": "numbers",
    "formula": "formulas",
    "choice": "letters of a choice",
    "words": "words",
    UNREADABLE: "nothing that the math grader can read (programs, unit tests, proofs)",
}


@dataclasses.dataclass(frozen=True)
class ProblemFacts:
    """What was found.

    Attributes:
        source: the data set as named.
        problems: its problems.
        report: rows read and left out.
        columns: names of the first row's columns.
        lengths: tokens of the prompts that were rendered, ascending.
        kinds: {kind of the golds: share of the problems looked at}.
        without_question: share of the prompts that do not hold their question.
        example: the first prompt.
    """

    source: str
    problems: Sequence[Problem]
    report: ReadReport
    columns: tuple[str, ...]
    lengths: tuple[int, ...]
    kinds: dict[str, float]
    without_question: float
    example: str

    @property
    def main_kind(self) -> str:
        """The kind of most golds."""
        return max(self.kinds, key=lambda kind: self.kinds[kind])

    def length_at(self, share: float) -> int:
        """The prompt length that `share` of the prompts do not exceed, in tokens."""
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))]

    def lines(self) -> list[str]:
        """The facts for a person."""
        left_out = ", ".join(f"{count} {name}" for name, count in self.report.counts.items())
        kinds = ", ".join(
            f"{share:.0%} {NAMES[kind]}"
            for kind, share in sorted(self.kinds.items(), key=lambda item: -item[1])
        )
        shown = printable(self.example[: SHOWN_CHARS + 1])
        shown = shown if len(self.example) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}..."
        return [
            f"{len(self.problems):,} problems of {self.report.rows:,} rows"
            + (f" ({left_out})" if left_out else "")
            + f"; columns {printable(', '.join(self.columns))}",
            f"answers: {kinds}",
            f"prompts: {self.lengths[0]:,} to {self.lengths[-1]:,} tokens, 99% have at most "
            f"{self.length_at(0.99):,}; the first: {shown}",
            *self.report.warnings,
            *cap_warnings(self.source, "--data"),
        ]


def look_at_problems(source: str, tokenizer: Any, *, suffix: str) -> ProblemFacts:
    """The facts of a data set, asked with a model's chat template.

    Args:
        source: file, directory, Hub name or function, as in `data.problems`.
        tokenizer: the model's tokenizer.
        suffix: `data.prompt_suffix`.

    Raises:
        DataError: the source is missing or unreadable, or holds no problem.
        ForeignFileError: the chat template fails.
    """
    problems, report = read_problems(source, field="--data")
    first = next((row.fields for row in read_rows(resolve_source(source)) if not row.error), {})
    step = -(-len(problems) // MOST_LOOKED_AT)
    some = problems[::step]
    prompts = PromptFormat(suffix=suffix).render(tokenizer, some)
    kinds: Counter[str] = Counter()
    for problem in some:
        found = gold_kinds(problem.answer)
        kinds[min(found) if found else UNREADABLE] += 1
    lacking = [
        lacks_question(text, problem.problem)
        for problem, (text, _) in zip(some, prompts, strict=True)
    ]
    return ProblemFacts(
        source=source,
        problems=problems,
        report=report,
        columns=tuple(map(str, first)),
        lengths=tuple(sorted(len(ids) for _, ids in prompts)),
        kinds={kind: count / len(some) for kind, count in kinds.items()},
        without_question=float(np.mean(lacking)),
        example=prompts[0][0],
    )
