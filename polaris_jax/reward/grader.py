"""Grades responses in killable processes: a hanging answer fails alone and never stops the step.

Answers that need no mathematics are decided in this process. Pairs that were graded before come
from a bounded cache. All others go to the worker pool.
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
from polaris_jax.reward.extract import Mode, check_mode, response_answer
from polaris_jax.reward.math.equivalence import Explanation, gold_texts, quick_verdict
from polaris_jax.reward.math.normalize import MAX_ANSWER_CHARS
from polaris_jax.reward.math.policy import policy_named
from polaris_jax.reward.pool import FAILURES, Pair, WorkerPool

MAX_CACHED_PAIRS = 50_000
MAX_CACHED_CHARS = 1 << 25  # about 32 to 130 MiB

_COUNTS = (
    "graded", "correct", "no_answer", "quick", "cached", "worked", "too_long",
    "timeouts", "crashes", "memory", "errors",
)  # fmt: skip
_NO_ANSWER = Explanation(False, "empty", "no answer", "", "")
_NO_GOLD = Explanation(False, "empty", "no gold", "", "")
_TOO_LONG = Explanation(False, "length", f"more than {MAX_ANSWER_CHARS} characters", "", "")
# A failure of the pool -> its count in `Grader.stats`.
_COUNTED_AS = {"timeout": "timeouts", "crash": "crashes", "memory": "memory", "error": "errors"}


class Grade(NamedTuple):
    """The grade of one response.

    Attributes:
        reward: 1.0 or 0.0.
        answer: the extracted answer, or None.
        layer: the deciding layer: an `Explanation.layer`, or "timeout", "memory", "crash", "error".
        reason: one line that says why the answer is wrong; "" if the reward is 1.
        answer_form, gold_form: the normal forms that were compared, shortened.
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
    the rule that the workers apply first. Workers start at the first answer that needs more.
    Several threads may use one Grader: their calls take turns.

    Args:
        workers: number of processes, at least 1.
        timeout_s: deadline of one answer in seconds, above 0 and up to a day. After the deadline
            the answer gets 0, and its process is killed and replaced.
        memory_limit_bytes: address space of one worker, at least 64 MiB; 0: no limit.
        preset: "strict", "default" (used in training) or "lenient"; see `policy`.
        cache: False: every pair is graded anew.

    Raises:
        ValueError: an argument is out of range, or has the wrong type.

    Hanging answers lengthen a call by at most about `ceil(hanging / workers) * (timeout_s + start)`
    seconds, where `start` is the time to replace a worker.
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
        """The rewards, float32, each 0 or 1, in the order of the texts.

        Args:
            texts: prompt + response in train mode, the response alone in other modes.
            golds: a gold answer for each text: a string, a number, None or alternatives.
            mode: "train", "eval" or "free"; see `score_response`.

        Raises:
            ValueError: the lengths differ, `texts` or `golds` is a string, a text is not a string,
                the mode is unknown, or the Grader is closed.
            RuntimeError: workers die before they are ready.
        """
        return np.array([grade.reward for grade in self.grade(texts, golds, mode)], np.float32)

    async def score_async(
        self, texts: Sequence[str], golds: Sequence[object], mode: Mode = "train"
    ) -> np.ndarray:
        """`score`, run in a thread, for callers in an event loop."""
        return await asyncio.to_thread(self.score, texts, golds, mode)

    def grade(
        self, texts: Sequence[str], golds: Sequence[object], mode: Mode = "train"
    ) -> list[Grade]:
        """Like `score`, with the extracted answer, the deciding layer and the reason as well."""
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
        """Counts of answers since the start.

        `graded` and `correct` count all answers. `no_answer`, `quick`, `cached`, `worked` and
        `too_long` say how they were decided. `timeouts`, `crashes`, `memory` and `errors` count
        failures in the workers (all graded 0). `layer/NAME` counts answers by the deciding layer;
        these counts add up to `graded`.
        """
        return {**self._stats, **{f"layer/{name}": n for name, n in self._layers.items()}}

    def close(self) -> None:
        """Ends the workers after a running call has returned. A second close does nothing."""
        with self._lock:
            self._closed = True
            self._pool.close()

    # -- one call ----------------------------------------
    def _at_once(
        self, answer: str | None, golds: tuple[str, ...]
    ) -> tuple[Explanation | None, Pair | None]:
        """A verdict that needs no worker, or the pair that needs one."""
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
        """Counts a worker's verdict, and caches the verdict unless a failure forced it."""
        if verdict.layer in FAILURES:
            self._stats[_COUNTED_AS[verdict.layer]] += 1
        else:
            self._cache.put(pair, verdict)
        self._stats["worked"] += verdict.layer != "crash"


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_texts(texts: Sequence[str], golds: Sequence[object]) -> None:
    for name, values in (("texts", texts), ("golds", golds)):
        if isinstance(values, str):  # a string is a sequence of characters
            raise ValueError(
                f"{name}={values[:40]!r}: expected a list, one entry a response; put it in a list"
            )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"texts[{index}]={text!r}: a response is a text; pass '' where there is none"
            )


class VerdictCache:
    """Verdicts of the newest pairs, bounded by a number of pairs and of characters in total."""

    def __init__(self, max_pairs: int, max_chars: int) -> None:
        self._max_pairs, self._max_chars = max_pairs, max_chars
        self._found: OrderedDict[Pair, Explanation] = OrderedDict()
        self._chars = 0

    def __len__(self) -> int:
        return len(self._found)

    @property
    def chars(self) -> int:
        """Characters of all the pairs and their verdicts."""
        return self._chars

    def get(self, pair: Pair) -> Explanation | None:
        """The verdict of a pair, which becomes the most recently used; None if unknown."""
        if pair not in self._found:
            return None
        self._found.move_to_end(pair)
        return self._found[pair]

    def put(self, pair: Pair, verdict: Explanation) -> None:
        """Adds a new pair and forgets old ones until the bounds hold."""
        self._found[pair] = verdict
        self._chars += _chars(pair, verdict)
        while len(self._found) > self._max_pairs or self._chars > self._max_chars:
            self._chars -= _chars(*self._found.popitem(last=False))

    def clear(self) -> None:
        """Forgets everything."""
        self._found.clear()
        self._chars = 0


def _chars(pair: Pair, verdict: Explanation) -> int:
    texts = (pair[0], *pair[1], verdict.reason, verdict.answer, verdict.gold)
    return sum(map(len, texts))
