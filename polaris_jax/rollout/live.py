"""Slots, pool and driver of a sampler: made on demand, and replaced after a failed step."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from polaris_jax.rollout.compile_counter import CompileCounter
from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.driver import Driver
from polaris_jax.rollout.engine import Engine
from polaris_jax.rollout.pool_size import pool_pages


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

    def begin_anew(self) -> None:
        """Replaces the state of a failed step by empty slots and no pool; the counts continue."""
        broken, state = self.driver, self.state
        assert broken is not None
        assert state is not None
        broken.abort_all()
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
        self.driver.void()
        for leaf in jax.tree.leaves(self.state.pool):
            leaf.delete()
        self.state.pool = None

    def _make(self) -> Driver:
        engine: Any = self._engine
        self.state = DecodeState(None, engine.config, num_pages=self.num_pages, data=engine.data)
        self.driver = Driver(engine, self.state, self._compiles)
        return self.driver
