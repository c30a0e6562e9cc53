"""A pool of killable grading processes: one hanging answer costs that answer, never the step.

Workers are programs (`sys.executable -m polaris_jax.reward.worker`) talked to over pipes, not
multiprocessing children: those import the main script again, and JAX with it, and die in scripts
without a `__main__` guard, from stdin and in notebooks.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from polaris_jax.reward.equivalence import gold_texts, quick_verdict
from polaris_jax.reward.extract import Mode, check_mode, response_answer
from polaris_jax.reward.normalize import MAX_ANSWER_CHARS

START_TIMEOUT_S = 60.0  # a loaded machine may take long to start Python
MAX_CACHE = 50_000
MAX_ATTEMPTS = 2  # an answer whose worker died from outside is graded once more
MAX_FAILED_STARTS = 3

_COUNTS = (
    "graded", "correct", "no_answer", "quick", "cached", "worked", "too_long",
    "timeouts", "crashes", "memory", "errors",
)  # fmt: skip

Pair = tuple[str, tuple[str, ...]]


def worker_command(timeout_s: float, memory_limit_bytes: int) -> list[str]:
    """The command line of a worker; -P keeps files of the current directory out of its imports."""
    arguments = [str(timeout_s), str(memory_limit_bytes)]
    return [sys.executable, "-P", "-m", "polaris_jax.reward.worker", *arguments]


def _worker_environment() -> dict[str, str]:
    """The parent's environment, with this very package importable in the child."""
    import polaris_jax

    root = str(Path(polaris_jax.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = root if not inherited else os.pathsep.join([root, inherited])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class _Worker:
    """One child process: idle, starting, or busy with one pair under a deadline."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_worker_environment(),
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone
        )
        self.ready = False
        self.index: int | None = None  # of the pair it is busy with
        self.deadline_s = time.monotonic() + START_TIMEOUT_S
        self.buffer = b""

    @property
    def output(self) -> Any:
        return self.process.stdout

    def send(self, index: int, pair: Pair, timeout_s: float) -> bool:
        """Whether the request went out; False if the process is dead."""
        line = json.dumps([pair[0], list(pair[1])]).encode() + b"\n"
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except (BrokenPipeError, OSError):
            return False
        self.index = index
        self.deadline_s = time.monotonic() + timeout_s
        return True

    def receive(self) -> list[Any] | None:
        """Whole replies read so far; None when the process has closed its end."""
        chunk = os.read(self.output.fileno(), 65536)
        if not chunk:
            return None
        *lines, self.buffer = (self.buffer + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self, *, gently: bool = False) -> None:
        """Ends and reaps the process and closes both pipes."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(OSError):  # what was still buffered for a dead process
            stdin.close()
        if gently:
            try:
                self.process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                gently = False
        if not gently:
            self.process.kill()
        self.process.wait()
        stdout.close()


class Grader:
    """Rewards of responses, graded by worker processes under a deadline and a memory limit.

    Answers that need no mathematics (equal texts, plain numbers) are decided in this process by
    the rule that the workers apply first; workers start at the first answer that needs more. One
    Grader may be used from several threads: their calls take turns.

    Args:
        workers: processes, at least 1.
        timeout_s: deadline of one answer in seconds, above 0; past it the answer gets 0 and its
            process is killed and replaced.
        memory_limit_bytes: address space of one worker; 0 for none.

    Raises:
        ValueError: an argument out of range.

    A call takes at most about `ceil(answers / workers) * timeout_s`, were every answer to hang.
    """

    def __init__(
        self, workers: int = 2, timeout_s: float = 5.0, memory_limit_bytes: int = 1 << 30
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}: grading needs at least 1; set reward.workers=1")
        if not 0 < timeout_s < float("inf"):
            raise ValueError(f"timeout_s={timeout_s}: a deadline is a finite number above 0")
        if memory_limit_bytes and memory_limit_bytes < 1 << 26:
            raise ValueError(
                f"memory_limit_bytes={memory_limit_bytes}: a worker needs {1 << 26} to load; "
                "raise it, or pass 0 for no limit"
            )
        self._count = workers
        self._timeout_s = timeout_s
        self._memory_limit_bytes = memory_limit_bytes
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._cache: OrderedDict[Pair, bool] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._stats: dict[str, int] = dict.fromkeys(_COUNTS, 0)

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
            texts: prompt + response each in train mode, the response alone in eval mode.
            golds: a gold answer for each text: a string, a number, None or alternatives.
            mode: "train" or "eval", as in `score_response`.

        Raises:
            ValueError: lengths that differ, another mode, or a closed Grader.
            RuntimeError: workers die before they are ready.
        """
        check_mode(mode)
        if len(texts) != len(golds):
            raise ValueError(
                f"{len(texts)} texts and {len(golds)} golds: each response needs its own gold"
            )
        with self._lock:
            if self._closed:
                raise ValueError("this Grader is closed; make a new one")
            rewards = np.zeros(len(texts), np.float32)
            waiting: OrderedDict[Pair, list[int]] = OrderedDict()
            for index, (text, gold) in enumerate(zip(texts, golds, strict=True)):
                pair = self._pair(text, gold, mode)
                verdict = None if pair is None else self._known_verdict(pair)
                if pair is not None and verdict is None:
                    waiting.setdefault(pair, []).append(index)
                rewards[index] = float(verdict or False)
            pairs = list(waiting)
            for pair, verdict in zip(pairs, self._work(pairs), strict=True):
                rewards[waiting[pair]] = float(verdict)
                self._stats["cached"] += len(waiting[pair]) - 1
            self._stats["graded"] += len(texts)
            self._stats["correct"] += int(rewards.sum())
            return rewards

    def stats(self) -> dict[str, int]:
        """Counts since the start: graded and correct; by way no_answer, quick, cached, worked,
        too_long; of the worked ones timeouts, crashes, memory and errors (all graded 0)."""
        return dict(self._stats)

    def close(self) -> None:
        """Ends the workers. A second call does nothing."""
        self._closed = True
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.stop(gently=worker.index is None and worker.ready)

    # -- one call ----------------------------------------
    def _pair(self, text: str, gold: object, mode: Mode) -> Pair | None:
        golds = gold_texts(gold)
        answer = response_answer(text, mode)
        if answer is None or not golds:
            self._stats["no_answer"] += 1
            return None
        if len(answer) > MAX_ANSWER_CHARS and answer not in golds:
            self._stats["too_long"] += 1
            return None
        return answer, golds

    def _known_verdict(self, pair: Pair) -> bool | None:
        verdict = quick_verdict(*pair)
        if verdict is not None:
            self._stats["quick"] += 1
            return verdict
        if pair in self._cache:
            self._stats["cached"] += 1
            self._cache.move_to_end(pair)
            return self._cache[pair]
        return None

    def _remember(self, pair: Pair, verdict: bool) -> None:
        self._cache[pair] = verdict
        if len(self._cache) > MAX_CACHE:
            self._cache.popitem(last=False)

    # -- the pool ----------------------------------------
    def _work(self, pairs: list[Pair]) -> list[bool]:
        """Verdicts of pairs in order; workers that were busy when this is left early are ended."""
        if not pairs:
            return []
        try:
            return self._dispatch(pairs)
        except (
            BaseException
        ):  # Ctrl-C included: a busy worker's late reply must not meet a new call
            for worker in self._workers:
                worker.stop()
            self._workers = []
            raise

    def _dispatch(self, pairs: list[Pair]) -> list[bool]:
        verdicts = [False] * len(pairs)
        queue = deque(range(len(pairs)))
        attempts = [0] * len(pairs)
        left = len(pairs)
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.output, selectors.EVENT_READ, worker)

            def replace(worker: _Worker) -> None:
                selector.unregister(worker.output)
                self._workers.remove(worker)
                worker.stop()

            while left:
                while len(self._workers) < min(self._count, left):
                    worker = _Worker(worker_command(self._timeout_s, self._memory_limit_bytes))
                    self._workers.append(worker)
                    selector.register(worker.output, selectors.EVENT_READ, worker)
                for worker in list(self._workers):
                    if queue and worker.ready and worker.index is None:
                        index = queue.popleft()
                        attempts[index] += 1
                        if not worker.send(index, pairs[index], self._timeout_s):
                            attempts[index] -= 1
                            queue.appendleft(index)
                            replace(worker)
                for worker in self._next_events(selector):
                    replies = worker.receive()
                    if replies is None:
                        index = worker.index
                        replace(worker)
                        if index is None:
                            self._count_failed_start(worker)
                        elif attempts[index] < MAX_ATTEMPTS:
                            queue.appendleft(index)
                        else:
                            self._stats["crashes"] += 1
                            left -= 1
                        continue
                    for reply in replies:
                        if reply == "ready":
                            worker.ready = True
                            self._failed_starts = 0
                        elif worker.index is not None:
                            self._accept(pairs[worker.index], reply)
                            verdicts[worker.index] = reply is True
                            worker.index = None
                            left -= 1
                now_s = time.monotonic()
                for worker in list(self._workers):
                    if (worker.ready and worker.index is None) or now_s < worker.deadline_s:
                        continue
                    index = worker.index
                    replace(worker)
                    if index is None:
                        self._count_failed_start(worker)
                    else:
                        self._stats["timeouts"] += 1
                        self._stats["worked"] += 1
                        left -= 1
        return verdicts

    def _next_events(self, selector: selectors.BaseSelector) -> list[_Worker]:
        waiting = [w.deadline_s for w in self._workers if not w.ready or w.index is not None]
        if not waiting:
            return []
        pause_s = max(0.0, min(waiting) - time.monotonic())
        return [key.data for key, _ in selector.select(pause_s)]

    def _accept(self, pair: Pair, reply: object) -> None:
        self._stats["worked"] += 1
        if reply in ("memory", "error"):
            self._stats["memory" if reply == "memory" else "errors"] += 1
        else:
            self._remember(pair, reply is True)

    def _count_failed_start(self, worker: _Worker) -> None:
        if worker.ready:  # an idle worker that someone killed
            return
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            command = worker_command(self._timeout_s, self._memory_limit_bytes)
            check = subprocess.run(
                command, input="", capture_output=True, text=True, env=_worker_environment()
            )
            reason = (check.stderr.strip().splitlines() or [f"exit status {check.returncode}"])[-1]
            raise RuntimeError(
                f"a grading worker ended {self._failed_starts} times before it was ready: {reason}"
            )
