"""Rewards from killable processes: a hanging answer costs that answer, never the step.

What needs no mathematics is decided here, what was seen before comes from a bounded cache, the rest
goes to the pool.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np

from polaris_jax.config.sections import MAX_ANSWER_TIMEOUT_S, MIN_WORKER_MEMORY_BYTES
from polaris_jax.reward.cache import VerdictCache
from polaris_jax.reward.equivalence import Explanation, gold_texts, quick_verdict
from polaris_jax.reward.extract import Mode, check_mode, response_answer
from polaris_jax.reward.normalize import MAX_ANSWER_CHARS
from polaris_jax.reward.policy import policy_named
from polaris_jax.reward.pool import FAILURES, WorkerPool
from polaris_jax.reward.worker_process import Pair

MAX_CACHED_PAIRS = 50_000
MAX_CACHED_CHARS = 1 << 25  # some 32 to 130 MiB

_COUNTS = (
    "graded", "correct", "no_answer", "quick", "cached", "worked", "too_long",
    "timeouts", "crashes", "memory", "errors",
)  # fmt: skip
_NO_ANSWER = Explanation(False, "empty", "no answer", "", "")
_NO_GOLD = Explanation(False, "empty", "no gold", "", "")
_TOO_LONG = Explanation(False, "length", f"more than {MAX_ANSWER_CHARS} characters", "", "")
# The count of `Grader.stats` that a failure of the pool goes to.
_COUNTED_AS = {"timeout": "timeouts", "crash": "crashes", "memory": "memory", "error": "errors"}


class Grade(NamedTuple):
    """One response, graded.

    Attributes:
        reward: 1.0 or 0.0.
        answer: what was extracted, or None.
        layer: what decided: one of `Explanation.layer`, or "timeout", "memory", "crash", "error".
        reason: why not, in a line; "" where the reward is 1.
        answer_form, gold_form: the normal forms compared, cut short.
    """

    reward: float
    answer: str | None
    layer: str
    reason: str
    answer_form: str
    gold_form: str


class Grader:
    """Rewards of responses, graded by worker processes under a deadline and a memory limit.

    Answers that need no mathematics (equal texts, plain numbers) are decided in this process by
    the rule that the workers apply first; workers start at the first answer that needs more. One
    Grader may be used from several threads: their calls take turns.

    Args:
        workers: processes, at least 1.
        timeout_s: deadline of one answer in seconds, above 0 and up to a day; past it the answer
            gets 0 and its process is killed and replaced.
        memory_limit_bytes: address space of one worker, at least 64 MiB; 0 for none.
        preset: "strict", "default" (as training does) or "lenient", as in `policy`.
        cache: False grades every pair anew.

    Raises:
        ValueError: an argument out of range, or not of its type.

    A call takes at most about `ceil(hanging / workers) * (timeout_s + start)` for its hanging
    answers, start being the seconds in which a worker is replaced, and the work on the others.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout_s: float = 5.0,
        memory_limit_bytes: int = 1 << 30,
        *,
        preset: str = "default",
        cache: bool = True,
    ) -> None:
        if not _is_whole(workers) or workers < 1:
            raise ValueError(
                f"workers={workers!r}: grading needs a whole number of processes, at least 1; set "
                "reward.workers=1"
            )
        is_number = _is_whole(timeout_s) or isinstance(timeout_s, float | np.floating)
        if not is_number or not 0 < timeout_s <= MAX_ANSWER_TIMEOUT_S:
            raise ValueError(
                f"timeout_s={timeout_s!r}: a deadline is a number of seconds above 0, at most "
                f"{MAX_ANSWER_TIMEOUT_S:g} (a day); set reward.timeout_s=5.0"
            )
        if not _is_whole(memory_limit_bytes) or (
            memory_limit_bytes != 0 and memory_limit_bytes < MIN_WORKER_MEMORY_BYTES
        ):
            raise ValueError(
                f"memory_limit_bytes={memory_limit_bytes!r}: a worker needs "
                f"{MIN_WORKER_MEMORY_BYTES} to load; pass a whole number from there, or 0 for no "
                "limit"
            )
        policy_named(preset)
        self._pool = WorkerPool(workers, timeout_s, memory_limit_bytes, preset)
        self._cache = VerdictCache(MAX_CACHED_PAIRS if cache else 0, MAX_CACHED_CHARS)
        self._lock = threading.RLock()
        self._closed = False
        self._stats: dict[str, int] = dict.fromkeys(_COUNTS, 0)
        self._layers: Counter[str] = Counter()

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def score(
        self, texts: Sequence[str], golds: Sequence[object], mode: Mode = "train"
    ) -> np.ndarray:
        """Rewards in the order of the texts, float32, each 0 or 1.

        Args:
            texts: prompt + response each in train mode, the response alone otherwise.
            golds: a gold answer for each text: a string, a number, None or alternatives.
            mode: "train", "eval" or "free", as in `score_response`.

        Raises:
            ValueError: lengths that differ, one text in place of a list, a text that is none,
                another mode, or a closed Grader.
            RuntimeError: workers die before they are ready.
        """
        return np.array([grade.reward for grade in self.grade(texts, golds, mode)], np.float32)

    async def score_async(
        self, texts: Sequence[str], golds: Sequence[object], mode: Mode = "train"
    ) -> np.ndarray:
        """`score` in a thread, for callers in an event loop."""
        return await asyncio.to_thread(self.score, texts, golds, mode)

    def grade(
        self, texts: Sequence[str], golds: Sequence[object], mode: Mode = "train"
    ) -> list[Grade]:
        """`score` with the extracted answer, the deciding layer and the reason of each reward."""
        check_mode(mode)
        _check_texts(texts, golds)
        if len(texts) != len(golds):
            raise ValueError(
                f"{len(texts)} texts and {len(golds)} golds: each response needs its own gold"
            )
        with self._lock:
            if self._closed:
                raise ValueError("this Grader is closed; make a new one")
            answers = [response_answer(text, mode) for text in texts]
            found: list[Explanation | None] = []
            waiting: OrderedDict[Pair, list[int]] = OrderedDict()
            for index, (answer, gold) in enumerate(zip(answers, golds, strict=True)):
                known, pair = self._at_once(answer, gold_texts(gold))
                found.append(known)
                if pair is not None:
                    waiting.setdefault(pair, []).append(index)
            pairs = list(waiting)
            for pair, verdict in zip(pairs, self._pool.work(pairs), strict=True):
                self._record(pair, verdict)
                for index in waiting[pair]:
                    found[index] = verdict
                self._stats["cached"] += len(waiting[pair]) - 1
            grades = [
                Grade(float(one.equal), answer, *one[1:])
                for answer, one in zip(answers, found, strict=True)
                if one is not None
            ]
            self._stats["graded"] += len(texts)
            self._stats["correct"] += sum(grade.reward == 1.0 for grade in grades)
            self._layers.update(grade.layer for grade in grades)
            return grades

    def stats(self) -> dict[str, int]:
        """Counts since the start.

        graded and correct; by way no_answer, quick, cached, worked, too_long; of the worked ones
        timeouts, crashes, memory and errors (all graded 0); `layer/NAME` by the layer that decided,
        which add up to graded.
        """
        return {**self._stats, **{f"layer/{name}": n for name, n in self._layers.items()}}

    def close(self) -> None:
        """Ends the workers, once a call in another thread has returned. A second does nothing."""
        with self._lock:
            self._closed = True
            self._pool.close()

    # -- one call ----------------------------------------
    def _at_once(
        self, answer: str | None, golds: tuple[str, ...]
    ) -> tuple[Explanation | None, Pair | None]:
        """A verdict that needs no worker, or the pair that does."""
        if answer is None or not golds:
            self._stats["no_answer"] += 1
            return (_NO_GOLD if answer else _NO_ANSWER), None
        if (verdict := quick_verdict(answer, golds)) is not None:
            too_long = verdict.layer == "length"
            self._stats["too_long" if too_long else "quick"] += 1
            return verdict, None
        golds = tuple(gold for gold in golds if len(gold) <= MAX_ANSWER_CHARS)
        if len(answer) > MAX_ANSWER_CHARS or not golds:
            self._stats["too_long"] += 1
            return _TOO_LONG, None
        if (verdict := self._cache.get((answer, golds))) is not None:
            self._stats["cached"] += 1
            return verdict, None
        return None, (answer, golds)

    def _record(self, pair: Pair, verdict: Explanation) -> None:
        """Counts a worker's verdict; one that a deadline or a limit forced is not remembered."""
        if verdict.layer in FAILURES:
            self._stats[_COUNTED_AS[verdict.layer]] += 1
        else:
            self._cache.put(pair, verdict)
        self._stats["worked"] += verdict.layer != "crash"


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_texts(texts: Sequence[str], golds: Sequence[object]) -> None:
    for name, values in (("texts", texts), ("golds", golds)):
        if isinstance(values, str):  # a sequence too, of characters
            raise ValueError(
                f"{name}={values[:40]!r}: expected a list, one entry a response; put it in a list"
            )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"texts[{index}]={text!r}: a response is a text; pass '' where there is none"
            )
