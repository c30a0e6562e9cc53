"""The GPU kernels against `reference`: Triton's in Pallas's interpreter, what surrounds cuDNN's
through that call's XLA implementation. test_aot.py compiles both."""

import functools

import jax.numpy as jnp
import pytest

from polaris_jax.models.attention import ContextShard, attend
from polaris_jax.models.attention.gpu import attend_cudnn, attend_triton
from tests.support.models.attention.cases import assert_equals_reference, case

interpreted = functools.partial(attend_triton, interpret=True)
by_xla = functools.partial(attend_cudnn, implementation="xla")


@pytest.mark.parametrize("packed", [True, False])
def test_a_partial_block_equals_the_reference(packed):
    assert_equals_reference(interpreted, case(1, 200, heads=(4, 2)), packed=packed)


def test_triton_refuses_parts_of_a_row():
    c = case(1, 64)
    with pytest.raises(ValueError, match=r"triton: it takes whole rows, .* 2 context shards"):
        attend(
            c.q_BTNH[:, :32],
            c.k_BSKH,
            c.v_BSKH,
            c.segment_BS,
            backend="triton",
            context=ContextShard("rows", 2),
        )


def test_it_does_not_run_on_this_platform():
    with pytest.raises(ValueError, match="interpret mode"):
        assert_equals_reference(attend_triton, case(1, 128))


@pytest.mark.parametrize("packed", [True, False])
def test_rows_of_one_segment_equal_the_reference(packed):
    c = case(2, 50, segments=1, padding=13)
    # Rows of different lengths, so that a length taken from another row would show.
    segment_BS = c.segment_BS.at[1, 20:].set(0)
    dout_BTNH = jnp.where((segment_BS > 0)[..., None, None], c.dout_BTNH, 0)
    assert_equals_reference(
        by_xla, c._replace(segment_BS=segment_BS, dout_BTNH=dout_BTNH), packed=packed
    )


def test_cudnn_refuses_parts_of_a_row():
    c = case(1, 64)
    with pytest.raises(ValueError, match=r"cudnn: it takes whole rows, .* 4 context shards"):
        attend(
            c.q_BTNH[:, :16],
            c.k_BSKH,
            c.v_BSKH,
            c.segment_BS,
            backend="cudnn",
            context=ContextShard("rows", 4),
        )
