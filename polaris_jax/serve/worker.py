"""The thread that owns the sampler: it submits, steps, reports tokens, and swaps weights.

A sampler is not thread-safe, so no other thread touches it. Others put jobs and calls into a
queue, and the thread takes them between two device calls. What a step brings is reported in one
batch. Sequences are scored a few at a time between two steps, one job after the other. The tokens
of a job depend on its seeds and on the weights alone, not on other jobs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from polaris_jax.rollout import Sampler
from polaris_jax.rollout.request import Request
from polaris_jax.rollout.scores import SHORTEST_ROW
from polaris_jax.serve.jobs import Accepted, Event, Failed, Finished, Job, Scored, Tokens
from polaris_jax.system.text import one_line

T = TypeVar("T")

STOPPING = "the server is stopping"
CRASHED = "the sampler has ended by an error, which the server's log has; start the server again"
# What a device raises, jax's errors among them. Other errors are ours: they end the thread.
DEVICE_ERRORS = (RuntimeError, MemoryError)
SCORED_TOKENS = 512  # after which the next step comes before more sequences are scored
STATS_S = 0.5  # the statistics are at most this old while the sampler works


class QueueFull(RuntimeError):
    """As many responses as may wait are waiting."""


class Stopped(RuntimeError):
    """The worker takes no more jobs."""


_Unscored = tuple[Sequence[int], Callable[..., Event]]  # token ids; makes the event of `scores=`


def settle(future: Future[T], work: Callable[[], T]) -> None:
    """Gives a future the result of `work`, or its error; nothing is done for a cancelled one."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - the caller's
        future.set_exception(error)


class _Live:
    """A job that the sampler has taken.

    Attributes:
        request: the job's request; None if it samples nothing.
        reported: number of tokens of each response that were reported.
        unscored: sequences to be scored.
    """

    def __init__(self, request: Request | None) -> None:
        self.request = request
        self.reported: dict[tuple[int, int], int] = {}
        self.unscored: deque[_Unscored] = deque()


class Worker:
    """Runs jobs on a sampler in a thread of its own.

    Args:
        sampler: from now on the thread's alone.
        post: called in the thread with the events of a step; must return at once.
        max_waiting: most responses that may wait for a slot.

    Attributes:
        stats: `Sampler.stats`, at most half a second old while the sampler works.
        failures: number of steps that a device error broke off.
    """

    def __init__(
        self,
        sampler: Sampler,
        post: Callable[[list[tuple[Job, Event]]], None],
        *,
        max_waiting: int,
    ) -> None:
        self._sampler, self._post = sampler, post
        self._most = sampler.config.slots + max_waiting
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: dict[Job, _Live] = {}
        self._events: list[tuple[Job, Event]] = []
        self._lock = threading.Lock()
        self._accepted: dict[Job, int] = {}  # jobs that have not ended, and their responses
        self._why_ended = STOPPING
        self._kept = 0  # places of jobs that are not submitted yet
        self._stopping = False
        self.failures = 0
        self._stats_at_s = 0.0
        self.stats: dict[str, Any] = sampler.stats()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    @property
    def unfinished(self) -> int:
        """Responses of accepted jobs that have not ended."""
        with self._lock:
            return sum(self._accepted.values())

    # --- from any thread ---

    def submit(self, job: Job) -> None:
        """Queues a job. Its events follow: Accepted, then Tokens or Scored, then Finished; or
        Failed.

        Raises:
            QueueFull: too many responses wait already.
            ValueError: the job alone has more responses than may wait.
            Stopped: `stop` was called.
        """
        with self._lock:
            self._check_room(job.responses)
            self._accepted[job] = job.responses
            self._calls.put(lambda: self._begin(job))  # the thread runs all before it ends

    @contextlib.contextmanager
    def kept_room(self, responses: int) -> Iterator[None]:
        """Keeps the places of a job that is not submitted yet, as long as the context is open.

        Args:
            responses: number of responses that the job will ask for.

        Raises:
            QueueFull, ValueError, Stopped: see `submit`.
        """
        with self._lock:
            self._check_room(responses)
            self._kept += responses
        try:
            yield
        finally:
            with self._lock:
                self._kept -= responses

    def _check_room(self, responses: int) -> None:
        """Raises what `submit` raises. The caller holds the lock."""
        if responses > self._most:
            raise ValueError(
                f"{responses} responses: this server takes at most {self._most} at once; ask "
                "for fewer, in several requests"
            )
        if self._stopping:
            raise Stopped(self._why_ended)
        if self._kept + sum(self._accepted.values()) + responses > self._most:
            raise QueueFull(f"{self._most} responses are sampled or wait already")

    def cancel(self, job: Job) -> None:
        """Aborts a job, if it has not ended. No event of it follows a later step."""
        self._calls.put(lambda: self._abort(job))

    def call(self, function: Callable[[Sampler], T]) -> Future[T]:
        """Calls `function` with the sampler between two steps; returns its result's future.

        Raises:
            Stopped: the thread has ended, or `stop` was called.
        """
        future: Future[T] = Future()
        with self._lock:  # the thread runs all that was put before it ends
            if self._stopping:
                raise Stopped(self._why_ended)
            self._calls.put(lambda: settle(future, lambda: function(self._sampler)))
        return future

    def stop(self, timeout_s: float = 60.0) -> None:
        """Aborts what is left and ends the thread after the present step."""
        with self._lock:
            self._stopping = True
        self._calls.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # --- in the thread ---

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_calls()
                if not self._stopping:
                    self._step()
            for live in self._jobs.values():
                self._drop(live)
        except BaseException:  # an error of ours, which threading prints
            self._why_ended = CRASHED
            raise
        finally:
            with self._lock:
                self._stopping = True
            while not self._calls.empty():
                self._calls.get()()
            for job in list(self._accepted):
                self._end(job, Failed(self._why_ended))
            self._flush()

    def _step(self) -> None:
        try:
            self._sampler.step()
        except DEVICE_ERRORS as error:
            self.failures += 1
            for job, live in list(self._jobs.items()):
                self._drop(live)  # if the step had begun, the sampler has dropped it already
                self._end(job, Failed(f"the device failed: {one_line(error)}"))
        self._score_some()
        for job, live in list(self._jobs.items()):
            self._report(job, live)
        self._flush()

    def _take_calls(self) -> None:
        """Runs all queued calls; waits for one while there is nothing to step."""
        while not self._stopping:
            idle = not self._jobs or self._sampler.paused
            if idle:
                self._flush()
            # Not kept while the next one is waited for: it may hold weights.
            try:
                take = self._calls.get(block=idle)
            except queue.Empty:
                return
            take()
            del take

    def _begin(self, job: Job) -> None:
        if self._stopping:
            self._end(job, Failed(STOPPING))
            return
        try:
            if job.params is None:
                self._sampler.check_scorable(job.prompts)
                live = _Live(None)
                for index, prompt in enumerate(job.prompts):
                    live.unscored.append((prompt, functools.partial(Scored, index)))
            else:
                live = _Live(self._sampler.submit(job.prompts, job.params))
        except ValueError as error:
            self._end(job, Failed(str(error), refused=True))
        except DEVICE_ERRORS as error:  # or there are no weights
            self._end(job, Failed(one_line(error)))
        else:
            self._jobs[job] = live
            self._tell(job, Accepted())

    def _abort(self, job: Job) -> None:
        live = self._jobs.get(job)
        if live is not None:
            self._drop(live)
        self._end(job, None)

    def _drop(self, live: _Live) -> None:
        if live.request is not None:
            self._sampler.abort(live.request)

    def _score_some(self) -> None:
        """Scores a few sequences, so that steps and aborts wait for no complete job."""
        tokens = 0
        for job, live in list(self._jobs.items()):
            part: list[_Unscored] = []
            while live.unscored and tokens < SCORED_TOKENS:
                part.append(live.unscored.popleft())
                tokens += max(SHORTEST_ROW, len(part[-1][0]))
            if part:
                self._jobs[job] = self._jobs.pop(job)  # other jobs come before its next turn
                self._score(job, live, part)

    def _score(self, job: Job, live: _Live, part: Sequence[_Unscored]) -> None:
        sequences = [sequence for sequence, _ in part]
        try:
            found = self._sampler.score(sequences, [job.temperature] * len(part), top=job.top)
        except DEVICE_ERRORS as error:
            self._drop(live)
            self._end(job, Failed(one_line(error)))
            return
        for (_, event), scores in zip(part, found, strict=True):
            self._tell(job, event(scores=scores))
        self._count_ended(job, len(part))

    def _report(self, job: Job, live: _Live) -> None:
        request = live.request
        if request is not None:
            if request.failure is not None:  # its text cannot be decoded
                self._end(job, Failed(one_line(request.failure)))
                return
            self._report_tokens(job, live, request)
        if not live.unscored and (request is None or request.done):
            self._end(job, Finished())

    def _report_tokens(self, job: Job, live: _Live, request: Request) -> None:
        ended = {(p, s): response for p, s, response in self._sampler.poll(request)}
        for part in request.parts:
            for sample in part.samples:
                place = part.prompt.index, sample.index
                known = live.reported.get(place, 0)
                if len(sample.tokens) == known:
                    continue
                live.reported[place] = len(sample.tokens)
                response = ended.get(place)
                tokens = Tokens(
                    *place,
                    tuple(sample.tokens[known:]),
                    tuple(sample.logprobs[known:]),
                    None if response is None else response.finish_reason,
                )
                if response is None or not job.scores:
                    self._tell(job, tokens)
                else:  # told when it is scored
                    sequence = [*job.prompts[place[0]], *response.token_ids]
                    live.unscored.append((sequence, functools.partial(dataclasses.replace, tokens)))
        # Those that wait for their scores still count, or the queue of them would have no limit.
        self._count_ended(job, 0 if job.scores else len(ended))

    def _count_ended(self, job: Job, responses: int) -> None:
        with self._lock:
            if job in self._accepted:
                self._accepted[job] -= responses

    def _tell(self, job: Job, event: Event) -> None:
        self._events.append((job, event))

    def _end(self, job: Job, event: Event | None) -> None:
        self._jobs.pop(job, None)
        with self._lock:
            known = self._accepted.pop(job, None) is not None
        if known and event is not None:
            self._tell(job, event)

    def _flush(self) -> None:
        """Posts the events and takes the statistics."""
        now_s = time.monotonic()
        if not self._jobs or now_s - self._stats_at_s > STATS_S:
            self._stats_at_s, self.stats = now_s, self._sampler.stats()
        if self._events:
            events, self._events = self._events, []
            self._post(events)
