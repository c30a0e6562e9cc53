"""Device programs: memory beside the pool, row buckets, JetStream's verbs without JetStream."""

import math
import re

import numpy as np
import pytest

from polaris_jax.rollout import SamplerConfig, native, programs, weights
from polaris_jax.rollout.decode_state import compact
from polaris_jax.rollout.engine import Engine
from polaris_jax.rollout.prefill import PrefillJob, prefill_calls
from polaris_jax.rollout.settings import PromptParams, pad_stop_ids
from polaris_jax.rollout.verbs import VerbEngine
from tests.support.rollout.native_kernels import needs_compiler
from tests.support.rollout.rollout_cases import CONFIG, small_model

SIZES = {"slots": 4, "page_size": 4, "max_len": 32, "decode_steps": 4, "prefill_chunk": 32}
GREEDY = PromptParams(0.0, 1.0, 0, 0.0, max_tokens=32, seed=0)


def compiled_program(program: str, num_pages: int, layout: str, dtype: str | None):
    """With a dtype the native kernels serve a staged layout; without one XLA's do."""
    sizes = SamplerConfig(num_pages=num_pages, layout=layout, dtype=dtype, **SIZES)
    made = Engine(CONFIG, sizes)
    assert made.spec.native == (dtype is not None)
    state = made.init_decode_state(dtype or "float32")
    model = small_model()
    if made.spec.native:
        model, _ = weights.sync_weights(model, dtype, None, fused=True, packed=True)
    compiled = programs.compiled(made.spec)
    if program == "decode":
        rows, table_BJ = compact(state, np.full(4, -1))
        lowered = compiled.decode.lower(
            model, state.pool, rows, table_BJ, pad_stop_ids(()), *np.ones((2, 1), np.int32)
        )
    else:
        token_BT, row_B = np.zeros((4, 32), np.int32), np.zeros(4, np.int32)
        table_BJ = np.zeros((4, 8), np.int32)
        lowered = compiled.prefill.lower(model, state.pool, token_BT, row_B, row_B, table_BJ)
    return lowered.compile()


@pytest.mark.parametrize(
    ("program", "layout", "dtype"),
    [
        ("decode", "staged", None),
        ("decode", "pages", None),
        ("prefill", "pages", None),
        pytest.param("decode", "staged", "float32", marks=needs_compiler),
    ],
)
def test_temporaries_do_not_grow_with_the_pool(program, layout, dtype):
    small, large = (
        compiled_program(program, pages, layout, dtype).memory_analysis() for pages in (64, 4096)
    )
    assert large.argument_size_in_bytes > 8 * small.argument_size_in_bytes
    assert large.temp_size_in_bytes <= 1.05 * small.temp_size_in_bytes
    # Donated: the pool's bytes are not there twice.
    grown = large.argument_size_in_bytes - small.argument_size_in_bytes
    assert large.alias_size_in_bytes - small.alias_size_in_bytes >= grown


@needs_compiler
@pytest.mark.parametrize(
    ("program", "bound"),
    [("decode", CONFIG.vocab_size * CONFIG.hidden_size), ("prefill", 4096 * 4 * CONFIG.head_dim)],
)
def test_nothing_that_is_held_in_bfloat16_is_made_float32(program, bound, monkeypatch):
    """Not the pool and not the embeddings: XLA would, to move one token."""
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: True)  # to compile, not to run
    text = compiled_program(program, 4096, "staged", "bfloat16").as_text()
    shapes = re.findall(r"\bf32\[([\d,]+)\]", text)
    assert shapes
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) < bound


def test_a_call_ends_once_its_rows_fit_a_smaller_bucket():
    sizes = SIZES | {"slots": 20, "decode_steps": 8, "min_rows": 2}
    made = VerbEngine(CONFIG, SamplerConfig(num_pages=161, **sizes))
    model, state = small_model(), made.init_decode_state()
    prefix = made.prefill(params=model, padded_tokens=np.arange(5), true_length=5)
    for slot in range(10):
        limit = 3 if slot < 2 else 6
        params = PromptParams(0.0, 1.0, 0, 0.0, max_tokens=limit, seed=0)
        state = made.insert(prefix, state, slot, params=params)
    first = made.collect(state, made.dispatch(model, state))
    assert (first.row_steps, first.steps) == (12 * 3, 3)
    second = made.collect(state, made.dispatch(model, state))
    assert (second.row_steps, second.steps) == (8 * 3, 3)
    assert not second.alive.any()


def test_more_stop_ids_than_the_capacity_are_refused():
    assert pad_stop_ids(()).tolist() == [-1] * 16
    with pytest.raises(ValueError, match="17 ids, at most 16"):
        pad_stop_ids(range(17))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slots", 0),
        ("slots", 2.5),
        ("page_size", 0),
        ("page_size", 4.0),
        ("num_pages", 1),
        ("num_pages", None),
        ("decode_steps", 0),
        ("decode_steps", True),
        ("layout", "dense"),
        ("reserve", "0.1"),
        ("dtype", "int8"),
        ("dtype", "foo"),
        ("dispatch_ahead", "yes"),
        ("prefix_cache", None),
    ],
)
def test_sizes_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        SamplerConfig(**{field: value})


@pytest.mark.parametrize(("prefill_chunk", "rows"), [(128, 16), (5, 5)])
def test_prefill_calls_are_as_large_as_what_is_left(prefill_chunk, rows):
    """Two sequences over several rows and calls; the second reads a page that the first writes."""
    sizes = SIZES | {"max_len": 1024, "prefill_chunk": prefill_chunk}
    made = Engine(CONFIG, SamplerConfig(num_pages=600, **sizes))
    model, state = small_model(), made.init_decode_state()
    few, many = made.prefill_shape.row_buckets
    assert (made.prefill_shape.chunk, few, many) == (rows, 128 // rows, 512 // rows)
    tokens = [int(x) for x in np.random.default_rng(0).integers(0, 64, 700)]
    jobs = [
        PrefillJob(tokens, list(range(1, 176))),
        PrefillJob(tokens[8:10], [1, 2, 200], start=8),
    ]
    total = -(-len(tokens) // rows) + 1
    calls = list(prefill_calls([jobs], made.prefill_shape, pages_of_a_row=256))
    assert [len(c.count_B) for c in calls] == [many, *[few] * -(-(total - many) // few)]
    assert sum(int(c.count_B.sum()) for c in calls) == len(tokens) + 2
    made.prefill_rows(model, state, [jobs])
    alone = made.init_decode_state()
    for job in (jobs[0], PrefillJob(tokens[:10], [300, 301, 302])):
        for i in range(0, len(job.tokens), rows):
            part = PrefillJob(job.tokens[i : i + rows], job.pages, i)
            made.prefill_rows(model, alone, [[part]])
    for got, want in zip(state.pool, alone.pool, strict=True):
        got, want = (np.asarray(x).reshape(CONFIG.num_layers, 600, -1) for x in (got, want))
        # Products of other row counts; this model's sharp softmax makes more of their rounding.
        # What is read before it is written differs by its own size.
        atol = 1e-4 * np.abs(want).max()
        np.testing.assert_allclose(got[:, 1:176], want[:, 1:176], atol=atol)
        np.testing.assert_allclose(got[:, 200], want[:, 302], atol=atol)
