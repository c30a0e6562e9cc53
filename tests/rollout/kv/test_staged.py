"""Staged decode attention equals dense attention; what is staged ends up in the right pages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.attention import attend as dense_attend
from polaris_jax.rollout import kv
from polaris_jax.rollout.kv import Pool
from polaris_jax.rollout.kv import staged as staged_kv
from polaris_jax.rollout.pages import pages_for
from tests.support.rollout.rollout_cases import CONFIG
from tests.tolerances import ATTENTION_ATOL

LAYERS, LENGTH, STEPS = 2, 150, 6
BATCH = staged_kv.TILE_ROWS + 8  # two tiles
NOISE = np.nan  # what lies in the pool before must not matter, whatever another request left
attend_staged = jax.jit(functools.partial(staged_kv.attend_staged, num_layers=LAYERS))
write_staged = jax.jit(functools.partial(staged_kv.write_staged, num_layers=LAYERS))


@functools.cache
def qkv() -> tuple[jax.Array, ...]:
    heads = (CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.num_kv_heads)
    return tuple(
        jax.random.normal(key, (BATCH, LENGTH, n, CONFIG.head_dim))
        for key, n in zip(jax.random.split(jax.random.key(0), 3), heads, strict=True)
    )


def filled(page_size: int, known_B: np.ndarray) -> tuple[Pool, np.ndarray]:
    """A pool with each row's known tokens in scattered pages of both layers, and the table."""
    pages = pages_for(LENGTH, page_size)
    num_pages = BATCH * pages + 1
    order = 1 + np.random.default_rng(0).permutation(num_pages - 1)
    table_BJ = order.reshape(BATCH, pages).astype(np.int32)
    pool = kv.init_pool(CONFIG, num_pages=num_pages, page_size=page_size, dtype=jnp.float32)
    k_ZKHY, v_ZKYH = (np.array(x) + NOISE for x in pool)
    _, k_BTKH, v_BTKH = (np.asarray(x) for x in qkv())
    for layer in range(LAYERS):
        for row in range(BATCH):
            for at in range(known_B[row]):
                page = layer * num_pages + table_BJ[row, at // page_size]
                k_ZKHY[page, :, :, at % page_size] = k_BTKH[row, at]
                v_ZKYH[page, :, at % page_size] = v_BTKH[row, at]
    return Pool(jnp.asarray(k_ZKHY), jnp.asarray(v_ZKYH)), table_BJ


@pytest.mark.parametrize("page_size", [4, 16, 128])
def test_steps_equal_dense_attention_and_leave_their_tokens_in_the_pages(page_size):
    rng = np.random.default_rng(1)
    known_B = rng.integers(0, LENGTH - STEPS, BATCH).astype(np.int32)
    known_B[:3] = (0, 1, LENGTH - STEPS)
    q, k, v = qkv()
    expected = np.asarray(dense_attend(q, k, v, None, backend="reference"))
    pool, table_BJ = filled(page_size, known_B)
    staged = staged_kv.new_staged(pool, batch=BATCH, num_layers=LAYERS, steps=STEPS)
    row_B = np.arange(BATCH)
    for step in range(STEPS):
        at_B = known_B + step
        for layer in range(LAYERS):
            out, staged = attend_staged(
                layer, q[row_B, at_B], k[row_B, at_B], v[row_B, at_B], staged, pool,
                step, known_B, table_BJ,
            )  # fmt: skip
            np.testing.assert_allclose(out, expected[row_B, at_B], atol=ATTENTION_ATOL)
    count_B = rng.integers(0, STEPS + 1, BATCH).astype(np.int32)
    count_B[:3] = (STEPS, 0, STEPS)
    written = write_staged(pool, staged, known_B, count_B, table_BJ)
    wanted, _ = filled(page_size, known_B + count_B)
    num_pages = len(pool.k_ZKHY) // LAYERS
    for got, want in zip(written, wanted, strict=True):
        got, want = (np.asarray(x).reshape(LAYERS, num_pages, -1) for x in (got, want))
        np.testing.assert_array_equal(got[:, 1:], want[:, 1:])  # all but the trash page


def test_a_row_sees_its_own_tokens_alone():
    """Other rows' pages and lengths, which decide how far a tile goes, do not enter."""
    q, k, v = (x[:, 0] for x in qkv())
    outs = []
    for others in (5, 140):
        known_B = np.full(BATCH, others, np.int32)
        known_B[0] = 20
        pool, table_BJ = filled(16, known_B)
        staged = staged_kv.new_staged(pool, batch=BATCH, num_layers=LAYERS, steps=STEPS)
        out, _ = attend_staged(1, q, k, v, staged, pool, 0, known_B, table_BJ)
        outs.append(np.asarray(out))
    np.testing.assert_array_equal(outs[0][0], outs[1][0])
    assert np.abs(outs[0][1:] - outs[1][1:]).max(axis=(1, 2)).min() > ATTENTION_ATOL


@pytest.mark.parametrize(("batch", "rows"), [(2, 2), (24, 24), (40, 20), (128, 32), (37, 1)])
def test_tiles_divide_the_rows(batch, rows):
    assert staged_kv.tile_rows(batch) == rows
