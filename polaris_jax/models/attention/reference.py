"""Dense attention: every score of a row at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.models.attention.shards import ContextShard, query_index
from polaris_jax.models.attention.softmax import MASKED_SCORE


def attend_reference(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segment_BS: Array | None,
    context: ContextShard | None = None,
) -> Array:
    """See `attend`; holds [B, N, T, S] scores in float32."""
    batch, queries, num_heads, width = q_BTNH.shape
    length, num_kv_heads = k_BSKH.shape[1:3]
    index_T = query_index(context, length)
    q_BTKGH = q_BTNH.reshape(batch, queries, num_kv_heads, num_heads // num_kv_heads, width)
    score_BKGTS = jnp.einsum(
        "btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    ) * (width**-0.5)
    visible_BTS = (index_T[:, None] >= jnp.arange(length)[None, :])[None]
    if segment_BS is not None:
        visible_BTS = visible_BTS & (segment_BS[:, index_T, None] == segment_BS[:, None, :])
    score_BKGTS = jnp.where(visible_BTS[:, None, None], score_BKGTS, MASKED_SCORE)
    weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BTKGH = jnp.einsum("bkgts,bskh->btkgh", weight_BKGTS, v_BSKH)
    return out_BTKGH.reshape(q_BTNH.shape)
