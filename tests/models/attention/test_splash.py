"""The TPU kernel in Pallas's interpreter against `reference`; test_aot.py compiles it."""

import functools

import pytest

from polaris_jax.models.attention.shards import chunk_tokens
from polaris_jax.models.attention.splash import attend_splash
from tests.support.models.attention.cases import assert_equals_reference, case, over_shards

interpreted = functools.partial(attend_splash, interpret=True)


def test_packed_rows_with_a_partial_block_equal_the_reference():
    assert_equals_reference(interpreted, case(1, 200, heads=(2, 1), width=128))


@pytest.mark.parametrize(("shards", "pairs"), [(2, 1), (4, 1), (2, 3)])
def test_zigzag_shards_equal_the_whole_row(shards, pairs):
    c = case(1, 256 * shards * pairs, heads=(2, 1), width=128, segments=3)
    assert chunk_tokens(c.q_BTNH.shape[1], shards) == 128
    assert_equals_reference(over_shards(interpreted, shards, "zigzag"), c)


def test_pieces_smaller_than_a_block_are_refused():
    c = case(1, 256, heads=(2, 1), width=128)
    with pytest.raises(ValueError, match=r"splash: 64 tokens .* multiple of 2 x 128 x"):
        assert_equals_reference(over_shards(interpreted, 2, "zigzag"), c)


def test_it_does_not_run_on_this_platform():
    with pytest.raises(ValueError, match="interpret mode"):
        assert_equals_reference(attend_splash, case(1, 128, heads=(2, 1), width=128))
