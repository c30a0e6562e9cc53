"""Grades groups while others are still being sampled.

The rewards are those that grading afterwards would give: the reward of an answer does not depend on
when, or with which others, it is graded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from polaris_jax.records import Gold, Group
from polaris_jax.reward.extract import Mode
from polaris_jax.reward.grader import Grader


def gradable(group: Group, mode: Mode) -> list[str]:
    """The texts that the grader reads for a complete group: in train mode prompt + response."""
    prefix = group.prompt_text if mode == "train" else ""
    return [prefix + text for text in group.texts]


class GradeAhead:
    """Rewards of groups, graded by one thread in the order in which they are added.

    Leaving its context after an error drops what is not graded yet.

    Args:
        grader: may be shared with others; calls take turns.
        mode: how answers are extracted; see `Grader.score`.

    Attributes:
        mode: the mode given.
    """

    def __init__(
        self, grader: Grader, mode: Mode, *, grades: Callable[[int], bool] = lambda _: True
    ) -> None:
        self.mode: Mode = mode
        self._grades = grades
        self._grader = grader
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grade-ahead")
        self._rewards: dict[int, Future[list[float]]] = {}

    def __enter__(self) -> GradeAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=False, cancel_futures=error is not None)

    def add(self, number: int, group: Group) -> None:
        """Queues a complete group under `number`, if this process grades it; once each."""
        if not self._grades(number):
            return
        assert number not in self._rewards
        texts = gradable(group, self.mode)
        self._rewards[number] = self._thread.submit(self._score, texts, group.gold)

    def rewards(self) -> dict[int, list[float]]:
        """The rewards of every queued group by its number, once all are graded.

        Raises:
            RuntimeError: the workers died before they were ready.
        """
        return {number: future.result() for number, future in self._rewards.items()}

    def _score(self, texts: Sequence[str], gold: Gold) -> list[float]:
        return [float(r) for r in self._grader.score(texts, [gold] * len(texts), mode=self.mode)]
