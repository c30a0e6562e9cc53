"""Worker processes that each grade one response at a time under a deadline, replaced on death.

No request waits in a pipe behind a hanging one. Requests that no worker has stay in the queue of
this process, where they have no deadline yet.

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
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polaris_jax.reward.protocol import Functions
from polaris_jax.system.user_code import RefusedFunction

START_TIMEOUT_S = 60.0  # a loaded machine may take long to start Python
MAX_ATTEMPTS = 2  # an answer is graded once more if its worker was killed from outside
MAX_FAILED_STARTS = 3

Request = list[Any] | dict[str, Any]  # what a worker reads; see `worker`


class Failure(NamedTuple):
    """Why a request got no reply.

    Attributes:
        kind: "timeout", "crash" (its worker died twice), "memory", "error" (an exception) or
            "invalid" (what a reward function returned is no reward).
        reason: the text of the exception, or what was returned; "" for other kinds.
        function: index of the reward function that was running; 0 for the math grader.
    """

    kind: str
    reason: str = ""
    function: int = 0


@dataclasses.dataclass
class _Call:
    """What one call still has to do."""

    requests: Sequence[Request]
    queue: deque[int]
    attempts: list[int]
    replies: list[Any]
    left: int

    def settle(self, index: int, reply: Any) -> None:
        self.replies[index] = reply
        self.left -= 1


class WorkerPool:
    """Replies to requests, from worker processes.

    Args:
        workers: largest number of processes.
        timeout_s: deadline of one request in seconds.
        memory_limit_bytes: address space of one worker; 0 for none.
        preset: name of the math grader's comparison policy.
        functions: reward functions; () for the math grader.
    """

    def __init__(
        self,
        workers: int,
        timeout_s: float,
        memory_limit_bytes: int,
        preset: str,
        functions: Functions = (),
    ) -> None:
        self._count, self._timeout_s = workers, timeout_s
        self._memory_limit_bytes, self._preset = memory_limit_bytes, preset
        self._functions = functions
        self._failed_starts = 0
        self.workers: list[WorkerProcess] = []

    def start(self) -> None:
        """Starts one worker and waits until it is ready.

        Raises:
            RefusedFunction: a reward function cannot be used.
            RuntimeError: workers die before they are ready.
        """
        self._run(_Call((), deque(), [], [], 1), lambda: any(w.ready for w in self.workers))

    def work(self, requests: Sequence[Request]) -> list[Any]:
        """Replies in the order of the requests; a `Failure` if a worker gave none.

        Raises:
            RefusedFunction: a reward function can no longer be used.
            RuntimeError: workers die before they are ready.
        """
        count = len(requests)
        call = _Call(requests, deque(range(count)), [0] * count, [None] * count, count)
        self._run(call, lambda: not call.left)
        return call.replies

    def close(self) -> None:
        """Ends the workers."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.stop(gently=worker.index is None and worker.ready)

    def _run(self, call: _Call, done: Callable[[], bool]) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                for worker in self.workers:
                    selector.register(worker.output, selectors.EVENT_READ, worker)
                while not done():
                    self._start_missing(selector, call)
                    self._hand_out(selector, call)
                    for worker, takes_more in self._next_events(selector):
                        if takes_more:
                            worker.send_rest()  # a dead one shows when its output ends
                        else:
                            self._receive(selector, call, worker)
                    self._end_overdue(selector, call)
        except BaseException:  # Ctrl-C too: a busy worker's late reply must not meet a new call
            for worker in self.workers:
                worker.stop()
            self.workers = []
            raise

    def _start_missing(self, selector: selectors.BaseSelector, call: _Call) -> None:
        while len(self.workers) < min(self._count, call.left):
            worker = WorkerProcess(self._command())
            self.workers.append(worker)
            selector.register(worker.output, selectors.EVENT_READ, worker)

    def _command(self) -> list[str]:
        return worker_command(
            self._timeout_s, self._memory_limit_bytes, self._preset, self._functions
        )

    def _hand_out(self, selector: selectors.BaseSelector, call: _Call) -> None:
        for worker in list(self.workers):
            if not call.queue or not worker.ready or worker.index is not None:
                continue
            index = call.queue.popleft()
            if worker.send(index, call.requests[index], self._timeout_s):
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
                call.settle(index, Failure("crash", function=worker.function))
            return
        for reply in replies:
            if reply == "ready":
                worker.ready = True
                self._failed_starts = 0
            elif isinstance(reply, dict):
                raise RefusedFunction(reply["refused"])
            elif isinstance(reply, int):
                worker.function = reply
            elif worker.index is not None:
                if isinstance(reply[0], str):
                    kind, reason = reply
                    reply = Failure(kind, reason, worker.function)
                call.settle(worker.index, reply)
                worker.index = None

    def _end_overdue(self, selector: selectors.BaseSelector, call: _Call) -> None:
        now_s = time.monotonic()
        for worker in list(self.workers):
            if (worker.ready and worker.index is None) or now_s < worker.deadline_s:
                continue
            index = worker.index
            self._end(selector, worker)
            if index is not None:
                call.settle(index, Failure("timeout", function=worker.function))
            elif self._functions:
                raise RefusedFunction(f"importing it takes more than {START_TIMEOUT_S:g} s")
            else:
                self._count_failed_start(worker)

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
                self._command(),
                input="",
                capture_output=True,
                text=True,
                env=worker_environment(),
                timeout=START_TIMEOUT_S,
            )
            reason = (check.stderr.strip().splitlines() or [f"exit status {check.returncode}"])[-1]
            raise RuntimeError(
                f"a grading worker ended {self._failed_starts} times before it was ready: {reason}"
            )


# ---- one process


def worker_command(
    timeout_s: float, memory_limit_bytes: int, preset: str, functions: Functions
) -> list[str]:
    """The command line of a worker; -P keeps files of the current directory out of its imports."""
    arguments = [str(timeout_s), str(memory_limit_bytes), preset, json.dumps(functions)]
    return [sys.executable, "-P", "-m", "polaris_jax.reward.worker", *arguments]


def worker_environment() -> dict[str, str]:
    """The parent's environment, with this very package importable in the child."""
    import polaris_jax

    root = str(Path(polaris_jax.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = root if not inherited else os.pathsep.join([root, inherited])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class WorkerProcess:
    """One child process: starting, idle, or busy with one request under a deadline.

    Attributes:
        ready: True once the process has reported that it can grade.
        index: index of the request that the process has, or None.
        function: index of the reward function that the process called last.
        deadline_s: deadline of the start or of the request, on the monotonic clock.
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
        self.function = 0
        self.deadline_s = time.monotonic() + START_TIMEOUT_S
        self.unsent = b""
        self._received = b""

    @property
    def input(self) -> Any:
        return self.process.stdin

    @property
    def output(self) -> Any:
        return self.process.stdout

    def send(self, index: int, request: Request, timeout_s: float) -> bool:
        """Begins a request; False if the process is dead."""
        # default: numpy's numbers and arrays, which a gold answer may be
        self.unsent = json.dumps(request, default=lambda value: value.tolist()).encode() + b"\n"
        if not self.send_rest():
            return False
        self.index, self.function = index, 0
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
            with contextlib.suppress(OSError):  # with what a reward function has started
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.output.close()
