"""The sampler's decode state (the pool, its allocators, and the slots), and the pool's size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from polaris_jax import sharding
from polaris_jax.config import ConfigError
from polaris_jax.models import ModelConfig
from polaris_jax.rollout.pages import TRASH_PAGE, PageAllocator, pages_for
from polaris_jax.rollout.programs import Rows
from polaris_jax.rollout.programs.draw import RowParams
from polaris_jax.rollout.programs.spec import program_spec
from polaris_jax.rollout.samples import Plan, Sample
from polaris_jax.rollout.settings import PromptParams, SamplerConfig
from polaris_jax.system import machine


class DecodeState:
    """The pool, its allocators, and the slots: the input and output of `generate`.

    Slot arrays lie on the host, because they are small and scheduling changes them between calls.
    Data shard d has the slots from d * slots / data on, its own pages (numbered from 0 in each
    shard), and an allocator for its pages.

    Attributes:
        pool: the pages on the device; None while the pool is released.
        num_pages: number of pages of all data shards together.
    """

    def __init__(self, pool: Any, config: SamplerConfig, *, num_pages: int, data: int = 1):
        slots = config.slots
        self.pool = pool
        self.num_pages = num_pages
        self.allocators = [PageAllocator(num_pages // data) for _ in range(data)]
        self._slots_a_shard, self._max_len = slots // data, config.max_len
        self._page_size = config.page_size
        self.pages: list[list[int]] = [[] for _ in range(slots)]
        self.table_BJ = np.zeros((slots, config.pages_of_a_row), np.int32)

        def zeros(dtype: Any) -> np.ndarray:
            return np.zeros(slots, dtype)

        self.rows = Rows(
            token_B=zeros(np.int32),
            position_B=zeros(np.int32),
            prompt_len_B=zeros(np.int32),
            limit_B=zeros(np.int32),
            alive_B=zeros(bool),
            params=RowParams(
                temperature_B=zeros(np.float32),
                top_p_B=zeros(np.float32),
                top_k_B=zeros(np.int32),
                min_p_B=zeros(np.float32),
                seed_B=zeros(np.uint32),
                sample_B=zeros(np.int32),
            ),
        )

    def allocator(self, slot: int) -> PageAllocator:
        """The allocator of the slot's data shard."""
        return self.allocators[slot // self._slots_a_shard]

    def place(
        self,
        slot: int,
        pages: list[int],
        *,
        last_token: int,
        length: int,
        prompt_len: int,
        params: PromptParams,
        sample: int,
    ) -> None:
        """Puts a sequence into a slot; `pages` hold all of its `length` tokens but the last."""
        self.set_pages(slot, pages)
        rows = self.rows
        rows.token_B[slot] = last_token
        rows.position_B[slot] = length - 1
        rows.prompt_len_B[slot] = prompt_len
        # JetStream may ask for more than `max_len`, and frees a slot some calls after its end.
        rows.limit_B[slot] = min(prompt_len + params.max_tokens, self._max_len)
        rows.alive_B[slot] = True
        rows.params.temperature_B[slot] = params.temperature
        rows.params.top_p_B[slot] = params.top_p
        rows.params.top_k_B[slot] = params.top_k
        rows.params.min_p_B[slot] = params.min_p
        rows.params.seed_B[slot] = params.seed
        rows.params.sample_B[slot] = sample

    def place_sample(self, sample: Sample) -> None:
        """Puts a sample with nothing left to prefill into its slot."""
        prompt = sample.prompt
        assert sample.slot is not None
        self.place(
            sample.slot,
            sample.pages,
            last_token=(sample.tokens or prompt.tokens)[-1],
            length=sample.length,
            prompt_len=len(prompt.tokens),
            params=prompt.params,
            sample=sample.index,
        )

    def apply(self, plan: Plan) -> None:
        """Applies a plan to the slots: its preempted, grown and started samples."""
        for slot, _ in plan.preempted:
            self.clear(slot)
        for sample in plan.grown:
            assert sample.slot is not None
            self.set_pages(sample.slot, sample.pages)
        for sample in plan.started:
            self.place_sample(sample)

    def set_pages(self, slot: int, pages: list[int]) -> None:
        """Makes `pages` the slot's pages, in position order."""
        known = len(self.pages[slot])  # a long row that grows has thousands
        if pages[:known] != self.pages[slot]:
            known = 0
        self.pages[slot] = pages
        self.table_BJ[slot, known : len(pages)] = pages[known:]
        self.table_BJ[slot, len(pages) :] = TRASH_PAGE

    def clear(self, slot: int) -> None:
        """Empties a slot without releasing its pages."""
        self.set_pages(slot, [])
        self.rows.alive_B[slot], self.rows.limit_B[slot] = False, 0

    def free(self, slot: int) -> None:
        """Empties a slot and releases its pages."""
        self.allocator(slot).release(self.pages[slot])
        self.clear(slot)

    def reserve(self, slot: int, steps: int) -> None:
        """Allocates the pages that the slot needs for `steps` more steps.

        Raises:
            RuntimeError: too few pages are free.
        """
        missing = pages_for(self.tokens_after(slot, steps), self._page_size) - len(self.pages[slot])
        if missing <= 0:
            return
        allocator = self.allocator(slot)
        pages = allocator.allocate(missing)
        if pages is None:
            raise RuntimeError(
                f"slot {slot}: needs {missing} more pages, {allocator.num_free} are free; "
                "enlarge num_pages or use the scheduler, which preempts"
            )
        self.set_pages(slot, [*self.pages[slot], *pages])

    def tokens_after(self, slot: int, steps: int) -> int:
        """Tokens that the slot's pages must hold for `steps` more steps."""
        # The last drawn token is never written to a page, because no token is drawn after it.
        position, limit = int(self.rows.position_B[slot]), int(self.rows.limit_B[slot])
        return min(position + steps, limit - 1)


def compact(state: DecodeState, index_B: np.ndarray) -> tuple[Rows, np.ndarray]:
    """The rows of the given slots; an index of -1 gives a dead row."""
    live_B = index_B >= 0

    def take(x: np.ndarray) -> np.ndarray:
        out = np.zeros((len(index_B), *x.shape[1:]), x.dtype)
        out[live_B] = x[index_B[live_B]]
        return out

    return jax.tree.map(take, state.rows), take(state.table_BJ)


def page_bytes(
    model_config: ModelConfig, config: SamplerConfig, mesh: Mesh | None, dtype: DTypeLike
) -> int:
    """Bytes of one page on one device: keys and values of all layers, its share of the heads."""
    layout = program_spec(model_config, config, mesh).layout
    pool = layout.abstract_pool(model_config, num_pages=1, page_size=config.page_size, dtype=dtype)
    total = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(pool))
    return total // sharding.head_shards(mesh)


def pool_pages(
    model_config: ModelConfig, config: SamplerConfig, mesh: Mesh | None, dtype: DTypeLike
) -> int:
    """Pages of all data shards: `config.num_pages`, or if that is 0, as many as memory allows.

    Call this once the weights are in place, and the trainer's state if it shares the devices.

    Raises:
        ConfigError: not even one sequence of `max_len` fits.
    """
    if config.num_pages:
        return config.num_pages
    devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
    stats = [device.memory_stats() for device in devices]
    if devices[0].platform == "cpu" and not program_spec(model_config, config, mesh).native:
        stats = _host_stats(len(devices))
    pages = pages_with_room(
        stats,
        page_bytes=page_bytes(model_config, config, mesh, dtype),
        pages_of_a_row=config.pages_of_a_row,
        slots=config.slots // sharding.slot_shards(mesh),
        reserve=config.reserve,
    )
    return -sharding.greatest(-pages, mesh) * sharding.slot_shards(mesh)


def _host_stats(devices: int) -> list[dict[str, int] | None]:
    """Statistics of devices that are CPUs: they have equal parts of half of the host's memory.

    The other half is for weights, the trainer and all else. A pool of the native kernels needs no
    such bound: its pages are resident only once they are written.
    """
    total = machine.total_memory()
    one = None if total is None else {"bytes_limit": total // 2 // devices, "bytes_in_use": 0}
    return [one] * devices


def pages_with_room(
    memory_stats: Sequence[Mapping[str, int] | None],
    *,
    page_bytes: int,
    pages_of_a_row: int,
    slots: int,
    reserve: float,
) -> int:
    """Pages of one data shard: (1 - reserve) x limit - in use on the fullest device, in pages.

    Args:
        memory_stats: `jax.Device.memory_stats()` of each device; None (a CPU) sets no limit.
        page_bytes: bytes of a page on a device.
        pages_of_a_row: pages of the longest sequence.
        slots: number of slots of the shard; limits the pages to what all slots can fill.
        reserve: share of the memory to leave free.

    Raises:
        ConfigError: the room is less than one sequence needs.
    """
    full = slots * pages_of_a_row + 1
    rooms = [
        int((1 - reserve) * stats["bytes_limit"]) - stats["bytes_in_use"]
        for stats in memory_stats
        if stats and "bytes_limit" in stats
    ]
    if not rooms:
        return full
    pages = min(full, min(rooms) // page_bytes)
    if pages < pages_of_a_row + 1:
        raise ConfigError(
            f"rollout.num_pages=0: {min(rooms)} bytes of device memory are left for the KV pool "
            f"(rollout.reserve={reserve:g}), {max(pages, 0)} pages of {page_bytes} bytes, and one "
            f"sequence of full length needs {pages_of_a_row + 1}; shorten it (--max_tokens of "
            "`polaris generate`), raise rollout.tensor, or lower rollout.reserve"
        )
    return pages
