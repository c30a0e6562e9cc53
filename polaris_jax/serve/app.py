"""The ASGI application: paths, the door, errors, the log."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from polaris_jax.serve.answers import to_json
from polaris_jax.serve.fields import ApiError
from polaris_jax.serve.http import ClientLeft, read_object, until_left
from polaris_jax.serve.running import LEFT_STATUS, Running, Stream, refusals
from polaris_jax.serve.service import Service
from polaris_jax.serve.wishes import read_wish
from polaris_jax.serve.worker import STOPPING, Stopped
from polaris_jax.system.text import one_line, printable

MOST_LOGGED_CHARS = 120


def make_app(service: Service) -> Starlette:
    """The application."""
    handlers = _Handlers(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.inboxes.open()
        following = asyncio.ensure_future(service.updates.follow())
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            service.prompts.close()

    def route(path: str, handler: Any, method: str, *, is_open: bool = False) -> Route:
        return Route(path, handlers.guarded(path, handler, is_open=is_open), methods=[method])

    return Starlette(
        routes=[
            route("/v1/completions", handlers.completions, "POST"),
            route("/v1/chat/completions", handlers.chat, "POST"),
            route("/v1/models", handlers.models, "GET"),
            route("/v1/models/{name:path}", handlers.model, "GET"),
            route("/v1/weights", handlers.weights, "POST"),
            route("/health", handlers.health, "GET", is_open=True),
            route("/metrics", handlers.metrics, "GET"),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _failed},
        lifespan=lifespan,
    )


async def _http_error(_: Request, error: Exception) -> Response:
    """404 and 405 of paths that do not exist."""
    assert isinstance(error, HTTPException)
    body = ApiError(error.status_code, str(error.detail)).body()
    return _json(body, error.status_code, dict(error.headers or {}))  # of 405: Allow


async def _failed(_: Request, __: Exception) -> Response:
    return _error(ApiError(500, "an error of the server", kind="server_error"))


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(body), status, headers, "application/json")


def _error(error: ApiError) -> Response:
    headers = {"retry-after": "1"} if error.status in (429, 503) else {}
    if error.status in (408, 413):  # the rest of the body is not read
        headers["connection"] = "close"
    return _json(error.body(), error.status, headers)


Handler = Callable[[Request], Awaitable[Response]]


class _Handlers:
    def __init__(self, service: Service) -> None:
        self._service = service

    def guarded(self, path: str, handler: Handler, *, is_open: bool) -> Handler:
        """A handler behind the door, whose errors have the API's form and which logs a line."""
        service = self._service

        async def handle(request: Request) -> Response:
            began_s = time.monotonic()
            try:
                if not is_open:
                    service.door.check(request)
                response = await handler(request)
            except ApiError as error:
                response = _error(error)
            except ClientLeft:
                service.gauges.left += 1
                response = Response(status_code=LEFT_STATUS)
            except asyncio.CancelledError:  # its time after SIGTERM is over
                response = _error(ApiError(503, STOPPING, kind="server_error"))
            except Exception:  # an error of ours: `_failed` answers, and the log has where it was
                self._told(request, path, 500, began_s)
                raise
            if not isinstance(response, Stream):
                self._told(request, path, response.status_code, began_s)
            else:
                response.told = lambda status: self._told(request, path, status, began_s)
            return response

        return handle

    def _told(self, request: Request, path: str, status: int, began_s: float) -> None:
        service = self._service
        service.gauges.requests[path, status] += 1
        if path not in ("/health", "/metrics"):
            # Not of `request.url`, into which the client's Host header goes.
            shown = printable(request.scope["path"])[:MOST_LOGGED_CHARS]
            service.log(f"{request.method} {shown} {status} {time.monotonic() - began_s:.3f} s")

    # --- paths ---

    async def completions(self, request: Request) -> Response:
        return await self._sample(request, chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._sample(request, chat=True)

    async def models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self._require_name(request.path_params["name"])
        return _json(self._card())

    def _card(self) -> dict[str, Any]:
        service = self._service
        return {
            "id": service.name,
            "object": "model",
            "created": service.created,
            "owned_by": "polaris_jax",
            "max_model_len": service.max_len,
            "weights": service.updates.source,
            "weights_version": service.updates.version,
        }

    def _require_name(self, name: str | None) -> None:
        if name not in (None, self._service.name):
            raise ApiError(
                404,
                f"model: there is no {printable(str(name))[:MOST_LOGGED_CHARS]!r} here; "
                f"{self._service.name!r} is served",
                param="model",
                code="model_not_found",
            )

    async def health(self, _: Request) -> Response:
        worker, updates = self._service.worker, self._service.updates
        ready = worker.alive and updates.has_weights and updates.alive
        return _json({"status": "ok" if ready else "failed"}, 200 if ready else 503)

    async def metrics(self, _: Request) -> Response:
        service = self._service
        text = service.gauges.text(
            service.worker.stats,
            slots=service.slots,
            unfinished=service.worker.unfinished,
            version=service.updates.version,
            device_failures=service.worker.failures,
        )
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def weights(self, request: Request) -> Response:
        service = self._service
        if not service.allow_update:
            raise ApiError(403, "weights: start the server with --allow_update", kind="forbidden")
        body = await read_object(request, service.limits)
        path = body.get("path")
        if not isinstance(path, str) or not path or body.keys() != {"path"}:
            raise ApiError(400, 'path: needed alone: {"path": "DIR"}', param="path")
        try:
            await service.updates.take(path)
        except Stopped as error:
            raise ApiError(503, str(error), kind="server_error") from None
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            raise ApiError(400, f"path: {one_line(error)}", param="path") from None
        return _json(self._card())

    # --- sampling ---

    async def _sample(self, request: Request, *, chat: bool) -> Response:
        service, began_s = self._service, time.monotonic()
        wish = read_wish(await read_object(request, service.limits), chat=chat)
        self._require_name(wish.model)
        if not service.updates.has_weights:
            text = "an update of the weights failed half way; try again after the next"
            raise ApiError(503, text, kind="server_error")
        with contextlib.ExitStack() as kept:  # nothing is encoded for a full queue
            with refusals():
                kept.enter_context(service.worker.kept_room(wish.responses))
            job = await until_left(request.receive, service.job(wish))
        running = Running(service, wish, job, began_s)
        try:
            await until_left(request.receive, running.accept())
            if wish.stream:
                return Stream(running, request.receive)
            body = await until_left(request.receive, running.answer())
            return Response(body, media_type="application/json")
        except BaseException:
            running.leave()
            raise
