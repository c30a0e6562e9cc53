"""Worker processes that each grade one pair at a time under a deadline, and are replaced on death.

No pair waits in a pipe behind a hanging answer. Pairs that are not being graded stay in the queue
of this process, where they have no deadline yet.

Workers are programs (`sys.executable -m polaris_jax.reward.worker`) talked to over pipes, not
multiprocessing children: those import the main script again, and JAX with it, and die in scripts
without a `__main__` guard, from stdin and in notebooks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from polaris_jax.reward.math.equivalence import Explanation

START_TIMEOUT_S = 60.0  # a loaded machine may take long to start Python
MAX_ATTEMPTS = 2  # an answer is graded once more if its worker was killed from outside
MAX_FAILED_STARTS = 3

Pair = tuple[str, tuple[str, ...]]  # an answer and its gold alternatives

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


# ---- one process


def worker_command(timeout_s: float, memory_limit_bytes: int, preset: str) -> list[str]:
    """The command line of a worker; -P keeps files of the current directory out of its imports."""
    arguments = [str(timeout_s), str(memory_limit_bytes), preset]
    return [sys.executable, "-P", "-m", "polaris_jax.reward.worker", *arguments]


def worker_environment() -> dict[str, str]:
    """The parent's environment, with this very package importable in the child."""
    import polaris_jax

    root = str(Path(polaris_jax.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = root if not inherited else os.pathsep.join([root, inherited])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class WorkerProcess:
    """One child process: starting, idle, or busy with one pair under a deadline.

    Attributes:
        ready: True once the process has reported that it can grade.
        index: index of the pair that the process grades, or None.
        deadline_s: deadline of the start or of the pair, on the monotonic clock.
        unsent: the rest of a request that the pipe has not taken yet.
    """

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=worker_environment(),
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone
        )
        os.set_blocking(self.input.fileno(), False)  # a stopped worker must not stop the parent
        self.ready = False
        self.index: int | None = None
        self.deadline_s = time.monotonic() + START_TIMEOUT_S
        self.unsent = b""
        self._received = b""

    @property
    def input(self) -> Any:
        return self.process.stdin

    @property
    def output(self) -> Any:
        return self.process.stdout

    def send(self, index: int, pair: Pair, timeout_s: float) -> bool:
        """Begins a request; False if the process is dead."""
        self.unsent = json.dumps([pair[0], list(pair[1])]).encode() + b"\n"
        if not self.send_rest():
            return False
        self.index = index
        self.deadline_s = time.monotonic() + timeout_s
        return True

    def send_rest(self) -> bool:
        """Writes what the pipe takes of the request; False if the process is dead."""
        try:
            while self.unsent:
                self.unsent = self.unsent[os.write(self.input.fileno(), self.unsent) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def receive(self) -> list[Any] | None:
        """Whole replies read so far; None when the process has closed its end."""
        chunk = os.read(self.output.fileno(), 65536)
        if not chunk:
            return None
        *lines, self._received = (self._received + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self, *, gently: bool = False) -> None:
        """Ends and reaps the process and closes both pipes."""
        with contextlib.suppress(OSError):
            self.input.close()
        if gently:
            try:
                self.process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                gently = False
        if not gently:
            self.process.kill()
        self.process.wait()
        self.output.close()
