"""Causal grouped-query attention with segment ids, behind one function.

`reference` and `chunked` also take branches: responses of a segment that share its prompt.

Back ends, all with the same answer; `backends.py` has the table of them:

    reference  all scores at once; tests and short rows
    chunked    online softmax over blocks of keys, pure JAX: O(T) memory, every platform
    splash     TPU, jax's Pallas kernel
    triton     GPU, jax's Pallas kernel
    cudnn      GPU, no segment ids: one segment a row
"""

from polaris_jax.models.attention.backends import (
    Attention,
    attend,
    packs_rows,
    resolve_attention,
    shares_prompts,
)
from polaris_jax.models.attention.portable import MASKED_SCORE
from polaris_jax.models.attention.shards import (
    ContextShard,
    Layout,
    in_row_order,
    row_order,
    shard_work,
)

__all__ = [
    "MASKED_SCORE",
    "Attention",
    "ContextShard",
    "Layout",
    "attend",
    "in_row_order",
    "packs_rows",
    "resolve_attention",
    "row_order",
    "shard_work",
    "shares_prompts",
]
