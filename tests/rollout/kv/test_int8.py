"""8-bit keys and values: what is rounded, and that every layout attends to the rounded numbers."""

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
from polaris_jax.models.presets import PRESETS
from polaris_jax.rollout import kv
from polaris_jax.rollout.kv import staged as staged_kv
from polaris_jax.rollout.kv.int8 import (
    KEY_RANGE,
    LARGEST,
    VALUE_RANGE,
    constant_steps,
    quantise,
    refusal,
    rotate,
    rotate_by_product,
    rotated,
)
from polaris_jax.rollout.kv.layouts import (
    PALLAS_GPU_INT8,
    RAGGED_INT8,
    TOKEN_MAJOR_INT8,
    XLA_INT8,
    attend_pallas_gpu,
    attend_ragged,
)
from polaris_jax.rollout.pages import pages_for
from tests.support.random_models import random_model
from tests.support.rollout.rollout_cases import CONFIG
from tests.tolerances import ATTENTION_ATOL

LAYERS, BATCH, LENGTH, CHUNK, PAGE = 2, 3, 18, 8, 8
pytestmark = pytest.mark.slow

STEP = 0.03  # a constant scale of normal numbers that cuts none


@pytest.mark.parametrize("width", [1, 16, 24, 64, 96, 128])
def test_the_rotation_is_its_own_inverse_and_keeps_products(width):
    x, y = np.random.default_rng(0).normal(size=(2, 5, width)).astype(np.float32)
    turned = rotate(jnp.asarray(x))
    np.testing.assert_allclose(rotate_by_product(jnp.asarray(x)), turned, atol=1e-6)
    np.testing.assert_allclose(rotate(turned), x, atol=1e-6)
    np.testing.assert_allclose(
        jnp.sum(turned * rotate(jnp.asarray(y)), -1), (x * y).sum(-1), atol=1e-4
    )


def test_one_large_entry_is_spread_over_all():
    turned = rotate(jnp.zeros(64).at[3].set(8.0))
    np.testing.assert_allclose(jnp.abs(turned), 1.0)


def test_a_vectors_numbers_do_not_depend_on_its_neighbours():
    x = jax.random.normal(jax.random.key(0), (129, 4, 64)) * 10
    together = jax.jit(lambda x: quantise(rotate(x)))(x)
    for rows in (1, 2, 31, 32):
        alone = jax.jit(lambda x: quantise(rotate(x)))(x[:rows])
        for all_rows, own in zip(together, alone, strict=True):
            np.testing.assert_array_equal(all_rows[:rows], own)


def test_rounding_is_off_by_half_a_scale_at_most():
    x = jax.random.normal(jax.random.key(1), (50, 64))
    number, scale = quantise(x)
    assert number.dtype == jnp.int8 and int(jnp.abs(number).max()) == LARGEST
    error = jnp.abs(number * scale[:, None] - x)
    assert np.all(error <= 0.5 * scale[:, None] * (1 + 1e-5))
    number, scale = quantise(jnp.zeros((2, 8)))
    assert not np.any(number) and np.all(np.isfinite(number * scale[:, None]))


def test_what_exceeds_a_constant_scale_is_cut():
    number, scale = quantise(jnp.array([[1.0, -3.0, 200.0]]), jnp.array([1.0]))
    np.testing.assert_array_equal(number, [[1, -3, LARGEST]])
    assert scale.item() == 1.0


def test_constant_scales_follow_the_spread_that_random_inputs_give():
    model = random_model(CONFIG, 0)
    step_LC = np.asarray(constant_steps(model))
    assert step_LC.shape == (CONFIG.num_layers, 2 * CONFIG.num_kv_heads)
    p = model.params()
    x = np.random.default_rng(0).normal(size=(4096, CONFIG.hidden_size))
    for layer in range(CONFIG.num_layers):
        h = x * np.asarray(p["layers/attn_norm_D"][layer])
        v_BKH = np.einsum("bd,dkh->bkh", h, p["layers/v_DKH"][layer])
        spread_K = np.sqrt((v_BKH**2).mean((0, 2)))
        np.testing.assert_allclose(step_LC[layer, 1::2] * LARGEST / VALUE_RANGE, spread_K, rtol=0.1)
        k_norm = np.asarray(p["layers/k_norm_H"][layer])
        np.testing.assert_allclose(
            step_LC[layer, 0::2] * LARGEST / KEY_RANGE, np.sqrt((k_norm**2).mean()), rtol=1e-5
        )


def test_a_family_without_a_norm_before_attention_has_no_constant_scales():
    assert not refusal(CONFIG)
    assert "model_type=olmo2 has none" in refusal(dataclasses.replace(CONFIG, model_type="olmo2"))


def jitted(attend):
    return jax.jit(attend, static_argnames="num_layers")


def both(layout, attend, attend_one):
    return dataclasses.replace(layout, attend=attend, attend_one=attend_one)


ragged = rotated(functools.partial(attend_ragged, kernel=ref_ragged_paged_attention))
gpu = rotated(functools.partial(attend_pallas_gpu, interpret=True))
LAYOUTS = {
    "xla": both(XLA_INT8, *[jitted(XLA_INT8.attend)] * 2),
    "token_major": both(TOKEN_MAJOR_INT8, *[jitted(TOKEN_MAJOR_INT8.attend)] * 2),
    "ragged": both(RAGGED_INT8, ragged, ragged),  # its reference reads a count on the host
    "pallas_gpu": both(PALLAS_GPU_INT8, jitted(PALLAS_GPU_INT8.attend), jitted(gpu)),
}


@functools.cache
def qkv():
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.num_kv_heads)
    return [
        jax.random.normal(key, (BATCH, LENGTH, n, CONFIG.head_dim))
        for key, n in zip(keys, heads, strict=True)
    ]


def rounded(x, *, constant=False):
    """`x` as attention sees it after its way through the pool."""
    turned = rotate(x)
    scale = jnp.full(x.shape[:-1], STEP) if constant else None
    number, scale = quantise(turned, scale)
    return rotate(number * scale[..., None])


def noisy_pool(layout, num_pages):
    """What lies in the pool before must not matter; jax's GPU kernel multiplies it by 0."""
    noise = 7.0 if layout.page_axis else jnp.nan
    abstract = layout.abstract_pool(CONFIG, num_pages=num_pages, page_size=PAGE, dtype="float32")
    return jax.tree.map(
        lambda x: jnp.full(x.shape, 7 if x.dtype == jnp.int8 else noise, x.dtype), abstract
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_prefill_then_decode_equal_dense_attention_to_the_rounded_numbers(name):
    layout = LAYOUTS[name]
    q, k, v = qkv()
    constant = name == "ragged"
    rounded_k, rounded_v = rounded(k, constant=constant), rounded(v, constant=constant)
    expected = dense_attend(q, rounded_k, rounded_v, None, backend="reference")
    exact = dense_attend(q, k, v, None, backend="reference")
    assert np.abs(expected - exact).max() > 10 * ATTENTION_ATOL  # the rounding is seen
    pages = pages_for(LENGTH, PAGE)
    table_BJ = 1 + np.random.default_rng(0).permutation(BATCH * pages).reshape(BATCH, pages)
    table_BJ = jnp.asarray(table_BJ, jnp.int32)
    pool, parts = noisy_pool(layout, BATCH * pages + 1), []
    for start in (0, CHUNK, *range(2 * CHUNK, LENGTH)):
        width = CHUNK if start < 2 * CHUNK else 1
        attend = layout.attend if width > 1 else layout.attend_one
        more = {"step_LC": jnp.full((LAYERS, 2 * CONFIG.num_kv_heads), STEP)} if constant else {}
        out, pool = attend(
            jnp.int32(1),
            *(x[:, start : start + width] for x in (q, k, v)),
            pool,
            position_BT=jnp.broadcast_to(jnp.arange(start, start + width), (BATCH, width)),
            live_BT=jnp.ones((BATCH, width), bool),
            table_BJ=table_BJ,
            num_layers=LAYERS,
            **more,
        )
        parts.append(out)
    actual = jnp.concatenate(parts, axis=1)
    np.testing.assert_allclose(actual, expected, atol=ATTENTION_ATOL)
    for leaf, before in zip(*map(jax.tree.leaves, (pool, noisy_pool(layout, 7))), strict=True):
        leaf, before = (np.moveaxis(np.asarray(x), layout.page_axis, 0) for x in (leaf, before))
        np.testing.assert_array_equal(leaf[:7], before[:7])  # layer 0


def test_a_call_reads_of_its_own_tokens_what_it_leaves_in_the_pages():
    """Staged, then written: the very numbers and scales that a step with pages writes."""
    q, k, v = qkv()
    pages, steps, first = pages_for(LENGTH, PAGE), 4, 14
    table_BJ = jnp.arange(1, BATCH * pages + 1, dtype=jnp.int32).reshape(BATCH, pages)
    pool = noisy_pool(XLA_INT8, BATCH * pages + 1)

    def write(pool, start, width):
        return LAYOUTS["xla"].attend(
            jnp.int32(1),
            *(x[:, start : start + width] for x in (q, k, v)),
            pool,
            position_BT=jnp.broadcast_to(jnp.arange(start, start + width), (BATCH, width)),
            live_BT=jnp.ones((BATCH, width), bool),
            table_BJ=table_BJ,
            num_layers=LAYERS,
        )

    _, pool = write(pool, 0, first)
    expected = dense_attend(q, rounded(k), rounded(v), None, backend="reference")
    attend = jax.jit(rotated(functools.partial(staged_kv.attend_staged, num_layers=LAYERS)))
    staged = staged_kv.new_staged(pool, batch=BATCH, num_layers=LAYERS, steps=steps)
    for step in range(steps):
        at = first + step
        out, staged = attend(
            jnp.int32(1), q[:, at], k[:, at], v[:, at], staged, pool, jnp.int32(step),
            jnp.full(BATCH, first), table_BJ,
        )  # fmt: skip
        np.testing.assert_allclose(out, expected[:, at], atol=ATTENTION_ATOL)
    count_B = jnp.array([steps, 0, steps - 1])
    got = staged_kv.write_staged(
        pool, staged, jnp.full(BATCH, first), count_B, table_BJ, num_layers=LAYERS
    )
    _, want = write(pool, first, steps)
    for got_leaf, want_leaf in zip(got, want, strict=True):
        for row, count in enumerate(count_B.tolist()):
            for at in range(first + count):
                page = BATCH * pages + 1 + int(table_BJ[row, at // PAGE])
                index = _token(got_leaf, page, at % PAGE)
                np.testing.assert_array_equal(got_leaf[index], want_leaf[index])


def _token(leaf, page, offset):
    """Index of a token in an array of pages [Z, K, H, Y], [Z, K, Y, H] or [Z, K, Y]."""
    keys = leaf.ndim == 4 and leaf.shape[2] == CONFIG.head_dim
    return (page, slice(None), slice(None), offset) if keys else (page, slice(None), offset)


@pytest.mark.parametrize("name", LAYOUTS)
def test_pages_are_copied_with_their_scales(name):
    layout = LAYOUTS[name]
    pool = jax.tree.map(
        lambda x: (jnp.arange(x.size).reshape(x.shape) % 97).astype(x.dtype), noisy_pool(layout, 4)
    )
    copied = kv.copy_pages(
        pool, jnp.array([1]), jnp.array([3]), num_layers=LAYERS, page_axis=layout.page_axis
    )
    for before, after in zip(*map(jax.tree.leaves, (pool, copied)), strict=True):
        old, new = (np.moveaxis(np.asarray(x), layout.page_axis, 0) for x in (before, after))
        for first in (0, 4):
            np.testing.assert_array_equal(new[first + 3], old[first + 1])


@pytest.mark.parametrize(("name", "scales"), [("xla", 2), ("ragged", 0), ("pallas_gpu", 2)])
def test_a_tokens_bytes_are_a_number_each_and_its_scales(name, scales):
    model = PRESETS["qwen3-4b"]
    numbers = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    own = scales * model.num_layers * model.num_kv_heads * 4
    assert LAYOUTS[name].token_bytes(model, "bfloat16") == numbers + own
