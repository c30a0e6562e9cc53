"""Response lengths of each problem, so that a batch can start with the longest responses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class LengthTable:
    """Mean response tokens of every problem's newest visit.

    Record each visit once, before rescue and substitution.

    Args:
        calibrated: problem id -> mean response tokens, known before the run's first visit.
    """

    def __init__(self, calibrated: Mapping[str, float] | None = None) -> None:
        self._means = dict(calibrated or {})

    def __copy__(self) -> LengthTable:
        """A copy that later records do not change."""
        return LengthTable(self._means)

    def add_unknown(self, other: LengthTable) -> None:
        """Takes the other table's lengths of problems that this one does not have."""
        self._means = {**other._means, **self._means}

    def drop(self, problem_ids: Iterable[str]) -> None:
        """Deletes the lengths of these problems."""
        for problem_id in problem_ids:
            self._means.pop(problem_id, None)

    def record(
        self, problem_ids: Sequence[str], token_ids: Sequence[Sequence[Sequence[int]]]
    ) -> None:
        """Records the mean response tokens of each problem's visit.

        Args:
            problem_ids: P ids.
            token_ids: token ids of the responses, [P][R].
        """
        for problem_id, group in zip(problem_ids, token_ids, strict=True):
            self._means[problem_id] = math.fsum(map(len, group)) / len(group)

    def expected(
        self, problem_ids: Sequence[str], *, max_response_tokens: int
    ) -> list[float] | None:
        """The expected tokens of a response to each problem.

        A problem that was never visited gets the mean of the visited ones in `problem_ids`.

        Args:
            problem_ids: P ids.
            max_response_tokens: budget of a response.

        Returns:
            One number in [0, max_response_tokens] for each problem; None if none was visited.
        """
        known = [self._means[i] for i in problem_ids if i in self._means]
        if not known:
            return None
        mean = math.fsum(known) / len(known)
        return [min(float(max_response_tokens), self._means.get(i, mean)) for i in problem_ids]

    def state_dict(self) -> dict[str, Any]:
        """The table's contents in plain JSON types."""
        return {"means": [[i, mean] for i, mean in self._means.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the contents by those of a `state_dict`."""
        self._means = {i: float(mean) for i, mean in state["means"]}
