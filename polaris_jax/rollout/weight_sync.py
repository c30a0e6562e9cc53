"""From the trainer's parameters to the sampler's weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
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
