"""The thread that owns the sampler: it submits, steps, reports tokens, and swaps weights.

A sampler is not thread-safe, so no other thread touches it. Others put jobs and calls into a
queue, and the thread takes them between two device calls. What a step brings is reported in one
batch. The tokens of a job depend on its seeds and on the weights alone, not on other jobs.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from polaris_jax.records import Response
from polaris_jax.rollout import Sampler, SamplingParams
from polaris_jax.rollout.request import Request
from polaris_jax.rollout.scores import Scores
from polaris_jax.system.text import one_line

T = TypeVar("T")

STOPPING = "the server is stopping"
# What a device raises, jax's errors among them. Other errors are ours: they end the thread.
DEVICE_ERRORS = (RuntimeError, MemoryError)
STATS_S = 0.5  # the statistics are at most this old while the sampler works


@dataclasses.dataclass(frozen=True)
class Accepted:
    """The sampler has taken the job."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """The scores of a prompt of a job that samples nothing."""

    prompt: int
    scores: Scores


@dataclasses.dataclass(frozen=True)
class Tokens:
    """New tokens of one response.

    Attributes:
        prompt: index of the prompt in the job.
        sample: index of the response among those of the prompt.
        token_ids: the new tokens; a stop token is the last of them.
        logprobs: their log-probs in nats.
        finish_reason: "stop" or "length" with the last tokens, else None.
        scores: scores of prompt and response, with the last tokens, if the job asks for them.
    """

    prompt: int
    sample: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str | None = None
    scores: Scores | None = None


@dataclasses.dataclass(frozen=True)
class Finished:
    """All responses of the job have ended."""


@dataclasses.dataclass(frozen=True)
class Failed:
    """The job ends without its responses.

    Attributes:
        text: what went wrong, in one line.
        refused: True if the request itself cannot be served.
    """

    text: str
    refused: bool = False


Event = Accepted | Scored | Tokens | Finished | Failed


class QueueFull(RuntimeError):
    """As many responses as may wait are waiting."""


class Stopped(RuntimeError):
    """The worker takes no more jobs."""


@dataclasses.dataclass(eq=False)
class Job:
    """Prompts to be sampled with one set of sampling settings.

    Attributes:
        prompts: token ids of each prompt.
        params: sampling settings; None scores the prompts and samples nothing.
        top: number of likeliest tokens that scores name.
        scores: True if ended responses come with the scores of prompt and response.
        temperature: temperature of the scores; 0 counts as 1, as in sampling.
        inbox: where the receiver of the events keeps its own queue.
    """

    prompts: Sequence[Sequence[int]]
    params: SamplingParams | None
    top: int = 0
    scores: bool = False
    temperature: float = 1.0
    inbox: Any = None

    @property
    def responses(self) -> int:
        """Number of responses that the job asks for."""
        return len(self.prompts) * (1 if self.params is None else self.params.n)


class _Live:
    """A submitted job: its request, and the number of tokens of each response reported so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.reported: dict[tuple[int, int], int] = {}


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
        self._calls.put(lambda: self._begin(job))

    def require_room(self, responses: int) -> None:
        """Checks that a job of this size would be taken now; keeps no place for it.

        Args:
            responses: number of responses that the job asks for.

        Raises:
            QueueFull, ValueError, Stopped: see `submit`.
        """
        with self._lock:
            self._check_room(responses)

    def _check_room(self, responses: int) -> None:
        """Raises what `submit` raises. The caller holds the lock."""
        if responses > self._most:
            raise ValueError(
                f"{responses} responses: this server takes at most {self._most} at once; ask "
                "for fewer, in several requests"
            )
        if self._stopping:
            raise Stopped(STOPPING)
        if sum(self._accepted.values()) + responses > self._most:
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

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(self._sampler))
            except BaseException as error:  # noqa: BLE001 - the caller's
                future.set_exception(error)

        with self._lock:  # the thread runs all that was put before it ends
            if self._stopping:
                raise Stopped(STOPPING)
            self._calls.put(run)
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
                self._sampler.abort(live.request)
        finally:  # after an error of ours too, which threading prints
            with self._lock:
                self._stopping = True
            while not self._calls.empty():
                self._calls.get()()
            for job in list(self._jobs):
                self._end(job, Failed(STOPPING))
            self._flush()

    def _step(self) -> None:
        try:
            self._sampler.step()
        except DEVICE_ERRORS as error:
            self.failures += 1
            for job, live in list(self._jobs.items()):
                self._sampler.abort(live.request)  # if the step had begun, it has dropped them all
                self._end(job, Failed(f"the device failed: {one_line(error)}"))
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
                scores = self._score(job, job.prompts)
                self._tell(job, Accepted())
                for index, one in enumerate(scores):
                    self._tell(job, Scored(index, one))
                self._end(job, Finished())
                return
            request = self._sampler.submit(job.prompts, job.params)
        except ValueError as error:
            self._end(job, Failed(str(error), refused=True))
        except DEVICE_ERRORS as error:  # or there are no weights
            self._end(job, Failed(one_line(error)))
        else:
            self._jobs[job] = _Live(request)
            self._tell(job, Accepted())

    def _abort(self, job: Job) -> None:
        live = self._jobs.get(job)
        if live is not None:
            self._sampler.abort(live.request)
        self._end(job, None)

    def _report(self, job: Job, live: _Live) -> None:
        if (failure := live.request.failure) is not None:  # its text cannot be decoded
            self._end(job, Failed(one_line(failure)))
            return
        try:
            ended = {(p, s): response for p, s, response in self._sampler.poll(live.request)}
            for part in live.request.parts:
                for sample in part.samples:
                    place = part.prompt.index, sample.index
                    known = live.reported.get(place, 0)
                    if len(sample.tokens) == known:
                        continue
                    live.reported[place] = len(sample.tokens)
                    response = ended.get(place)
                    self._tell(
                        job,
                        Tokens(
                            *place,
                            tuple(sample.tokens[known:]),
                            tuple(sample.logprobs[known:]),
                            None if response is None else response.finish_reason,
                            self._scores(job, place[0], response),
                        ),
                    )
            with self._lock:
                if job in self._accepted:
                    self._accepted[job] -= len(ended)
        except DEVICE_ERRORS as error:
            self._sampler.abort(live.request)
            self._end(job, Failed(one_line(error)))
            return
        if live.request.done:
            self._end(job, Finished())

    def _scores(self, job: Job, prompt: int, response: Response | None) -> Scores | None:
        if response is None or not job.scores:
            return None
        return self._score(job, [[*job.prompts[prompt], *response.token_ids]])[0]

    def _score(self, job: Job, sequences: Sequence[Sequence[int]]) -> list[Scores]:
        return self._sampler.score(sequences, [job.temperature] * len(sequences), top=job.top)

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
