"""Decode attention on a CPU: pages are read in place, new keys and values are staged beside them.

The pool does not change while a call runs. The keys and values of its up to T steps are staged in
arrays of the call, [L, B, K, H, T] and [L, B, K, T, H]. Attention reads them as one more block, and
they are written into the pages once at the end of the call.

Pages are read by tiles of rows and blocks of pages with an online softmax. A tile reads as far as
its own longest row, so rows should be ordered by length. Attention then costs only the live tokens.

The products of one query with a block are sums of explicit terms, one a head dimension or one a
token. As one loop over contiguous numbers they become vector code, which neither a batched dot (a
call a row and head) nor multiply-and-reduce (a scalar loop) does: 43 ms against 75 and more of CPU
time, 8 layers, 128 rows of 210 tokens.

Source: online softmax, Milakov and Gimelshein 2018 (arXiv:1805.02867), section 3; pages as in Kwon
et al. 2023 (arXiv:2309.06180), section 4.1. Differs: a call's own tokens are one block, absorbed
first.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.models.attention import MASKED_SCORE
from polaris_jax.rollout.kv import Pool, ScaledPool
from polaris_jax.rollout.kv.bits import held
from polaris_jax.rollout.kv.int8 import quantise

TILE_ROWS = 32
BLOCK_TOKENS = 64


class Staged(NamedTuple):
    """Keys and values of a call's steps, all layers."""

    k_LBKHT: Array
    v_LBKTH: Array


class ScaledStaged(NamedTuple):
    """`Staged` of a `ScaledPool`: a call reads its own tokens as later calls do."""

    k_LBKHT: Array
    v_LBKTH: Array
    k_scale_LBKT: Array
    v_scale_LBKT: Array


# (layer, queries, staged, pool, step, cached_B, table_BJ) -> out_BNH, as in `attend_staged`; what
# the step has added is staged already.
AttendStaged = Callable[[Array, Array, Any, Any, Array, Array, Array], Array]


class _Softmax(NamedTuple):
    """An online softmax: the top score, the weights' sum and the weighted values under it."""

    top_BKG: Array
    norm_BKG: Array
    out_BKGH: Array


def new_staged(
    pool: Pool | ScaledPool, *, batch: int, num_layers: int, steps: int
) -> Staged | ScaledStaged:
    """Zeros for `steps` steps of `batch` rows, in the pool's dtype."""
    _, num_kv, width, _ = pool.k_ZKHY.shape
    dtype = pool.k_ZKHY.dtype
    staged = Staged(
        jnp.zeros((num_layers, batch, num_kv, width, steps), dtype),
        jnp.zeros((num_layers, batch, num_kv, steps, width), dtype),
    )
    if not isinstance(pool, ScaledPool):
        return staged
    scale_LBKT = jnp.zeros((num_layers, batch, num_kv, steps), pool.k_scale_ZKY.dtype)
    return ScaledStaged(*staged, scale_LBKT, scale_LBKT)


def attend_staged(
    layer: Array,
    q_BNH: Array,
    k_BKH: Array,
    v_BKH: Array,
    staged: Staged | ScaledStaged,
    pool: Pool | ScaledPool,
    step: Array,
    cached_B: Array,
    table_BJ: Array,
    *,
    num_layers: int,
    attend: AttendStaged | None = None,
) -> tuple[Array, Staged | ScaledStaged]:
    """Stages one token a row, then attends to the row's pages and to what is staged so far.

    Args:
        layer: index of the layer.
        q_BNH: queries, rotary positions applied.
        k_BKH: new keys.
        v_BKH: new values.
        staged: the call's keys and values, whose steps before `step` are there.
        pool: the page pool.
        step: index of the step in the call, from 0.
        cached_B: tokens of each row in its pages.
        table_BJ: pages of each row.
        num_layers: L.
        attend: a kernel in place of XLA's.

    Returns:
        (out_BNH, staged).
    """
    if isinstance(staged, ScaledStaged):
        (k_BKH, k_scale_BK), (v_BKH, v_scale_BK) = quantise(k_BKH), quantise(v_BKH)
        at = (layer, 0, 0, step)
        put = jax.lax.dynamic_update_slice
        staged = staged._replace(
            k_scale_LBKT=put(staged.k_scale_LBKT, k_scale_BK[None, ..., None], at),
            v_scale_LBKT=put(staged.v_scale_LBKT, v_scale_BK[None, ..., None], at),
        )
    k_BKH, v_BKH = held(k_BKH, staged.k_LBKHT.dtype), held(v_BKH, staged.v_LBKTH.dtype)
    staged = staged._replace(
        k_LBKHT=jax.lax.dynamic_update_slice(
            staged.k_LBKHT, k_BKH[None, ..., None], (layer, 0, 0, 0, step)
        ),
        v_LBKTH=jax.lax.dynamic_update_slice(
            staged.v_LBKTH, v_BKH[None, :, :, None], (layer, 0, 0, step, 0)
        ),
    )
    if attend is not None:
        return attend(layer, q_BNH, staged, pool, step, cached_B, table_BJ), staged
    batch, _, width = q_BNH.shape
    num_kv = k_BKH.shape[1]
    q_BKGH = q_BNH.astype(jnp.float32).reshape(batch, num_kv, -1, width) * (width**-0.5)
    new = _absorb_staged(q_BKGH, *_staged_layer(staged, layer), step)
    base = layer * (pool.k_ZKHY.shape[0] // num_layers)
    done = _absorb_pages(q_BKGH, pool, new, base, cached_B, table_BJ)
    out_BKGH = done.out_BKGH / done.norm_BKG[..., None]
    return out_BKGH.astype(q_BNH.dtype).reshape(q_BNH.shape), staged


def write_staged(
    pool: Pool | ScaledPool,
    staged: Staged | ScaledStaged,
    first_B: Array,
    count_B: Array,
    table_BJ: Array,
    *,
    num_layers: int,
) -> Pool | ScaledPool:
    """The pool with each row's staged tokens in its pages.

    Args:
        pool: the page pool.
        staged: the call's keys and values.
        first_B: position of a row's first staged token.
        count_B: how many of its tokens count.
        table_BJ: pages of each row; those of new tokens have no other holder that reads there.
        num_layers: L.
    """
    num_pages, page_size = pool.k_ZKHY.shape[0] // num_layers, pool.k_ZKHY.shape[-1]
    steps = staged.k_LBKHT.shape[-1]
    # The largest number of pages that `steps` consecutive tokens lie in.
    touched = (steps + page_size - 2) // page_size + 1
    index_BX = (first_B // page_size)[:, None] + jnp.arange(touched)[None]
    used_BX = (index_BX * page_size < (first_B + count_B)[:, None]) & (count_B > 0)[:, None]
    at_BX = jnp.minimum(index_BX, table_BJ.shape[1] - 1)
    page_BX = jnp.where(used_BX, jnp.take_along_axis(table_BJ, at_BX, axis=1), 0)
    step_BXY = (
        index_BX[..., None] * page_size + jnp.arange(page_size)[None, None] - first_B[:, None, None]
    )
    new_BXY = (step_BXY >= 0) & (step_BXY < count_B[:, None, None])
    step_BXY = jnp.clip(step_BXY, 0, steps - 1)

    def one(layer: Array, pool: Any) -> Any:
        row_BX = layer * num_pages + page_BX
        k_BXKHY = jnp.take_along_axis(
            staged.k_LBKHT[layer][:, None], step_BXY[:, :, None, None], axis=-1
        )
        v_BXKYH = jnp.take_along_axis(
            staged.v_LBKTH[layer][:, None], step_BXY[:, :, None, :, None], axis=-2
        )
        k_BXKHY = jnp.where(new_BXY[:, :, None, None], k_BXKHY, pool.k_ZKHY[row_BX])
        v_BXKYH = jnp.where(new_BXY[:, :, None, :, None], v_BXKYH, pool.v_ZKYH[row_BX])
        pages = pool.k_ZKHY.at[row_BX].set(k_BXKHY), pool.v_ZKYH.at[row_BX].set(v_BXKYH)
        if not isinstance(pool, ScaledPool) or not isinstance(staged, ScaledStaged):
            return Pool(*pages)
        return ScaledPool(
            *pages,
            scales(layer, pool.k_scale_ZKY, staged.k_scale_LBKT, row_BX),
            scales(layer, pool.v_scale_ZKY, staged.v_scale_LBKT, row_BX),
        )

    def scales(layer: Array, scale_ZKY: Array, scale_LBKT: Array, row_BX: Array) -> Array:
        scale_BXKY = jnp.take_along_axis(scale_LBKT[layer][:, None], step_BXY[:, :, None], axis=-1)
        scale_BXKY = jnp.where(new_BXY[:, :, None], scale_BXKY, scale_ZKY[row_BX])
        return scale_ZKY.at[row_BX].set(scale_BXKY)

    return jax.lax.fori_loop(0, num_layers, one, pool)


def tile_rows(batch: int) -> int:
    """Rows of a tile: the largest divisor of `batch` up to `TILE_ROWS`."""
    return max(n for n in range(1, min(batch, TILE_ROWS) + 1) if batch % n == 0)


def _staged_layer(staged: Staged | ScaledStaged, layer: Array) -> tuple[Array, Array]:
    """A layer's staged keys and values as numbers to calculate with."""
    k_BKHT, v_BKTH = staged.k_LBKHT[layer], staged.v_LBKTH[layer]
    if not isinstance(staged, ScaledStaged):
        return k_BKHT, v_BKTH
    k_scale_BKT, v_scale_BKT = staged.k_scale_LBKT[layer], staged.v_scale_LBKT[layer]
    return k_BKHT * k_scale_BKT[:, :, None], v_BKTH * v_scale_BKT[..., None]


def _absorb_staged(q_BKGH: Array, k_BKHT: Array, v_BKTH: Array, step: Array) -> _Softmax:
    """The softmax over the staged tokens up to `step`, at least one."""
    shape = q_BKGH.shape
    nothing = _Softmax(
        jnp.full(shape[:-1], MASKED_SCORE, jnp.float32),
        jnp.zeros(shape[:-1], jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )
    visible_T = jnp.arange(k_BKHT.shape[-1]) <= step
    return _absorb(q_BKGH, k_BKHT[:, None], v_BKTH[:, None], visible_T[None, None], nothing)


def _absorb_pages(
    q_BKGH: Array, pool: Any, state: _Softmax, base: Array, cached_B: Array, table_BJ: Array
) -> _Softmax:
    """`state` with the tokens in the rows' pages, tile by tile of rows."""
    batch, rows = len(q_BKGH), tile_rows(len(q_BKGH))
    pages = max(1, BLOCK_TOKENS // pool.k_ZKHY.shape[-1])
    table_BJ = jnp.pad(table_BJ, ((0, 0), (0, -table_BJ.shape[1] % pages)))

    def tile(values: tuple[Array, _Softmax, Array, Array]) -> _Softmax:
        q, state, cached_B, table_BJ = values
        furthest = jnp.max(cached_B)
        blocks = -(-furthest // (pages * pool.k_ZKHY.shape[-1]))

        def block(j: Array, state: _Softmax) -> _Softmax:
            page_BP = jax.lax.dynamic_slice_in_dim(table_BJ, j * pages, pages, axis=1)
            return _absorb_block(q, pool, state, base + page_BP, cached_B, j)

        return jax.lax.fori_loop(0, blocks, block, state)

    tiles = jax.tree.map(
        lambda x: x.reshape(batch // rows, rows, *x.shape[1:]), (q_BKGH, state, cached_B, table_BJ)
    )
    done = jax.lax.map(tile, tiles)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), done)


def _absorb_block(
    q_BKGH: Array, pool: Any, state: _Softmax, page_BP: Array, cached_B: Array, block: Array
) -> _Softmax:
    pages, page_size = page_BP.shape[1], pool.k_ZKHY.shape[-1]
    key_PY = (block * pages + jnp.arange(pages))[:, None] * page_size + jnp.arange(page_size)[None]
    visible_BPY = key_PY[None] < cached_B[:, None, None]
    k_BPKHY, v_BPKYH = _read(pool.k_ZKHY, page_BP), _read(pool.v_ZKYH, page_BP)
    if isinstance(pool, ScaledPool):
        k_BPKHY = k_BPKHY * _read(pool.k_scale_ZKY, page_BP)[..., None, :]
        v_BPKYH = v_BPKYH * _read(pool.v_scale_ZKY, page_BP)[..., None]
    # What a page held before may be NaN, and 0 * NaN is NaN.
    v_BPKYH = jnp.where(visible_BPY[:, :, None, :, None], v_BPKYH, 0)
    return _absorb(q_BKGH, k_BPKHY, v_BPKYH, visible_BPY, state)


def _read(pages_Z: Array, page_BP: Array) -> Array:
    """[B, P, ...] pages, each copied as one row of numbers; with more axes it takes longer."""
    flat = pages_Z.reshape(len(pages_Z), -1)
    read = flat.at[page_BP.reshape(-1)].get(mode="promise_in_bounds")
    return read.reshape(*page_BP.shape, *pages_Z.shape[1:])


def _absorb(
    q_BKGH: Array, k_BPKHY: Array, v_BPKYH: Array, visible_BPY: Array, state: _Softmax
) -> _Softmax:
    """`state` with a block of pages."""
    k_BKPHY, v_BKPYH = jnp.moveaxis(k_BPKHY, 1, 2), jnp.moveaxis(v_BPKYH, 1, 2)
    score_BKGPY = _sum(
        q_BKGH[..., h, None, None] * k_BKPHY[:, :, None, :, h] for h in range(q_BKGH.shape[-1])
    )
    score_BKGPY = jnp.where(visible_BPY[:, None, None], score_BKGPY, MASKED_SCORE)
    # Else the scores are computed again wherever they are used.
    score_BKGPY = jax.lax.optimization_barrier(score_BKGPY)
    top_BKG = jnp.maximum(state.top_BKG, score_BKGPY.max(axis=(-1, -2)))
    weight_BKGPY = jax.lax.optimization_barrier(jnp.exp(score_BKGPY - top_BKG[..., None, None]))
    shrink_BKG = jnp.exp(state.top_BKG - top_BKG)
    _, _, pages, page_size, _ = v_BKPYH.shape
    gain_BKGH = _sum(
        weight_BKGPY[..., p, y, None] * v_BKPYH[:, :, None, p, y]
        for p in range(pages)
        for y in range(page_size)
    )
    return _Softmax(
        top_BKG,
        state.norm_BKG * shrink_BKG + weight_BKGPY.sum(axis=(-1, -2)),
        state.out_BKGH * shrink_BKG[..., None] + gain_BKGH,
    )


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, terms)
