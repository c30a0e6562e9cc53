"""Causal grouped-query attention with segment ids, behind one function.

Back ends: `reference` holds all scores at once (tests, short rows); `chunked` goes over query
blocks and recomputes each in the backward pass, so that it holds O(T x block) scores.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

Attention = Literal["auto", "reference", "chunked"]

QUERY_BLOCK_TOKENS = 256
# `auto` turns to `chunked` from here: below it the score matrix of a row is a few MiB a head.
AUTO_CHUNKED_FROM_TOKENS = 2048
# Finite, so that a row whose every key is masked (padding) yields numbers and not NaN.
MASKED_SCORE = -1e30


def attend(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segment_BT: Array | None,
    *,
    backend: Attention = "auto",
) -> Array:
    """Causal self-attention output, [B, T, N, H], in q's dtype; softmax in fp32.

    A query sees the keys of its own segment at its own row index and before it.

    Args:
        q_BTNH: queries, positions applied.
        k_BSKH: keys; S = T.
        v_BSKH: values.
        segment_BT: segment ids, or None for one segment a row.
        backend: see the module.
    """
    if backend == "auto":
        backend = "chunked" if q_BTNH.shape[1] >= AUTO_CHUNKED_FROM_TOKENS else "reference"
    if backend == "reference":
        index_T = jnp.arange(q_BTNH.shape[1])
        return _attend_block(q_BTNH, index_T, segment_BT, k_BSKH, v_BSKH, segment_BT)
    if backend == "chunked":
        return _chunked(q_BTNH, k_BSKH, v_BSKH, segment_BT)
    raise ValueError(f"attention={backend!r}: expected auto, reference or chunked")


def _attend_block(
    q_BTNH: Array,
    index_T: Array,
    q_segment_BT: Array | None,
    k_BSKH: Array,
    v_BSKH: Array,
    k_segment_BS: Array | None,
) -> Array:
    batch, length, num_heads, width = q_BTNH.shape
    num_kv_heads = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, width)
    score_BKGTS = jnp.einsum(
        "btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    ) * (width**-0.5)
    visible_BTS = (index_T[:, None] >= jnp.arange(k_BSKH.shape[1])[None, :])[None]
    if q_segment_BT is not None and k_segment_BS is not None:
        visible_BTS = visible_BTS & (q_segment_BT[:, :, None] == k_segment_BS[:, None, :])
    score_BKGTS = jnp.where(visible_BTS[:, None, None], score_BKGTS, MASKED_SCORE)
    weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BTKGH = jnp.einsum("bkgts,bskh->btkgh", weight_BKGTS, v_BSKH)
    return out_BTKGH.reshape(q_BTNH.shape)


def _chunked(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, segment_BT: Array | None) -> Array:
    batch, length, num_heads, width = q_BTNH.shape
    block = min(QUERY_BLOCK_TOKENS, length)
    blocks = -(-length // block)
    padded = blocks * block - length

    def in_blocks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, padded)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(batch, blocks, block, *x.shape[2:]).swapaxes(0, 1)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def one_block(args: tuple[Array, Array, Array | None]) -> Array:
        q_block, index_T, segment_block = args
        return _attend_block(q_block, index_T, segment_block, k_BSKH, v_BSKH, segment_BT)

    index = jnp.arange(blocks * block).reshape(blocks, block)
    segments = None if segment_BT is None else in_blocks(segment_BT)
    out = jax.lax.map(one_block, (in_blocks(q_BTNH), index, segments))
    return out.swapaxes(0, 1).reshape(batch, blocks * block, num_heads, width)[:, :length]
