"""How a row's queries are split over context shards, each of which sees the whole row's keys.

Causal work grows along the row: of `contiguous` shards the last does up to twice the mean. `zigzag`
gives shard i the chunks i and 2 x shards - 1 - i of the row, an early and a late one, whose work
adds up to the same for every i where the row is one sequence. In a packed row a back end that skips
what other segments hide (`chunked`) has less to do in some chunks than in others; `shard_work` says
how much.
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

    @property
    def pieces(self) -> int:
        """Runs of consecutive row positions that a shard is made of."""
        return 2 if self.layout == "zigzag" and self.shards > 1 else 1


def row_order(length: int, shards: int, layout: Layout = "zigzag") -> Int32[np.ndarray, " T"]:
    """The row index that lies at each position of the permuted row, int32 [length].

    Shard i owns positions [i * length / shards, (i + 1) * length / shards).

    Args:
        length: tokens of a row.
        shards: parts of the row; 1 leaves it as it is.
        layout: `contiguous` keeps the order; `zigzag` cuts the row into 2 x shards chunks, of
            which shard i holds i and 2 x shards - 1 - i.

    Raises:
        ValueError: the row does not divide into the layout's chunks.

    Source: zigzag ring attention, Zhu 2024 (github.com/zhuzilin/ring-flash-attention).
    """
    order = np.arange(length, dtype=np.int32)
    if shards == 1:
        return order
    chunks = {"contiguous": 1, "zigzag": 2}[layout] * shards
    if length % chunks:
        raise ValueError(
            f"batch.row_len={length}: {layout} context shards cut a row into {chunks} equal chunks "
            f"(mesh.context={shards}); set it to a multiple of {chunks}, such as "
            f"{-(-length // chunks) * chunks}"
        )
    if layout == "contiguous":
        return order
    chunk = np.arange(chunks)
    early_late = np.stack([chunk[:shards], chunk[:shards][::-1] + shards], axis=1).reshape(-1)
    return order.reshape(chunks, -1)[early_late].reshape(-1)


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
