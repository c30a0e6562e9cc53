"""The page pool on the device, and attention over it.

Keys and values lie in two arrays whose pages are laid out as attention reads them: keys
[L*Z, K, H, Y], values [L*Z, K, Y, H]; layer l's page z is row l*Z + z. Page 0 of each layer is
trash: dead rows and padding write there, and every read of it is masked. With 8-bit keys and values
(`kv.int8`) each token and head also has a scale, [L*Z, K, Y].

Attention here (`attend_pages`) takes any number of queries a row. It loops over blocks of pages
with an online softmax, as many blocks as the longest row needs. Prefill and decode on accelerators
use it; decode on a CPU is in `kv.staged`.

Source: paged attention, Kwon et al. 2023 (arXiv:2309.06180), section 4.1; online softmax, Milakov
and Gimelshein 2018 (arXiv:1805.02867), section 3. Differs: keys of a page lie by head dimension,
and the blocks of all rows go side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from polaris_jax.models.attention import MASKED_SCORE
from polaris_jax.models.config import ModelConfig
from polaris_jax.rollout.kv.bits import held, numbers
from polaris_jax.rollout.kv.int8 import quantise

KEY_BLOCK_TOKENS = 128


class Pool(NamedTuple):
    """Pages of all layers; bfloat16 may be held as bits (`kv.bits`)."""

    k_ZKHY: Any
    v_ZKYH: Any

    def read(self, page_X: Array) -> tuple[Array, Array]:
        """Keys [..., K, H, Y] and values [..., K, Y, H] of the given rows of the arrays."""
        return numbers(self.k_ZKHY[page_X]), numbers(self.v_ZKYH[page_X])


class ScaledPool(NamedTuple):
    """`Pool` of 8-bit numbers, with a scale for each token and head."""

    k_ZKHY: Any
    v_ZKYH: Any
    k_scale_ZKY: Any
    v_scale_ZKY: Any

    def read(self, page_X: Array) -> tuple[Array, Array]:
        """See `Pool.read`; numbers times scales."""
        k_scale_XKY, v_scale_XKY = self.k_scale_ZKY[page_X], self.v_scale_ZKY[page_X]
        k_XKHY = self.k_ZKHY[page_X] * k_scale_XKY[..., None, :]
        return k_XKHY, self.v_ZKYH[page_X] * v_scale_XKY[..., None]


def init_pool(config: ModelConfig, *, num_pages: int, page_size: int, dtype: DTypeLike) -> Pool:
    """A pool of zeros."""
    rows, heads, width = config.num_layers * num_pages, config.num_kv_heads, config.head_dim
    return Pool(
        jnp.zeros((rows, heads, width, page_size), dtype),
        jnp.zeros((rows, heads, page_size, width), dtype),
    )


def copy_pages(
    pool: Any, from_X: Array, to_X: Array, *, num_layers: int, page_axis: int = 0
) -> Any:
    """The pool with pages `from_X` copied to `to_X` in every layer (0 to 0: nothing)."""
    base_L = first_pages(pool, num_layers=num_layers, page_axis=page_axis)
    at_from = (slice(None),) * page_axis + (base_L[:, None] + from_X[None],)
    at_to = (slice(None),) * page_axis + (base_L[:, None] + to_X[None],)
    return jax.tree.map(lambda x: x.at[at_to].set(x[at_from]), pool)


def move_pages(pool: Any, prefix: Any, to_J: Array, *, num_layers: int, page_axis: int = 0) -> Any:
    """The pool with another pool's pages 1.. written to `to_J` (0: nowhere) in every layer."""
    base_L = first_pages(pool, num_layers=num_layers, page_axis=page_axis)
    at_to = (slice(None),) * page_axis + (base_L[:, None] + to_J[None],)

    def move(x: Array, source: Array) -> Array:
        before, after = source.shape[:page_axis], source.shape[page_axis + 1 :]
        source = source.reshape(*before, num_layers, -1, *after)
        pages = (slice(None),) * (page_axis + 1) + (slice(1, None),)
        return x.at[at_to].set(source[pages])

    return jax.tree.map(move, pool, prefix)


def first_pages(pool: Any, *, num_layers: int, page_axis: int = 0) -> Array:
    """Index of each layer's page 0, int32 [L]."""
    rows = jax.tree.leaves(pool)[0].shape[page_axis]
    return jnp.arange(num_layers, dtype=jnp.int32) * (rows // num_layers)


def page_of_tokens(
    table_BJ: Array, position_BT: Array, live_BT: Array, page_size: int
) -> tuple[Array, Array]:
    """(page, offset in it) of each token within a layer; the trash page for padding."""
    page_BT = jnp.take_along_axis(table_BJ, position_BT // page_size, axis=1, mode="clip")
    return jnp.where(live_BT, page_BT, 0), position_BT % page_size


def with_finite_values(k_XH: Array, v_XH: Array) -> tuple[Array, Array]:
    """Keys and values for a kernel that multiplies the values it masks by 0: 0 * NaN is NaN.

    A value that is not finite is written as 0, and its key as NaN. A row that sees the token stays
    NaN by its score. Other rows mask the score, whoever held the page before.
    """
    finite_X1 = jnp.all(jnp.isfinite(v_XH), axis=-1, keepdims=True)
    return jnp.where(finite_X1, k_XH, jnp.nan), jnp.where(finite_X1, v_XH, 0)


def attend_pages(
    layer: Array,
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    pool: Pool | ScaledPool,
    *,
    position_BT: Array,
    live_BT: Array,
    table_BJ: Array,
    num_layers: int,
) -> tuple[Array, Pool | ScaledPool]:
    """Writes the new keys and values into their pages, then attends over the row's pages.

    Args:
        layer: index of the layer.
        q_BTNH: queries, rotary positions applied.
        k_BTKH: new keys.
        v_BTKH: new values.
        pool: the page pool.
        position_BT: position of each token; a query sees keys at its position and before.
        live_BT: False for padding tokens, which write to the trash page.
        table_BJ: pages of each row, padded with 0.
        num_layers: L.

    Returns:
        (out_BTNH, pool). The output of padding tokens is meaningless.
    """
    num_kv, page_size = k_BTKH.shape[2], pool.k_ZKHY.shape[-1]
    base = layer * (pool.k_ZKHY.shape[0] // num_layers)
    page_BT, offset_BT = page_of_tokens(table_BJ, position_BT, live_BT, page_size)
    page_BT = base + page_BT
    if isinstance(pool, ScaledPool):
        (k_BTKH, k_scale_BTK), (v_BTKH, v_scale_BTK) = quantise(k_BTKH), quantise(v_BTKH)
        pool = pool._replace(
            k_scale_ZKY=pool.k_scale_ZKY.at[page_BT, :, offset_BT].set(k_scale_BTK),
            v_scale_ZKY=pool.v_scale_ZKY.at[page_BT, :, offset_BT].set(v_scale_BTK),
        )
    pool = pool._replace(
        k_ZKHY=pool.k_ZKHY.at[page_BT, :, :, offset_BT].set(held(k_BTKH, pool.k_ZKHY.dtype)),
        v_ZKYH=pool.v_ZKYH.at[page_BT, :, offset_BT].set(held(v_BTKH, pool.v_ZKYH.dtype)),
    )
    out_BTNH = attend_blocks(
        q_BTNH,
        lambda page_BJ: pool.read(base + page_BJ),
        num_kv=num_kv,
        page_size=page_size,
        position_BT=position_BT,
        live_BT=live_BT,
        table_BJ=table_BJ,
    )
    return out_BTNH, pool


def attend_blocks(
    q_BTNH: Array,
    read: Callable[[Array], tuple[Array, Array]],
    *,
    num_kv: int,
    page_size: int,
    position_BT: Array,
    live_BT: Array,
    table_BJ: Array,
) -> Array:
    """Attention over a row's pages, one block of pages at a time, with an online softmax.

    Args:
        q_BTNH: queries, rotary positions applied.
        read: the keys k_BJKHY and values v_BJKYH of the given pages of this layer.
        num_kv: K.
        page_size: Y.
        position_BT: see `attend_pages`.
        live_BT: see `attend_pages`.
        table_BJ: see `attend_pages`.
    """
    batch, length, num_heads, width = q_BTNH.shape
    pages = max(1, KEY_BLOCK_TOKENS // page_size)
    table_BJ = jnp.pad(table_BJ, ((0, 0), (0, -table_BJ.shape[1] % pages)))
    block_tokens = pages * page_size
    q_BKGTH = jnp.moveaxis(q_BTNH.reshape(batch, length, num_kv, -1, width), 1, 3)
    groups = num_heads // num_kv
    tokens_B = jnp.max(jnp.where(live_BT, position_BT + 1, 0), axis=1)

    def block(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, norm, out = state
        page_BJ = jax.lax.dynamic_slice_in_dim(table_BJ, j * pages, pages, axis=1)
        k_BJKHY, v_BJKYH = read(page_BJ)
        score = jnp.einsum(
            "bkgth,bjkhy->bkgtjy", q_BKGTH, k_BJKHY, preferred_element_type=jnp.float32
        ).reshape(batch, num_kv, groups, length, block_tokens) * (width**-0.5)
        key_S = j * block_tokens + jnp.arange(block_tokens)
        visible_BTS = key_S[None, None] <= position_BT[:, :, None]
        score = jnp.where(visible_BTS[:, None, None], score, MASKED_SCORE)
        new_top = jnp.maximum(top, score.max(axis=-1))
        weight = jnp.exp(score - new_top[..., None])
        shrink = jnp.exp(top - new_top)
        # What a page held before may be NaN, and 0 * NaN is NaN.
        written_BJY = (key_S[None] < tokens_B[:, None]).reshape(batch, pages, page_size)
        v_BJKYH = jnp.where(written_BJY[:, :, None, :, None], v_BJKYH, 0)
        gain = jnp.einsum(
            "bkgtjy,bjkyh->bkgth",
            weight.astype(v_BJKYH.dtype).reshape(*weight.shape[:-1], pages, page_size),
            v_BJKYH,
            preferred_element_type=jnp.float32,
        )
        return new_top, norm * shrink + weight.sum(axis=-1), out * shrink[..., None] + gain

    shape = (batch, num_kv, groups, length)
    state = (
        jnp.full(shape, MASKED_SCORE, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, width), jnp.float32),
    )
    blocks = jnp.maximum(jnp.max(tokens_B) - 1, 0) // block_tokens + 1
    _, norm, out = jax.lax.fori_loop(0, blocks, block, state)
    out_BTKGH = jnp.moveaxis(out / norm[..., None], 3, 1).astype(q_BTNH.dtype)
    return out_BTKGH.reshape(batch, length, num_heads, width)
