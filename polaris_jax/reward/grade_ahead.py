"""Grades responses while others are still being sampled.

The rewards are those that grading afterwards would give: the reward of an answer does not depend on
when, or with which others, it is graded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from polaris_jax.records import Group
from polaris_jax.reward.extract import Mode
from polaris_jax.reward.grader import Grade, Grader
from polaris_jax.reward.protocol import RewardInput


def reward_input(group: Group, sample: int, text: str, mode: Mode) -> RewardInput:
    """One ended response of a group as a reward function sees it; `text` is the response's."""
    response = group.responses[sample]
    return RewardInput(
        text,
        prompt_text=group.prompt_text,
        answer=group.gold,
        problem_id=group.problem_id,
        extra=group.extra,
        finish_reason=response.finish_reason,
        num_tokens=len(response.token_ids),
        mode=mode,
        opening=group.opening,
    )


class GradeAhead:
    """Rewards of responses, graded by one thread; what waits is graded together.

    Leaving its context after an error drops what is not graded yet.

    Args:
        grader: may be shared with others; calls take turns.
        mode: how answers are extracted; see `Grader.score`.

    Attributes:
        mode: the mode given.
    """

    def __init__(self, grader: Grader, mode: Mode) -> None:
        self.mode: Mode = mode
        self._grader = grader
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grade-ahead")
        self._waiting: deque[tuple[tuple[int, int], RewardInput]] = deque()
        self._turns: list[Future[None]] = []
        self._graded: dict[tuple[int, int], Grade] = {}
        self._known: set[tuple[int, int]] = set()

    def __enter__(self) -> GradeAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=False, cancel_futures=error is not None)

    def add(self, number: int, group: Group, texts: Mapping[int, str]) -> None:
        """Queues ended responses of group `number`; each response once.

        Args:
            number: the group's number.
            group: the group; only the responses in `texts` need be ended.
            texts: text of each response to grade, by sample.
        """
        for sample, text in texts.items():
            assert (number, sample) not in self._known
            self._known.add((number, sample))
            self._waiting.append(((number, sample), reward_input(group, sample, text, self.mode)))
        self._turns.append(self._thread.submit(self._grade_waiting))

    def graded(self) -> dict[tuple[int, int], Grade]:
        """The grade of every queued response by (group's number, sample), once all are graded.

        Raises:
            RuntimeError: the workers died before they were ready.
        """
        for turn in self._turns:
            turn.result()
        return dict(self._graded)

    def _grade_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        grades = self._grader.grade_inputs([response for _, response in batch])
        self._graded |= {key: grade for (key, _), grade in zip(batch, grades, strict=True)}
