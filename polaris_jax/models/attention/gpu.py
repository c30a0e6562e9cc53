"""jax's own Pallas attention for GPUs, compiled by Triton, with segment ids.

The kernel skips what lies above the diagonal and nothing else, and takes as many kv heads as query
heads: it is mapped over the query heads of a group, so that keys and values are not repeated on the
way in. On the way out it gives a gradient of keys and values for each query head.

Source: jax.experimental.pallas.ops.gpu.attention.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.models.attention.shards import ContextShard

BLOCK_TOKENS = 128
HEAD_DIM_MAX = 128  # 256 asks for 321 KiB of the 227 KiB of shared memory that an H100 has


def attend_triton(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segment_BS: Array | None,
    context: ContextShard | None = None,
    *,
    interpret: bool = False,
) -> Array:
    """See `attend`; GPU only, complete rows.

    Args:
        q_BTNH: queries.
        k_BSKH: keys.
        v_BSKH: values.
        segment_BS: segment ids, or None.
        context: must be None, because the kernel's mask does not support parts of a row.
        interpret: run the kernel in Pallas's interpreter, on any platform; for tests.

    Raises:
        ValueError: `context` is not None.
    """
    from jax.experimental.pallas.ops.gpu import attention as pallas

    if context is not None:
        raise ValueError(
            f"model.attention=triton: it takes whole rows, not one of {context.shards} context "
            "shards; set chunked, or mesh.context=1"
        )
    batch, length, num_heads, width = q_BTNH.shape
    num_kv_heads = k_BSKH.shape[2]
    # Complete blocks: padding at the row's end lies above every real query's diagonal.
    padding = -length % BLOCK_TOKENS
    q_BTNH, k_BSKH, v_BSKH = (
        jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BTNH, k_BSKH, v_BSKH)
    )
    if segment_BS is not None:
        segment_BS = jnp.pad(segment_BS, ((0, 0), (0, padding)))
    kernel = functools.partial(
        pallas.mha,
        segment_ids=segment_BS,
        sm_scale=width**-0.5,
        causal=True,
        block_sizes=pallas.BlockSizes.get_default(),
        interpret=interpret,
    )
    q_BTKGH = q_BTNH.reshape(batch, length + padding, num_kv_heads, -1, width)
    out_BTKGH = jax.vmap(kernel, in_axes=(3, None, None), out_axes=3)(q_BTKGH, k_BSKH, v_BSKH)
    return out_BTKGH.reshape(batch, length + padding, num_heads, width)[:, :length]
