"""Parameters onto devices straight from their source, a layer at a time.

A stacked [L, ...] parameter is filled on the devices: each layer's shards are read (by the process
whose devices hold them, and only those), put, and written into the donated stack. Beyond the
devices' own buffers the host then holds about one layer's tensor, whatever the model.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding, SingleDeviceSharding

from polaris_jax.models.config import ModelConfig
from polaris_jax.models.family import param_shapes
from polaris_jax.models.weights.tensors import ReadPart, Weights, param_reader

# A process's part of a parameter up to this size is put together on the host: one transfer.
STAGING_BYTES = 32 << 20


def place_params(
    config: ModelConfig,
    weights: Weights,
    dtype: np.dtype,
    shardings: Mapping[str, Sharding] | None = None,
) -> dict[str, Array]:
    """Every parameter as a global array, keyed like `param_shapes`.

    With several processes, every process has to call this function with the same arguments. Each
    process reads only the parts that its own devices hold. A part that several devices of a process
    hold is read once.

    Args:
        config: the architecture.
        weights: checked weights.
        dtype: dtype of the parameters.
        shardings: where each parameter goes. A parameter without a sharding goes in full to the
            default device of every process, uncommitted (free to move).
    """
    return {
        path: place(
            shape, dtype, param_reader(path, config, weights, dtype), (shardings or {}).get(path)
        )
        for path, shape in param_shapes(config).items()
    }


def place(
    shape: tuple[int, ...], dtype: np.dtype, read: ReadPart, sharding: Sharding | None
) -> Array:
    """One array from its parts; see `place_params`.

    Args:
        shape: shape of the complete array; a large array is filled entry by entry along its first
            axis.
        dtype: dtype of the result of `read`.
        read: returns a part of the array, as a C-ordered host array that nothing else changes.
        sharding: sharding of the array; None: the default device, uncommitted.
    """
    held = shape if sharding is None else sharding.shard_shape(shape)
    large = int(np.prod(held)) * dtype.itemsize > STAGING_BYTES
    if len(shape) < 3 or not large or held[0] != shape[0]:
        return _put(shape, read, sharding)
    zeros, with_entry = _programs(sharding)
    stack = zeros(shape, dtype)
    entry_shape = (1, *shape[1:])
    for i in range(shape[0]):

        def read_entry(index: tuple[slice, ...], i: int = i) -> np.ndarray:
            return read((slice(i, i + 1), *index[1:]))

        stack = with_entry(stack, _put(entry_shape, read_entry, sharding), i)
        stack.block_until_ready()  # or the entries in flight pile up on the host
    return stack


def _put(shape: tuple[int, ...], read: ReadPart, sharding: Sharding | None) -> Array:
    if sharding is None:
        return jnp.asarray(read(tuple(slice(0, size) for size in shape)))
    holders: dict[tuple[tuple[int, int], ...], list[Any]] = defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        spans = zip(index or (), shape, strict=True)
        holders[tuple(part.indices(size)[:2] for part, size in spans)].append(device)
    shards = []
    for spans, devices in holders.items():
        part = read(tuple(slice(*span) for span in spans))
        for i, device in enumerate(devices):
            place = SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
            # A CPU device may use the host buffer in place: two must not share one.
            own = part.copy() if i and device.platform == "cpu" else part
            shards.append(jax.device_put(own, place))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


@functools.lru_cache(maxsize=64)
def _programs(
    sharding: Sharding | None,
) -> tuple[Callable[[tuple[int, ...], np.dtype], Array], Callable[[Array, Array, int], Array]]:
    """An empty stack, and a stack with one entry replaced: compiled once for a shape."""

    def with_entry(stack: Array, entry: Array, i: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(stack, entry, i, axis=0)

    if sharding is None:
        return jnp.zeros, jax.jit(with_entry, donate_argnums=0)
    return (
        jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding),
        jax.jit(with_entry, donate_argnums=0, out_shardings=sharding),
    )
