"""Fused attention of GPUs: jax's own Pallas kernel, compiled by Triton, and cuDNN's.

Triton's takes segment ids. It skips what lies above the diagonal and nothing else, and takes as
many kv heads as query heads: it is mapped over the query heads of a group, so that keys and values
are not repeated on the way in. On the way out it gives a gradient of keys and values for each query
head. cuDNN's takes one segment a row, and padding by sequence lengths.

Source: jax.experimental.pallas.ops.gpu.attention; jax.nn.dot_product_attention.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.models.attention.shards import ContextShard

TRITON_BLOCK_TOKENS = 128
TRITON_HEAD_DIM_MAX = 128  # 256 asks for 321 KiB of the 227 KiB of shared memory that an H100 has


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
    padding = -length % TRITON_BLOCK_TOKENS
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


def attend_cudnn(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segment_BS: Array | None,
    context: ContextShard | None = None,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """See `attend`; GPU only, complete rows of one segment, followed by padding.

    Args:
        q_BTNH: queries, bfloat16 or float16.
        k_BSKH: keys.
        v_BSKH: values.
        segment_BS: above 0 for a row's tokens, then 0 for its padding; or None for full rows. That
            there is one segment a row cannot be seen here: `resolve_attention` asks for it.
        context: must be None, because cuDNN's mask does not support parts of a row.
        implementation: `xla` runs the same call on any platform; for tests.

    Raises:
        ValueError: `context` is not None.
    """
    if context is not None:
        raise ValueError(
            f"model.attention=cudnn: it takes whole rows, not one of {context.shards} context "
            "shards; set chunked, or mesh.context=1"
        )
    if segment_BS is None:
        return jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, is_causal=True, implementation=implementation
        )
    real_BS = segment_BS > 0
    length_B = jnp.sum(real_BS, axis=1, dtype=jnp.int32)

    def without_padding(x: Array) -> Array:
        # cuDNN does not say what it leaves in the padding of an output or of a gradient: zeros
        # here, in the value and, through the same selection, in the gradient.
        return jnp.where(real_BS[..., None, None], x, 0)

    out_BTNH = jax.nn.dot_product_attention(
        *(without_padding(x) for x in (q_BTNH, k_BSKH, v_BSKH)),
        is_causal=True,
        query_seq_lengths=length_B,
        key_value_seq_lengths=length_B,
        implementation=implementation,
    )
    return without_padding(out_BTNH)
