"""One request that samples: from its submission to the last byte of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from polaris_jax.serve.answers import Answer, Choice, event, to_json
from polaris_jax.serve.fields import ApiError
from polaris_jax.serve.http import ClientLeft, until_left
from polaris_jax.serve.jobs import Accepted, Event, Failed, Finished, Job, Scored, Tokens
from polaris_jax.serve.service import Service
from polaris_jax.serve.wishes import Wish
from polaris_jax.serve.worker import STOPPING, QueueFull, Stopped

WRITE_BYTES = 1 << 16
LEFT_STATUS = 499  # of a client that left: seen in the log and in /metrics alone


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Raises what the worker refuses as the error that the client reads."""
    try:
        yield
    except QueueFull as error:
        raise ApiError(
            429, f"{error}; try again later", kind="rate_limit_error", code="queue_full"
        ) from None
    except ValueError as error:
        raise ApiError(400, str(error), param="n") from None
    except Stopped as error:
        raise ApiError(503, str(error), kind="server_error") from None


class Running:
    """A job of one request, from its submission to its last event."""

    def __init__(self, service: Service, wish: Wish, job: Job, began_s: float) -> None:
        self._service, self._wish, self._job, self._began_s = service, wish, job, began_s
        stop_ids = job.params.stop_token_ids if job.params is not None else ()
        texts = [""] * len(job.prompts)
        if wish.echo:
            pairs = zip(wish.prompts, job.prompts, strict=True)
            texts = [
                p if isinstance(p, str) else service.vocabulary.prompt_text(i) for p, i in pairs
            ]
        self.choices = [
            Choice(
                wish,
                service.vocabulary,
                index=p * wish.n + s,
                prompt=ids,
                prompt_text=texts[p],
                stop_ids=stop_ids or (),
            )
            for p, ids in enumerate(job.prompts)
            for s in range(wish.n)
        ]
        self.frame = Answer(
            wish,
            model=service.name,
            prompt_tokens=sum(map(len, job.prompts)),
            version=service.updates.version,
        )
        self._first = True

    async def accept(self) -> None:
        """Submits the job, and waits until the sampler has taken it.

        Raises:
            ApiError: it cannot be served, or not now.
        """
        with refusals():
            self._service.worker.submit(self._job)
        first = await self._next()
        assert isinstance(first, Accepted)

    async def _next(self) -> Event:
        one: Event = await self._job.inbox.get()
        if isinstance(one, Failed):
            status, kind = (400, "invalid_request_error") if one.refused else (500, "server_error")
            raise ApiError(status, one.text, kind=kind)
        return one

    async def events(self) -> AsyncIterator[tuple[Choice, str, Tokens | None]]:
        """(choice, its new text, the event) for each event, until the job has ended."""
        gauges = self._service.gauges
        while not isinstance(one := await self._next(), Finished):
            if isinstance(one, Scored):
                choice = self.choices[one.prompt]
                choice.score(one)
                yield choice, "", None
            elif isinstance(one, Tokens):
                if self._first:
                    self._first = False
                    gauges.first_token_s.add(time.monotonic() - self._began_s)
                choice = self.choices[one.prompt * self._wish.n + one.sample]
                text = choice.add(one)
                if choice.finish_reason is not None:
                    gauges.responses[choice.finish_reason] += 1
                yield choice, text, one
        gauges.request_s.add(time.monotonic() - self._began_s)

    async def answer(self) -> bytes:
        """The complete answer, as JSON."""
        async for _ in self.events():
            pass

        def body() -> bytes:
            return to_json(self.frame.body(self.choices))

        # Log-probs may be millions of numbers, for which other requests would wait.
        return await asyncio.to_thread(body) if self._wish.logprobs else body()

    async def chunk(self, choice: Choice, text: str, tokens: Tokens | None) -> bytes | None:
        """What a stream sends of an event; None: nothing."""

        def event_bytes() -> bytes | None:
            body = choice.chunk(text, tokens)
            return None if body is None else self.frame.chunk(body)

        if self._wish.scored and choice.finish_reason is not None:
            return await asyncio.to_thread(event_bytes)  # see `answer`
        return event_bytes()

    def leave(self) -> None:
        """Aborts what has not ended."""
        self._service.worker.cancel(self._job)

    @property
    def service(self) -> Service:
        """The service."""
        return self._service


class Stream(Response):
    """Sends chunks as tokens come; a client that leaves, or reads nothing, aborts its job."""

    def __init__(self, running: Running, receive: Receive) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._running, self._receive = running, receive
        self.told: Callable[[int], None] = lambda status: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive  # the request's own has read the body
        status = self.status_code
        try:
            status = await until_left(self._receive, self._send(send))
        except (ClientLeft, TimeoutError, OSError):
            status = LEFT_STATUS
            self._running.service.gauges.left += 1
        except asyncio.CancelledError:  # its time after SIGTERM is over
            status = 503
            with contextlib.suppress(TimeoutError, OSError):
                await self._end(send, [event(ApiError(503, STOPPING, kind="server_error").body())])
        finally:
            self._running.leave()
            self.told(status)

    async def _send(self, send: Send) -> int:
        """Sends all chunks; the status that the log and the counts get."""
        running = self._running
        start: Message = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        await self._write(send, running.frame.first_chunks(running.choices))
        try:
            async for choice, text, tokens in running.events():
                if (piece := await running.chunk(choice, text, tokens)) is not None:
                    await self._write(send, [piece])
            chunks, status = running.frame.last_chunks(running.choices), self.status_code
        except ApiError as error:
            chunks, status = [event(error.body())], error.status
        await self._end(send, chunks)
        return status

    async def _end(self, send: Send, chunks: list[bytes]) -> None:
        await self._write(send, chunks)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, chunks: list[bytes]) -> None:
        whole = b"".join(chunks)
        for at in range(0, len(whole), WRITE_BYTES):  # a slow client has its time for each part
            part = whole[at : at + WRITE_BYTES]
            async with asyncio.timeout(self._running.service.limits.write_s):
                await send({"type": "http.response.body", "body": part, "more_body": True})
