"""Device programs: memory beside the pool, row buckets, JetStream's verbs without JetStream."""

import dataclasses

import numpy as np
import pytest

from polaris_jax.rollout import SamplerConfig, programs
from polaris_jax.rollout.decode_state import compact
from polaris_jax.rollout.engine import Engine
from polaris_jax.rollout.engine_records import PrefillJob
from polaris_jax.rollout.kv.staged import TILE_ROWS, tile_rows
from polaris_jax.rollout.prefill_calls import prefill_calls
from polaris_jax.rollout.programs.spec import fine_row_buckets, program_spec, row_buckets
from polaris_jax.rollout.settings import PromptParams, pad_stop_ids
from tests.support.rollout.native_kernels import needs_compiler
from tests.support.rollout.rollout_cases import CONFIG, dense_logits, random_prompts, small_model

SIZES = {"slots": 4, "page_size": 4, "max_len": 32, "decode_steps": 4, "prefill_chunk": 32}
GREEDY = PromptParams(0.0, 1.0, 0, 0.0, max_tokens=32, seed=0)


def compiled_memory(program: str, num_pages: int, layout: str):
    made = Engine(CONFIG, SamplerConfig(num_pages=num_pages, layout=layout, **SIZES))
    state = made.init_decode_state()
    model = small_model()
    compiled = programs.compiled(made.spec)
    if program == "decode":
        rows, table_BJ = compact(state, np.full(4, -1))
        lowered = compiled.decode.lower(
            model, state.pool, rows, table_BJ, pad_stop_ids(()), np.ones(1, np.int32)
        )
    else:
        token_BT, row_B = np.zeros((4, 32), np.int32), np.zeros(4, np.int32)
        table_BJ = np.zeros((4, 8), np.int32)
        lowered = compiled.prefill.lower(model, state.pool, token_BT, row_B, row_B, table_BJ)
    return lowered.compile().memory_analysis()


@pytest.mark.parametrize(
    ("program", "layout"), [("decode", "staged"), ("decode", "pages"), ("prefill", "pages")]
)
def test_temporaries_do_not_grow_with_the_pool(program, layout):
    small, large = (compiled_memory(program, pages, layout) for pages in (64, 4096))
    assert large.argument_size_in_bytes > 8 * small.argument_size_in_bytes
    assert large.temp_size_in_bytes <= 1.05 * small.temp_size_in_bytes
    # Donated: the pool's bytes are not there twice.
    grown = large.argument_size_in_bytes - small.argument_size_in_bytes
    assert large.alias_size_in_bytes - small.alias_size_in_bytes >= grown


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


def test_a_call_ends_once_its_rows_fit_a_smaller_bucket():
    sizes = SIZES | {"slots": 20, "decode_steps": 8, "min_rows": 2}
    made = Engine(CONFIG, SamplerConfig(num_pages=161, **sizes))
    model, state = small_model(), made.init_decode_state()
    prefix = made.prefill(params=model, padded_tokens=np.arange(5), true_length=5)
    for slot in range(10):
        limit = 3 if slot < 2 else 6
        params = PromptParams(0.0, 1.0, 0, 0.0, max_tokens=limit, seed=0)
        state = made.insert(prefix, state, slot, params=params)
    first = made.collect(state, made.launch(model, state))
    assert (first.rows, first.steps) == (12, 3)
    second = made.collect(state, made.launch(model, state))
    assert (second.rows, second.steps) == (8, 3)
    assert not second.alive.any()


def test_more_stop_ids_than_the_capacity_are_refused():
    assert pad_stop_ids(()).tolist() == [-1] * 16
    with pytest.raises(ValueError, match="17 ids, at most 16"):
        pad_stop_ids(range(17))


def test_verbs_give_the_greedy_continuation():
    made = Engine(CONFIG, SamplerConfig(num_pages=33, **SIZES))
    model, state = small_model(), made.init_decode_state()
    prompts = random_prompts(2, longest=12)
    for slot, prompt in enumerate(prompts):
        padded = np.zeros(16, np.int32)
        padded[: len(prompt)] = prompt
        prefix = made.prefill(params=model, padded_tokens=padded, true_length=len(prompt))
        state = made.insert(prefix, state, slot, params=GREEDY)
    state, result = made.generate(model, state)
    assert result.count.tolist() == [4, 4, 0, 0]
    assert result.data[:, -1].tolist() == [4, 4, 0, 0]
    for slot, prompt in enumerate(prompts):
        tokens = list(prompt)
        for token in result.data[slot, :4]:
            assert int(np.argmax(dense_logits(model, tokens))) == token
            tokens.append(int(token))
    for slot in range(2):
        state.free(slot)
    assert state.allocators[0].num_used == 0


def test_a_prefix_can_be_continued():
    made = Engine(CONFIG, SamplerConfig(num_pages=33, **SIZES))
    model, prompt = small_model(), random_prompts(1, seed=3, longest=20)[0] + [5, 6, 7]
    whole = made.prefill(params=model, padded_tokens=np.array(prompt), true_length=len(prompt))
    begun = made.prefill(params=model, padded_tokens=np.array(prompt[:2]), true_length=2)
    rest = made.prefill(
        params=model,
        existing_prefix=begun,
        padded_tokens=np.array(prompt[2:]),
        true_length=len(prompt) - 2,
    )
    assert int(rest.length) == int(whole.length) == len(prompt)
    outputs = []
    for prefix in (whole, rest):
        state = made.insert(prefix, made.init_decode_state(), 0, params=GREEDY)
        outputs.append(made.generate(model, state)[1].data[0])
    np.testing.assert_array_equal(*outputs)


def test_a_row_that_nobody_frees_ends_at_max_len():
    """JetStream asks for max_tokens beyond what fits, and takes a row out some calls too late."""
    made = Engine(CONFIG, SamplerConfig(num_pages=9, **SIZES))
    model, state = small_model(), made.init_decode_state()
    prefix = made.prefill(params=model, padded_tokens=np.arange(6), true_length=6)
    state = made.insert(prefix, state, 0, params=GREEDY)
    counts = [int(made.generate(model, state)[1].count[0]) for _ in range(8)]
    assert counts == [4, 4, 4, 4, 4, 4, 2, 0]
    assert not state.rows.alive_B.any()


def test_insert_replaces_and_releases_what_was_there():
    made = Engine(CONFIG, SamplerConfig(num_pages=9, **SIZES))
    model, state = small_model(), made.init_decode_state()
    prefix = made.prefill(params=model, padded_tokens=np.arange(30) % 7, true_length=30)
    for _ in range(3):
        state = made.insert(prefix, state, 0, params=GREEDY)
    assert state.allocators[0].num_used == 8
    with pytest.raises(RuntimeError, match="no room for a prefix of 30 tokens, 0 pages are free"):
        made.insert(prefix, state, 1, params=GREEDY)


def test_samples_get_their_pages_all_or_none():
    made = Engine(CONFIG, SamplerConfig(num_pages=10, **SIZES))
    model, state = small_model(), made.init_decode_state()
    prefix = made.prefill(params=model, padded_tokens=np.arange(19), true_length=19)
    # Four full pages are shared, and each sample has one of its own.
    state = made.insert_samples(prefix, state, range(4), params=GREEDY)
    (allocator,) = state.allocators
    assert allocator.num_used == 8
    state.free(0)
    assert allocator.num_used == 7
    long = made.prefill(params=model, padded_tokens=np.arange(30), true_length=30)
    with pytest.raises(RuntimeError, match="no room for a prefix of 30 tokens, 3 pages are free"):
        made.insert_samples(long, state, [0, 1], params=GREEDY)
    for slot in range(4):
        state.free(slot)
    assert allocator.num_used == 0


def test_an_insert_that_fails_takes_no_page():
    made = Engine(CONFIG, SamplerConfig(num_pages=33, **SIZES))
    model, state = small_model(), made.init_decode_state()
    prefix = made.prefill(params=model, padded_tokens=np.arange(9), true_length=9)
    for slots in ([0], [0, 1]):
        with pytest.raises(AttributeError):
            made.insert_samples(prefix, state, slots, params=None)
        assert state.allocators[0].num_used == 0
        assert not state.rows.alive_B.any()


@pytest.mark.parametrize(
    ("tokens", "true_length", "message"),
    [
        ([1, 2], 0, r"true_length=0: must be in \[1, 2\]"),
        ([1, 2], 3, r"true_length=3: must be in \[1, 2\]"),
        ([1] * 40, 33, r"true_length=33: must be in \[1, 32\]: .* enlarge max_len"),
        ([1, 61], 2, r"token id 61 is outside of \[0, 61\); encode the prompt with this"),
        ([-1], 1, "token id -1"),
    ],
)
def test_what_cannot_be_prefilled_is_refused(tokens, true_length, message):
    made = Engine(CONFIG, SamplerConfig(num_pages=9, **SIZES))
    with pytest.raises(ValueError, match=message):
        made.prefill(params=small_model(), padded_tokens=np.array(tokens), true_length=true_length)


@pytest.mark.parametrize("slots", [[], [4], [-1], [1, 1]])
def test_slots_that_there_are_not_are_refused(slots):
    made = Engine(CONFIG, SamplerConfig(num_pages=9, **SIZES))
    state = made.init_decode_state()
    with pytest.raises(ValueError, match=r"slots=\["):
        made.insert_samples(None, state, slots, params=GREEDY)


def test_generate_says_when_a_row_needs_a_page_and_none_is_free():
    made = Engine(CONFIG, SamplerConfig(num_pages=3, **SIZES))
    model, state = small_model(), made.init_decode_state()
    prefix = made.prefill(params=model, padded_tokens=np.arange(8), true_length=8)
    state = made.insert(prefix, state, 0, params=GREEDY)
    with pytest.raises(RuntimeError, match="needs 1 more pages, 0 are free"):
        made.generate(model, state)


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
