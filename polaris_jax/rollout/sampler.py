"""`Sampler`: prompts in, sampled responses with log-probs out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from polaris_jax import sharding
from polaris_jax.models import Decoder
from polaris_jax.records import Response
from polaris_jax.rollout.engine import Engine
from polaris_jax.rollout.live import CompileCounter, LiveState, sampler_stats
from polaris_jax.rollout.request import Ended, OnProgress, OnTokens, Request, Tokens, driven
from polaris_jax.rollout.request_checks import Prompts, checked_ids, checked_request
from polaris_jax.rollout.scores import Scores, score
from polaris_jax.rollout.settings import SamplerConfig, SamplingParams
from polaris_jax.rollout.weights import LiveWeights, SyncReport, check_live


class Sampler:
    """A paged, continuously batching sampler over one set of weights.

    Tokens depend on weights, prompts and sampling settings alone. They do not depend on slots, page
    size, order, other requests, preemption or earlier samples. A sampler is not thread-safe.

    The model sets rotary scaling (YaRN's factor, original length and attention factor) in
    `model.config.rope_scaling`. All requests and all weights of a sampler share this scaling.
    Another factor needs another Sampler, made with `model.with_rope_scaling(...)`.

    `generate` and `stream` run the steps themselves. To embed the sampler in a loop of your own,
    `submit` requests, call `step` while it returns True, and `poll` each request.

    Attributes:
        config: sizes of the sampler.
        paused: True between `pause` and `resume`.
        version: number of the present weights, recorded with each token (`Response.versions`). The
            first weights have 0, and each update adds 1. A caller may set a number of its own.
    """

    def __init__(
        self, model: Decoder, config: SamplerConfig | None = None, *, mesh: Mesh | None = None
    ):
        """A sampler with a copy of `model`'s weights.

        Args:
            model: the model, sharded in any way, also over other processes.
            config: sizes of the sampler; None: the defaults.
            mesh: result of `sharding.make_sampler_mesh` over devices of this process; None: one
                device.

        Raises:
            ValueError: mesh, model or platform do not allow these sizes.
        """
        self.config = config or SamplerConfig()
        self._mesh = sharding.unless_default(mesh)
        self._dtype = self.config.dtype or model.embed_VD[...].dtype
        sizes = dataclasses.replace(self.config, dtype=jnp.dtype(self._dtype).name)
        self._engine = Engine(model.config, sizes, self._mesh)
        self._model_config = model.config
        self._weights = LiveWeights(self._engine.spec, self._mesh, self._dtype)
        self._compiles = CompileCounter()
        self._live = LiveState(self._engine, self._mesh, self._dtype, self._compiles)
        self.paused, self.version = False, -1
        self.reset_stats()
        self._take(model)

    @property
    def kernels(self) -> str:
        """The decode kernels, and why: "native (g++ ...)", "xla (rollout.attention=...)"."""
        return self._engine.spec.kernels

    @property
    def has_weights(self) -> bool:
        """False after `release`, and after an update that failed half way."""
        return self._weights.model is not None

    # --- for callers that wait ---

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | None = None,
        *,
        expected_tokens: Sequence[float] | None = None,
        history: Sequence[Sequence[Tokens]] | None = None,
        on_progress: OnProgress | None = None,
        on_tokens: OnTokens | None = None,
        should_abort: Callable[[], bool] | None = None,
    ) -> list[list[Response]]:
        """`params.n` responses for each prompt, in the order of the prompts.

        Args:
            prompts: token ids of each prompt.
            params: sampling settings; None: the defaults.
            expected_tokens: expected response tokens of a sample of each prompt; the longest begin
                first. The order changes no token. None: the order of the prompts.
            history: token ids of earlier responses to each prompt, the oldest first. With
                `SamplerConfig.draft` drafts are taken from them; they change no token.
            on_progress: called in each step, while the device works, with (responses done,
                responses in all, response tokens of this request so far) after the previous step,
                even if nothing has changed. Called once more when the last response has ended.
            on_tokens: called with (prompt index, sample index, new token ids), also one step late.
                Each token is reported once, and before the last `on_progress`.
            should_abort: polled between device calls.

        Raises:
            ValueError: a prompt or setting cannot be served. Raised before anything runs.
            RolloutAborted: `should_abort` returned True. All pages are released.
            RolloutPaused: one of the callbacks paused the sampler. The error's `request` is live.
            RuntimeError: one of the sampler's callbacks made this call, or the sampler is paused.
            Exception: whatever a callback or `params.decode` raised. No callback of this request
                is called again, and other requests continue.
        """
        request = self._request(
            prompts,
            params,
            expected_tokens=expected_tokens,
            history=history,
            on_progress=on_progress,
            on_tokens=on_tokens,
        )
        for _ in self._submit_and_drive(request, should_abort):
            pass
        return request.responses()

    def stream(
        self,
        prompts: Prompts,
        params: SamplingParams | None = None,
        *,
        expected_tokens: Sequence[float] | None = None,
        history: Sequence[Sequence[Tokens]] | None = None,
        on_progress: OnProgress | None = None,
        should_abort: Callable[[], bool] | None = None,
    ) -> Iterator[Ended]:
        """Yields (prompt index, sample index, response) when each response ends.

        Responses, arguments and errors are those of `generate`. Closing the iterator early aborts
        the unfinished responses. Between two responses the caller may pause the sampler, update
        its weights and resume it.
        """
        asked: dict[str, Any] = {"expected_tokens": expected_tokens, "history": history}
        request = self._request(prompts, params, on_progress=on_progress, **asked)
        return self._submit_and_drive(request, should_abort)

    # --- for a loop of your own ---

    def submit(
        self,
        prompts: Prompts,
        params: SamplingParams | None = None,
        *,
        expected_tokens: Sequence[float] | None = None,
        begun: Sequence[Sequence[Response]] | None = None,
        samples: Sequence[Sequence[int]] | None = None,
        history: Sequence[Sequence[Tokens]] | None = None,
        on_progress: OnProgress | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Request:
        """Queues prompts behind those of earlier requests; `step` or `drive` samples them.

        Other arguments are those of `generate`. If a callback or `decode` of this request raises,
        this request alone ends (`Request.failure`). `poll` or `drive` of this request raises the
        error, even if the `step` was another caller's.

        Args:
            begun: [prompt][sample] responses of an aborted request with the same settings. An
                unfinished response continues as if never interrupted; its keys and values are
                computed again. An ended response is kept and not reported again.
            samples: indices of each prompt's samples to be sampled here, in [0, n). The others stay
                as `begun` has them. None: all n.

        Raises:
            ValueError: a prompt, a setting, `begun` or `samples` cannot be served.
            RuntimeError: one of the sampler's callbacks made this call, or there are no weights.
        """
        request = self._request(
            prompts,
            params,
            expected_tokens=expected_tokens,
            begun=begun,
            samples=samples,
            history=history,
            on_progress=on_progress,
            on_tokens=on_tokens,
        )
        self._live.ready().submit(request)
        return request

    def step(self) -> bool:
        """Runs a device call of at most `decode_steps` tokens a row; True while requests are live.

        Does nothing while the sampler is paused. If a callback or `decode` raises, `step` keeps the
        error for `poll` or `drive` of that request.

        Raises:
            RuntimeError: one of the sampler's callbacks made this call, or there are no weights.
            Exception: a device error. Every request is aborted. The next call begins with empty
                slots and a new pool.
        """
        if self.paused or not self._live.busy:
            return self._live.busy
        self._check_callable()
        driver, began_s = self._live.ready(), time.perf_counter()
        try:
            driver.step(self._weights.model, version=self.version)
        finally:
            self._seconds += time.perf_counter() - began_s
            if driver.failed:
                self._live.restart()
        return self._live.busy

    def drive(
        self, request: Request, should_abort: Callable[[], bool] | None = None
    ) -> Generator[Ended, None, None]:
        """Steps until a submitted request has ended; yields its responses as `stream` does.

        Closing the generator early aborts the unfinished responses; `submit(begun=...)` can
        continue them. Responses that ended in another caller's step are yielded too.

        Args:
            request: result of `submit`. An ended request only yields the responses not polled yet.
            should_abort: polled between device calls. Any process of the sampler can abort.

        Yields:
            (prompt index, sample index, response), each once, and all of them before an error.

        Raises:
            RolloutAborted: `should_abort` returned True, or the request was aborted.
            RolloutPaused: the sampler is paused. The request is live; drive it after `resume`.
            RuntimeError: one of the sampler's callbacks made this call.
            ValueError: the request is another sampler's.
            Exception: whatever a callback or `decode` of the request raised.
        """
        return driven(self, request, should_abort, self._mesh)

    def poll(self, request: Request) -> list[Ended]:
        """(prompt index, sample index, response) of each response ended since the last call.

        Raises:
            Exception: whatever a callback or `decode` of the request raised. Every call that has
                no response to return raises this error.
        """
        ended = request.take_ended()
        if request.failure is not None and not ended:
            raise request.failure
        return ended

    def abort(self, request: Request) -> None:
        """Drops the live and waiting samples of a request; ended responses can still be polled.

        `request.responses()` then holds all responses, unfinished ones included. They may be the
        `begun` of another request. An abort by a callback takes effect at the end of the step.
        """
        if self._live.driver is not None:
            self._live.driver.abort(request)

    def pause(self) -> None:
        """Stops admission and decoding until `resume`; the weights may change meanwhile.

        A pause by a callback takes effect at the end of the step. Live requests stay live, and
        `drive` raises `RolloutPaused`.
        """
        self.paused = True

    def resume(self) -> None:
        """Continues after `pause`."""
        self.paused = False

    def update_weights(self, model: Decoder) -> None:
        """Copies new weights of the same shapes; drops everything cached under the old weights.

        Requests may be live if the sampler is paused. They continue under the new weights, and
        their keys and values are computed again. `Response.versions` records which weights sampled
        each token.

        Args:
            model: the new weights, sharded in any way, or numpy arrays. If they lie on several
                processes, all of these processes must call.

        Raises:
            RuntimeError: requests are live and the sampler is not paused, or a step is running.
            ValueError: the model has another architecture, or some of its arrays are deleted. The
                present weights are kept.
            Exception: the copy failed, for example because device memory ran out. Old weights are
                freed during the copy, so the sampler has no weights then. Calls that sample raise
                RuntimeError until an update succeeds, and paused requests wait.
        """
        self._live.require_still("weights cannot change", paused=self.paused)
        if model.config != self._model_config:
            raise ValueError(
                f"model.config={model.config}: this sampler was built for {self._model_config}; "
                "build a new Sampler for another architecture or rope_scaling"
            )
        self._take(model)

    def drop_prefixes(self) -> None:
        """Forgets the cached pages of earlier sequences; later prompts are prefilled in full."""
        if self._live.driver is not None:
            self._live.driver.drop_prefixes()

    def release_pool(self) -> None:
        """Frees the memory of the KV pages; the next `step` allocates new pages.

        Raises:
            RuntimeError: requests are live and the sampler is not paused, or a step is running.
        """
        self._live.require_still("the pool cannot go", paused=self.paused)
        self._live.free_pool()

    def release(self) -> None:
        """Also frees the weights; `update_weights` makes the sampler usable. See `release_pool`."""
        self.release_pool()
        self._weights.free()

    def score(
        self, sequences: Sequence[Sequence[int]], temperatures: Sequence[float], *, top: int
    ) -> list[Scores]:
        """Log-probs of every token, and the `top` likeliest in its place; see `scores.score`."""
        self._check_callable()
        self.check_scorable(sequences)
        with self._compiles:
            return score(self._weights.model, sequences, temperatures, top=top, mesh=self._mesh)

    def check_scorable(self, sequences: Sequence[Sequence[int]]) -> None:
        """Raises ValueError if a sequence holds anything but token ids of the vocabulary."""
        for index, sequence in enumerate(sequences):
            checked_ids(index, sequence, vocab_size=self._model_config.vocab_size)

    @property
    def share(self) -> tuple[int, int]:
        """(index of this sampler among the run's samplers, number of samplers)."""
        return sharding.sampler_share(self._mesh)

    @property
    def members(self) -> list[int]:
        """The processes that share this sampler; all make the same calls together."""
        return sharding.member_processes(self._mesh)

    def stats(self) -> dict[str, Any]:
        """Counts and rates since `reset_stats`, device errors or not; see `live.sampler_stats`."""
        return sampler_stats(
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
        if not self.has_weights:
            raise RuntimeError("this sampler has no weights: call update_weights first")

    def _take(self, model: Decoder) -> None:
        check_live(model)
        if self._live.driver is not None:
            self._live.driver.preempt_all()
        self._weights.take(model)
        if model.config.end_ids:  # they may be others
            self._model_config = model.config
        self.version += 1

    def _request(self, prompts: Prompts, params: SamplingParams | None, **asked: Any) -> Request:
        """A request that can be served; not submitted yet. `asked`: arguments of `submit`."""
        self._check_callable()
        self._live.ready()
        return checked_request(
            prompts,
            SamplingParams() if params is None else params,
            **asked,
            config=self.config,
            vocab_size=self._model_config.vocab_size,
            end_ids=self._model_config.end_ids,
            num_pages=self._live.num_pages,
            shards=self._engine.data,
        )

    def _submit_and_drive(
        self, request: Request, should_abort: Callable[[], bool] | None
    ) -> Iterator[Ended]:
        """Submits at the first `next`, so that a stream that nobody reads holds no pages."""
        if self.paused:
            raise RuntimeError("this sampler is paused: call resume first")
        self._live.ready().submit(request)
        yield from self.drive(request, should_abort)
