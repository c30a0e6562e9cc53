"""Worker processes for grading. Each grades one response at a time and has a deadline for it.

A worker that dies is replaced; one that misses its deadline is killed and replaced. A worker gets
its next request only after its reply, so no request waits behind one that hangs. The other requests
wait in a queue of this process. A request's deadline starts when a worker gets it.

A worker is a separate program (`sys.executable -m polaris_jax.reward.worker`), connected by pipes.
Children of `multiprocessing` are not used: they import the main script again, and JAX with it, and
they fail in notebooks, in programs from stdin, and in scripts without a `__main__` guard.
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
from typing import Any, NamedTuple

from polaris_jax.reward.protocol import Functions, file_digests
from polaris_jax.system.child import importable
from polaris_jax.system.user_code import RefusedFunction

START_TIMEOUT_S = 60.0  # a loaded machine may take long to start Python
MAX_ATTEMPTS = 2  # a response is graded a second time if its worker dies
GENTLE_S = 0.5  # for an idle worker to end by itself
MAX_FAILED_STARTS = 3  # in a row, before a worker is ready

Request = list[Any] | dict[str, Any]  # a request as JSON; see `worker`


class Failure(NamedTuple):
    """Why a request got no reply.

    Attributes:
        kind: "timeout", "crash" (two workers died while they graded it), "memory" (the limit was
            reached), "error" (an exception) or "invalid" (a reward function returned something that
            is not a reward).
        reason: text of the exception, or what the reward function returned; "" for the other kinds
            and for the math grader.
        function: index of the reward function that was running; 0 for the math grader.
    """

    kind: str
    reason: str = ""
    function: int = 0


@dataclasses.dataclass
class _Call:
    """The requests of one call of `WorkerPool.work`, and what has come of them.

    Attributes:
        requests: the requests.
        queue: indices of requests that no worker has.
        attempts: number of workers that each request was sent to.
        replies: reply or `Failure` of each request; None until there is one.
        left: number of requests without a reply.
    """

    requests: Sequence[Request]
    queue: deque[int]
    attempts: list[int]
    replies: list[Any]
    left: int

    def settle(self, index: int, reply: Any) -> None:
        self.replies[index] = reply
        self.left -= 1


class WorkerPool:
    """A pool of worker processes that answer requests.

    Args:
        workers: largest number of processes.
        timeout_s: deadline of one request in seconds.
        memory_limit_bytes: largest address space of one worker; 0: no limit.
        preset: name of the math grader's comparison policy.
        functions: reward functions; () for the math grader.

    Attributes:
        workers: the processes.
        digests: `file_digest` of each function's file; every worker imports this text.
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
        self.digests = file_digests(functions)
        self._failed_starts, self._was_ready = 0, False
        self.workers: list[WorkerProcess] = []

    def start(self) -> None:
        """Starts one worker and waits until it is ready.

        Raises:
            RefusedFunction: a reward function cannot be imported or used.
            RuntimeError: several workers in a row died before they were ready.
        """
        self._run(_Call((), deque(), [], [], 1), lambda: any(w.ready for w in self.workers))

    def work(self, requests: Sequence[Request]) -> list[Any]:
        """Sends the requests to workers and waits for all replies.

        Returns:
            The replies in the order of the requests. A `Failure` stands for a request without a
            reply.

        Raises:
            RefusedFunction: a reward function can no longer be imported or used.
            RuntimeError: several workers in a row died before they were ready.
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
                            worker.send_rest()  # a dead worker is noticed when its output ends
                        else:
                            self._receive(selector, call, worker)
                    self._end_overdue(selector, call)
        except BaseException:  # Ctrl-C too: the next call must not read a late reply of this one
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
        functions = [(path, weight, self.digests[path]) for path, weight in self._functions]
        return worker_command(self._timeout_s, self._memory_limit_bytes, self._preset, functions)

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
        """Waits until a worker can be served or the next deadline has passed.

        Returns:
            (worker, flag) pairs. The flag is False if the worker has sent something or has ended,
            True if its pipe takes more of the request.
        """
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
                worker.ready = self._was_ready = True
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
            elif self._functions and not self._was_ready:
                raise RefusedFunction(f"importing it takes more than {START_TIMEOUT_S:g} s")
            else:  # a loaded machine; functions have been imported before
                self._count_failed_start(worker)

    def _end(self, selector: selectors.BaseSelector, worker: WorkerProcess) -> None:
        selector.unregister(worker.output)
        self.workers.remove(worker)
        worker.stop()

    def _count_failed_start(self, worker: WorkerProcess) -> None:
        if worker.ready:  # killed from outside while it was idle
            return
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise RuntimeError(
                f"a grading worker ended {self._failed_starts} times before it was ready: "
                f"{self._why_it_fails()}"
            )

    def _why_it_fails(self) -> str:
        """The last line that a worker prints before it is ready."""
        try:
            check = subprocess.run(
                self._command(),
                input="",
                capture_output=True,
                text=True,
                env=worker_environment(),
                timeout=START_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            what = "importing the functions" if self._functions else "it"
            return f"{what} takes more than {START_TIMEOUT_S:g} s"
        return (check.stderr.strip().splitlines() or [f"exit status {check.returncode}"])[-1]


# ---- one process


def worker_command(
    timeout_s: float,
    memory_limit_bytes: int,
    preset: str,
    functions: Sequence[tuple[str, float, str]],
) -> list[str]:
    """The command line of a worker; with -P it does not import from the current directory."""
    arguments = [str(timeout_s), str(memory_limit_bytes), preset, json.dumps(functions)]
    return [sys.executable, "-P", "-m", "polaris_jax.reward.worker", *arguments]


def worker_environment() -> dict[str, str]:
    """This process's environment, with PYTHONPATH set so that a worker imports this package."""
    return {**os.environ, "PYTHONPATH": importable(), "PYTHONUNBUFFERED": "1"}


class WorkerProcess:
    """One worker process: starting, idle, or busy with one request.

    Attributes:
        ready: True once the process has reported that it can grade.
        index: index of the request that the process is busy with; None if it is starting or idle.
        function: index of the reward function that the process called last.
        deadline_s: deadline of the start or of the request, in seconds of `time.monotonic`.
        unsent: rest of the request, in bytes that the pipe has not taken yet.
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
        """Begins to send a request and starts its deadline; False if the process is dead.

        Args:
            index: index of the request among those of the call.
            request: the request.
            timeout_s: seconds until the deadline.
        """
        # `default` converts numpy numbers and arrays, which a gold answer may contain.
        self.unsent = json.dumps(request, default=lambda value: value.tolist()).encode() + b"\n"
        if not self.send_rest():
            return False
        self.index, self.function = index, 0
        self.deadline_s = time.monotonic() + timeout_s
        return True

    def send_rest(self) -> bool:
        """Writes as much of the request as the pipe takes; False if the process is dead."""
        try:
            while self.unsent:
                self.unsent = self.unsent[os.write(self.input.fileno(), self.unsent) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def receive(self) -> list[Any] | None:
        """Reads from the pipe; returns the complete replies, or None if the process has ended."""
        chunk = os.read(self.output.fileno(), 65536)
        if not chunk:
            return None
        *lines, self._received = (self._received + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self, *, gently: bool = False) -> None:
        """Ends the process and what it has started, waits for its exit and closes both pipes.

        Args:
            gently: True: gives the process half a second to end by itself before it is killed.
        """
        with contextlib.suppress(OSError):
            self.input.close()
        with contextlib.suppress(OSError):  # processes that a reward function has started, too
            if gently:
                self._await_exit(GENTLE_S)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.output.close()

    def _await_exit(self, seconds: float) -> None:
        """Waits for the exit but leaves the process to be reaped: its group keeps its number."""
        end_s = time.monotonic() + seconds
        exited = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, self.process.pid, exited) is None and time.monotonic() < end_s:
            time.sleep(0.005)
