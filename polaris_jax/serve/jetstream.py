"""JetStream's gRPC service over our worker, so that JetStream's clients work unchanged.

The service is `jetstream_proto.Orchestrator` of google-jetstream 0.2.2: Decode and HealthCheck. A
request has a text or token ids and max_tokens, and JetStream knows no sampling settings: responses
are greedy. JetStream's own orchestrator over its own Driver would bring its own scheduler, without
preemption, prefix cache and aborts. So its messages are kept and its scheduler is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

from polaris_jax.config import ConfigError
from polaris_jax.models.text_stream import TextStream
from polaris_jax.rollout.jetstream import load_protocol
from polaris_jax.serve.fields import ApiError
from polaris_jax.serve.jobs import Failed, Finished, Job, Tokens
from polaris_jax.serve.service import Service
from polaris_jax.serve.wishes import read_wish
from polaris_jax.serve.worker import QueueFull, Stopped
from polaris_jax.system.text import one_line

MOST_MESSAGE_BYTES = 8 << 20
MOST_CALLS = 4096


class Orchestrator:
    """A gRPC server in the HTTP server's event loop.

    Args:
        service: what the HTTP server serves.
        host: address to listen at.
        port: TCP port; 0: any free one.
        key: what clients send as metadata `authorization: Bearer KEY`; "": none.

    Attributes:
        port: where it listens, once `running` was entered.

    Raises:
        ConfigError: a package that it needs is not installed.
    """

    def __init__(self, service: Service, host: str, port: int, key: str) -> None:
        try:
            import grpc

            self._messages, self._stubs = load_protocol()
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--jetstream_port: {error.name} is not installed; pip install --no-deps "
                "google-jetstream==0.2.2, and pip install grpcio"
            ) from None
        self._grpc, self._service, self._host, self.port = grpc, service, host, port
        self._digest = hashlib.sha256(f"Bearer {key}".encode()).digest() if key else None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves until the context ends; calls that run then are cancelled.

        Raises:
            ConfigError: the address cannot be had.
        """
        self._service.inboxes.open()
        server = self._grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=MOST_CALLS,
        )
        self._stubs.add_OrchestratorServicer_to_server(self, server)
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self.port = server.add_insecure_port(f"{host}:{self.port}")
        except RuntimeError as error:
            raise ConfigError(
                f"--jetstream_port={self.port}: {one_line(error)}; choose another"
            ) from None
        await server.start()
        self._service.log(f"JetStream's service at {host}:{self.port}")
        try:
            yield
        finally:
            await server.stop(1.0)

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        """Whether the sampler works."""
        del request, context
        live = self._service.worker.alive and self._service.updates.has_weights
        return self._messages.HealthCheckResponse(is_live=live)

    async def Decode(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """A message for each decode call: new text and token ids, or token ids alone for ids."""
        service, codes = self._service, self._grpc.StatusCode
        if self._digest is not None:
            sent = dict(context.invocation_metadata() or ()).get("authorization", "")
            if not hmac.compare_digest(hashlib.sha256(sent.encode()).digest(), self._digest):
                await context.abort(codes.UNAUTHENTICATED, "the key is missing or wrong")
        with_text = request.WhichOneof("content") == "text_content"
        try:
            job = await self._job(request)
            service.worker.submit(job)
        except ApiError as error:
            await context.abort(codes.INVALID_ARGUMENT, error.text)
            return
        except QueueFull as error:
            await context.abort(codes.RESOURCE_EXHAUSTED, f"{error}; try again later")
            return
        except Stopped as error:
            await context.abort(codes.UNAVAILABLE, str(error))
            return
        stream = TextStream(service.vocabulary.text)
        try:
            while not isinstance(event := await job.inbox.get(), Finished):
                if isinstance(event, Failed):
                    code = codes.INVALID_ARGUMENT if event.refused else codes.INTERNAL
                    await context.abort(code, event.text)
                if isinstance(event, Tokens):
                    text = stream.push(event.token_ids) if with_text else ""
                    if with_text and event.finish_reason is not None:
                        text += stream.rest()
                    yield self._answer(text, event.token_ids)
        finally:  # also if the client cancels
            service.worker.cancel(job)

    async def _job(self, request: Any) -> Job:
        """The job of a request.

        Raises:
            ApiError: it cannot be served.
            QueueFull, Stopped: it cannot be served now.
        """
        service, kind = self._service, request.WhichOneof("content")
        if kind is None:
            raise ApiError(400, "text_content or token_content: needed")
        content = request.text_content.text if kind == "text_content" else None
        prompt = list(request.token_content.token_ids) if content is None else content
        body = {"prompt": prompt, "temperature": 0, "max_tokens": request.max_tokens}
        wish = read_wish(body, chat=False)
        with service.worker.kept_room(wish.responses):
            return await service.job(wish)

    def _answer(self, text: str, token_ids: tuple[int, ...]) -> Any:
        content = self._messages.DecodeResponse.StreamContent
        sample = content.Sample(text=text, token_ids=token_ids)
        return self._messages.DecodeResponse(stream_content=content(samples=[sample]))
