"""The native product and attention equal XLA's; a row's bits depend on nothing but the row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.rollout import native
from polaris_jax.rollout.fused_weights import fuse
from polaris_jax.rollout.kv import Pool
from polaris_jax.rollout.kv.bits import held, held_dtype, numbers
from polaris_jax.rollout.kv.staged import Staged
from tests.support.rollout.native_kernels import DTYPES, needs_bfloat16, needs_compiler
from tests.support.rollout.rollout_cases import CONFIG, small_model
from tests.tolerances import ATTENTION_ATOL, BF16_LOGIT_RTOL, PRODUCT_RTOL

pytestmark = needs_compiler
LAYERS, BATCH, KV, STEPS, MOST = 2, 5, 2, 6, 64
# By the first call of a program, and by later ones.
KERNEL_ERRORS = (jax.errors.JaxRuntimeError, ValueError)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32)


def rounded(x, dtype):
    """Float32 numbers that `dtype` holds exactly."""
    return np.asarray(jnp.asarray(x, dtype).astype(jnp.float32))


def as_held(x, dtype):
    """Numbers as the kernels take them."""
    return held(jnp.asarray(x, dtype), held_dtype(dtype))


@pytest.fixture(scope="module", autouse=True)
def kernels():
    native.load()


@functools.partial(jax.jit, static_argnames=("columns", "dtype"))
def product(layer, x_MD, weight_LDX, *, columns, dtype=jnp.float32, rows=None):
    panel_LPDC = native.pack(weight_LDX.astype(dtype))
    return native.packed_product(layer, x_MD.astype(dtype), panel_LPDC, columns=columns, rows=rows)


# --- the product ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 12, 13, 31, 241, 500])
@pytest.mark.parametrize(("width", "columns"), [(1, 1), (40, 32), (513, 65), (1100, 31)])
def test_a_product_equals_xlas(rows, width, columns, dtype):
    x_MD = rounded(normal(rows, width), dtype)
    weight_LDX = rounded(normal(LAYERS, width, columns), dtype)
    for layer in range(LAYERS):
        got = product(layer, x_MD, weight_LDX, columns=columns, dtype=dtype)
        exact = x_MD.astype(np.float64) @ weight_LDX[layer]
        scale = np.abs(x_MD).astype(np.float64) @ np.abs(weight_LDX[layer])
        assert np.all(np.abs(got - exact) <= PRODUCT_RTOL * scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rows_product_is_the_same_bits_in_any_company(dtype):
    x_MD, weight_LDX = normal(300, 600), normal(1, 600, 70)
    whole = np.asarray(product(0, x_MD, weight_LDX, columns=70, dtype=dtype))
    for rows in ([0], [299], range(7), range(3, 40), range(100, 300)):
        part = product(0, x_MD[list(rows)], weight_LDX, columns=70, dtype=dtype)
        np.testing.assert_array_equal(part, whole[list(rows)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows",
    [[], [0], [299], range(5), range(300), range(0, 300, 2), [3, *range(20, 31), 299]],
    ids=len,
)
def test_rows_that_are_not_listed_are_zeros_and_change_no_other(dtype, rows):
    x_MD, weight_LDX = normal(300, 600), normal(1, 600, 70)
    whole = np.asarray(product(0, x_MD, weight_LDX, columns=70, dtype=dtype))
    # Numbers behind the end of the list do not count.
    listed = np.array([*rows, *[300, 0][: 300 - len(rows)]], np.int32)
    part = np.asarray(product(0, x_MD, weight_LDX, columns=70, dtype=dtype, rows=listed))
    counts = np.isin(np.arange(300), rows)
    np.testing.assert_array_equal(part[counts], whole[counts])
    np.testing.assert_array_equal(part[~counts], 0)


@pytest.mark.parametrize("rows", [[1, 0], [2, 2], [-1], [0, -1]])
def test_a_list_of_rows_that_does_not_ascend_is_refused(rows):
    x_MD, weight_LDX = normal(3, 8), normal(1, 8, 4)
    with pytest.raises(KERNEL_ERRORS, match="rows are not in ascending order"):
        jax.block_until_ready(product(0, x_MD, weight_LDX, columns=4, rows=np.int32(rows)))


@pytest.mark.parametrize(
    ("dtype", "shape"), [(jnp.float32, (2, 2, 7, 32)), (jnp.bfloat16, (2, 2, 4, 32, 2))]
)
def test_unpacked_is_what_was_packed(dtype, shape):
    weight_LDX = rounded(normal(2, 7, 45), dtype)
    panel_LPDC = native.pack(jnp.asarray(weight_LDX, dtype))
    assert panel_LPDC.shape == shape
    unpacked_DX = native.unpacked(panel_LPDC[1], rows=7, columns=45)
    np.testing.assert_array_equal(unpacked_DX.astype(jnp.float32), weight_LDX[1])
    index = jnp.array([[44, 0], [31, 32]])
    found = native.columns_of(panel_LPDC[1], index, rows=7).astype(jnp.float32)
    np.testing.assert_array_equal(found, np.moveaxis(weight_LDX[1][:, index], 0, -1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (3, 5), (3, 700_001)])
def test_zeros_are_all_zeros(shape, dtype):
    made = native.zeros(shape, dtype)
    assert made.dtype == dtype
    np.testing.assert_array_equal(made.astype(jnp.float32), np.zeros(shape, np.float32))


def test_dtypes_that_differ_are_refused():
    mixed = jax.jit(lambda x, w: native.packed_product(0, x, native.pack(w), columns=4))
    with pytest.raises(KERNEL_ERRORS, match="packed_product: not for these types"):
        jax.block_until_ready(mixed(jnp.ones((3, 8)), jnp.ones((1, 8, 4), jnp.bfloat16)))


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(KERNEL_ERRORS, match="packed_product"):
        jax.block_until_ready(product(2, normal(3, 8), normal(LAYERS, 8, 4), columns=4))


# --- attention ---


def attention_case(*, group, width, page_size, cached, steps=STEPS, dtype=jnp.float32):
    """(pool, staged, table, q, dense k and v) of rows with `cached` tokens and a call's."""
    pages = -(-MOST // page_size)
    num_pages = BATCH * pages + 1
    table_BJ = 1 + np.random.default_rng(0).permutation(num_pages - 1).reshape(BATCH, pages)
    k_BTKH, v_BTKH = (rounded(normal(BATCH, MOST, KV, width, seed=seed), dtype) for seed in (1, 2))
    k_ZKHY = normal(LAYERS * num_pages, KV, width, page_size, seed=3)
    v_ZKYH = normal(LAYERS * num_pages, KV, page_size, width, seed=4)
    k_LBKHT = normal(LAYERS, BATCH, KV, width, steps, seed=5)
    v_LBKTH = normal(LAYERS, BATCH, KV, steps, width, seed=6)
    for b, count in enumerate(cached):
        for t in range(count):
            page = num_pages + table_BJ[b, t // page_size]
            k_ZKHY[page, :, :, t % page_size] = k_BTKH[b, t]
            v_ZKYH[page, :, t % page_size] = v_BTKH[b, t]
        for s in range(steps):
            k_LBKHT[1, b, :, :, s] = k_BTKH[b, count + s]
            v_LBKTH[1, b, :, s] = v_BTKH[b, count + s]
    q_BNH = normal(BATCH, KV * group, width, seed=7)
    pool = Pool(as_held(k_ZKHY, dtype), as_held(v_ZKYH, dtype))
    staged = Staged(as_held(k_LBKHT, dtype), as_held(v_LBKTH, dtype))
    return pool, staged, table_BJ.astype(np.int32), q_BNH, k_BTKH, v_BTKH


@jax.jit
def attend(q_BNH, staged, pool, step, cached_B, table_BJ):
    """Attention in layer 1 with all `staged` in place."""
    return native.attend_staged(jnp.int32(1), q_BNH, staged, pool, step, cached_B, table_BJ)


def dense(q_BNH, k_BTKH, v_BTKH, counts):
    """Softmax attention over each row's first tokens, in float64."""
    q_BNH, k_BTKH, v_BTKH = (x.astype(np.float64) for x in (q_BNH, k_BTKH, v_BTKH))
    group, width = q_BNH.shape[1] // k_BTKH.shape[2], q_BNH.shape[2]
    out_BNH = np.zeros_like(q_BNH)
    for b, count in enumerate(counts):
        for n in range(q_BNH.shape[1]):
            score_T = k_BTKH[b, :count, n // group] @ q_BNH[b, n] / np.sqrt(width)
            weight_T = np.exp(score_T - score_T.max())
            out_BNH[b, n] = weight_T @ v_BTKH[b, :count, n // group] / weight_T.sum()
    return out_BNH


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("page_size", [3, 4, 16, 64])
@pytest.mark.parametrize(("group", "width"), [(1, 64), (3, 16), (7, 24), (11, 128)])
def test_attention_equals_dense(page_size, group, width, dtype):
    cached = (0, 1, 16, 37, 50)
    pool, staged, table_BJ, q_BNH, k_BTKH, v_BTKH = attention_case(
        group=group, width=width, page_size=page_size, cached=cached, dtype=dtype
    )
    for step in (0, 3, STEPS - 1):
        got = attend(q_BNH, staged, pool, step, np.array(cached, np.int32), table_BJ)
        expected = dense(q_BNH, k_BTKH, v_BTKH, [count + step + 1 for count in cached])
        np.testing.assert_allclose(got, expected, atol=ATTENTION_ATOL)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("page_size", [4, 16])
def test_where_a_call_began_changes_no_bit(page_size, dtype):
    """The same tokens, more of them staged and fewer in pages."""
    results = []
    for moved in (0, 3, STEPS):
        cached = tuple(count - moved for count in (6, 16, 20, 37, 50))
        pool, staged, table_BJ, q_BNH, *_ = attention_case(
            group=2,
            width=32,
            page_size=page_size,
            cached=cached,
            steps=2 * STEPS,
            dtype=dtype,
        )
        at = np.array(cached, np.int32)
        results.append(attend(q_BNH, staged, pool, moved, at, table_BJ))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_several_queries_of_a_row_are_single_steps_to_the_bit(dtype):
    cached = np.array((0, 1, 16, 37, 50), np.int32)
    pool, staged, table_BJ, *_ = attention_case(
        group=11, width=16, page_size=8, cached=cached, dtype=dtype
    )
    q_BTNH = normal(BATCH, STEPS, KV * 11, 16)
    k_BTKH = jnp.moveaxis(numbers(staged.k_LBKHT[1]), 3, 1)
    v_BTKH = jnp.swapaxes(numbers(staged.v_LBKTH[1]), 1, 2)
    empty = Staged(jnp.zeros_like(staged.k_LBKHT), jnp.zeros_like(staged.v_LBKTH))
    asked = np.array((STEPS, 0, 1, STEPS - 1, STEPS), np.int32)
    got_BTNH, filled = jax.jit(native.attend_drafted)(
        jnp.int32(1), q_BTNH, k_BTKH, v_BTKH, empty, pool, cached, table_BJ, asked
    )
    for step in range(STEPS):
        alone_BNH = attend(q_BTNH[:, step], staged, pool, step, cached, table_BJ)
        alone_BNH = np.where((step < asked)[:, None, None], alone_BNH, 0)
        np.testing.assert_array_equal(got_BTNH[:, step], alone_BNH)
    for one, other in zip(filled, staged, strict=True):
        np.testing.assert_array_equal(one[1], other[1])
        assert not one[0].any()  # another layer's


def test_far_apart_scores_leave_the_largest():
    cached = (9,) * BATCH
    pool, staged, table_BJ, q_BNH, k_BTKH, v_BTKH = attention_case(
        group=1, width=16, page_size=4, cached=cached
    )
    got = attend(300 * q_BNH, staged, pool, 0, np.array(cached, np.int32), table_BJ)
    expected = dense(300 * q_BNH, k_BTKH, v_BTKH, [10] * BATCH)
    np.testing.assert_allclose(got, expected, atol=50 * ATTENTION_ATOL)  # of scores up to 1,000


@pytest.mark.parametrize("what", ["key", "value", "staged key", "infinite key"])
@pytest.mark.parametrize("page_size", [4, 16])
def test_a_nan_shows_wherever_it_lies(page_size, what):
    """In all heads that read it, in no other row: dense attention does the same."""
    cached, width, group = (5, 16, 17, 37, 50), 16, 3
    pool, staged, table_BJ, q_BNH, *_ = attention_case(
        group=group, width=width, page_size=page_size, cached=cached
    )
    pages = pool.k_ZKHY.shape[0] // LAYERS
    for b, count in enumerate(cached):
        for t in range(0, count, 3):
            page = pages + table_BJ[b, t // page_size]
            k, v, k_staged = pool.k_ZKHY, pool.v_ZKYH, staged.k_LBKHT
            if what == "value":
                v = v.at[page, 1, t % page_size].set(np.nan)
            elif what == "staged key":
                k_staged = k_staged.at[1, b, 1, 2, 0].set(np.nan)
            else:
                value = np.nan if what == "key" else np.inf
                k = k.at[page, 1, 2, t % page_size].set(value)
            got = attend(
                abs(q_BNH),
                staged._replace(k_LBKHT=k_staged),
                pool._replace(k_ZKHY=k, v_ZKYH=v),
                0,
                np.array(cached, np.int32),
                table_BJ,
            )
            broken = np.zeros(got.shape, bool)
            broken[b, group:] = True  # heads of the second key head
            np.testing.assert_array_equal(np.isnan(got), broken)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"table": 10**6}, "a page outside the pool"),
        ({"cached": 10**4}, "more cached tokens than pages"),
        ({"cached": -1}, "more cached tokens than pages"),
        ({"step": STEPS}, "layer, step or rows"),
    ],
    ids=str,
)
def test_what_would_read_outside_is_refused(change, words):
    pool, staged, table_BJ, q_BNH, *_ = attention_case(
        group=1, width=16, page_size=4, cached=(9,) * BATCH
    )
    cached_B = np.full(BATCH, change.get("cached", 9), np.int32)
    table_BJ = np.full_like(table_BJ, change["table"]) if "table" in change else table_BJ
    with pytest.raises(KERNEL_ERRORS, match=words):
        jax.block_until_ready(
            attend(q_BNH, staged, pool, change.get("step", 0), cached_B, table_BJ)
        )


# --- a model in bfloat16 ---


@needs_bfloat16
def test_a_packed_models_logits_in_bfloat16_are_its_float32_ones_up_to_rounding():
    model = small_model()
    token_BT = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 8)))

    @jax.jit
    def logits(dtype_like, packed_model):
        position_BT = jnp.broadcast_to(jnp.arange(8), (2, 8))
        cast = jax.tree.map(lambda x: x.astype(dtype_like.dtype), packed_model)
        fused = fuse(cast, packed=True)
        return fused.unembed(fused(token_BT, position_BT, attention="reference"))

    exact, got = (logits(jnp.zeros((), d), model) for d in (jnp.float32, jnp.bfloat16))
    assert got.dtype == jnp.float32
    gap = np.abs(np.asarray(got) - exact)
    assert 0 < gap.mean() < BF16_LOGIT_RTOL * np.abs(exact).mean()
