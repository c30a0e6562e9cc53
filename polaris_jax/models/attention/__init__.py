"""Causal grouped-query attention with segment ids, behind one function.

Back ends, one file each, all with the same answer:

    reference  all scores at once; tests and short rows
    chunked    online softmax over blocks of keys, pure JAX: O(T) memory, every platform
    splash     TPU, jax's Pallas kernel
    triton     GPU, jax's Pallas kernel
    cudnn      GPU, no segment ids: one segment a row

`resolve_attention` checks a choice against platform and shapes, and picks for `auto`.
"""

from polaris_jax.models.attention.backends import Attention, resolve_attention
from polaris_jax.models.attention.dispatch import attend
from polaris_jax.models.attention.shards import (
    ContextShard,
    Layout,
    in_row_order,
    row_order,
    shard_work,
)
from polaris_jax.models.attention.softmax import MASKED_SCORE

__all__ = [
    "MASKED_SCORE",
    "Attention",
    "ContextShard",
    "Layout",
    "attend",
    "in_row_order",
    "resolve_attention",
    "row_order",
    "shard_work",
]
