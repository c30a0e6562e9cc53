"""Grades groups while others are still being sampled.

The rewards are those that grading afterwards would give: an answer's reward does not depend on when
or with which others it is graded.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from polaris_jax.records import Gold
from polaris_jax.reward import Grader
from polaris_jax.reward.extract import Mode


class GradeAhead:
    """Rewards of groups, graded by one thread in the order in which they come.

    As a context manager it lets go of what is not graded yet where the body raises.

    Args:
        grader: shared with others; calls take turns.
        mode: as in `Grader.score`.

    Attributes:
        mode: the same.
    """

    def __init__(self, grader: Grader, mode: Mode) -> None:
        self.mode: Mode = mode
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

    def add(self, group: int, texts: Sequence[str], gold: Gold) -> None:
        """Queues a group's responses.

        Args:
            group: its number, once each.
            texts: prompt + response each in train mode, the response alone otherwise.
            gold: of all of them.
        """
        assert group not in self._rewards
        self._rewards[group] = self._thread.submit(self._score, list(texts), gold)

    def rewards(self) -> dict[int, list[float]]:
        """Every queued group's rewards, once they are all there.

        Raises:
            RuntimeError: the workers died before they were ready.
        """
        return {group: future.result() for group, future in self._rewards.items()}

    def _score(self, texts: list[str], gold: Gold) -> list[float]:
        return [float(r) for r in self._grader.score(texts, [gold] * len(texts), mode=self.mode)]
