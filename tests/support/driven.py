"""What `sample_groups` asks of a sampler, over the real driver and an engine of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from polaris_jax.records import Response
from polaris_jax.rollout import RolloutAborted, SamplingParams
from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.driver import Driver
from polaris_jax.rollout.live import CompileCounter
from polaris_jax.rollout.request import Ended, Request
from polaris_jax.rollout.settings import per_prompt


class DrivenSampler:
    """Scheduler, pages and requests are the product's."""

    share, members = (0, 1), (0,)

    def __init__(self, engine: Any, pool: Any = None):
        config = engine.config
        state = DecodeState(pool, config, num_pages=config.num_pages, data=engine.data)
        self.engine, self.version = engine, 0
        self.driver = Driver(engine, state, CompileCounter())

    def drop_prefixes(self) -> None:
        self.driver.preempt_all()
        self.driver.drop_prefixes()

    def submit(
        self,
        prompts: Sequence[tuple[int, ...]],
        params: SamplingParams,
        *,
        begun: Sequence[Sequence[Response]],
        samples: Sequence[Sequence[int]],
        expected_tokens: Sequence[float] | None,
        on_progress: Any,
        history: Any = None,
    ) -> Request:
        request = Request(
            prompts,
            per_prompt(params, len(prompts)),
            params.n,
            params.stop_token_ids,
            expected_tokens=expected_tokens,
            begun=begun,
            samples=samples,
            history=history,
            on_progress=on_progress,
        )
        self.driver.submit(request)
        return request

    def drive(self, request: Request, should_abort: Callable[[], bool] | None) -> Iterator[Ended]:
        try:
            while not request.done:
                if should_abort is not None and should_abort():
                    raise RolloutAborted("asked to")
                self.driver.step(self.version, version=self.version)
                yield from request.take_ended()
            if request.failure is not None:
                raise request.failure
        finally:
            self.driver.abort(request)
