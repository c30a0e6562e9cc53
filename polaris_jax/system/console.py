"""The `Progress` of a command that uses jax: it says when a program is being compiled."""

from __future__ import annotations

import weakref
from typing import Any

import jax.monitoring

from polaris_jax.system.processes import is_first
from polaris_jax.system.progress import Progress, Watcher

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileWatch:
    """Knows whether some thread of this process compiles.

    jax records a scalar of the event's name when a compilation begins, and its duration when it
    ends, also by an error.
    """

    def __init__(self) -> None:
        self._running = 0
        self_reference = weakref.ref(self)

        def begins(event: str, value: float, **kwargs: Any) -> None:
            del value, kwargs
            watch = self_reference()
            if watch is not None and event == COMPILE_EVENT:
                watch._running += 1

        def ends(event: str, duration_secs: float, **kwargs: Any) -> None:
            del duration_secs, kwargs
            watch = self_reference()
            if watch is not None and event == COMPILE_EVENT:
                watch._running = max(0, watch._running - 1)

        jax.monitoring.register_scalar_listener(begins)
        jax.monitoring.register_event_duration_secs_listener(ends)
        weakref.finalize(self, jax.monitoring.unregister_scalar_listener, begins)
        weakref.finalize(self, jax.monitoring.unregister_event_duration_listener, ends)

    def __call__(self) -> bool:
        """True while a program is being compiled."""
        return self._running > 0


def open_console(watcher: Watcher | None = None) -> Progress:
    """A `Progress` that prints in the first process alone.

    Args:
        watcher: gets what every process does, and the warnings; see `Progress`.
    """
    return Progress(enabled=is_first(), watcher=watcher, compiling=CompileWatch())
