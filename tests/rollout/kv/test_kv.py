"""Attention over pages equals dense attention over the same keys and values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.attention import attend as dense_attend
from polaris_jax.rollout import kv
from polaris_jax.rollout.kv import Pool
from polaris_jax.rollout.pages import pages_for
from tests.support.rollout.rollout_cases import CONFIG
from tests.tolerances import ATTENTION_ATOL

LAYERS, BATCH, LENGTH = 2, 3, 21
attend_pages = jax.jit(functools.partial(kv.attend_pages, num_layers=LAYERS), static_argnames=())


@functools.cache
def qkv():
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (BATCH, LENGTH)
    return (
        jax.random.normal(keys[0], (*shape, CONFIG.num_heads, CONFIG.head_dim)),
        jax.random.normal(keys[1], (*shape, CONFIG.num_kv_heads, CONFIG.head_dim)),
        jax.random.normal(keys[2], (*shape, CONFIG.num_kv_heads, CONFIG.head_dim)),
    )


def scattered_table(page_size: int, width: int) -> tuple[np.ndarray, int]:
    """A table with pages in no order, and the pool's page count."""
    pages = pages_for(LENGTH, page_size)
    num_pages = BATCH * pages + 3
    order = 1 + np.random.default_rng(0).permutation(num_pages - 1)[: BATCH * pages]
    table_BJ = np.zeros((BATCH, width), np.int32)
    table_BJ[:, :pages] = order.reshape(BATCH, pages)
    return table_BJ, num_pages


def noisy_pool(page_size: int, num_pages: int) -> Pool:
    """What lies in the pool before must not matter, whatever another request left there."""
    pool = kv.init_pool(CONFIG, num_pages=num_pages, page_size=page_size, dtype=jnp.float32)
    return jax.tree.map(lambda x: x + jnp.nan, pool)


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_chunks_over_pages_equal_dense_attention(page_size):
    q, k, v = qkv()
    expected = dense_attend(q, k, v, None, backend="reference")
    table_BJ, num_pages = scattered_table(page_size, width=pages_for(40, page_size))
    pool = noisy_pool(page_size, num_pages)
    chunk, parts = 8, []
    for start in range(0, LENGTH, chunk):
        position_BT = np.broadcast_to(np.arange(start, start + chunk), (BATCH, chunk))
        padded = [jnp.pad(x, ((0, 0), (0, 24 - LENGTH), (0, 0), (0, 0))) for x in (q, k, v)]
        q_part, k_part, v_part = (x[:, start : start + chunk] for x in padded)
        out, pool = attend_pages(
            jnp.int32(1),
            q_part,
            k_part,
            v_part,
            pool,
            position_BT=position_BT,
            live_BT=position_BT < LENGTH,
            table_BJ=table_BJ,
        )
        parts.append(out)
    actual = jnp.concatenate(parts, axis=1)[:, :LENGTH]
    np.testing.assert_allclose(actual, expected, atol=ATTENTION_ATOL)
    untouched = pool.k_ZKHY[:num_pages]  # layer 0
    assert bool(jnp.isnan(untouched).all())


def test_copied_pages_carry_every_layer_and_leave_the_rest():
    pool = kv.init_pool(CONFIG, num_pages=5, page_size=4, dtype=jnp.float32)
    pool = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), pool)
    copied = kv.copy_pages(
        pool, np.array([2, 0], np.int32), np.array([4, 0], np.int32), num_layers=LAYERS
    )
    for before, after in zip(pool, copied, strict=True):
        before, after = (np.asarray(x).reshape(LAYERS, 5, -1) for x in (before, after))
        np.testing.assert_array_equal(after[:, 4], before[:, 2])
        np.testing.assert_array_equal(after[:, :4], before[:, :4])
