"""How a row's queries are split over context shards, each of which sees all keys of the row.

Causal work grows along the row: of `contiguous` shards the last does up to twice the mean. `zigzag`
deals the row's chunks to the shards to and fro, 0, 1, 1, 0, 0, 1, 1, 0: each shard gets an earlier
and a later one of every such pair, whose work adds up to the same for all. Chunks are tiles of
queries, so that segments of several times 2 x shards x chunk tokens are dealt out, too, for a back
end that skips what other segments hide (`chunked`); `shard_work` says how evenly.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

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
    segment_BT: np.ndarray,
    shards: int,
    layout: Layout = "zigzag",
    *,
    branch_BT: np.ndarray | None = None,
) -> Float64[np.ndarray, "B shards"]:
    """Pairs of a query and a key that it sees, of each shard of each row, float64 [B, shards].

    Args:
        segment_BT: segment ids in row order; padding, 0, sees padding and counts as it computes.
        shards: parts of each row.
        layout: see `row_order`.
        branch_BT: branches in row order, see `attend`; None: no segment has any.
    """
    index_T = np.arange(segment_BT.shape[1])
    begins_BT = np.diff(segment_BT, axis=1, prepend=-1) != 0

    def newest(marks_BT: np.ndarray) -> np.ndarray:
        return np.maximum.accumulate(np.where(marks_BT, index_T, 0), axis=1)

    first_BT = newest(begins_BT)
    seen_BT = (index_T - first_BT + 1).astype(np.float64)
    if branch_BT is not None:
        branches_BT = begins_BT | (np.diff(branch_BT, axis=1, prepend=-1) != 0)
        # Between the end of the shared tokens and the own branch lie those of the others.
        hidden_BT = newest(branches_BT) - newest(branches_BT & (branch_BT == 1))
        seen_BT -= np.where(branch_BT > 0, hidden_BT, 0)
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


class Seen(NamedTuple):
    """Row indices of the keys that each query at row index i sees: [own, i] and [first, end).

    Attributes:
        own: int32, where the query's branch or, outside branches, its segment begins.
        first: int32, where its segment begins if it lies in a branch, else `own`; None if no
            segment has branches.
        end: int32, where the shared tokens of its segment end if it lies in a branch, else 0; None
            likewise. The second range is empty then.
    """

    own: Array
    first: Array | None = None
    end: Array | None = None


def seen_keys(segment_BS: Array | None, branch_BS: Array | None, shape: tuple[int, int]) -> Seen:
    """What the query at each position of a row sees; fields [B, S].

    Args:
        segment_BS: see `attend`; None: one segment a row.
        branch_BS: see `attend`; None: no segment has branches.
        shape: (B, S).
    """
    zero_BS = jnp.zeros(shape, jnp.int32)
    first_BS = zero_BS if segment_BS is None else run_start(segment_BS)
    if branch_BS is None:
        return Seen(first_BS)
    index_S = jnp.arange(shape[1], dtype=jnp.int32)
    # Branches count from 1 and follow the shared tokens, so that the newest beginning of a
    # segment or of its branch 1 is the segment's own at every token of a branch.
    starts_BS = (index_S[None] == first_BS) | (
        (branch_BS == 1) & (jnp.pad(branch_BS[:, :-1], ((0, 0), (1, 0))) != 1)
    )
    end_BS = jax.lax.cummax(jnp.where(starts_BS, index_S[None], 0), axis=1)
    own_BS = jnp.maximum(first_BS, run_start(branch_BS))
    in_branch_BS = branch_BS > 0
    return Seen(
        own_BS, jnp.where(in_branch_BS, first_BS, own_BS), jnp.where(in_branch_BS, end_BS, 0)
    )
