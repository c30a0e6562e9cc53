"""A headless Chromium, driven over its debugging pipe with the standard library alone."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

BINARY = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_S = 120.0


class Browser:
    """One page of a browser.

    Attributes:
        errors: what the page has written to its console as an error, and exceptions.
        requests: addresses that the page has asked for.
    """

    def __init__(self, into: int, out: int) -> None:
        self._into, self._out, self._rest = into, out, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._into, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            answer = self._next(end)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
        raise TimeoutError(method)

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._out], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser is silent")
            block = os.read(self._out, 1 << 20)
            assert block, "the browser has ended"
            self._rest += block
        raw, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(raw)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def run(self, script: str) -> Any:
        """The JSON value of an expression, or of the promise that it gives, in the page."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(
        self, path: pathlib.Path, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        """Shows a file, and waits until its figures are drawn."""
        phone = width < 500
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.until("document.documentElement?.dataset.figures === 'ready'")

    def until(self, condition: str) -> None:
        """Waits until an expression holds in the page."""
        end = time.monotonic() + WAIT_S
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, (condition, self.errors)
            time.sleep(0.1)

    def point_at(self, x: float, y: float, kind: str = "mouseMoved") -> None:
        """Moves the mouse, or presses or releases its button, at a point of the window."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def screenshot(self, path: pathlib.Path, *, below: float = 0.0, height: float = 0.0) -> None:
        """Writes a PNG of the window, or of `height` pixels of the page from `below` on."""
        clip = {}
        if height:
            width = self.run("document.documentElement.clientWidth")
            clip = {"clip": {"x": 0, "y": below, "width": width, "height": height, "scale": 1}}
            clip["captureBeyondViewport"] = True
        data = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser(profile: pathlib.Path) -> Iterator[Browser]:
    """A context manager that gives a page of a new browser, and ends the browser.

    Args:
        profile: an empty directory for the browser's own files.
    """
    assert BINARY is not None
    for_browser, to_browser = os.pipe()
    from_browser, for_us = os.pipe()
    words = [
        *(BINARY, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--remote-debugging-pipe", "--no-first-run", "--disable-extensions"),
        *("--disable-background-networking", "--disable-component-update"),
        f"--user-data-dir={profile}",
    ]

    def take_pipes() -> None:  # the browser reads commands at 3 and answers at 4
        os.dup2(for_browser, 103)
        os.dup2(for_us, 104)
        os.dup2(103, 3)
        os.dup2(104, 4)

    with open(profile / "said", "wb") as said:
        process = subprocess.Popen(
            words, preexec_fn=take_pipes, pass_fds=(3, 4), stdout=said, stderr=said
        )
    os.close(for_browser)
    os.close(for_us)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(to_browser)
        os.close(from_browser)
