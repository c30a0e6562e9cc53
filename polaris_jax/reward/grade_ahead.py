"""Grades groups while others are still being sampled.

The rewards are those that grading afterwards would give: the reward of an answer does not depend on
when, or with which others, it is graded.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from polaris_jax.records import Group
from polaris_jax.reward.extract import Mode
from polaris_jax.reward.grader import Grade, Grader
from polaris_jax.reward.protocol import RewardInput


def reward_inputs(group: Group, mode: Mode) -> list[RewardInput]:
    """Each response of a complete group as a reward function sees it."""
    return [
        RewardInput(
            text,
            prompt_text=group.prompt_text,
            answer=group.gold,
            problem_id=group.problem_id,
            extra=group.extra,
            finish_reason=response.finish_reason,
            num_tokens=len(response.token_ids),
            mode=mode,
        )
        for text, response in zip(group.texts, group.responses, strict=True)
    ]


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
        self._graded: dict[int, Future[list[Grade]]] = {}

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
        assert number not in self._graded
        self._graded[number] = self._thread.submit(
            self._grader.grade_inputs, reward_inputs(group, self.mode)
        )

    def graded(self) -> dict[int, list[Grade]]:
        """The grades of every queued group by its number, once all are graded.

        Raises:
            RuntimeError: the workers died before they were ready.
        """
        return {number: future.result() for number, future in self._graded.items()}
