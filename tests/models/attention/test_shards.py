"""How rows are dealt to context shards."""

import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.attention import ContextShard, in_row_order, row_order
from polaris_jax.models.attention.portable import visible_tiles
from polaris_jax.models.attention.shards import chunk_tokens, run_start, shard_work
from polaris_jax.models.attention.splash import splash_kernel

ROW_TOKENS = 53_248
# Causal work of the busiest shard over the idlest, less one: the bound of a balanced layout.
IMBALANCE = 0.05
# Tiles on the diagonal and at the segments' borders are computed whole, by idle shards too.
TILE_ROUNDING = 0.06


@pytest.mark.parametrize("length", [64, 4096, ROW_TOKENS])
@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_the_order_is_a_permutation_that_can_be_undone(layout, shards, length):
    order = row_order(length, shards, layout)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(length))
    row_BSK = np.arange(2 * length * 3).reshape(2, length, 3)
    back = in_row_order(jnp.asarray(row_BSK[:, order]), shards, layout)
    np.testing.assert_array_equal(back, row_BSK)


def test_a_shard_is_made_of_whole_chunks():
    for length, shards in ((64, 4), (4096, 2), (ROW_TOKENS, 8)):
        pieces = ContextShard("a", shards).pieces(length)
        for shard in row_order(length, shards).reshape(shards, pieces, -1):
            np.testing.assert_array_equal(np.diff(shard, axis=1), 1)


def test_zigzag_gives_each_shard_an_early_and_a_late_chunk():
    assert row_order(8, 2, "zigzag").tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert row_order(8, 2, "contiguous").tolist() == list(range(8))
    assert row_order(7, 1, "zigzag").tolist() == list(range(7))
    assert ContextShard("a", 2, "zigzag").pieces(8) == 2
    assert ContextShard("a", 1, "zigzag").pieces(8) == 1
    assert ContextShard("a", 2, "contiguous").pieces(8) == 1


def test_zigzag_deals_chunks_to_and_fro():
    assert chunk_tokens(1536, 2) == 128
    chunks = (row_order(1536, 2) // 128)[::128].tolist()
    assert chunks == [0, 3, 4, 7, 8, 11, 1, 2, 5, 6, 9, 10]


@pytest.mark.parametrize(
    ("length", "shards", "chunk"),
    [
        (ROW_TOKENS, 4, 512),  # 13 pairs
        (ROW_TOKENS, 8, 256),  # 13 pairs
        (8192, 4, 512),  # 2 pairs
        (2048, 8, 128),  # one pair
        (12_000, 4, 500),  # no multiple of 128: the longest of up to 512 tokens
        (50_000, 8, 3125),  # 125 would be too short, 625 is too long: one pair
        (96, 2, 24),  # a row too short for more
        (ROW_TOKENS, 1, ROW_TOKENS),
    ],
)
def test_chunks_are_the_longest_tiles_that_divide_the_row(length, shards, chunk):
    assert chunk_tokens(length, shards) == chunk


def test_a_row_that_does_not_divide_is_refused_with_the_next_that_does():
    with pytest.raises(ValueError, match=r"batch\.row_len=12: zigzag .* multiple of 8, such as 16"):
        row_order(12, 4, "zigzag")
    with pytest.raises(ValueError, match=r"multiple of 3, such as 9"):
        row_order(8, 3, "contiguous")


def test_runs_start_at_their_first_position():
    segment_BS = jnp.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 4, 0, 0]])
    assert run_start(segment_BS).tolist() == [[0, 0, 2, 2, 2, 5], [0, 0, 0, 3, 4, 4]]


def pairs_a_shard(
    shards: int, layout: str, block: int, lengths: tuple[int, ...] = (ROW_TOKENS,)
) -> np.ndarray:
    """Pairs of tiles that `chunked` computes in each shard of a full row of such segments."""
    pieces = ContextShard("", shards, layout).pieces(ROW_TOKENS)
    order = row_order(ROW_TOKENS, shards, layout).reshape(shards, pieces, -1)
    first_T = np.repeat(np.cumsum(lengths) - lengths, lengths)

    def pairs(piece: np.ndarray) -> int:
        tiles = [piece[i : i + block] for i in range(0, len(piece), block)]
        bounds = [visible_tiles(tile, first_T[tile], block) for tile in tiles]
        return sum(int(last - first) for first, last in bounds)

    return np.array([sum(pairs(piece) for piece in shard) for shard in order])


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_zigzag_shards_do_the_same_causal_work(shards):
    work = pairs_a_shard(shards, "zigzag", 512)
    assert work.max() / work.min() - 1 < IMBALANCE
    contiguous = pairs_a_shard(shards, "contiguous", 512)
    # The last of c contiguous shards does (2c - 1) / c times the mean.
    assert contiguous.max() / contiguous.mean() == pytest.approx(
        (2 * shards - 1) / shards, rel=0.05
    )


def imbalance(work: np.ndarray) -> float:
    return work.max() / work.mean()


@pytest.mark.parametrize(
    ("lengths", "imbalances"),
    [
        ((ROW_TOKENS,), {2: 1.0, 4: 1.0, 8: 1.0}),
        ((40_000, 13_248), {2: 1.003, 4: 1.043, 8: 1.043}),
        ((30_000, 12_000, 11_248), {2: 1.016, 4: 1.058, 8: 1.058}),
    ],
    ids=["one", "two", "three"],
)
def test_the_segments_of_packed_rows_are_dealt_out_too(lengths, imbalances):
    """The figures of docs/notebook/trainer.md, by pairs of tokens and by the computed tiles."""
    segment_BT = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None]
    for shards, want in imbalances.items():
        assert imbalance(shard_work(segment_BT, shards)) == pytest.approx(want, abs=0.002)
        tiles = pairs_a_shard(shards, "zigzag", 512, lengths)
        assert imbalance(tiles) == pytest.approx(want, rel=TILE_ROUNDING)


def test_work_is_what_each_query_sees():
    segment_BT = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 2, 2, 2, 2]])
    assert shard_work(segment_BT, 2, "contiguous").tolist() == [[10, 7], [7, 22]]
    assert shard_work(segment_BT, 2).tolist() == [[7, 10], [15, 14]]
    assert shard_work(segment_BT, 1).tolist() == [[17], [29]]


def test_splash_shards_do_the_same_causal_work():
    shards = 4
    kernel = splash_kernel(2, 8192, shards, "zigzag")
    tables = {
        "forward": kernel.fwd_mask_info,
        "dq": kernel.dq_mask_info,
        "dkv": kernel.dkv_mask_info,
    }
    for name, table in tables.items():
        tiles = np.asarray(table.block_mask)[0].reshape(shards, -1)
        work = (tiles > 0).sum(axis=1)
        assert work.min() > 0, name
        assert work.max() / work.min() - 1 < IMBALANCE, name
