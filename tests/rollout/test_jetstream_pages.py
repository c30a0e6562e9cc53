"""What JetStream's verbs hold and give back: pages of ended rows, prefixes that prompts share."""

import numpy as np
import pytest

from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.jetstream import jetstream_engine
from polaris_jax.rollout.settings import PromptParams
from tests.support.rollout.rollout_cases import dense_logits, small_model

MAX_TOKENS = 6
PROMPT = [5, 9, 2, 7, 11, 30]


def make_engine(*, stops=(), samples=1):
    return jetstream_engine(
        small_model(),
        SamplerConfig(slots=4, page_size=4, num_pages=65, max_len=64, decode_steps=4),
        tokenizer=None,
        params=PromptParams(0.0, 1.0, 0, 0.0, max_tokens=MAX_TOKENS, seed=0),
        stop_token_ids=stops,
        samples_per_slot=samples,
    )


def greedy(prompt, count):
    """The continuation, recomputed from nothing for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(dense_logits(small_model(), tokens).argmax()))
    return tokens[len(prompt) :]


def prefilled(engine, tokens, existing=None):
    return engine.prefill(
        params=engine.load_params(),
        existing_prefix=existing,
        padded_tokens=np.array([*tokens, 0, 0]),
        true_length=len(tokens),
    )


def ended(engine, state, slot):
    """The tokens of a slot's first sample, called for until it has ended."""
    tokens, row = [], slot * engine.samples_per_slot
    while True:
        state, result = engine.generate(engine.load_params(), state)
        data = result.get_result_at_slot(slot)
        valid = np.asarray(data.valid[0], bool)
        tokens += np.asarray(data.tokens[0])[valid].tolist()
        if not state.rows.alive_B[row]:
            return tokens


def pages_used(state):
    return sum(allocator.num_used for allocator in state.allocators)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_row_at_its_limit_gives_its_pages_back(samples):
    engine = make_engine(samples=samples)
    state = engine.init_decode_state()
    state = engine.insert(prefilled(engine, PROMPT), state, slot=1)
    assert pages_used(state) > 0
    assert ended(engine, state, 1) == greedy(PROMPT, MAX_TOKENS)
    assert pages_used(state) == 0
    assert not any(state.pages)


def test_a_row_at_a_stop_gives_its_pages_back_and_others_keep_theirs():
    expected, other = greedy(PROMPT, 4), [3, 4, 8]
    stop = expected[2]
    assert stop not in expected[:2] and stop not in greedy(other, MAX_TOKENS)
    engine = make_engine(stops=(stop,))
    state = engine.init_decode_state()
    state = engine.insert(prefilled(engine, PROMPT), state, slot=0)
    state = engine.insert(prefilled(engine, other), state, slot=2)
    assert ended(engine, state, 0) == expected[:3]
    assert not state.pages[0]
    assert pages_used(state) == len(state.pages[2]) > 0
    ended(engine, state, 2)
    assert pages_used(state) == 0


@pytest.mark.parametrize("cut", [1, 4, 5])
def test_a_prompt_behind_an_existing_prefix_is_the_whole_prompt(cut):
    engine = make_engine()
    state = engine.init_decode_state()
    begun = prefilled(engine, PROMPT[:cut])
    whole = prefilled(engine, PROMPT[cut:], begun)
    assert int(whole.length) == len(PROMPT)
    state = engine.insert(whole, state, slot=0)
    assert ended(engine, state, 0) == greedy(PROMPT, MAX_TOKENS)
    # What it was made of is as it was.
    state = engine.insert(begun, state, slot=0)
    assert ended(engine, state, 0) == greedy(PROMPT[:cut], MAX_TOKENS)
    assert pages_used(state) == 0


def test_four_tokens_a_call_are_told_as_the_driver_reads_them():
    """It ends a request at a token that is not valid, or by the length at a call's first."""
    engine = make_engine()
    state = engine.init_decode_state()
    state = engine.insert(prefilled(engine, PROMPT), state, slot=3)
    expected, parts = greedy(PROMPT, MAX_TOKENS), []
    for before, valid in ((0, 4), (4, 2)):
        state, result = engine.generate(engine.load_params(), state)
        data = result.get_result_at_slot(3)
        assert data.tokens.shape == (1, 4)
        assert np.asarray(data.valid[0]).tolist() == [True] * valid + [False] * (4 - valid)
        assert int(np.asarray(data.lengths)[0]) == before + 1
        parts += np.asarray(data.tokens[0])[:valid].tolist()
    assert parts == expected
    assert pages_used(state) == 0
