"""Embedding rows of tokens from a table whose vocabulary is split over devices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

EMBED_CHUNK_TOKENS = 2048
# Static: axes that split the vocabulary, dtype of the result, rows of this device's slice.
EmbedStatic = tuple[tuple[str, ...], str, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def embed_tokens(static: EmbedStatic, table_VD: Array, token_BT: Array) -> Array:
    """[B, T, D] embeddings from a table whose rows are split over axes of the mesh.

    Tokens are looked up in chunks: each chunk is gathered over the axes, every device looks up the
    tokens in its slice, and the sums are scattered back. The table's gradient is summed in float32.

    Args:
        static: see `EmbedStatic`; without axes the table is complete.
        table_VD: this device's slice of the rows.
        token_BT: ids in [0, V), where V is the complete vocabulary.
    """
    axes, dtype, rows = static
    if not axes:
        return table_VD[token_BT].astype(dtype)

    def one(token_C: Array) -> Array:
        row_C, held_C = _rows_held(axes, rows, token_C)
        found_CD = jnp.where(held_C[:, None], table_VD[row_C], 0.0).astype(dtype)
        return jax.lax.psum_scatter(found_CD, axes, tiled=True)

    found_XCD = jax.lax.map(one, _token_chunks(token_BT))
    width = table_VD.shape[1]
    return found_XCD.reshape(-1, width)[: token_BT.size].reshape(*token_BT.shape, width)


def _embed_forward(static: EmbedStatic, table_VD: Array, token_BT: Array) -> tuple[Array, Array]:
    return embed_tokens(static, table_VD, token_BT), token_BT


def _embed_backward(static: EmbedStatic, token_BT: Array, grad_BTD: Array) -> tuple[Array, Any]:
    axes, _, rows = static
    grad_VD = jnp.zeros((rows, grad_BTD.shape[-1]), jnp.float32)
    no_gradient = np.zeros(token_BT.shape, jax.dtypes.float0)
    if not axes:
        return grad_VD.at[token_BT].add(grad_BTD.astype(jnp.float32)), no_gradient

    def one(grad_VD: Array, args: tuple[Array, Array]) -> tuple[Array, None]:
        token_C, grad_CD = args
        row_C, held_C = _rows_held(axes, rows, token_C)
        grad_CD = jax.lax.all_gather(grad_CD, axes, axis=0, tiled=True)
        own_CD = jnp.where(held_C[:, None], grad_CD, 0.0).astype(jnp.float32)
        return grad_VD.at[row_C].add(own_CD), None

    grad_VD, _ = jax.lax.scan(one, grad_VD, (_token_chunks(token_BT), _token_chunks(grad_BTD)))
    return grad_VD, no_gradient


embed_tokens.defvjp(_embed_forward, _embed_backward)


def _rows_held(vocab_axes: tuple[str, ...], rows: int, token_C: Array) -> tuple[Array, Array]:
    """All devices' tokens of a chunk as rows of this device's slice, and which lie in the slice."""
    token_C = jax.lax.all_gather(token_C, vocab_axes, axis=0, tiled=True)
    row_C = token_C - jax.lax.axis_index(vocab_axes) * rows
    return jnp.clip(row_C, 0, rows - 1), (row_C >= 0) & (row_C < rows)


def _token_chunks(x_BTx: Array) -> Array:
    """[B, T, ...] as [X, C, ...] chunks; the last chunk is padded with zeros."""
    rest = x_BTx.shape[2:]
    tokens = x_BTx.shape[0] * x_BTx.shape[1]
    chunk = min(EMBED_CHUNK_TOKENS, tokens)
    x = jnp.pad(x_BTx.reshape(tokens, *rest), ((0, -tokens % chunk),) + ((0, 0),) * len(rest))
    return x.reshape(-1, chunk, *rest)
