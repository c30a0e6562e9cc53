"""Whoever pauses loses nothing, from a callback or between steps; what is void is counted apart."""

import dataclasses

import pytest

from polaris_jax.rollout import RolloutPaused, Sampler, SamplerConfig, SamplingParams
from tests.support.rollout.rollout_cases import random_prompts, small_model

SIZES = SamplerConfig(slots=6, page_size=8, num_pages=64, max_len=64, decode_steps=4)
PROMPTS = random_prompts(3, seed=21)
PARAMS = SamplingParams(n=2, max_tokens=(3, 20, 9), seed=range(3), stop_token_ids=(7,))


@pytest.fixture(scope="module")
def sampler():
    return Sampler(small_model(), SIZES)


@pytest.fixture(scope="module")
def expected(sampler):
    return tokens(sampler.generate(PROMPTS, PARAMS))


def tokens(groups) -> list:
    return [[response.token_ids for response in group] for group in groups]


def pausing(sampler, at: int):
    """A callback that pauses in its call number `at`."""
    calls = iter(range(1000))
    return lambda *_: sampler.pause() if next(calls) == at else None


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("how", ["stream", "generate"])
def test_a_pause_from_a_callback_loses_no_response(sampler, expected, how, at):
    got, request = {}, None
    try:
        if how == "generate":
            sampler.generate(PROMPTS, PARAMS, on_progress=pausing(sampler, at))
        for p, s, response in sampler.stream(PROMPTS, PARAMS, on_progress=pausing(sampler, at)):
            got[p, s] = response.token_ids
    except RolloutPaused as paused:
        request = paused.request
    assert request is not None and not request.aborted
    with pytest.raises(RolloutPaused):
        list(sampler.drive(request))
    sampler.resume()
    got |= {(p, s): response.token_ids for p, s, response in sampler.drive(request)}
    assert tokens(request.responses()) == expected
    if how == "stream":
        assert got == {(p, s): t for p, g in enumerate(expected) for s, t in enumerate(g)}
    assert sampler.stats()["pages_used"] == 0


def test_nothing_is_left_behind_by_a_call_to_a_paused_sampler(sampler):
    sampler.pause()
    with pytest.raises(RuntimeError, match="paused"):
        sampler.generate(PROMPTS, PARAMS)
    assert not sampler.step()
    sampler.resume()


def test_whoever_leaves_a_paused_stream_aborts_it(sampler):
    stream = sampler.stream(PROMPTS, PARAMS)
    next(stream)
    sampler.pause()
    stream.close()
    sampler.resume()
    assert not sampler.step()


def test_void_rows_are_no_preemptions(sampler):
    sampler.reset_stats()
    sampler.submit(PROMPTS, dataclasses.replace(PARAMS, max_tokens=20, stop_token_ids=()))
    sampler.step()
    for voided, change in (
        (6, lambda: sampler.update_weights(small_model())),
        (12, sampler.release_pool),
    ):
        sampler.pause()
        change()
        assert (sampler.stats()["voided"], sampler.stats()["preemptions"]) == (voided, 0)
        sampler.resume()
        sampler.step()
    while sampler.step():
        pass
    assert sampler.stats()["preemptions"] == 0
    sampler.reset_stats()
    assert sampler.stats()["voided"] == 0
