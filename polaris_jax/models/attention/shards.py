"""How a row's queries are split over context shards, each of which sees all keys of the row.

Causal work grows along the row: of `contiguous` shards the last does up to twice the mean. `zigzag`
deals the row's chunks to the shards to and fro, 0, 1, 1, 0, 0, 1, 1, 0: each shard gets an earlier
and a later one of every such pair, whose work adds up to the same for all. Chunks are tiles of
queries, so that segments of several times 2 x shards x chunk tokens are dealt out, too, for a back
end that skips what other segments hide (`chunked`); `shard_work` says how evenly.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float64, Int32

Layout = Literal["contiguous", "zigzag"]

# Of a zigzag chunk: what kernels take as a tile of queries, and the least that is worth one.
CHUNK_TOKENS_MAX = 512
CHUNK_TOKENS_MIN = 128


@dataclasses.dataclass(frozen=True)
class ContextShard:
    """The queries at hand are one shard of the row; valid inside `jax.shard_map` over `axis`.

    Args:
        axis: the mesh axis over which rows are split.
        shards: its size.
        layout: which positions a shard holds, see `row_order`.
    """

    axis: str
    shards: int
    layout: Layout = "zigzag"

    def pieces(self, length: int) -> int:
        """Runs of consecutive row positions that a shard of a row of `length` tokens is made of."""
        return length // self.shards // chunk_tokens(length, self.shards, self.layout)


def chunk_tokens(length: int, shards: int, layout: Layout = "zigzag") -> int:
    """Tokens of the chunks that are dealt to the shards, see `row_order`.

    Raises:
        ValueError: the row does not divide into the layout's chunks.
    """
    if shards == 1:
        return length
    parts = {"contiguous": 1, "zigzag": 2}[layout] * shards
    part, rest = divmod(length, parts)
    if rest:
        raise ValueError(
            f"batch.row_len={length}: {layout} context shards cut a row into {parts} equal parts "
            f"(mesh.context={shards}); set it to a multiple of {parts}, such as "
            f"{-(-length // parts) * parts}"
        )
    if layout == "contiguous":
        return part
    power_of_two = min(CHUNK_TOKENS_MAX, part & -part)
    if power_of_two >= CHUNK_TOKENS_MIN:
        return power_of_two
    lengths = range(min(CHUNK_TOKENS_MAX, part), CHUNK_TOKENS_MIN - 1, -1)
    return next((n for n in lengths if part % n == 0), part)


def row_order(length: int, shards: int, layout: Layout = "zigzag") -> Int32[np.ndarray, " T"]:
    """The row index that lies at each position of the permuted row, int32 [length].

    Shard i owns positions [i * length / shards, (i + 1) * length / shards).

    Args:
        length: tokens of a row.
        shards: parts of the row; 1 leaves it as it is.
        layout: `contiguous` keeps the order; `zigzag` cuts the row into chunks and deals 2 x shards
            of them at a time, of which shard i gets i and 2 x shards - 1 - i. A chunk is the
            longest of 128 to 512 tokens that divides length / (2 x shards), a power of two before
            any other; where there is none it is that long itself.

    Raises:
        ValueError: the row does not divide into the layout's chunks.

    Source: zigzag ring attention, Zhu 2024 (github.com/zhuzilin/ring-flash-attention), which has
    one pair of chunks a shard.
    """
    order = np.arange(length, dtype=np.int32)
    chunk = chunk_tokens(length, shards, layout)
    if layout == "contiguous" or shards == 1:
        return order
    # [deals, to or fro, shards, chunk] -> [shards, deals, to or fro, chunk]
    dealt = order.reshape(-1, 2, shards, chunk)
    dealt = np.stack([dealt[:, 0], dealt[:, 1, ::-1]], axis=1)
    return dealt.transpose(2, 0, 1, 3).reshape(-1)


def in_row_order(x_BS: Array, shards: int, layout: Layout = "zigzag") -> Array:
    """The inverse of `row_order` on axis 1 of [B, S, ...]; complete chunks are moved."""
    if layout == "contiguous" or shards == 1:
        return x_BS
    chunk = chunk_tokens(x_BS.shape[1], shards, layout)
    # [B, shards, deals, to or fro, chunk, ...] -> [B, deals, to or fro, shards, chunk, ...]
    dealt = x_BS.reshape(x_BS.shape[0], shards, -1, 2, chunk, *x_BS.shape[2:])
    dealt = jnp.moveaxis(dealt, 1, 3)
    dealt = jnp.stack([dealt[:, :, 0], dealt[:, :, 1, ::-1]], axis=2)
    return dealt.reshape(x_BS.shape)


def shard_work(
    segment_BT: np.ndarray, shards: int, layout: Layout = "zigzag"
) -> Float64[np.ndarray, "B shards"]:
    """Pairs of a query and a key that it sees, of each shard of each row, float64 [B, shards].

    Args:
        segment_BT: segment ids in row order; padding, 0, sees padding and counts as it computes.
        shards: parts of each row.
        layout: see `row_order`.
    """
    index_T = np.arange(segment_BT.shape[1])
    begins_BT = np.diff(segment_BT, axis=1, prepend=-1) != 0
    first_BT = np.maximum.accumulate(np.where(begins_BT, index_T, 0), axis=1)
    seen_BT = (index_T - first_BT + 1).astype(np.float64)
    order = row_order(segment_BT.shape[1], shards, layout)
    return seen_BT[:, order].reshape(len(segment_BT), shards, -1).sum(axis=2)


def query_index(context: ContextShard | None, length: int) -> Array:
    """Row index of each query at hand, int32 [T], from the row's `length`."""
    if context is None:
        return jnp.arange(length, dtype=jnp.int32)
    order = row_order(length, context.shards, context.layout).reshape(context.shards, -1)
    return jnp.asarray(order)[jax.lax.axis_index(context.axis)]


def run_start(segment_BS: Array) -> Array:
    """Row index at which each position's segment begins, int32 [B, S].

    The segments of a row are contiguous, so a query at index i sees the keys from its own
    `run_start` up to i.
    """
    index_S = jnp.arange(segment_BS.shape[1], dtype=jnp.int32)
    begins_BS = jnp.pad(
        segment_BS[:, 1:] != segment_BS[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )
    return jax.lax.cummax(jnp.where(begins_BS, index_S[None], 0), axis=1)
