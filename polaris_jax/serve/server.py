"""Runs the application: sockets, signals, and the order of the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from polaris_jax.config import ConfigError
from polaris_jax.serve.app import make_app
from polaris_jax.serve.service import Service

HEADER_S = 15.0  # for a request's first line and headers, and for a body that nobody reads
MOST_CONNECTIONS = 4096
MOST_HEADER_BYTES = 64 << 10
Extra = Callable[[], contextlib.AbstractAsyncContextManager[None]]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the server listens, and how it ends.

    Attributes:
        host: address.
        port: TCP port; 0: any free one.
        grace_s: seconds that running requests have after SIGTERM; then they are aborted.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grace_s: float = 25.0


class _Protocol(H11Protocol):
    """uvicorn's, which also ends a connection that begins no request, or reads no answer."""

    write_s: float  # of `Limits`
    _header: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # `pause_writing` for each byte that is not read
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.write_s, self._end_unless_read, self._left())

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._header)
        _cancel(self._unread)

    def _wait_for_request(self) -> None:
        """Gives a request time to begin, unless one is being answered.

        More bytes of it give it no more time.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._header)
            self._header = None
        elif self._header is None:
            self._header = self.loop.call_later(HEADER_S, self._end_silent)

    def _end_silent(self) -> None:
        self._header = None
        if self._left():  # it still reads the last answer, and `pause_writing` watches it
            self._wait_for_request()
        else:
            self.transport.close()

    def _left(self) -> int:
        return self.transport.get_write_buffer_size()

    def _end_unless_read(self, left: int) -> None:
        if self._left() >= left:
            self.transport.abort()
        else:
            self._unread = self.loop.call_later(self.write_s, self._end_unless_read, self._left())


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _Server(uvicorn.Server):
    """uvicorn's, whose signals are ours: they are not raised again after the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(place: Place) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise ConfigError(
            f"--host={place.host} --port={place.port}: {error.strerror or error}; choose others"
        ) from None
    return listening


def serve(
    service: Service, place: Place, listening: socket.socket, *, extra: Extra | None = None
) -> bool:
    """Serves until SIGTERM or Ctrl-C; then requests may end, new ones are refused.

    Args:
        service: what is served; its worker runs already.
        place: where, and how it ends.
        listening: result of `bind`.
        extra: a context of another server of the same event loop.

    Returns:
        True if Ctrl-C ended it.
    """
    return asyncio.run(_run(make_server(service, place), listening, extra))


def make_server(service: Service, place: Place) -> uvicorn.Server:
    """A uvicorn server of the application, which leaves signals alone."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return _Server(
        uvicorn.Config(
            make_app(service),
            http=type("Protocol", (_Protocol,), {"write_s": service.limits.write_s}),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            backlog=2048,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(1, round(place.grace_s)),
        )
    )


async def _run(server: uvicorn.Server, listening: socket.socket, extra: Extra | None) -> bool:
    loop, came = asyncio.get_running_loop(), []

    def ask(number: signal.Signals) -> None:
        came.append(number)
        server.handle_exit(number, None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, number)
    async with (extra or contextlib.nullcontext)():
        await server.serve(sockets=[listening])
    return came[:1] == [signal.SIGINT]
