"""cuDNN's fused attention for GPUs: one segment a row, padding by sequence lengths.

Source: jax.nn.dot_product_attention.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.models.attention.shards import ContextShard


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
