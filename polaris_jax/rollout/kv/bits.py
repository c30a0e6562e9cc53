"""Arrays of bfloat16 numbers held as their bits, uint16.

On a CPU, XLA widens a whole array of bfloat16 to float32, and narrows it again, to write one token
into it or to gather a row of it. It moves integers in place. So what the native kernels read is
held as bits: the page pool, staged keys and values, packed matrices and embeddings.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def held_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype in which numbers of `dtype` are held."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.uint16) if dtype == jnp.bfloat16 else dtype


def held(x: Array, dtype: DTypeLike) -> Array:
    """`x` in `dtype`; if that is uint16, its bits as bfloat16."""
    if jnp.dtype(dtype) == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def numbers(x: Array) -> Array:
    """The numbers that are held: bfloat16 of bits, otherwise `x`."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
