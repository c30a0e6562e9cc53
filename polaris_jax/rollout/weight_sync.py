"""From the trainer's parameters to the sampler's weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from polaris_jax.models import Qwen


def sampler_weights(model: Qwen, dtype: DTypeLike) -> Qwen:
    """The same weights in `dtype`, in arrays of their own, by one jitted function.

    The copy is on purpose: the trainer donates its parameters to the next update, which deletes
    them under a sampler that shares them.
    """
    return _cast(model, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=1)
def _cast(model: Qwen, dtype: jnp.dtype) -> Qwen:
    return jax.tree.map(lambda x: jnp.copy(x.astype(dtype)), model)


def local_weights(params: Qwen, dtype: DTypeLike) -> Qwen:
    """The trainer's parameters in `dtype`, whole, on this process's first own device.

    One jitted cast-and-gather over the trainer's mesh, then the local replica: no collective runs
    after it, so each process can sample on its own.

    Args:
        params: sharded in any way over the mesh of all processes.
        dtype: of the sampler's weights.
    """
    leaf = jax.tree.leaves(params)[0]
    if len(leaf.sharding.device_set) == 1:
        return sampler_weights(params, dtype)
    whole = _gather(params, jnp.dtype(dtype), NamedSharding(leaf.sharding.mesh, PartitionSpec()))
    return jax.tree.map(lambda x: x.addressable_data(0), whole)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _gather(params: Qwen, dtype: jnp.dtype, everywhere: NamedSharding) -> Qwen:
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x.astype(dtype), everywhere), params
    )
