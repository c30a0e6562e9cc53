"""How often XLA compiled while a block of code ran, from jax's own monitoring events."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import jax.monitoring

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Counts backend compilations of this thread inside `with counter:` blocks."""

    def __init__(self) -> None:
        self.count = 0
        self._thread: int | None = None
        self_reference = weakref.ref(self)

        def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
            del duration_secs, kwargs
            counter = self_reference()
            if counter is not None and event == COMPILE_EVENT:
                counter._saw_compile()

        jax.monitoring.register_event_duration_secs_listener(listen)
        weakref.finalize(self, jax.monitoring.unregister_event_duration_listener, listen)

    def _saw_compile(self) -> None:
        if self._thread == threading.get_ident():
            self.count += 1

    def __enter__(self) -> CompileCounter:
        self._thread = threading.get_ident()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread = None
