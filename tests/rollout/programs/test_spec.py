"""Row buckets: for which numbers of rows decode is compiled."""

import dataclasses

import pytest

from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.kv.staged import TILE_ROWS, tile_rows
from polaris_jax.rollout.programs.spec import (
    exact_rows,
    fine_row_buckets,
    program_spec,
    row_buckets,
)
from polaris_jax.rollout.settings import PromptParams
from tests.support.rollout.native_kernels import needs_compiler
from tests.support.rollout.rollout_cases import CONFIG

SIZES = {"slots": 4, "page_size": 4, "max_len": 32, "decode_steps": 4, "prefill_chunk": 32}
GREEDY = PromptParams(0.0, 1.0, 0, 0.0, max_tokens=32, seed=0)


@pytest.mark.parametrize(
    ("slots", "buckets"), [(1, (2,)), (2, (2,)), (64, (64,)), (128, (32, 128)), (256, (64, 256))]
)
def test_row_buckets_of_accelerators(slots, buckets):
    assert row_buckets(slots) == buckets


@pytest.mark.parametrize(
    ("slots", "buckets"),
    [
        (1, (2,)),
        (16, (2, 4, 8, 12, 16)),
        (17, (2, 4, 8, 12, 16, 17)),
        (32, (2, 4, 8, 12, 16, 24, 32)),
        (37, (2, 4, 8, 12, 16, 24, 32, 40)),
        (128, (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)),
    ],
)
def test_fine_row_buckets(slots, buckets):
    assert fine_row_buckets(slots, 2) == buckets
    assert all(tile_rows(b) >= 8 for b in buckets if b > TILE_ROWS)


@pytest.mark.parametrize(
    ("slots", "min_rows", "buckets"),
    [
        (1, 1, (1,)),
        (2, 1, (1, 2)),
        (16, 1, (1, 2, 3, 4, 6, 8, 12, 16)),
        (17, 3, (3, 4, 6, 8, 12, 16, 17)),
    ],
)
def test_native_kernels_take_few_rows_as_they_come(slots, min_rows, buckets):
    assert fine_row_buckets(slots, min_rows, single=True) == buckets


@pytest.mark.parametrize(
    ("slots", "buckets"), [(1, (8,)), (4, (8,)), (9, (8, 9)), (16, (8, 12, 16))]
)
def test_calls_have_rows_enough_to_give_each_the_same_bits(slots, buckets):
    assert fine_row_buckets(slots, 8, single=True, least=8) == buckets
    assert exact_rows(SamplerConfig(slots=slots, num_pages=9), native=True) == 8
    assert exact_rows(SamplerConfig(slots=slots, num_pages=9, min_rows=2), native=True) == 1
    assert exact_rows(SamplerConfig(slots=slots, num_pages=9), native=False) == 1


@needs_compiler
def test_native_kernels_give_a_small_model_more_programs():
    sizes = SamplerConfig(slots=128, num_pages=1024, dtype="float32")
    model_config = dataclasses.replace(CONFIG, vocab_size=1_000_000 // CONFIG.hidden_size)
    assert program_spec(model_config, sizes, None).row_buckets == (32, 48, 64, 96, 128)


@pytest.mark.parametrize(
    ("vocab_size", "buckets"),
    [
        (CONFIG.vocab_size, (128,)),
        (1_000_000 // CONFIG.hidden_size, (64, 96, 128)),
        (4_000_000 // CONFIG.hidden_size, (16, 24, 32, 48, 64, 96, 128)),
        (32_000_000 // CONFIG.hidden_size, fine_row_buckets(128, 2)),
    ],
)
def test_a_small_model_gets_no_programs_of_few_rows(vocab_size, buckets):
    sizes = SamplerConfig(slots=128, num_pages=1024)
    model_config = dataclasses.replace(CONFIG, vocab_size=vocab_size)
    assert program_spec(model_config, sizes, None).row_buckets == buckets
    every = dataclasses.replace(sizes, min_rows=1)
    assert program_spec(model_config, every, None).row_buckets == fine_row_buckets(128, 1)
