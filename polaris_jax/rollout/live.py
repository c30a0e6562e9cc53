"""The state of a sampler beside its weights, its statistics, and its count of compilations."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import jax
import jax.monitoring
from jax.sharding import Mesh
from jax.typing import DTypeLike

from polaris_jax.rollout.decode_state import DecodeState, pool_pages
from polaris_jax.rollout.drafting import DraftCounts
from polaris_jax.rollout.driver import Driver
from polaris_jax.rollout.engine import Engine
from polaris_jax.rollout.weights import SyncReport

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class LiveState:
    """The state of a sampler, except its weights.

    Args:
        engine: the device programs.
        mesh: the sampler's mesh.
        dtype: dtype of the pages.
        compiles: counts the compilations in steps.

    Attributes:
        driver: the sampler's driver; None before the first request.
        state: the driver's slots and pages; None before the first request.
        num_pages: number of pages of all data shards; 0 before the first request. Chosen once, so
            that a new pool needs no compilation.
    """

    def __init__(
        self, engine: Engine, mesh: Mesh | None, dtype: DTypeLike, compiles: CompileCounter
    ):
        self._engine, self._mesh, self._dtype = engine, mesh, dtype
        self._compiles = compiles
        self.driver: Driver | None = None
        self.state: DecodeState | None = None
        self.num_pages = 0

    @property
    def in_step(self) -> bool:
        """True while a step runs, that is, if one of its callbacks asks."""
        return self.driver is not None and self.driver.in_step

    @property
    def busy(self) -> bool:
        """True while requests are live or a step runs."""
        return self.driver is not None and (self.driver.busy or self.driver.in_step)

    def require_still(self, what: str, *, paused: bool) -> None:
        """Checks that what a step works with may change now.

        Args:
            what: begin of the error's text: what cannot be done.
            paused: True if the sampler is paused.

        Raises:
            RuntimeError: requests are live and the sampler is not paused, or a step is running.
        """
        if self.busy and not paused:
            raise RuntimeError(
                f"{what} while requests are live; pause the sampler, or wait for their end"
            )
        if self.in_step:
            raise RuntimeError(f"{what} in a callback; do it after the step has ended")

    def ready(self) -> Driver:
        """The driver, with a pool."""
        engine = self._engine
        if not self.num_pages:
            self.num_pages = pool_pages(engine.model_config, engine.config, self._mesh, self._dtype)
        driver = self.driver or self._make()
        assert self.state is not None
        if self.state.pool is None:
            self.state.pool = engine.new_pool(self.num_pages, self._dtype)
        return driver

    def restart(self) -> None:
        """Replaces the state of a failed step by empty slots and no pool; the counts continue."""
        broken, state = self.driver, self.state
        assert broken is not None
        assert state is not None
        broken.abort_all()
        # A traceback that someone keeps would hold the pool, and the next would not fit beside it.
        for leaf in jax.tree.leaves(state.pool):
            if not leaf.is_deleted():
                leaf.delete()
        state.pool = None
        driver = self._make()
        driver.take_counts(broken)
        assert self.state is not None
        for allocator, before in zip(self.state.allocators, state.allocators, strict=True):
            allocator.peak_used = before.peak_used

    def reset_counts(self) -> None:
        """Sets the counts of `Sampler.stats` to 0."""
        if self.driver is None or self.state is None:
            return
        self.driver.reset_counts()
        for allocator in self.state.allocators:
            allocator.peak_used = allocator.num_used

    def free_pool(self) -> None:
        """Deletes the pages; live sequences will be computed again."""
        if self.driver is None or self.state is None:
            return
        self.driver.preempt_all()
        for leaf in jax.tree.leaves(self.state.pool):
            leaf.delete()
        self.state.pool = None

    def _make(self) -> Driver:
        engine: Any = self._engine
        self.state = DecodeState(None, engine.config, num_pages=self.num_pages, data=engine.data)
        self.driver = Driver(engine, self.state, self._compiles)
        return self.driver


def sampler_stats(
    driver: Driver | None,
    state: DecodeState | None,
    *,
    slots: int,
    seconds: float,
    compiles: int,
    synced: SyncReport,
) -> dict[str, Any]:
    """The numbers of `Sampler.stats`, by name.

    prompt_tokens: tokens of submitted prompts. response_tokens: tokens that samples were given.
    tokens_per_s: response tokens per second in `step`.
    slot_occupancy: share of slot-steps that made a token, in [0, 1]; a verify call has a step for
        each position of a row.
    row_steps: rows that the devices computed, summed over steps. row_waste: the share of row_steps
        that made no token, in [0, 1].
    live_rows: list of the rows now in the slots of each data shard. live_rows_min, live_rows_max:
        the fewest and the most rows that a data shard decoded in a call (0: no call).
    pages_used, pages_peak: pages with a reference now, and the most so far. pages_idle: unused
        pages that hold a prefix.
    preemptions: rows preempted because pages ran out. voided: rows preempted because new weights
        came, or the pool was freed, while the sampler was paused.
    moves: live rows that moved to another data shard, where their tokens are computed again.
    failures: requests that ended because their own callback or `decode` raised.
    prefix_hits: samples that shared a prompt that another sample had prefilled.
    prefix_query_tokens: tokens that admitted sequences needed in their pages. prefix_hit_tokens:
        those of them that were in pages already. prefix_hit_rate: the share of these, in [0, 1];
        0 if none was needed.
    verify_calls: calls that verified drafts. draft_tokens: tokens drafted. draft_accepted: those of
        them that were accepted. draft_rate: the share of these, in [0, 1]; 0 if none was drafted.
    draft_steps_saved: decode steps that the accepted tokens would have taken.
    verify_calls_by_rows, draft_tokens_by_rows, draft_accepted_by_rows, draft_steps_saved_by_rows:
        the same numbers by live rows of a data shard: 1, 2, 3 or 4, 5 to 8, more.
    compiles: XLA compilations in `step`.
    weight_sync_bytes: bytes written to this process's devices. weight_sync_s: seconds of the syncs.

    Args:
        driver: the sampler's driver; None before the first request.
        state: slots and pages of the driver.
        slots: number of slots of all data shards.
        seconds: seconds in `step`.
        compiles: XLA compilations in `step`.
        synced: the weight syncs.
    """
    schedulers = [] if driver is None else driver.schedulers
    allocators = [] if state is None else state.allocators
    tokens = 0 if driver is None else driver.response_tokens
    slot_steps = 0 if driver is None else driver.steps * slots
    row_steps = 0 if driver is None else driver.row_steps
    fewest, most = (0, 0) if driver is None else driver.live_rows or (0, 0)
    drafts = DraftCounts() if driver is None else driver.drafting.counts
    needed = sum(s.prefix_query_tokens for s in schedulers)
    found = sum(s.prefix_hit_tokens for s in schedulers)
    return {
        "prompt_tokens": 0 if driver is None else driver.prompt_tokens,
        "response_tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds else 0.0,
        "slot_occupancy": tokens / slot_steps if slot_steps else 0.0,
        "row_steps": row_steps,
        "row_waste": 1 - tokens / row_steps if row_steps else 0.0,
        "live_rows": [len(s.live) for s in schedulers],
        "live_rows_min": fewest,
        "live_rows_max": most,
        "pages_used": sum(a.num_used for a in allocators),
        "pages_peak": sum(a.peak_used for a in allocators),
        "pages_idle": sum(a.num_idle for a in allocators),
        "preemptions": sum(s.preemptions for s in schedulers),
        "voided": sum(s.voided for s in schedulers),
        "moves": 0 if driver is None else driver.moves,
        "failures": 0 if driver is None else driver.failures,
        "prefix_hits": sum(s.prefix_hits for s in schedulers),
        "prefix_query_tokens": needed,
        "prefix_hit_tokens": found,
        "prefix_hit_rate": found / needed if needed else 0.0,
        **drafts.stats(),
        "compiles": compiles,
        "weight_sync_bytes": synced.bytes,
        "weight_sync_s": synced.seconds,
    }


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
