"""A response ends with the token that completes a stop string, wherever tokens and calls cut it."""

import dataclasses

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from polaris_jax.models import token_logprobs
from polaris_jax.records import Response
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.request import completing_token
from polaris_jax.sharding import make_sampler_mesh
from tests.support.rollout.rollout_cases import random_prompts, small_model
from tests.tolerances import SAMPLER_LOGPROB_ATOL, SCHEDULE_LOGPROB_ATOL

# Tokens of 0 to 3 bytes, some of which cut a character of two bytes.
PIECES = [b"", b"a", b"b", b" a", b"ab", b"ba", b"\xc3", b"\xa9", b"a\xc3", b"\xa9b", b"abb"]


def decode_pieces(tokens: list[int]) -> str:
    """A byte-level decoder that drops a leading space, as sentencepiece's do."""
    return b"".join(PIECES[t] for t in tokens).decode(errors="replace").removeprefix(" ")


def first_completing(tokens: list[int], strings: list[str]) -> int | None:
    for end in range(1, len(tokens) + 1):
        if any(string in decode_pieces(tokens[:end]) for string in strings):
            return end - 1
    return None


@hypothesis.settings(max_examples=400, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=60),
    st.lists(st.sampled_from(["abba", "bb a", "é", "aé", "a a", "baab"]), min_size=1, max_size=3),
    st.integers(1, 9),
)
def test_it_is_the_first_token_whose_text_contains_the_string(tokens, strings, step):
    """New tokens come `step` at a time, and the search sees them as they come."""
    wanted = first_completing(tokens, strings)
    for first in range(0, len(tokens), step):
        found = completing_token(tokens[: first + step], first, strings, decode_pieces)
        if found is not None:
            assert found == wanted
            return
    assert wanted is None


def test_the_search_decodes_a_few_tokens_of_a_long_response():
    seen: list[int] = []

    def decode(tokens):
        seen.append(len(tokens))
        return decode_pieces(tokens)

    tokens = [1] * 10_000 + [2]
    assert completing_token(tokens, 10_000, ["ab"], decode) == 10_000
    assert max(seen) < 40


# --- through the sampler ---

SIZES = SamplerConfig(slots=8, page_size=8, num_pages=64, max_len=64, decode_steps=8)
PROMPTS = random_prompts(4, seed=31)


def decode(tokens: list[int]) -> str:
    return "".join(f"<{t}>" for t in tokens)


def test_a_response_ends_with_the_token_that_completes_the_string():
    params = SamplingParams(n=3, max_tokens=30, seed=[1, 2, 3, 4])
    sampler = Sampler(small_model(), SIZES)
    whole = sampler.generate(PROMPTS, params)
    # The end of one token with the begin of the next: the two are there in the first response.
    a, b = whole[0][0].token_ids[10:12]
    strings = (f"{a}><{b}", "nowhere")
    sampler.reset_stats()
    cut = sampler.generate(
        PROMPTS, dataclasses.replace(params, stop_strings=strings, decode=decode)
    )
    stopped = 0
    for group, whole_group in zip(cut, whole, strict=True):
        for response, all_of_it in zip(group, whole_group, strict=True):
            ends = (
                end
                for end in range(1, 31)
                if any(s in decode(list(all_of_it.token_ids[:end])) for s in strings)
            )
            end = next(ends, None)
            assert response.token_ids == all_of_it.token_ids[:end]
            np.testing.assert_allclose(
                response.logprobs, all_of_it.logprobs[:end], atol=SCHEDULE_LOGPROB_ATOL
            )
            assert response.finish_reason == ("length" if end is None else "stop")
            stopped += end is not None
    assert stopped >= 1
    stats = sampler.stats()
    assert stats["response_tokens"] == sum(len(r.token_ids) for g in cut for r in g)
    assert stats["pages_used"] == 0


def test_a_stop_token_before_the_string_ends_it_first():
    params = SamplingParams(max_tokens=30, seed=1)
    sampler = Sampler(small_model(), SIZES)
    tokens = sampler.generate(PROMPTS[:1], params)[0][0].token_ids
    stop = tokens[4]
    string = decode(list(tokens[6:7]))
    both = dataclasses.replace(
        params, stop_token_ids=(stop,), stop_strings=(string,), decode=decode
    )
    first = min(tokens.index(stop), tokens.index(tokens[6]))
    assert sampler.generate(PROMPTS[:1], both)[0][0].token_ids == tokens[: first + 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop_strings": ("x",)}, "need decode="),
        ({"stop_strings": "x", "decode": decode}, "sequence of non-empty strings"),
        ({"stop_strings": ("x", ""), "decode": decode}, "sequence of non-empty strings"),
    ],
)
def test_stop_strings_that_cannot_be_looked_for_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Sampler(small_model(), SIZES).generate(PROMPTS, SamplingParams(**changes))


# --- log-probs of the prompt ---


def trainer_logprobs(prompt: list[int], temperature: float) -> np.ndarray:
    token_BT = np.array([prompt])
    position_BT = np.arange(len(prompt))[None]
    logp_BT, _ = jax.jit(token_logprobs)(
        small_model(), token_BT, position_BT, temperature=temperature
    )
    return np.asarray(logp_BT)[0, :-1]


@pytest.mark.parametrize("data", [1, 4])
def test_the_prompts_log_probs_are_the_trainers(data):
    prompts = [[5], *random_prompts(3, seed=32), random_prompts(1, seed=33)[0] + [1] * 20]
    params = SamplingParams(
        n=2, max_tokens=3, temperature=[1.0, 0.0, 0.6, 1.4, 1.0], prompt_logprobs=True
    )
    mesh = None if data == 1 else make_sampler_mesh(jax.devices(), data=data, tensor=2)
    sampler = Sampler(small_model(), SIZES, mesh=mesh)
    groups = sampler.generate(prompts, params)
    for prompt, temperature, group in zip(prompts, params.temperature, groups, strict=True):
        wanted = trainer_logprobs(prompt, temperature or 1.0)
        for response in group:
            assert len(response.prompt_logprobs) == len(prompt) - 1
            np.testing.assert_allclose(response.prompt_logprobs, wanted, atol=SAMPLER_LOGPROB_ATOL)
    plain = sampler.generate(prompts, dataclasses.replace(params, prompt_logprobs=False))
    assert plain[0][0].prompt_logprobs is None
    assert [[r.token_ids for r in g] for g in plain] == [[r.token_ids for r in g] for g in groups]
    before = sampler.stats()["compiles"]
    sampler.generate(prompts[::-1], dataclasses.replace(params, temperature=0.9))
    assert sampler.stats()["compiles"] == before


def test_what_already_holds_a_stop_string_cannot_go_on():
    sampler = Sampler(small_model(), SamplerConfig(slots=2, page_size=8, num_pages=16, max_len=32))

    def ask(tokens, **settings):
        begun = [[Response(tuple(tokens), (0.0,) * 3, "unfinished", versions=((0, 3),))]]
        return sampler.submit([[1, 2]], SamplingParams(max_tokens=8, **settings), begun=begun)

    strings = {"stop_strings": ("a b",), "decode": decode_pieces}
    with pytest.raises(ValueError, match=r"begun\[0\]\[0\]: unfinished, but with token 2 it holds"):
        ask([2, 1, 5], stop_strings=("é", "ba b"), decode=lambda t: "ba b" if len(t) > 2 else "ba")
    with pytest.raises(ValueError, match="with token 1 it holds one of stop_strings"):
        ask([3, 2, 1], stop_strings=("ab",), decode=decode_pieces)
    assert not sampler.step()
    for request in (ask([1, 3, 3], **strings), ask([4, 5, 10])):
        sampler.abort(request)
