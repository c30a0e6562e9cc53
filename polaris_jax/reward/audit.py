"""A second opinion on graded pairs: sympy's, under the grader's own deadline and limits."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

from polaris_jax.config.settings import ConfigError
from polaris_jax.reward.pool import Failure, WorkerPool
from polaris_jax.reward.protocol import RewardInput
from polaris_jax.system.user_code import RefusedFunction

JUDGE = "polaris_jax.reward.sympy_judge:judge"
_REASONS = {
    "timeout": "no verdict within the deadline",
    "crash": "its worker died twice",
    "memory": "the worker's memory limit",
}


class SecondOpinion(NamedTuple):
    """What sympy says of one pair.

    Attributes:
        equal: True if sympy calls answer and gold equal; None if it has no verdict.
        reason: why there is no verdict; "" if there is one.
    """

    equal: bool | None
    reason: str


class SympyAudit:
    """Worker processes that ask sympy whether answers equal their golds. Close them at the end.

    Args:
        workers: number of processes, at least 1.
        timeout_s: deadline of one pair in seconds. Its process is then killed and replaced.
        memory_limit_bytes: address space of one worker; 0: no limit.

    Raises:
        ConfigError: sympy is not installed, or cannot be imported.
    """

    def __init__(self, workers: int, timeout_s: float, memory_limit_bytes: int) -> None:
        if importlib.util.find_spec("sympy") is None:
            raise ConfigError("--audit=sympy: sympy is not installed; pip install 'sympy>=1.13'")
        self._pool = WorkerPool(workers, timeout_s, memory_limit_bytes, "default", ((JUDGE, 1.0),))
        try:
            self._pool.start()
        except (RefusedFunction, RuntimeError) as error:
            self._pool.close()
            raise ConfigError(
                f"--audit=sympy: its worker does not start ({error}); pip install 'sympy>=1.13'"
            ) from error

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()

    def judge(self, answers: Sequence[str | None], golds: Sequence[object]) -> list[SecondOpinion]:
        """sympy's verdict on each pair, in order.

        Args:
            answers: extracted answers; None where a response has none, which equals nothing.
            golds: a gold answer for each: a string, a number, None or alternatives.
        """
        pairs = list(zip(answers, golds, strict=True))
        asked = [index for index, (answer, _) in enumerate(pairs) if answer is not None]
        requests = [
            dict(vars(RewardInput(pairs[i][0] or "", answer=pairs[i][1])))  # pyright: ignore[reportArgumentType]
            for i in asked
        ]
        found = [SecondOpinion(False, "") for _ in pairs]
        for index, reply in zip(asked, self._pool.work(requests), strict=True):
            if isinstance(reply, Failure):
                reason = reply.reason.removeprefix("Unjudged: ")
                found[index] = SecondOpinion(None, _REASONS.get(reply.kind, reason))
            else:
                found[index] = SecondOpinion(reply[0] == 1.0, "")
        return found
