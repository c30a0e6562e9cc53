"""Worker processes that each grade one pair at a time under a deadline, and are replaced on death.

No pair waits in a pipe behind a hanging answer. Pairs that are not being graded stay in the queue
of this process, where they have no deadline yet.
"""

from __future__ import annotations

import dataclasses
import selectors
import subprocess
import time
from collections import deque

from polaris_jax.reward.math.equivalence import Explanation
from polaris_jax.reward.worker_process import (
    Pair,
    WorkerProcess,
    worker_command,
    worker_environment,
)

MAX_ATTEMPTS = 2  # an answer is graded once more if its worker was killed from outside
MAX_FAILED_STARTS = 3

FAILURES = {
    "timeout": Explanation(False, "timeout", "no verdict within the deadline", "", ""),
    "crash": Explanation(False, "crash", "its worker died twice", "", ""),
    "memory": Explanation(False, "memory", "the worker's memory limit", "", ""),
    "error": Explanation(False, "error", "an error in the worker", "", ""),
}


@dataclasses.dataclass
class _Call:
    """What one call still has to do."""

    pairs: list[Pair]
    queue: deque[int]
    attempts: list[int]
    verdicts: list[Explanation | None]
    left: int

    def settle(self, index: int, verdict: Explanation) -> None:
        self.verdicts[index] = verdict
        self.left -= 1


class WorkerPool:
    """Verdicts of pairs from worker processes.

    Args:
        workers: largest number of processes.
        timeout_s: deadline of one pair in seconds.
        memory_limit_bytes: address space of one worker; 0 for none.
        preset: name of the comparison policy.
    """

    def __init__(self, workers: int, timeout_s: float, memory_limit_bytes: int, preset: str):
        self._count, self._timeout_s = workers, timeout_s
        self._memory_limit_bytes, self._preset = memory_limit_bytes, preset
        self._failed_starts = 0
        self.workers: list[WorkerProcess] = []

    def work(self, pairs: list[Pair]) -> list[Explanation]:
        """Verdicts in the order of the pairs; one of FAILURES if a worker gave no verdict.

        Raises:
            RuntimeError: workers die before they are ready.
        """
        if not pairs:
            return []
        try:
            return self._dispatch(pairs)
        except BaseException:  # Ctrl-C too: a busy worker's late reply must not meet a new call
            for worker in self.workers:
                worker.stop()
            self.workers = []
            raise

    def close(self) -> None:
        """Ends the workers."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.stop(gently=worker.index is None and worker.ready)

    def _dispatch(self, pairs: list[Pair]) -> list[Explanation]:
        call = _Call(
            pairs, deque(range(len(pairs))), [0] * len(pairs), [None] * len(pairs), len(pairs)
        )
        with selectors.DefaultSelector() as selector:
            for worker in self.workers:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            while call.left:
                self._start_missing(selector, call)
                self._hand_out(selector, call)
                for worker, takes_more in self._next_events(selector):
                    if takes_more:
                        worker.send_rest()  # a dead one shows when its output ends
                    else:
                        self._receive(selector, call, worker)
                self._end_overdue(selector, call)
        return [verdict for verdict in call.verdicts if verdict is not None]

    def _start_missing(self, selector: selectors.BaseSelector, call: _Call) -> None:
        while len(self.workers) < min(self._count, call.left):
            worker = WorkerProcess(self._command())
            self.workers.append(worker)
            selector.register(worker.output, selectors.EVENT_READ, worker)

    def _command(self) -> list[str]:
        return worker_command(self._timeout_s, self._memory_limit_bytes, self._preset)

    def _hand_out(self, selector: selectors.BaseSelector, call: _Call) -> None:
        for worker in list(self.workers):
            if not call.queue or not worker.ready or worker.index is not None:
                continue
            index = call.queue.popleft()
            if worker.send(index, call.pairs[index], self._timeout_s):
                call.attempts[index] += 1
            else:
                call.queue.appendleft(index)
                self._end(selector, worker)

    def _next_events(self, selector: selectors.BaseSelector) -> list[tuple[WorkerProcess, bool]]:
        """Workers that have something to read, or that take the rest of a request (True)."""
        waiting = [w.deadline_s for w in self.workers if not w.ready or w.index is not None]
        if not waiting:
            return []
        slow = [worker for worker in self.workers if worker.unsent]
        for worker in slow:
            selector.register(worker.input, selectors.EVENT_WRITE, worker)
        found = selector.select(max(0.0, min(waiting) - time.monotonic()))
        for worker in slow:
            selector.unregister(worker.input)
        return [(key.data, mask == selectors.EVENT_WRITE) for key, mask in found]

    def _receive(
        self, selector: selectors.BaseSelector, call: _Call, worker: WorkerProcess
    ) -> None:
        replies = worker.receive()
        if replies is None:
            index = worker.index
            self._end(selector, worker)
            if index is None:
                self._count_failed_start(worker)
            elif call.attempts[index] < MAX_ATTEMPTS:
                call.queue.appendleft(index)
            else:
                call.settle(index, FAILURES["crash"])
            return
        for reply in replies:
            if reply == "ready":
                worker.ready = True
                self._failed_starts = 0
            elif worker.index is not None:
                verdict = FAILURES[reply] if isinstance(reply, str) else Explanation(*reply)
                call.settle(worker.index, verdict)
                worker.index = None

    def _end_overdue(self, selector: selectors.BaseSelector, call: _Call) -> None:
        now_s = time.monotonic()
        for worker in list(self.workers):
            if (worker.ready and worker.index is None) or now_s < worker.deadline_s:
                continue
            index = worker.index
            self._end(selector, worker)
            if index is None:
                self._count_failed_start(worker)
            else:
                call.settle(index, FAILURES["timeout"])

    def _end(self, selector: selectors.BaseSelector, worker: WorkerProcess) -> None:
        selector.unregister(worker.output)
        self.workers.remove(worker)
        worker.stop()

    def _count_failed_start(self, worker: WorkerProcess) -> None:
        if worker.ready:  # an idle worker that someone killed
            return
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            check = subprocess.run(
                self._command(), input="", capture_output=True, text=True, env=worker_environment()
            )
            reason = (check.stderr.strip().splitlines() or [f"exit status {check.returncode}"])[-1]
            raise RuntimeError(
                f"a grading worker ended {self._failed_starts} times before it was ready: {reason}"
            )
