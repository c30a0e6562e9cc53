"""A server of a small random model in a thread, and a client that speaks plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.models import Decoder
from polaris_jax.models.tokenizer import sampled_stop_ids
from polaris_jax.rollout import Sampler, SamplerConfig
from polaris_jax.serve import server
from polaris_jax.serve.gauges import Gauges
from polaris_jax.serve.http import Door, Limits
from polaris_jax.serve.service import Inboxes, Service
from polaris_jax.serve.weights import Updates
from polaris_jax.serve.worker import Worker
from tests.support.micro_run import small_qwen3
from tests.support.random_models import random_model

JSON = {"content-type": "application/json"}
# One program of decode for any number of rows.
SIZES = SamplerConfig(
    slots=4, page_size=8, num_pages=129, max_len=256, decode_steps=4, prefill_chunk=32, min_rows=4
)


def small_model(seed: int = 0) -> tuple[Decoder, Any]:
    """A random model, and its tokenizer, which is in memory alone."""
    tokenizer = build_tokenizer()
    return random_model(small_qwen3(len(tokenizer), positions=256), seed), tokenizer


@dataclasses.dataclass
class Running:
    """A server that runs.

    Attributes:
        port: where it listens.
        service: what it serves.
        sampler: the worker's sampler, to be read while nothing runs.
        lines: its log.
        app: the ASGI application.
        stop: ends the server as SIGTERM does; it has a second for its requests.
    """

    port: int
    service: Service
    sampler: Sampler
    lines: list[str]
    app: Any
    stop: Callable[[], None]

    def ask(
        self, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPResponse]:
        """(status, JSON value, response) of a request; a POST if there is a body."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, 120)) as client:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            method = "GET" if data is None else "POST"
            client.request(method, path, data, JSON if headers is None else headers)
            response = client.getresponse()
            raw = response.read()
        is_json = "json" in response.headers.get("content-type", "")
        return response.status, json.loads(raw) if is_json else raw.decode(), response

    def stream(self, path: str, body: Any) -> list[dict[str, Any]]:
        """The chunks of a stream, without the [DONE] that must end it."""
        status, text, _ = self.ask(path, body | {"stream": True})
        assert status == 200, text
        *events, last, nothing = text.split("\n\n")
        assert (last, nothing) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def until(self, holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Waits until something holds."""
        end_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end_s, "it never held"
            time.sleep(0.02)

    def idle(self) -> dict[str, Any]:
        """The sampler's statistics once nothing runs any more."""
        self.until(lambda: self.service.worker.unfinished == 0)
        return self.service.worker.call(lambda sampler: sampler.stats()).result(60)


@contextlib.contextmanager
def running(
    *,
    model: Decoder | None = None,
    sizes: SamplerConfig = SIZES,
    max_waiting: int = 8,
    key: str = "",
    limits: Limits | None = None,
    follow: str = "",
    allow_update: bool = False,
) -> Iterator[Running]:
    """A server of `small_model`, or of another model with its tokenizer."""
    own, tokenizer = small_model()
    model = model or own
    sampler, inboxes, gauges, lines = Sampler(model, sizes), Inboxes(), Gauges(), []
    worker = Worker(sampler, inboxes.post, max_waiting=max_waiting)
    service = Service(
        name="small",
        tokenizer=tokenizer,
        end_ids=sampled_stop_ids(tokenizer, model.config),
        max_len=sizes.max_len,
        slots=sizes.slots,
        worker=worker,
        inboxes=inboxes,
        updates=Updates(
            worker,
            model.config,
            source="small",
            dtype="float32",
            gauges=gauges,
            log=lines.append,
            follow=follow,
            every_s=0.1,
        ),
        allow_update=allow_update,
        door=Door(key, "127.0.0.1"),
        limits=limits or Limits(),
        log=lines.append,
        gauges=gauges,
    )
    place = server.Place(port=0, grace_s=1.0)
    listening = server.bind(place)
    uvicorn_server = server.make_server(service, place)
    thread = threading.Thread(
        target=lambda: asyncio.run(uvicorn_server.serve(sockets=[listening])), daemon=True
    )
    worker.start()
    thread.start()
    port, app = listening.getsockname()[1], uvicorn_server.config.app

    def stop() -> None:
        uvicorn_server.should_exit = True

    server_of = Running(port, service, sampler, lines, app, stop)
    try:
        server_of.until(lambda: uvicorn_server.started)
        yield server_of
    finally:
        stop()
        thread.join(60)
        worker.stop()
    assert not thread.is_alive() and not worker.alive
