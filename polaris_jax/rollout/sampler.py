"""`Sampler`: prompts in, sampled responses with log-probs out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from polaris_jax import sharding
from polaris_jax.models import Qwen
from polaris_jax.records import Response
from polaris_jax.rollout.compile_counter import CompileCounter
from polaris_jax.rollout.decode_state import SamplerConfig
from polaris_jax.rollout.driven import driven
from polaris_jax.rollout.engine import Engine
from polaris_jax.rollout.live_state import LiveState
from polaris_jax.rollout.live_weights import LiveWeights
from polaris_jax.rollout.request_checks import Prompts, checked_request
from polaris_jax.rollout.run import Ended, OnProgress, OnTokens, Request
from polaris_jax.rollout.sampler_stats import happened
from polaris_jax.rollout.sampling import SamplingParams
from polaris_jax.rollout.weight_sync import SyncReport, check_live


class Sampler:
    """A paged, continuously batching sampler over one set of weights.

    Tokens are a function of weights, prompts and sampling settings alone: not of slots, page size,
    order, company, preemption or what was sampled before. Not for several threads at once.

    Rotary scaling (YaRN's factor, original length and attention factor) is the model's:
    `model.config.rope_scaling`, one for all requests and all weights of a sampler. Another factor
    takes another Sampler, of `model.with_rope_scaling(...)`.

    `generate` and `stream` serve a caller that waits. To embed the sampler in a loop of one's own,
    `submit` requests, call `step` while it says that there is more to do, and `poll` each request.

    Attributes:
        config: sizes.
        paused: by `pause`; `resume` ends it.
        version: number of the present weights, noted with each token (`Response.versions`): 0 at
            first, 1 more with each update. May be set, to whatever the caller counts versions by.
    """

    def __init__(
        self, model: Qwen, config: SamplerConfig | None = None, *, mesh: Mesh | None = None
    ):
        """A sampler with a copy of `model`'s weights.

        Args:
            model: sharded in any way, over other processes too.
            config: sizes.
            mesh: of `sharding.make_sampler_mesh` over devices of this process; None: one device.

        Raises:
            ValueError: sizes that mesh, model or platform do not allow.
        """
        self.config = config or SamplerConfig()
        default = mesh is not None and list(mesh.devices.flat) == jax.local_devices()[:1]
        self._mesh = None if default else mesh
        self._dtype = self.config.dtype or model.embed_VD[...].dtype
        sizes = dataclasses.replace(self.config, dtype=jnp.dtype(self._dtype).name)
        self._engine = Engine(model.config, sizes, self._mesh)
        self._model_config = model.config
        self._weights = LiveWeights(self._engine.spec, self._mesh, self._dtype)
        self._compiles = CompileCounter()
        self._live = LiveState(self._engine, self._mesh, self._dtype, self._compiles)
        self.paused = False
        self.version = -1
        self.reset_stats()
        self._take(model)

    @property
    def kernels(self) -> str:
        """Which decode kernels serve, and why: "native (g++ ...)", "xla (no C++ compiler ...)"."""
        return self._engine.spec.kernels

    # --- for callers that wait ---

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | None = None,
        *,
        expected_tokens: Sequence[float] | None = None,
        on_progress: OnProgress | None = None,
        on_tokens: OnTokens | None = None,
        should_abort: Callable[[], bool] | None = None,
    ) -> list[list[Response]]:
        """`params.n` responses for each prompt, in the order of the prompts.

        Args:
            prompts: token ids.
            params: how to sample.
            expected_tokens: response tokens that each prompt's samples are expected to take; the
                longest begin first. Changes no token. None: in the order of the prompts.
            on_progress: called in each step, while the device works, with (responses done,
                responses in all, response tokens of this request so far) as of the step before,
                whether or not something has changed; once more when the last response has ended.
            on_tokens: called with (prompt index, sample index, new token ids) as they come, a step
                late, too; each token is told once, all of them before the last `on_progress`.
            should_abort: polled between device calls.

        Raises:
            ValueError: a prompt or setting that cannot be served, before anything runs.
            RolloutAborted: `should_abort` returned True; all pages are released.
            RolloutPaused: one of its callbacks has paused the sampler; its `request` is live.
            RuntimeError: called from one of its own callbacks, or while the sampler is paused.
            Exception: what one of the callbacks, or `params.decode`, has raised; it is not called
                again, and requests of others go on.
        """
        request = self._request(prompts, params, expected_tokens, on_progress, on_tokens)
        for _ in self._submit_and_drive(request, should_abort):
            pass
        return request.responses()

    def stream(
        self,
        prompts: Prompts,
        params: SamplingParams | None = None,
        *,
        expected_tokens: Sequence[float] | None = None,
        on_progress: OnProgress | None = None,
        should_abort: Callable[[], bool] | None = None,
    ) -> Iterator[Ended]:
        """(prompt index, sample index, response) as they end; the same responses as `generate`.

        Arguments and errors are those of `generate`. Whoever stops early aborts the rest. Between
        two responses the sampler may be paused, get new weights, and be resumed.
        """
        request = self._request(prompts, params, expected_tokens, on_progress, None)
        return self._submit_and_drive(request, should_abort)

    # --- for a loop of one's own ---

    def submit(
        self,
        prompts: Prompts,
        params: SamplingParams | None = None,
        *,
        expected_tokens: Sequence[float] | None = None,
        begun: Sequence[Sequence[Response]] | None = None,
        on_progress: OnProgress | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Request:
        """Queues prompts behind those of earlier requests; `step` or `drive` gets them on.

        Other arguments are those of `generate`. What its callbacks or its `decode` raise ends this
        request alone (`Request.failure`): `poll` or `drive` raises it, whoever's `step` met it.

        Args:
            begun: [prompt][sample] what there is already of the responses, from an aborted request
                of the same settings: an unfinished one goes on as if it had never been left, its
                keys and values computed anew; one that has ended stays, and is not told again.

        Raises:
            ValueError: a prompt or setting that cannot be served.
            RuntimeError: called from one of the sampler's own callbacks, or it has no weights.
        """
        request = self._request(prompts, params, expected_tokens, on_progress, on_tokens, begun)
        self._live.ready().submit(request)
        return request

    def step(self) -> bool:
        """One device call of at most `decode_steps` tokens a row; True while requests are live.

        Does nothing while the sampler is paused. It raises nothing of a request's own: what a
        callback or `decode` raised waits for that request's `poll` or `drive`.

        Raises:
            RuntimeError: called from one of its own callbacks, or there are no weights.
            Exception: of the device; every request is aborted, and the next call begins anew.
        """
        if self.paused or not self._live.busy:
            return self._live.busy
        self._check_callable()
        driver = self._live.ready()
        began_s = time.perf_counter()
        try:
            driver.step(self._weights.model, version=self.version)
        finally:
            self._seconds += time.perf_counter() - began_s
            if driver.failed:
                self._live.begin_anew()
        return self._live.busy

    def drive(
        self, request: Request, should_abort: Callable[[], bool] | None = None
    ) -> Generator[Ended, None, None]:
        """Steps until a submitted request has ended, and yields what ended of it; as `stream`.

        Whoever leaves early aborts the rest, which `submit(begun=...)` takes up again. What a step
        of somebody else has ended is yielded, too.

        Args:
            request: of `submit`; one that has ended already only yields what was not polled yet.
            should_abort: polled between device calls; with several processes any of them decides.

        Yields:
            (prompt index, sample index, response), each once, as they end.

        Raises:
            RolloutAborted: `should_abort` returned True, or the request was aborted; what had ended
                of it has been yielded before.
            RolloutPaused: the sampler is paused; the request is live, to be driven after `resume`.
            RuntimeError: called from one of the sampler's own callbacks.
            Exception: what a callback or `decode` of the request has raised, once what had ended of
                it has been yielded.
        """
        return driven(self, request, should_abort, self._mesh)

    def poll(self, request: Request) -> list[Ended]:
        """(prompt index, sample index, response) of what has ended since the last call.

        Raises:
            Exception: what a callback or `decode` of the request has raised, once there is nothing
                of it left to return; every such call raises it.
        """
        ended = request.take_ended()
        if request.failure is not None and not ended:
            raise request.failure
        return ended

    def abort(self, request: Request) -> None:
        """Drops what is live or waiting of a request; ended responses can still be polled.

        `request.responses()` then holds all that there is, the unfinished ones too: as they are,
        they may be `begun` of another request. From a callback it takes effect at the step's end.
        """
        if self._live.driver is not None:
            self._live.driver.abort(request)

    def pause(self) -> None:
        """Nothing is admitted or decoded until `resume`; the weights may change meanwhile.

        From a callback it takes effect at the end of the step. What is live stays so, and whoever
        drives it gets `RolloutPaused`.
        """
        self.paused = True

    def resume(self) -> None:
        """Goes on after `pause`."""
        self.paused = False

    # --- weights and memory ---

    def update_weights(self, model: Qwen) -> None:
        """Takes new weights of the same shapes; nothing cached from the old ones survives.

        While the sampler is paused requests may be live: they go on under the new weights, their
        keys and values computed anew. `Response.versions` tells which weights gave which token.

        Args:
            model: sharded in any way, over other processes too (all of them must call then).

        Raises:
            RuntimeError: requests are live and the sampler is not paused, or a step is running.
            ValueError: a model of another architecture, or with arrays that are deleted; the
                present weights stay.
            Exception: whatever breaks the copy off, such as device memory that runs out. The old
                weights are freed as the new ones come, so there are none then: every call but
                this one says so until it succeeds, and paused requests wait for that.
        """
        self._check_still("weights cannot change")
        if model.config != self._model_config:
            raise ValueError(
                f"model.config={model.config}: this sampler was built for {self._model_config}; "
                "build a new Sampler for another architecture or rope_scaling"
            )
        self._take(model)

    def drop_prefixes(self) -> None:
        """Forgets the pages that earlier sequences left; what follows is computed from nothing."""
        if self._live.driver is not None:
            self._live.driver.drop_prefixes()

    def release_pool(self) -> None:
        """Frees the memory of the KV pages; the next `step` makes them anew.

        Raises:
            RuntimeError: requests are live and the sampler is not paused, or a step is running.
        """
        self._check_still("the pool cannot go")
        self._live.free_pool()

    def release(self) -> None:
        """Frees pool and weights; `update_weights` makes it usable again.

        Raises:
            RuntimeError: requests are live and the sampler is not paused, or a step is running.
        """
        self.release_pool()
        self._weights.free()

    # --- what happened ---

    @property
    def share(self) -> tuple[int, int]:
        """(which of the run's samplers this one is, how many there are)."""
        return sharding.sampler_share(self._mesh)

    @property
    def members(self) -> list[int]:
        """The processes that share this sampler; they call it together, with the same arguments."""
        return sharding.member_processes(self._mesh)

    def stats(self) -> dict[str, Any]:
        """What happened since `reset_stats`; `sampler_stats.happened` explains each number.

        A device error sets none of them back.
        """
        return happened(
            self._live.driver,
            self._live.state,
            slots=self.config.slots,
            seconds=self._seconds,
            compiles=self._compiles.count,
            synced=self._weights.synced,
        )

    def reset_stats(self) -> None:
        """Sets every count of `stats` to 0."""
        self._seconds = 0.0
        self._compiles.count = 0
        self._weights.synced = SyncReport()
        self._live.reset_counts()

    def _check_callable(self) -> None:
        if self._live.in_step:
            raise RuntimeError("this sampler is generating already; use another one")
        if self._weights.model is None:
            raise RuntimeError("this sampler has no weights: call update_weights first")

    def _check_still(self, what: str) -> None:
        if self._live.busy and not self.paused:
            raise RuntimeError(
                f"{what} while requests are live; pause the sampler, or wait for their end"
            )
        if self._live.in_step:
            raise RuntimeError(f"{what} in a callback; do it after the step has ended")

    def _take(self, model: Qwen) -> None:
        check_live(model)
        if self._live.driver is not None:
            self._live.driver.void()
        self._weights.take(model)
        self.version += 1

    def _request(
        self,
        prompts: Prompts,
        params: SamplingParams | None,
        expected_tokens: Sequence[float] | None,
        on_progress: OnProgress | None,
        on_tokens: OnTokens | None,
        begun: Sequence[Sequence[Response]] | None = None,
    ) -> Request:
        """A request that can be served; not submitted yet."""
        self._check_callable()
        self._live.ready()
        return checked_request(
            prompts,
            SamplingParams() if params is None else params,
            expected_tokens=expected_tokens,
            begun=begun,
            on_progress=on_progress,
            on_tokens=on_tokens,
            config=self.config,
            vocab_size=self._model_config.vocab_size,
            end_ids=self._model_config.end_ids,
            num_pages=self._live.num_pages,
            shards=self._engine.data,
        )

    def _submit_and_drive(
        self, request: Request, should_abort: Callable[[], bool] | None
    ) -> Iterator[Ended]:
        """`submit` at the first `next`, so that a stream that nobody reads holds nothing."""
        if self.paused:
            raise RuntimeError("this sampler is paused: call resume first")
        self._live.ready().submit(request)
        yield from self.drive(request, should_abort)
