"""Steps until one request has ended: what `Sampler.generate`, `stream` and `drive` do."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol

from jax.sharding import Mesh

from polaris_jax import sharding
from polaris_jax.rollout.request import Ended, Request


class RolloutAborted(RuntimeError):
    """The request was aborted; all of its pages have been released."""


class RolloutPaused(RuntimeError):
    """The sampler was paused before the request had ended; the request stays live.

    Attributes:
        request: the live request. After `resume`, continue it with `drive` or drop it with `abort`.
    """

    def __init__(self, request: Request):
        super().__init__(
            f"this sampler is paused with {request.num_done} of {request.num_total} responses "
            "done: call resume, then drive or abort this error's `request`"
        )
        self.request = request


class Steps(Protocol):
    """The part of a sampler that steps."""

    paused: bool

    def step(self) -> bool:
        """See `Sampler.step`."""
        ...

    def abort(self, request: Request) -> None:
        """See `Sampler.abort`."""
        ...


def driven(
    sampler: Steps, request: Request, should_abort: Callable[[], bool] | None, mesh: Mesh | None
) -> Generator[Ended, None, None]:
    """See `Sampler.drive`; `mesh` is the sampler's."""
    try:
        while not request.done:
            if sampler.paused:
                raise RolloutPaused(request)
            if sharding.greatest(int(should_abort is not None and should_abort()), mesh):
                raise RolloutAborted(
                    f"rollout aborted with {request.num_done} of {request.num_total} responses done"
                )
            sampler.step()
            yield from request.take_ended()
        # Another caller's step may have ended the last responses.
        yield from request.take_ended()
        if request.failure is not None:
            raise request.failure
        if request.aborted:
            raise RolloutAborted(
                f"the request was aborted with {request.num_done} of {request.num_total} "
                "responses done"
            )
    except RolloutPaused:
        raise
    except BaseException:  # also if the caller closes the generator early
        sampler.abort(request)
        raise
