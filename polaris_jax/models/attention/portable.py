"""Attention in pure JAX, on every platform: all scores of a row at once, or by blocks.

`attend_reference` holds every score. `attend_chunked` has an online softmax over blocks of keys and
O(T) memory, forward and backward: queries and keys are cut into tiles, and a tile of
queries visits only the tiles of keys between the start of its earliest segment and its own
diagonal, so that a packed row costs as much as its segments. If responses share a prompt, it visits
the tiles of the prompt and then those of its own branches. The forward pass keeps the output and
one log-sum-exp a query; the backward pass computes the scores of each pair of tiles again.

Letters of this file: X tiles of queries in a row, Y tiles of keys, E queries of a tile, C keys of a
tile, M = E x G rows of a score tile (the queries of a tile times the heads that share a kv head,
so that one matmul serves them all).

Source: FlashAttention-2, Dao 2023 (arXiv:2307.08691), algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from polaris_jax.models.attention.shards import ContextShard, Seen, query_index, seen_keys

# Finite, so that a row whose every key is masked (padding) yields numbers and not NaN.
MASKED_SCORE = -1e30

# Short rows are those of a CPU or of tests: small tiles waste least where segments of some hundred
# tokens meet the diagonal. On an accelerator each pair of tiles is a few kernel launches: fewer,
# larger pairs.
SHORT_ROW_TOKENS = 4096
SHORT_ROW_BLOCK_TOKENS = 64
LONG_ROW_BLOCK_TOKENS = 512


def attend_reference(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segment_BS: Array | None,
    context: ContextShard | None = None,
    branch_BS: Array | None = None,
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
    if branch_BS is not None:
        own_BTS = branch_BS[:, index_T, None] == branch_BS[:, None, :]
        visible_BTS = visible_BTS & (own_BTS | (branch_BS == 0)[:, None, :])
    score_BKGTS = jnp.where(visible_BTS[:, None, None], score_BKGTS, MASKED_SCORE)
    weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BTKGH = jnp.einsum("bkgts,bskh->btkgh", weight_BKGTS, v_BSKH)
    return out_BTKGH.reshape(q_BTNH.shape)


def attend_chunked(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segment_BS: Array | None,
    context: ContextShard | None = None,
    branch_BS: Array | None = None,
) -> Array:
    """See `attend`; any length, rows one at a time."""
    batch, queries, num_heads, width = q_BTNH.shape
    length, num_kv_heads = k_BSKH.shape[1:3]
    pieces = 1 if context is None else context.pieces(length)
    block = SHORT_ROW_BLOCK_TOKENS if length < SHORT_ROW_TOKENS else LONG_ROW_BLOCK_TOKENS
    piece = queries // pieces
    # A tile never straddles two pieces: it would span the row between them.
    tiles, block_q = _tiles(piece, block)
    _, block_kv = _tiles(length, block)

    index_XE = query_index(context, length).reshape(pieces, piece)
    # Padding queries repeat the piece's last one; what they give is cut off below.
    index_XE = jnp.pad(index_XE, ((0, 0), (0, tiles * block_q - piece)), mode="edge")
    index_XE = index_XE.reshape(pieces * tiles, block_q)
    seen_BS = seen_keys(segment_BS, branch_BS, (batch, length))
    seen_BXE = jax.tree.map(lambda x_BS: x_BS[:, index_XE], seen_BS)

    q = q_BTNH.reshape(batch, pieces, piece, num_kv_heads, -1)
    q = _pad(q, tiles * block_q - piece, axis=2)
    q_BXKMH = (
        q.reshape(batch, pieces * tiles, block_q, num_kv_heads, -1)
        .swapaxes(2, 3)
        .reshape(batch, pieces * tiles, num_kv_heads, -1, width)
    )
    out_BXKMH = _attend_tiles(
        q_BXKMH, _key_tiles(k_BSKH, block_kv), _key_tiles(v_BSKH, block_kv), index_XE, seen_BXE
    )
    out = out_BXKMH.reshape(batch, pieces * tiles, num_kv_heads, block_q, -1).swapaxes(2, 3)
    out = out.reshape(batch, pieces, tiles * block_q, num_heads, width)[:, :, :piece]
    return out.reshape(q_BTNH.shape)


def _tiles(length: int, block: int) -> tuple[int, int]:
    """Number and width of the tiles that cover `length` with at most `block` tokens each."""
    count = -(-length // block)
    return count, min(block, length)


def _pad(x: Array, width: int, *, axis: int) -> Array:
    return jnp.pad(x, [(0, width if i == axis else 0) for i in range(x.ndim)])


def _key_tiles(x_BSKH: Array, block: int) -> Array:
    """[B, Y, K, C, H]; keys past the row's end are zeros that no query sees."""
    batch, length, num_kv_heads, width = x_BSKH.shape
    padded = _pad(x_BSKH, -length % block, axis=1)
    return padded.reshape(batch, -1, block, num_kv_heads, width).swapaxes(2, 3)


@jax.custom_vjp
def _attend_tiles(
    q_BXKMH: Array, k_BYKCH: Array, v_BYKCH: Array, index_XE: Array, seen_BXE: Seen
) -> Array:
    """Attention output by tiles of queries.

    Args:
        q_BXKMH: queries.
        k_BYKCH: keys.
        v_BYKCH: values.
        index_XE: row index of each query, ascending within a tile.
        seen_BXE: the keys that each query sees.
    """
    return _forward(q_BXKMH, k_BYKCH, v_BYKCH, index_XE, seen_BXE)[0]


def _forward(
    q_BXKMH: Array, k_BYKCH: Array, v_BYKCH: Array, index_XE: Array, seen_BXE: Seen
) -> tuple[Array, tuple[Any, ...]]:
    batch, tiles, num_kv_heads, rows, width = q_BXKMH.shape
    block_kv = k_BYKCH.shape[3]

    def one_tile(_: None, at: Array) -> tuple[None, tuple[Array, Array]]:
        b, x = at // tiles, at % tiles
        q_KMH = _tile(q_BXKMH, b, x)
        index_E, seen_E = index_XE[x], _of_tile(seen_BXE, b, x)

        def one_pair(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            y = tile_of(i)
            max_KM, sum_KM, out_KMH = state
            v_KCH = _tile(v_BYKCH, b, y)
            score_KMC = _scores(q_KMH, _tile(k_BYKCH, b, y), index_E, seen_E, y)
            new_max_KM = jnp.maximum(max_KM, score_KMC.max(axis=-1))
            weight_KMC = jnp.exp(score_KMC - new_max_KM[..., None])
            decay_KM = jnp.exp(max_KM - new_max_KM)
            sum_KM = sum_KM * decay_KM + weight_KMC.sum(axis=-1)
            out_KMH = out_KMH * decay_KM[..., None] + _dot(
                "kmc,kch->kmh", weight_KMC.astype(v_KCH.dtype), v_KCH
            )
            return new_max_KM, sum_KM, out_KMH

        zero_KM = jnp.zeros((num_kv_heads, rows), jnp.float32)
        zero_KMH = jnp.zeros((num_kv_heads, rows, width), jnp.float32)
        begin, end, tile_of = _visits(index_E, seen_E, block_kv)
        max_KM, sum_KM, out_KMH = lax.fori_loop(
            begin,
            end,
            one_pair,
            (zero_KM + MASKED_SCORE, zero_KM, zero_KMH),
        )
        out_KMH = (out_KMH / sum_KM[..., None]).astype(q_BXKMH.dtype)
        return None, (out_KMH, max_KM + jnp.log(sum_KM))

    _, (out, log_sum) = lax.scan(one_tile, None, jnp.arange(batch * tiles))
    out_BXKMH = out.reshape(q_BXKMH.shape)
    log_sum_BXKM = log_sum.reshape(q_BXKMH.shape[:-1])
    kept = (q_BXKMH, k_BYKCH, v_BYKCH, index_XE, seen_BXE, out_BXKMH, log_sum_BXKM)
    return out_BXKMH, kept


def _backward(kept: tuple[Any, ...], dout_BXKMH: Array) -> tuple[Any, ...]:
    q_BXKMH, k_BYKCH, v_BYKCH, index_XE, seen_BXE, out_BXKMH, log_sum_BXKM = kept
    batch, tiles = q_BXKMH.shape[:2]
    block_kv, width = k_BYKCH.shape[3:]
    out_dout_BXKM = jnp.sum(out_BXKMH.astype(jnp.float32) * dout_BXKMH.astype(jnp.float32), axis=-1)

    def one_tile(dkv: tuple[Array, Array], at: Array) -> tuple[tuple[Array, Array], Array]:
        b, x = at // tiles, at % tiles
        q_KMH, dout_KMH = _tile(q_BXKMH, b, x), _tile(dout_BXKMH, b, x)
        log_sum_KM, out_dout_KM = _tile(log_sum_BXKM, b, x), _tile(out_dout_BXKM, b, x)
        index_E, seen_E = index_XE[x], _of_tile(seen_BXE, b, x)
        # Turned once a tile of queries, so that each product below is a plain row-major matmul:
        # the CPU's takes twice as long to contract over the rows of both sides.
        q_KHM, dout_KHM = q_KMH.swapaxes(1, 2), dout_KMH.swapaxes(1, 2)

        def one_pair(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            y = tile_of(i)
            dq_KMH, dk_BYKHC, dv_BYKHC = state
            k_KCH, v_KCH = _tile(k_BYKCH, b, y), _tile(v_BYKCH, b, y)
            score_KMC = _scores(q_KMH, k_KCH, index_E, seen_E, y)
            weight_KMC = jnp.exp(score_KMC - log_sum_KM[..., None])
            dweight_KMC = _dot("kmh,kch->kmc", dout_KMH, v_KCH)
            dscore_KMC = weight_KMC * (dweight_KMC - out_dout_KM[..., None]) * width**-0.5
            weight_KMC, dscore_KMC = (a.astype(q_KMH.dtype) for a in (weight_KMC, dscore_KMC))
            dv_BYKHC = _add_tile(dv_BYKHC, _dot("khm,kmc->khc", dout_KHM, weight_KMC), b, y)
            dk_BYKHC = _add_tile(dk_BYKHC, _dot("khm,kmc->khc", q_KHM, dscore_KMC), b, y)
            return dq_KMH + _dot("kmc,kch->kmh", dscore_KMC, k_KCH), dk_BYKHC, dv_BYKHC

        begin, end, tile_of = _visits(index_E, seen_E, block_kv)
        dq_KMH, dk_BYKHC, dv_BYKHC = lax.fori_loop(
            begin,
            end,
            one_pair,
            (jnp.zeros(q_KMH.shape, jnp.float32), *dkv),
        )
        return (dk_BYKHC, dv_BYKHC), dq_KMH.astype(q_KMH.dtype)

    zero_BYKHC = jnp.zeros(k_BYKCH.swapaxes(3, 4).shape, jnp.float32)
    (dk_BYKHC, dv_BYKHC), dq = lax.scan(
        one_tile, (zero_BYKHC, zero_BYKHC), jnp.arange(batch * tiles)
    )
    dk_BYKCH, dv_BYKCH = (
        a.swapaxes(3, 4).astype(b.dtype) for a, b in ((dk_BYKHC, k_BYKCH), (dv_BYKHC, v_BYKCH))
    )
    return dq.reshape(q_BXKMH.shape), dk_BYKCH, dv_BYKCH, None, None


_attend_tiles.defvjp(_forward, _backward)


def visible_tiles(index_E: Array, first_E: Array, block_kv: int) -> tuple[Array, Array]:
    """First and one past the last tile of keys, if each query sees [first, index]."""
    return first_E.min() // block_kv, index_E.max() // block_kv + 1


def _visits(
    index_E: Array, seen_E: Seen, block_kv: int
) -> tuple[Array, Array, Callable[[Array], Array]]:
    """Begin and end of the loop over the tiles of keys that a tile of queries sees.

    The third value turns the loop's counter into the number of the tile: it leaves out the tiles
    between the shared tokens and the own branches.
    """
    own, end = visible_tiles(index_E, seen_E.own, block_kv)
    if seen_E.first is None or seen_E.end is None:
        return own, end, lambda i: i
    first = seen_E.first.min() // block_kv
    shared = jnp.clip((seen_E.end.max() + block_kv - 1) // block_kv, first, own)
    left_out = own - shared
    return first, end - left_out, lambda i: jnp.where(i < shared, i, i + left_out)


def _scores(q_KMH: Array, k_KCH: Array, index_E: Array, seen_E: Seen, y: Array) -> Array:
    """float32 scores [K, M, C] of a pair of tiles, masked."""
    block_kv, width = k_KCH.shape[1:]
    group = q_KMH.shape[1] // index_E.shape[0]
    key_C = y * block_kv + jnp.arange(block_kv)
    index_M, seen_M = jax.tree.map(lambda a: jnp.repeat(a, group)[:, None], (index_E, seen_E))
    visible_MC = (seen_M.own <= key_C[None]) & (key_C[None] <= index_M)
    if seen_M.first is not None and seen_M.end is not None:
        visible_MC |= (seen_M.first <= key_C[None]) & (key_C[None] < seen_M.end)
    score_KMC = _dot("kmh,kch->kmc", q_KMH, k_KCH) * width**-0.5
    return jnp.where(visible_MC[None], score_KMC, MASKED_SCORE)


def _of_tile(seen_BXE: Seen, b: Array, x: Array) -> Seen:
    return jax.tree.map(lambda a_BXE: a_BXE[b, x], seen_BXE)


def _dot(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _tile(tiles: Array, b: Array, at: Array) -> Array:
    """`tiles[b, at]` as one slice."""
    rest = tiles.shape[2:]
    return lax.dynamic_slice(tiles, (b, at) + (0,) * len(rest), (1, 1, *rest)).reshape(rest)


def _add_tile(tiles: Array, addend: Array, b: Array, at: Array) -> Array:
    """`tiles` with `addend` added at [b, at], in place where `tiles` is a loop's state."""
    total = _tile(tiles, b, at) + addend
    return lax.dynamic_update_slice(tiles, total[None, None], (b, at) + (0,) * addend.ndim)
