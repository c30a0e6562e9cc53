"""jax's Splash attention kernel for TPUs, with segment ids and context shards.

The kernel's sparsity is static: it skips the tiles above the diagonal, of the full row or of a
shard of it, and never the gap between packed segments.

Source: jax.experimental.pallas.ops.tpu.splash_attention.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.models.attention.shards import (
    ContextShard,
    Layout,
    chunk_tokens,
    query_index,
    row_order,
)

BLOCK_TOKENS_MIN = 128  # the kernel's lanes
BLOCK_TOKENS_MAX = 512


def attend_splash(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segment_BS: Array | None,
    context: ContextShard | None = None,
    *,
    interpret: bool = False,
) -> Array:
    """See `attend`; TPU only.

    Args:
        q_BTNH: queries.
        k_BSKH: keys.
        v_BSKH: values.
        segment_BS: segment ids, or None.
        context: the shard of the row; its pieces must be multiples of `BLOCK_TOKENS_MIN`.
        interpret: run the kernel in Pallas's interpreter, on any platform; for tests.

    Raises:
        ValueError: the row does not divide into the shards' blocks.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    queries, length = q_BTNH.shape[1], k_BSKH.shape[1]
    # Complete blocks: padding at the row's end lies above every real query's diagonal.
    padding = 0 if context is not None else -length % BLOCK_TOKENS_MIN
    q_BNTH, k_BKSH, v_BKSH = (
        jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)
        for x in (q_BTNH, k_BSKH, v_BSKH)
    )
    num_heads, length = q_BNTH.shape[1], length + padding
    if context is None:
        kernel = splash_kernel(num_heads, length, 1, "contiguous", interpret=interpret)
    else:
        kernel = splash_kernel(
            num_heads, length, context.shards, context.layout, interpret=interpret
        )
        kernel = _own_part(kernel, context)
    scaled_BNTH = q_BNTH * q_BNTH.shape[-1] ** -0.5

    if segment_BS is None:
        out_BNTH = jax.vmap(kernel)(scaled_BNTH, k_BKSH, v_BKSH)
    else:
        segment_BS = jnp.pad(segment_BS, ((0, 0), (0, padding)))
        query_segment_BT = segment_BS[:, query_index(context, length)]
        ids = SegmentIds(q=query_segment_BT, kv=segment_BS)
        out_BNTH = jax.vmap(kernel)(scaled_BNTH, k_BKSH, v_BKSH, ids)
    return out_BNTH.swapaxes(1, 2)[:, :queries]


def splash_kernel(
    num_heads: int, length: int, shards: int, layout: Layout, *, interpret: bool = False
) -> Any:
    """The kernel for one row: (q_NTH, k_KSH, v_KSH, segment ids) -> out_NTH.

    With several shards it holds the tables of all of them, one after the other.

    Raises:
        ValueError: the row does not divide into the shards' blocks.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block_q, block_kv = _block(chunk_tokens(length, shards, layout)), _block(length)
    blocks = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    mask = splash.CausalMask((length, length))
    mask.q_sequence = row_order(length, shards, layout)
    # The mask's tables are constants of the program: computed now, whatever is being traced.
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mha(
            splash.MultiHeadMask([mask] * num_heads),
            block_sizes=blocks,
            head_shards=1,
            q_seq_shards=shards,
            interpret=interpret,
        )


def _own_part(kernel: Any, context: ContextShard) -> Any:
    """The kernel with the tables of the shard at hand."""
    shard = jax.lax.axis_index(context.axis)

    def part(table: Array) -> Array:
        # [heads, blocks of queries, ...], or the row index of each query.
        axis = 0 if table.ndim == 1 else 1
        size = table.shape[axis] // context.shards
        return jax.lax.dynamic_slice_in_dim(table, shard * size, size, axis)

    return jax.tree.map(part, kernel)


def _block(length: int) -> int:
    """The largest power of two up to `BLOCK_TOKENS_MAX` that divides `length`."""
    block = min(BLOCK_TOKENS_MAX, length & -length)
    if block < BLOCK_TOKENS_MIN:
        raise ValueError(
            f"model.attention=splash: {length} tokens do not divide into blocks of at least "
            f"{BLOCK_TOKENS_MIN}; set batch.row_len to a multiple of 2 x {BLOCK_TOKENS_MIN} x "
            "mesh.context"
        )
    return block
