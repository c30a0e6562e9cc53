"""What a finished run of a table has shown, and the value that an arm's tuning has chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from polaris_jax.ablate.statistics import Pair
from polaris_jax.ablate.table import Table


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        arm: name of its arm.
        base: name of its base.
        seed: its seed.
        before: its base's held-out score, in [0, 1].
        scores: (step, held-out score) in the order of steps.
        sampled_tokens: response tokens of its training rollouts.
        updates: updates that it made.
        total_tokens: all response tokens that it sampled to learn: training rollouts, temperature
            resets, and the commands before training.
        after: the score of its last weights by `polaris evaluate`, if the table asks for it.
        value: the value of the tuned field that it tried; None for a counted run.
    """

    arm: str
    base: str
    seed: int
    before: float
    scores: tuple[tuple[int, float], ...]
    sampled_tokens: int
    updates: int
    total_tokens: int = 0
    after: float | None = None
    value: Any = None

    @property
    def pair(self) -> Pair:
        """What it is paired by."""
        return self.base, self.seed

    def figure(self, name: str) -> float:
        """The mean of its held-out scores, or the last."""
        values = [score for _, score in self.scores]
        return values[-1] if name == "last" else sum(values) / len(values)


def figures_by_value(table: Table, arm: str, outcomes: Sequence[Outcome]) -> dict[Any, list[float]]:
    """{value: figures of its tuning runs} of an arm, in the table's order of values."""
    if table.tuning is None:
        return {}
    named = next(a for a in table.arms if a.name == arm)
    own = [o for o in outcomes if o.arm == (named.tuned_as or arm) and o.value is not None]
    return {
        value: [o.figure(table.figure) for o in own if o.value == value]
        for value in table.tuning.values
    }


def chosen_value(table: Table, arm: str, outcomes: Sequence[Outcome]) -> Any:
    """The value with the highest mean figure, the first of several; None if none is tuned.

    Raises:
        ValueError: a value has no finished run.
    """
    figures = figures_by_value(table, arm, outcomes)
    for value, found in figures.items():
        if not found:
            raise ValueError(f"arm {arm!r}: no tuning run with {value} is finished")
    return max(figures, key=lambda v: sum(figures[v]) / len(figures[v]), default=None)
