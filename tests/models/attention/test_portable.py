"""`chunked` against `reference`, what it skips, and what it holds."""

import math

import jax
import jax.numpy as jnp
import pytest

from polaris_jax.models.attention import ContextShard, attend
from polaris_jax.models.attention.portable import attend_chunked, attend_reference
from tests.support.models.attention.cases import (
    assert_equals_reference,
    case,
    forward_and_gradients,
    over_shards,
)
from tests.tolerances import BF16_GRADIENT_RTOL


@pytest.fixture
def tiles_of(monkeypatch):
    """Sets the tile's width, so that small rows have many tiles."""

    def set_width(tokens: int) -> None:
        monkeypatch.setattr("polaris_jax.models.attention.portable.SHORT_ROW_BLOCK_TOKENS", tokens)

    return set_width


@pytest.mark.parametrize(
    ("length", "tile", "heads", "packed"),
    [
        pytest.param(37, 8, (4, 2), True, id="packed, partial tile, GQA"),
        pytest.param(40, 8, (4, 1), True, id="packed, whole tiles, MQA"),
        pytest.param(33, 16, (2, 2), False, id="one segment, MHA"),
        pytest.param(20, 64, (4, 2), True, id="row shorter than a tile"),
    ],
)
def test_it_equals_the_reference(length, tile, heads, packed, tiles_of):
    tiles_of(tile)
    assert_equals_reference(attend_chunked, case(2, length, heads=heads), packed=packed)


def test_the_product_s_tiles_equal_the_reference():
    assert_equals_reference(attend_chunked, case(2, 333, segments=6, padding=20))


def test_bfloat16_inputs_keep_float32_sums(tiles_of):
    tiles_of(8)
    c = case(1, 37, dtype="bfloat16")
    assert_equals_reference(attend_chunked, c, rtol=BF16_GRADIENT_RTOL)


@pytest.fixture(scope="module")
def whole_rows():
    c = case(2, 80, segments=5)
    return c, forward_and_gradients(attend_reference, c, c.segment_BS)


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_context_shards_equal_the_whole_row(shards, layout, tiles_of, whole_rows):
    tiles_of(8)  # divides no piece evenly, but for those of one or two shards
    c, want = whole_rows
    assert_equals_reference(over_shards(attend_chunked, shards, layout), c, want=want)


@pytest.mark.parametrize("chunk", [2, 4])
def test_shards_of_many_chunks_equal_the_whole_row(chunk, monkeypatch, tiles_of, whole_rows):
    tiles_of(3)  # does not divide a chunk of 4
    for bound in ("MIN", "MAX"):
        monkeypatch.setattr(f"polaris_jax.models.attention.shards.CHUNK_TOKENS_{bound}", chunk)
    c, want = whole_rows
    assert ContextShard("rows", 5).pieces(80) == 16 // chunk
    assert_equals_reference(over_shards(attend_chunked, 5, "zigzag"), c, want=want)


def test_reference_takes_context_shards_too(whole_rows):
    c, want = whole_rows
    assert_equals_reference(over_shards(attend_reference, 8, "zigzag"), c, want=want)


def test_tiles_that_no_query_sees_are_not_read(tiles_of):
    # A masked NaN would still poison the sums (0 x NaN): finite results show that it is skipped.
    tiles_of(8)
    c = case(1, 48, padding=0)
    segment_BS = jnp.repeat(jnp.array([[1, 2]]), 24, axis=1)
    early = jnp.arange(48) < 24
    poisoned = c._replace(v_BSKH=jnp.where(early[None, :, None, None], jnp.nan, c.v_BSKH))
    before = forward_and_gradients(attend_chunked, poisoned, segment_BS)
    assert jnp.isfinite(before[0][:, 24:]).all()
    assert jnp.isfinite(before[1][:, 24:]).all()
    poisoned = c._replace(v_BSKH=jnp.where(early[None, :, None, None], c.v_BSKH, jnp.nan))
    after = forward_and_gradients(attend_chunked, poisoned, None)
    assert jnp.isfinite(after[0][:, :24]).all()
    assert jnp.isnan(after[0][:, 24:]).all()


def test_padding_gives_no_gradient_to_real_keys(tiles_of):
    tiles_of(8)
    c = case(1, 30, padding=9)
    noise = jax.random.normal(jax.random.key(1), c.dout_BTNH.shape)
    padding = (c.segment_BS == 0)[..., None, None]
    _, dq, dk, dv = forward_and_gradients(
        attend_chunked, c._replace(dout_BTNH=jnp.where(padding, noise, 0)), c.segment_BS
    )
    for gradient in (dq, dk, dv):
        assert jnp.isfinite(gradient).all()
        assert (jnp.where(padding, 0, gradient) == 0).all()


def largest_array(jaxpr) -> int:
    """Elements of the largest array that a program names, sub-programs included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [math.prod(v.aval.shape) for v in equation.outvars]
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                sizes.append(largest_array(inner))
    return max(sizes)


def program(back_end, length: int):
    c = case(1, length, heads=(2, 1), width=8)

    def run(q, k, v, dout):
        out, back = jax.vjp(lambda *qkv: attend(*qkv, c.segment_BS, backend=back_end), q, k, v)
        return out, *back(dout)

    return jax.make_jaxpr(run)(c.q_BTNH, c.k_BSKH, c.v_BSKH, c.dout_BTNH).jaxpr


def test_nothing_quadratic_is_named():
    # Rows, heads and width are fixed: twice the tokens may name arrays twice as large, no more.
    short, long = (largest_array(program("chunked", length)) for length in (2048, 3968))
    assert long <= 2 * short
    assert long < 3968**2 / 100
    assert largest_array(program("reference", 512)) >= 512**2  # the probe does see scores
