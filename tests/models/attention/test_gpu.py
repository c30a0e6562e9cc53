"""The GPU kernel in Pallas's interpreter against `reference`; test_aot.py compiles it."""

import functools

import pytest

from polaris_jax.models.attention import ContextShard, attend
from polaris_jax.models.attention.gpu import attend_triton
from tests.support.models.attention.cases import assert_equals_reference, case

interpreted = functools.partial(attend_triton, interpret=True)


@pytest.mark.parametrize("packed", [True, False])
def test_a_partial_block_equals_the_reference(packed):
    assert_equals_reference(interpreted, case(1, 200, heads=(4, 2)), packed=packed)


def test_parts_of_a_row_are_refused():
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
