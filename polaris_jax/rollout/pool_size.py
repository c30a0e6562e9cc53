"""The number of pages of the KV pool if the config does not set a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from polaris_jax.config import ConfigError
from polaris_jax.models import ModelConfig
from polaris_jax.rollout.decode_state import SamplerConfig
from polaris_jax.rollout.programs.spec import program_spec
from polaris_jax.sharding import greatest, head_shards, slot_shards


def page_bytes(
    model_config: ModelConfig, config: SamplerConfig, mesh: Mesh | None, dtype: DTypeLike
) -> int:
    """Bytes of one page on one device: keys and values of all layers, its share of the heads."""
    layout = program_spec(model_config, config, mesh).layout
    pool = layout.abstract_pool(model_config, num_pages=1, page_size=config.page_size, dtype=dtype)
    total = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(pool))
    return total // head_shards(mesh)


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
    pages = pages_with_room(
        [device.memory_stats() for device in devices],
        page_bytes=page_bytes(model_config, config, mesh, dtype),
        pages_of_a_row=config.pages_of_a_row,
        slots=config.slots // slot_shards(mesh),
        reserve=config.reserve,
    )
    return -greatest(-pages, mesh) * slot_shards(mesh)


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
            f"sequence of full length needs {pages_of_a_row + 1}; shorten it, raise "
            "rollout.tensor, or lower rollout.reserve"
        )
    return pages
