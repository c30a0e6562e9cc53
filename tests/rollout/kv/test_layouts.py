"""Each layout of the pool gives dense attention, kernels run as plain jax."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.ragged_paged_attention.kernel import (
    ref_ragged_paged_attention,
)

from polaris_jax.models.attention import attend as dense_attend
from polaris_jax.rollout import kv
from polaris_jax.rollout.kv.int8 import rotate_by_product, rotated
from polaris_jax.rollout.kv.layouts import (
    PALLAS_GPU,
    PALLAS_GPU_INT8,
    RAGGED,
    TOKEN_MAJOR,
    XLA,
    attend_pallas_gpu,
    attend_ragged,
)
from polaris_jax.rollout.kv.ragged_v3 import RAGGED_V3, attend_decode, attend_prefill
from polaris_jax.rollout.pages import pages_for
from tests.support.rollout.rollout_cases import CONFIG
from tests.tolerances import ATTENTION_ATOL

LAYERS, BATCH, LENGTH, CHUNK, PAGE = 2, 3, 18, 8, 16
RAGGED_ON_CPU = dataclasses.replace(
    RAGGED,
    attend=functools.partial(attend_ragged, kernel=ref_ragged_paged_attention),
    attend_one=functools.partial(attend_ragged, kernel=ref_ragged_paged_attention),
)
GPU_ON_CPU = dataclasses.replace(
    PALLAS_GPU, attend_one=functools.partial(attend_pallas_gpu, interpret=True)
)


def read_like_v3(
    q_QNH,
    k_QKH,
    v_QKH,
    pages,
    length_B,
    page_X,
    first_q_B,
    distribution,
    *,
    update_kv_cache,
    sm_scale,
    d_block_sizes,
    m_block_sizes,
    vmem_limit_bytes,
):
    """What the package's kernel documents, sequence by sequence; its rules are asserted."""
    page_size, (decode_end, prefill_end, end) = pages.shape[1], distribution.tolist()
    assert end == len(length_B) == prefill_end or prefill_end == 0
    for fetched_q, fetched, queries, keys in (d_block_sizes, m_block_sizes):
        assert fetched_q % queries == 0 == fetched % keys
        assert fetched % page_size == 0 == keys % page_size
    assert vmem_limit_bytes > 0
    outs, pages = [], np.array(pages)
    for row, length in enumerate(length_B.tolist()):
        first, stop = first_q_B[row : row + 2].tolist()
        assert row >= decode_end or stop - first == 1
        assert 0 < stop - first <= length
        own = page_X.reshape(end, -1)[row]
        at = [(own[t // page_size], t % page_size) for t in range(length)]
        if update_kv_cache:
            for new, (page, offset) in zip(range(first, stop), at[first - stop :], strict=True):
                pages[page, offset] = np.stack([k_QKH[new], v_QKH[new]], axis=1)
        kv_SK2H = np.stack([pages[page, offset] for page, offset in at])
        groups = q_QNH.shape[1] // kv_SK2H.shape[1]
        k_SNH, v_SNH = (np.repeat(kv_SK2H[:, :, i], groups, axis=1) for i in (0, 1))
        score_NQS = sm_scale * np.einsum("qnh,snh->nqs", q_QNH[first:stop], k_SNH)
        place_Q = np.arange(length - (stop - first), length)
        score_NQS = np.where(np.arange(length) <= place_Q[:, None], score_NQS, -np.inf)
        outs.append(jnp.einsum("nqs,snh->qnh", jax.nn.softmax(score_NQS), v_SNH))
    return jnp.concatenate(outs), jnp.asarray(pages)


V3_ON_CPU = dataclasses.replace(
    RAGGED_V3,
    attend=functools.partial(attend_prefill, kernel=read_like_v3),
    attend_one=functools.partial(attend_decode, kernel=read_like_v3),
)


def jitted(layout):
    """The layout with one compile for each function and shape."""
    return dataclasses.replace(
        layout,
        **{
            name: jax.jit(getattr(layout, name), static_argnames="num_layers")
            for name in ("attend", "attend_one")
        },
    )


LAYOUTS = [
    pytest.param(jitted(XLA), id="xla"),
    pytest.param(jitted(TOKEN_MAJOR), id="token_major"),
    pytest.param(RAGGED_ON_CPU, id="ragged"),  # its reference reads a count on the host
    pytest.param(V3_ON_CPU, id="ragged_v3"),
    pytest.param(jitted(GPU_ON_CPU), id="pallas_gpu"),
]


@functools.cache
def qkv():
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.num_kv_heads)
    return [
        jax.random.normal(key, (BATCH, LENGTH, n, CONFIG.head_dim))
        for key, n in zip(keys, heads, strict=True)
    ]


def noisy_pool(layout, num_pages):
    """What lies in the pool before must not matter."""
    abstract = layout.abstract_pool(CONFIG, num_pages=num_pages, page_size=PAGE, dtype="float32")
    return jax.tree.map(lambda x: jnp.full(x.shape, 7.0, x.dtype), abstract)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prefill_then_decode_equal_dense_attention(layout):
    q, k, v = qkv()
    expected = dense_attend(q, k, v, None, backend="reference")
    pages = pages_for(LENGTH, PAGE)
    table_BJ = 1 + np.random.default_rng(0).permutation(BATCH * pages).reshape(BATCH, pages)
    table_BJ = jnp.asarray(table_BJ, jnp.int32)
    pool, parts = noisy_pool(layout, BATCH * pages + 1), []
    prefilled = 16  # two chunks, the rest token by token
    for start in range(LENGTH):
        width = CHUNK if start < prefilled else 1
        if start < prefilled and start % CHUNK:
            continue
        attend = layout.attend if width > 1 else layout.attend_one
        position_BT = jnp.broadcast_to(jnp.arange(start, start + width), (BATCH, width))
        out, pool = attend(
            jnp.int32(1),
            *(x[:, start : start + width] for x in (q, k, v)),
            pool,
            position_BT=position_BT,
            live_BT=jnp.ones((BATCH, width), bool),
            table_BJ=table_BJ,
            num_layers=LAYERS,
        )
        parts.append(out)
    actual = jnp.concatenate(parts, axis=1)
    np.testing.assert_allclose(actual, expected, atol=ATTENTION_ATOL)
    for leaf in jax.tree.leaves(pool):  # layer 0
        untouched = np.moveaxis(np.asarray(leaf), layout.page_axis, 0)[: BATCH * pages + 1]
        assert np.all(untouched == 7.0)


GPU_INT8_ON_CPU = dataclasses.replace(
    PALLAS_GPU_INT8,
    attend_one=rotated(functools.partial(attend_pallas_gpu, interpret=True), rotate_by_product),
)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "layout", [*LAYOUTS, pytest.param(jitted(GPU_INT8_ON_CPU), id="pallas_gpu_int8")]
)
def test_a_broken_row_stays_broken_alone(layout, bad):
    """Neither a page that it held nor the trash page brings its NaN to another row."""
    q, k, v = (x[:1] for x in qkv())
    broken_v = v.at[:, 2, 0, 0].set(bad)
    abstract = layout.abstract_pool(CONFIG, num_pages=2, page_size=PAGE, dtype="float32")
    clean = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)

    def attend(pool, v, start, width, *, live=True):
        call = layout.attend if width > 1 else layout.attend_one
        return call(
            jnp.int32(0),
            *(x[:, start : start + width] for x in (q, k, v)),
            pool,
            position_BT=start + jnp.arange(width)[None],
            live_BT=jnp.full((1, width), live),
            table_BJ=jnp.ones((1, 1), jnp.int32),
            num_layers=LAYERS,
        )

    _, pool = attend(clean, broken_v, 0, CHUNK)
    out, pool = attend(pool, broken_v, CHUNK, 1)
    assert not np.all(np.isfinite(out[0, 0, 0]))
    _, pool = attend(pool, broken_v, 2, 1, live=False)  # to the trash page
    for start in range(2):  # the page's next owner has not reached the broken token
        expected, clean = attend(clean, v, start, 1)
        found, pool = attend(pool, v, start, 1)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_at_the_end_of_a_row_changes_nothing(layout):
    q, k, v = (x[:, :CHUNK] for x in qkv())
    expected = dense_attend(q, k, v, None, backend="reference")
    position_BT = jnp.broadcast_to(jnp.arange(CHUNK), (BATCH, CHUNK))
    count = 5
    out, _ = layout.attend(
        jnp.int32(0),
        q,
        k,
        v,
        noisy_pool(layout, BATCH + 1),
        position_BT=position_BT,
        live_BT=position_BT < count,
        table_BJ=jnp.arange(1, BATCH + 1, dtype=jnp.int32)[:, None],
        num_layers=LAYERS,
    )
    np.testing.assert_allclose(out[:, :count], expected[:, :count], atol=ATTENTION_ATOL)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_are_copied_and_moved_in_every_layer(layout):
    pool = noisy_pool(layout, 4)
    pool = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape), pool)
    copied = kv.copy_pages(
        pool, jnp.array([1]), jnp.array([3]), num_layers=LAYERS, page_axis=layout.page_axis
    )
    moved = kv.move_pages(
        noisy_pool(layout, 4),
        pool,
        jnp.array([2, 0, 1]),
        num_layers=LAYERS,
        page_axis=layout.page_axis,
    )
    for before, after, there in zip(*map(jax.tree.leaves, (pool, copied, moved)), strict=True):
        old, new, other = (
            np.moveaxis(np.asarray(x), layout.page_axis, 0) for x in (before, after, there)
        )
        for layer in range(LAYERS):
            first = 4 * layer
            np.testing.assert_array_equal(new[first + 3], old[first + 1])
            np.testing.assert_array_equal(new[first : first + 3], old[first : first + 3])
            np.testing.assert_array_equal(other[first + 2], old[first + 1])
            np.testing.assert_array_equal(other[first + 1], old[first + 3])
