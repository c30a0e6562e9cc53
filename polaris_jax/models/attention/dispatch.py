"""`attend`: the one call that the models make."""

from __future__ import annotations

from collections.abc import Callable

from jax import Array

from polaris_jax.models.attention.backends import Attention, portable
from polaris_jax.models.attention.cudnn import attend_cudnn
from polaris_jax.models.attention.gpu import attend_triton
from polaris_jax.models.attention.portable import attend_chunked
from polaris_jax.models.attention.reference import attend_reference
from polaris_jax.models.attention.shards import ContextShard
from polaris_jax.models.attention.splash import attend_splash

BACK_ENDS: dict[str, Callable[..., Array]] = {
    "reference": attend_reference,
    "chunked": attend_chunked,
    "splash": attend_splash,
    "triton": attend_triton,
    "cudnn": attend_cudnn,
}


def attend(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segment_BS: Array | None,
    *,
    backend: Attention = "auto",
    context: ContextShard | None = None,
) -> Array:
    """Causal self-attention output, [B, T, N, H], in q's dtype; softmax in fp32.

    A query sees the keys of its own segment, up to its own row index. Padding (segment 0) sees
    padding; its outputs are finite and meaningless.

    Args:
        q_BTNH: queries, positions applied. Without `context` T = S and query t is at row index t.
            With it T = S / shards, and query t of shard i is at `row_order(...)[i * T + t]`.
        k_BSKH: keys of the complete row in row order; N is a multiple of K.
        v_BSKH: values of the complete row in row order.
        segment_BS: segment ids of the full row in row order, each id in one run, 0 for padding; or
            None for one segment a row.
        backend: see the package. `auto` takes what runs on every platform: `reference` for short
            rows, else `chunked`; `resolve_attention` knows the platform's fused kernels.
        context: which shard of the row the queries are. Only inside `jax.shard_map` over its axis,
            with `check_vma=False` where the back end is a Pallas kernel, which declares no axes.

    Raises:
        ValueError: the shapes do not fit each other, or the back end does not support them.
    """
    queries, num_heads = q_BTNH.shape[1:3]
    length, num_kv_heads = k_BSKH.shape[1:3]
    shards = 1 if context is None else context.shards
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads={num_heads}: must be a multiple of num_kv_heads={num_kv_heads}"
        )
    if queries * shards != length:
        raise ValueError(
            f"q_BTNH holds {queries} positions of each of {shards} shards, k_BSKH {length}: "
            "attention takes the keys of the whole row"
        )
    if backend == "auto":
        backend = portable(length)
    if backend not in BACK_ENDS:
        raise ValueError(f"attention={backend!r}: expected auto or one of {', '.join(BACK_ENDS)}")
    return BACK_ENDS[backend](q_BTNH, k_BSKH, v_BSKH, segment_BS, context)
