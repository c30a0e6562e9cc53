"""A response that is left and goes on later is the one that was never left."""

import dataclasses
import itertools

import numpy as np
import pytest

from polaris_jax.rollout import Response, Sampler, SamplerConfig, SamplingParams
from tests.support.rollout.rollout_cases import (
    CONFIG,
    differing_tokens,
    random_prompts,
    small_model,
)
from tests.tolerances import SCHEDULE_LOGPROB_ATOL

pytestmark = pytest.mark.xdist_group("partial")  # one worker makes what its tests share

SIZES = SamplerConfig(slots=6, page_size=8, num_pages=64, max_len=64, decode_steps=4)
PROMPTS = random_prompts(4, seed=5)
PARAMS = SamplingParams(n=3, max_tokens=20, seed=range(32, 36), stop_token_ids=(7,))
NOTHING = Response((), (), "unfinished")


@pytest.fixture(scope="module")
def sampler():
    return Sampler(small_model(), SIZES)


@pytest.fixture(scope="module")
def expected(sampler):
    return sampler.generate(PROMPTS, PARAMS)


def flat(groups: list[list[Response]]) -> list[Response]:
    return [response for group in groups for response in group]


def left_after(sampler: Sampler, steps: int, **asked) -> list[list[Response]]:
    """What there is of the responses when a request is aborted after so many steps."""
    request = sampler.submit(PROMPTS, PARAMS, **asked)
    for _ in range(steps):
        sampler.step()
    sampler.abort(request)
    assert sampler.stats()["pages_used"] == 0
    return request.responses()


def assert_same(groups, expected) -> None:
    parted, largest = differing_tokens(
        expected,
        groups,
        model=small_model(),
        prompts=PROMPTS,
        temperatures=[1.0] * len(PROMPTS),
        seeds=list(PARAMS.seed),
    )
    assert parted == 0
    assert largest <= SCHEDULE_LOGPROB_ATOL
    reasons = [[response.finish_reason for response in group] for group in groups]
    assert reasons == [[response.finish_reason for response in group] for group in expected]


def test_what_is_left_goes_on_as_if_it_had_not_been_left(sampler, expected):
    """Three calls after one another, under weights of other versions but the same values."""
    begun, first_tokens = None, 0
    for version in itertools.count(3):
        sampler.version = version
        request = sampler.submit(PROMPTS, PARAMS, begun=begun)
        told = set()
        for p, s, _ in sampler.drive(request):
            told.add((p, s))
            if len(told) == 3:
                break
        sampler.abort(request)
        before = [[NOTHING] * 3] * 4 if begun is None else begun
        begun = request.responses()
        for old, new in zip(flat(before), flat(begun), strict=True):
            grown = len(new.token_ids) - len(old.token_ids)
            assert not (old.ended and grown)
            assert new.token_ids[: len(old.token_ids)] == old.token_ids
            assert new.logprobs[: len(old.logprobs)] == old.logprobs
            assert new.versions == (*old.versions, *([(version, grown)] if grown else []))
        if version == 3:
            first_tokens = sum(len(r.token_ids) for group in begun for r in group if not r.ended)
        if all(response.ended for group in begun for response in group):
            break
    assert version > 4 and first_tokens > 0
    assert_same(begun, expected)
    versions = {v for group in begun for response in group for v, _ in response.versions}
    assert versions == set(range(3, version + 1))
    # Nothing is left to do, and nothing is told again.
    again = sampler.submit(PROMPTS, PARAMS, begun=begun)
    assert again.done and list(sampler.drive(again)) == []
    assert again.responses() == begun


def test_a_request_that_was_aborted_says_what_is_unfinished(sampler):
    begun = left_after(sampler, 1)
    reasons = {response.finish_reason for group in begun for response in group}
    assert "unfinished" in reasons and "length" not in reasons
    # Six slots for twelve samples: some have not begun. None of these seeds ends in four tokens.
    assert {len(response.token_ids) for group in begun for response in group} >= {0, 4}


def test_new_weights_go_on_from_the_tokens_of_the_old_ones():
    """Greedy: what comes after the tokens so far is what the new weights say to them."""
    greedy = dataclasses.replace(PARAMS, n=1, temperature=0.0, stop_token_ids=())
    old, new = Sampler(small_model(), SIZES), Sampler(small_model(1), SIZES)
    request = old.submit(PROMPTS, greedy)
    old.step()
    old.abort(request)
    begun = request.responses()
    new.version = 1
    going = new.submit(PROMPTS, greedy, begun=begun)
    list(new.drive(going))
    for prompt, (before,), (after,) in zip(PROMPTS, begun, going.responses(), strict=True):
        count = len(before.token_ids)
        rest = dataclasses.replace(greedy, max_tokens=20 - count, seed=0)
        ((alone,),) = new.generate([[*prompt, *before.token_ids]], rest)
        assert after.token_ids == (*before.token_ids, *alone.token_ids)
        np.testing.assert_allclose(
            after.logprobs[count:], alone.logprobs, rtol=0, atol=SCHEDULE_LOGPROB_ATOL
        )
        assert after.versions == ((0, count), (1, 20 - count))


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (Response((1, 2), (-1.0,), "unfinished", versions=((0, 2),)), "2 tokens, 1 log-probs"),
        (Response((1,), (-1.0,), "unfinished"), "versions of 0 tokens"),
        (Response((7,), (-1.0,), "unfinished", versions=((0, 1),)), "holds a stop token"),
        (
            Response((CONFIG.vocab_size,), (-1.0,), "unfinished", versions=((0, 1),)),
            r"outside of \[0, 61\)",
        ),
        (
            Response((1,) * 20, (-1.0,) * 20, "unfinished", versions=((0, 20),)),
            "20 tokens reach max_tokens=20",
        ),
    ],
    ids=["log-probs", "versions", "stop token", "vocabulary", "budget"],
)
def test_what_cannot_go_on_is_refused(sampler, response, message):
    begun = [[NOTHING] * 3 for _ in PROMPTS]
    begun[2][1] = response
    with pytest.raises(ValueError, match=message) as told:
        sampler.submit(PROMPTS, PARAMS, begun=begun)
    assert "begun[2][1]" in str(told.value)


@pytest.mark.parametrize("begun", [[[NOTHING] * 3] * 3, [[NOTHING] * 2] * 4])
def test_there_must_be_a_response_for_every_sample(sampler, begun):
    with pytest.raises(ValueError, match="give n a prompt"):
        sampler.submit(PROMPTS, PARAMS, begun=begun)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([[0, 1]] * 3, r"samples: 3 entries for 4 prompts; .* None for all"),
        ([[0], [1], [3], [0]], r"samples\[2\]=\[3\]: must be different indices in \[0, 3\)"),
        ([[0], [-1], [2], [0]], r"samples\[1\]=\[-1\]: must be"),
        ([[0], [1], [2], [0, 2, 0]], r"samples\[3\]=\[0, 2, 0\]: must be different"),
        ([[0.5], [1], [2], [0]], r"samples\[0\]: index=0.5: must be a whole number"),
        ([0, 1, 2, 0], r"samples\[0\]=0: must be different indices"),
    ],
    ids=["length", "beyond", "negative", "twice", "real", "flat"],
)
def test_samples_that_are_not_there_are_refused(sampler, samples, message):
    with pytest.raises(ValueError, match=message):
        sampler.submit(PROMPTS, PARAMS, samples=samples)
    assert not sampler.step()


def test_a_prompt_may_have_none_of_its_samples_here(sampler, expected):
    request = sampler.submit(PROMPTS, PARAMS, samples=[[2], [], np.array([0, 1]), range(3)])
    ended = {(p, s): response.token_ids for p, s, response in sampler.drive(request)}
    places = [(0, 2), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    assert ended == {(p, s): expected[p][s].token_ids for p, s in places}


def test_a_sampler_does_not_wait_for_another_ones_request(sampler):
    other = Sampler(small_model(), SIZES)
    request = sampler.submit(PROMPTS, PARAMS)
    with pytest.raises(ValueError, match="0 of 12 responses done, and this sampler does not have"):
        list(other.drive(request))
    assert len(list(sampler.drive(request))) == 12
