"""JetStream's verbs on our engine."""

import numpy as np
import pytest

from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.settings import PromptParams
from polaris_jax.rollout.verbs import VerbEngine
from tests.support.rollout.rollout_cases import CONFIG, dense_logits, random_prompts, small_model

SIZES = {"slots": 4, "page_size": 4, "max_len": 32, "decode_steps": 4, "prefill_chunk": 32}
GREEDY = PromptParams(0.0, 1.0, 0, 0.0, max_tokens=32, seed=0)


def test_verbs_give_the_greedy_continuation():
    made = VerbEngine(CONFIG, SamplerConfig(num_pages=33, **SIZES))
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
    made = VerbEngine(CONFIG, SamplerConfig(num_pages=33, **SIZES))
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
    made = VerbEngine(CONFIG, SamplerConfig(num_pages=9, **SIZES))
    model, state = small_model(), made.init_decode_state()
    prefix = made.prefill(params=model, padded_tokens=np.arange(6), true_length=6)
    state = made.insert(prefix, state, 0, params=GREEDY)
    counts = [int(made.generate(model, state)[1].count[0]) for _ in range(8)]
    assert counts == [4, 4, 4, 4, 4, 4, 2, 0]
    assert not state.rows.alive_B.any()


def test_insert_replaces_and_releases_what_was_there():
    made = VerbEngine(CONFIG, SamplerConfig(num_pages=9, **SIZES))
    model, state = small_model(), made.init_decode_state()
    prefix = made.prefill(params=model, padded_tokens=np.arange(30) % 7, true_length=30)
    for _ in range(3):
        state = made.insert(prefix, state, 0, params=GREEDY)
    assert state.allocators[0].num_used == 8
    with pytest.raises(RuntimeError, match="no room for a prefix of 30 tokens, 0 pages are free"):
        made.insert(prefix, state, 1, params=GREEDY)


def test_samples_get_their_pages_all_or_none():
    made = VerbEngine(CONFIG, SamplerConfig(num_pages=10, **SIZES))
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
    made = VerbEngine(CONFIG, SamplerConfig(num_pages=33, **SIZES))
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
    made = VerbEngine(CONFIG, SamplerConfig(num_pages=9, **SIZES))
    with pytest.raises(ValueError, match=message):
        made.prefill(params=small_model(), padded_tokens=np.array(tokens), true_length=true_length)


@pytest.mark.parametrize("slots", [[], [4], [-1], [1, 1]])
def test_slots_that_there_are_not_are_refused(slots):
    made = VerbEngine(CONFIG, SamplerConfig(num_pages=9, **SIZES))
    state = made.init_decode_state()
    with pytest.raises(ValueError, match=r"slots=\["):
        made.insert_samples(None, state, slots, params=GREEDY)


def test_generate_says_when_a_row_needs_a_page_and_none_is_free():
    made = VerbEngine(CONFIG, SamplerConfig(num_pages=3, **SIZES))
    model, state = small_model(), made.init_decode_state()
    prefix = made.prefill(params=model, padded_tokens=np.arange(8), true_length=8)
    state = made.insert(prefix, state, 0, params=GREEDY)
    with pytest.raises(RuntimeError, match="needs 1 more pages, 0 are free"):
        made.generate(model, state)
