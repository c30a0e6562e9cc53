"""Reading requests within limits, and noticing that a client has left."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from polaris_jax.serve.fields import ApiError
from polaris_jax.system.foreign import ForeignFileError, parse_json

T = TypeVar("T")

LARGE_BODY_BYTES = 1 << 16  # from here on a thread parses it, beside other requests
MOST_BODY_VALUES = 2_000_000  # in one body: token ids of prompts
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may take.

    Attributes:
        body_bytes: size of a request's body.
        body_s: seconds in which a body must come.
        write_s: seconds after which a client that reads nothing is dropped.
    """

    body_bytes: int = 8 << 20
    body_s: float = 30.0
    write_s: float = 60.0


class ClientLeft(Exception):
    """The client closed its connection."""


async def read_object(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        ApiError: the body is too large, too slow, or no JSON object.
        ClientLeft: the client left before its end.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":  # also keeps out what a web page may send without asking
        raise ApiError(415, "content-type: must be application/json")
    too_large = ApiError(
        413,
        f"the body has more than {limits.body_bytes:,} bytes; send less, or raise --max_body_mib",
    )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                body += part
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiError(
            408, f"the body took more than {limits.body_s:g} s to come", kind="timeout"
        ) from None
    except ClientDisconnect:
        raise ClientLeft from None

    def parsed() -> dict[str, Any]:
        return parse_json(bytes(body), where="body", remedy="", most_values=MOST_BODY_VALUES)

    try:
        return parsed() if len(body) < LARGE_BODY_BYTES else await asyncio.to_thread(parsed)
    except ForeignFileError as error:
        raise ApiError(400, str(error)) from None


async def until_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves first.

    Raises:
        ClientLeft: the client closed its connection.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Door:
    """Who may come in.

    Args:
        key: what clients send as `Authorization: Bearer KEY`; "": no key is asked for.
        host: address that the server listens at.
    """

    def __init__(self, key: str, host: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest() if key else None
        self._local = host in LOOPBACK and not key

    def check(self, request: Request) -> None:
        """Raises ApiError if the request may not come in."""
        if self._local and not _is_local(request.headers.get("host", "")):
            raise ApiError(  # a page of the web whose name leads to this machine
                403, "Host: this server answers to localhost; give it a key or a --host for others"
            )
        if self._digest is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode(errors="replace")).digest()
        if not hmac.compare_digest(digest, self._digest) or scheme.lower() != "bearer":
            raise ApiError(
                401,
                "the key is missing or wrong; send it as Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
            )


def _is_local(host: str) -> bool:
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower() in LOOPBACK
