"""Grades responses in killable processes: a hanging one fails alone and never stops the step.

The math grader decides answers that need no mathematics in this process, and takes pairs that were
graded before from a bounded cache. All others go to the worker pool, like every response that a
reward function of your own grades.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import numpy as np

from polaris_jax.config.sections import MAX_ANSWER_TIMEOUT_S, MIN_WORKER_MEMORY_BYTES
from polaris_jax.config.settings import ConfigError
from polaris_jax.reward.extract import Mode, check_mode, response_answer
from polaris_jax.reward.math.equivalence import Explanation, gold_texts, quick_verdict
from polaris_jax.reward.math.normalize import MAX_ANSWER_CHARS
from polaris_jax.reward.math.policy import policy_named
from polaris_jax.reward.pool import Failure, WorkerPool
from polaris_jax.reward.protocol import MATH, RewardInput, parse_functions
from polaris_jax.system.progress import say
from polaris_jax.system.text import printable
from polaris_jax.system.user_code import RefusedFunction

MAX_CACHED_PAIRS = 50_000
MAX_CACHED_CHARS = 1 << 25  # about 32 to 130 MiB

_COUNTS = (
    "graded", "correct", "no_answer", "quick", "cached", "worked", "too_long",
    "timeouts", "crashes", "memory", "errors", "invalid",
)  # fmt: skip
_NO_ANSWER = Explanation(False, "empty", "no answer", "", "")
_NO_GOLD = Explanation(False, "empty", "no gold", "", "")
_TOO_LONG = Explanation(False, "length", f"more than {MAX_ANSWER_CHARS} characters", "", "")
# The kind of a `Failure` -> its count in `Grader.stats`, and the reason if the failure has none.
_FAILURES = {
    "timeout": ("timeouts", "no verdict within the deadline"),
    "crash": ("crashes", "its worker died twice"),
    "memory": ("memory", "the worker's memory limit"),
    "error": ("errors", "an error in the worker"),
    "invalid": ("invalid", ""),
}
_NO_PARTS: Mapping[str, float | None] = MappingProxyType({})

Pair = tuple[str, tuple[str, ...]]  # an answer and its gold alternatives


class Grade(NamedTuple):
    """The grade of one response.

    Attributes:
        reward: in [0, 1]; 1.0 or 0.0 from the math grader.
        answer: the extracted answer; None if there is none, or a reward function graded.
        layer: the deciding layer: an `Explanation.layer`, "function" for a reward function, or how
            grading failed: "timeout", "memory", "crash", "error", "invalid".
        reason: one line that says why the answer is wrong, or how grading failed; else "".
        answer_form, gold_form: the normal forms that were compared, shortened.
        parts: named entries that reward functions returned beside the reward.
    """

    reward: float
    answer: str | None
    layer: str
    reason: str
    answer_form: str
    gold_form: str
    parts: Mapping[str, float | None] = _NO_PARTS

    @property
    def failed(self) -> bool:
        """True if grading failed, so that the reward says nothing of the response."""
        return self.layer in _FAILURES


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
        function: reward functions as in `reward.function`; "" is the math grader. The first worker
            starts at once and imports them.

    Raises:
        ValueError: an argument is out of range, or has the wrong type.
        ConfigError: a reward function cannot be used.

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
        function: str = "",
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
        try:
            functions = parse_functions(function)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._is_math = functions == ((MATH, 1.0),)
        self._function, self._functions = function, functions
        self._pool = WorkerPool(
            workers, timeout_s, memory_limit_bytes, preset, () if self._is_math else functions
        )
        self._cache = VerdictCache(MAX_CACHED_PAIRS if cache else 0, MAX_CACHED_CHARS)
        self._lock = threading.RLock()
        self._closed = False
        self._stats: dict[str, int] = dict.fromkeys(_COUNTS, 0)
        self._layers: Counter[str] = Counter()
        self._named: set[tuple[int, str]] = set()
        if not self._is_math:
            try:
                self._pool.start()
            except (RefusedFunction, RuntimeError) as error:
                self._closed = True
                raise ConfigError(f"reward.function={function!r}: {error}") from error

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
        """The rewards, float32, in [0, 1], in the order of the texts.

        Args:
            texts: the responses; in train mode with their prompts before them. See
                `score_response`.
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
        return self.grade_inputs(
            [
                RewardInput(text, answer=gold, mode=mode)  # pyright: ignore[reportArgumentType]
                for text, gold in zip(texts, golds, strict=True)
            ]
        )

    def grade_inputs(self, responses: Sequence[RewardInput]) -> list[Grade]:
        """A grade of each response, with all that a reward function may look at.

        Raises:
            ValueError: the Grader is closed.
            RuntimeError: workers die before they are ready, or can no longer import a function.
        """
        with self._lock:
            if self._closed:
                raise ValueError("this Grader is closed; make a new one")
            grade = self._by_math if self._is_math else self._by_functions
            grades = grade(responses)
            self._stats["graded"] += len(grades)
            self._stats["correct"] += sum(grade.reward == 1.0 for grade in grades)
            self._layers.update(grade.layer for grade in grades)
            return grades

    def stats(self) -> dict[str, int]:
        """Counts of answers since the start.

        `graded` and `correct` count all answers. `no_answer`, `quick`, `cached`, `worked` and
        `too_long` say how they were decided. `timeouts`, `crashes`, `memory`, `errors` and
        `invalid` count failures in the workers (all graded 0). `layer/NAME` counts answers by the
        deciding layer; these counts add up to `graded`.
        """
        return {**self._stats, **{f"layer/{name}": n for name, n in self._layers.items()}}

    def close(self) -> None:
        """Ends the workers after a running call has returned. A second close does nothing."""
        with self._lock:
            self._closed = True
            self._pool.close()

    # -- reward functions --------------------------------
    def _by_functions(self, responses: Sequence[RewardInput]) -> list[Grade]:
        requests = [dict(vars(response)) for response in responses]
        try:
            replies = self._pool.work(requests)
        except RefusedFunction as error:
            raise RuntimeError(f"reward.function={self._function!r}: {error}") from error
        self._stats["worked"] += len(replies)
        grades = []
        for response, reply in zip(responses, replies, strict=True):
            if isinstance(reply, Failure):
                reason = self._note(reply, response)
                grades.append(Grade(0.0, None, reply.kind, reason, "", ""))
            else:
                reward, parts = reply
                grades.append(Grade(reward, None, "function", "", "", "", parts))
        return grades

    def _note(self, failure: Failure, response: RewardInput) -> str:
        """Counts a function's failure and returns its reason; names the first of each kind."""
        path = self._functions[failure.function][0]
        problem = f" (problem {response.problem_id!r})" if response.problem_id else ""
        return self._count(failure, f"reward.function: {path}", problem)

    def _count(self, failure: Failure, who: str, where: str) -> str:
        """Counts a failure and returns its reason; warns of the first of each kind."""
        name, reason = _FAILURES[failure.kind]
        reason = failure.reason or reason
        self._stats[name] += 1
        if (failure.function, failure.kind) not in self._named:
            self._named.add((failure.function, failure.kind))
            say(
                f"warning: {who}: {reason}{where}: this response and others like it score 0; "
                f"they are counted as {name}, and this is said once",
                sys.stderr,
            )
        return reason

    # -- the math grader ---------------------------------
    def _by_math(self, responses: Sequence[RewardInput]) -> list[Grade]:
        answers = [response_answer(one.graded_text, one.mode) for one in responses]
        found: list[Explanation | None] = []
        waiting: OrderedDict[Pair, list[int]] = OrderedDict()
        for index, (answer, response) in enumerate(zip(answers, responses, strict=True)):
            known, pair = self._at_once(answer, gold_texts(response.answer))
            found.append(known)
            if pair is not None:
                waiting.setdefault(pair, []).append(index)
        replies = self._pool.work([[answer, golds] for answer, golds in waiting])
        for (pair, indices), reply in zip(waiting.items(), replies, strict=True):
            verdict = self._verdict(pair, reply)
            for index in indices:
                found[index] = verdict
            self._stats["cached"] += len(indices) - 1
        return [
            Grade(float(one.equal), answer, *one[1:])
            for answer, one in zip(answers, found, strict=True)
            if one is not None
        ]

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

    def _verdict(self, pair: Pair, reply: list[Any] | Failure) -> Explanation:
        """A worker's verdict, counted, and cached unless a failure forced it."""
        if isinstance(reply, Failure):
            where = f" (answer {printable(pair[0])[:60]!r}, gold {printable(pair[1][0])[:60]!r})"
            reason = self._count(reply, "the math grader", where)
            self._stats["worked"] += reply.kind != "crash"
            return Explanation(False, reply.kind, reason, "", "")
        verdict = Explanation(*reply)
        self._cache.put(pair, verdict)
        self._stats["worked"] += 1
        return verdict


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
