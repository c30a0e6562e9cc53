"""One driving loop behind four ways of asking: generate, stream, submit and step, and aborts."""

import dataclasses

import jax
import pytest

from polaris_jax.rollout import RolloutAborted, Sampler, SamplerConfig, SamplingParams, weights
from polaris_jax.rollout.scores import prompt_logprobs
from tests.support.random_models import random_model
from tests.support.rollout.rollout_cases import CONFIG, random_prompts, small_model

pytestmark = pytest.mark.xdist_group("sampler_api")  # one worker makes what its tests share

SIZES = SamplerConfig(slots=6, page_size=8, num_pages=64, max_len=64, decode_steps=4)
PROMPTS = random_prompts(5, seed=21)
PARAMS = SamplingParams(n=3, max_tokens=(3, 20, 9, 14, 20), seed=range(5), stop_token_ids=(7,))


@pytest.fixture(scope="module")
def expected():
    return Sampler(small_model(), SIZES).generate(PROMPTS, PARAMS)


def sampler_of(**changes) -> Sampler:
    return Sampler(small_model(), dataclasses.replace(SIZES, **changes))


def flat(groups) -> dict:
    return {(p, s): response for p, group in enumerate(groups) for s, response in enumerate(group)}


# --- stream ---


def test_a_stream_gives_each_response_once_and_the_short_ones_first(expected):
    got = list(sampler_of().stream(PROMPTS, PARAMS))
    assert len(got) == 15
    assert {(p, s): response for p, s, response in got} == flat(expected)
    assert [p for p, _, _ in got] != sorted(p for p, _, _ in got)


def test_whoever_leaves_a_stream_aborts_the_rest(expected):
    sampler = sampler_of()
    stream = sampler.stream(PROMPTS, PARAMS)
    next(stream)
    assert sampler.stats()["pages_used"] > 0
    with pytest.raises(RuntimeError, match="live"):
        sampler.update_weights(small_model())
    stream.close()
    assert sampler.stats()["pages_used"] == 0
    assert not sampler.step()
    assert sampler.generate(PROMPTS, PARAMS) == expected


def test_a_stream_that_nobody_reads_holds_nothing():
    sampler = sampler_of()
    stream = sampler.stream(PROMPTS, PARAMS)
    assert not sampler.step()
    sampler.update_weights(small_model())
    with pytest.raises(ValueError, match="prompt 0: empty"):
        sampler.stream([[]])
    assert len(list(stream)) == 15


def test_a_stream_is_aborted_on_request():
    sampler = sampler_of()
    polls = iter([False, False, True])
    with pytest.raises(RolloutAborted, match="of 15 responses"):
        list(sampler.stream(PROMPTS, PARAMS, should_abort=lambda: next(polls)))
    assert sampler.stats()["pages_used"] == 0


def test_a_stream_whose_request_is_aborted_says_so():
    sampler = sampler_of()
    stream = sampler.stream(PROMPTS, PARAMS)
    next(stream)
    (request,) = sampler._live.driver._requests
    sampler.abort(request)
    with pytest.raises(RolloutAborted, match="the request was aborted"):
        list(stream)


def test_a_stream_yields_what_another_callers_step_ended(expected):
    sampler, got = sampler_of(), {}
    for p, s, response in sampler.stream(PROMPTS, PARAMS):
        got[p, s] = response.token_ids
        sampler.generate(PROMPTS[:1], SamplingParams(max_tokens=20))
    assert got == {key: response.token_ids for key, response in flat(expected).items()}


# --- submit, step, poll, abort ---


def test_a_request_that_has_ended_before_it_is_driven_yields_all_of_it():
    sampler = sampler_of()
    long = sampler.submit(PROMPTS[:2], SamplingParams(max_tokens=20))
    short = sampler.submit(PROMPTS[2:], SamplingParams(n=2, max_tokens=2))
    assert len(list(sampler.drive(long))) == 2
    assert short.done
    assert len(list(sampler.drive(short))) == 6
    assert list(sampler.drive(short)) == []


def test_requests_that_come_at_any_time_get_what_they_would_alone(expected):
    sampler = sampler_of()
    answers: list[dict] = [{}, {}]
    first = sampler.submit(PROMPTS, PARAMS)
    sampler.step()
    sampler.step()
    second = sampler.submit(PROMPTS, PARAMS)
    while sampler.step():
        for request, got in zip((first, second), answers, strict=True):
            got |= {(p, s): response for p, s, response in sampler.poll(request)}
    for request, got in zip((first, second), answers, strict=True):
        got |= {(p, s): response for p, s, response in sampler.poll(request)}
        assert request.done
        assert sampler.poll(request) == []
        assert got.keys() == flat(expected).keys()
        tokens = {key: response.token_ids for key, response in got.items()}
        assert tokens == {key: response.token_ids for key, response in flat(expected).items()}


def test_an_abort_leaves_the_others_alone(expected):
    sampler = sampler_of()
    gone = sampler.submit(PROMPTS[:2], SamplingParams(n=2, max_tokens=30))
    kept = sampler.submit(PROMPTS, PARAMS)
    sampler.step()
    sampler.abort(gone)
    sampler.abort(gone)
    while sampler.step():
        pass
    assert gone.aborted and gone.num_done < 4
    answers = {(p, s): r.token_ids for p, s, r in sampler.poll(kept)}
    assert answers == {key: r.token_ids for key, r in flat(expected).items()}
    assert (sampler.stats()["pages_used"], sampler.stats()["failures"]) == (0, 0)


def test_a_callback_may_abort_its_own_request():
    sampler = sampler_of()
    requests = []

    def on_progress(done, total, tokens):
        if tokens:
            sampler.abort(requests[0])

    requests.append(sampler.submit(PROMPTS, PARAMS, on_progress=on_progress))
    steps = 0
    while sampler.step():
        steps += 1
    assert steps <= 2
    assert requests[0].aborted
    assert sampler.stats()["pages_used"] == 0


def test_what_a_callback_raises_ends_its_own_call_and_nobody_elses(expected):
    sampler = sampler_of()
    other = sampler.submit(PROMPTS, PARAMS)

    def on_tokens(prompt, sample, new):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sampler.generate(PROMPTS, PARAMS, on_tokens=on_tokens)
    while sampler.step():
        pass
    answers = {(p, s): r.token_ids for p, s, r in sampler.poll(other)}
    assert answers == {key: r.token_ids for key, r in flat(expected).items()}
    assert (sampler.stats()["pages_used"], sampler.stats()["failures"]) == (0, 1)


def test_a_callback_that_raises_ends_its_own_request_in_anybodys_step(expected):
    sampler = sampler_of()

    def on_progress(done, total, tokens):
        raise KeyError("mine")

    mine = sampler.submit(PROMPTS, PARAMS, on_progress=on_progress)
    others = sampler.generate(PROMPTS, PARAMS)
    assert [[r.token_ids for r in g] for g in others] == [
        [r.token_ids for r in g] for g in expected
    ]
    assert mine.aborted
    sampler.poll(mine)  # what had ended, if anything had
    with pytest.raises(KeyError, match="mine"):
        sampler.poll(mine)
    with pytest.raises(KeyError, match="mine"):
        list(sampler.drive(mine))
    assert (sampler.stats()["pages_used"], sampler.stats()["failures"]) == (0, 1)


def test_a_decode_that_raises_ends_its_own_request(expected):
    sampler = sampler_of()
    other = sampler.submit(PROMPTS, PARAMS)

    def decode(token_ids):
        raise LookupError("no such piece")

    params = SamplingParams(max_tokens=9, stop_strings=("x",), decode=decode)
    with pytest.raises(LookupError, match="no such piece"):
        sampler.generate(PROMPTS[:1], params)
    answers = {(p, s): r.token_ids for p, s, r in sampler.drive(other)}
    assert answers == {key: r.token_ids for key, r in flat(expected).items()}
    assert (sampler.stats()["pages_used"], sampler.stats()["failures"]) == (0, 1)


def test_an_interrupt_in_a_callback_loses_no_token(expected):
    sampler, told, interrupts = sampler_of(), {}, [KeyboardInterrupt()]

    def on_tokens(prompt, sample, new):
        told.setdefault((prompt, sample), []).extend(new)
        if interrupts:
            raise interrupts.pop()

    request = sampler.submit(PROMPTS, PARAMS, on_tokens=on_tokens)
    sampler.step()  # its tokens are told in the next one
    with pytest.raises(KeyboardInterrupt):
        sampler.step()
    while sampler.step():
        pass
    assert request.done and not request.aborted
    assert told == {key: list(r.token_ids) for key, r in flat(expected).items()}


def test_a_device_error_drops_every_request_and_the_next_call_works(expected, monkeypatch):
    sampler = sampler_of()
    lost = sampler.submit(PROMPTS, PARAMS)
    sampler.step()
    tokens, state = sampler.stats()["response_tokens"], sampler._live.state

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(sampler._engine, "collect", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            sampler.step()
    assert lost.aborted
    assert sampler.stats()["response_tokens"] == tokens > 0  # what happened before stays counted
    assert not sampler.step()
    assert sampler.stats()["pages_used"] == 0
    assert state.pool is None  # deleted, whoever keeps the traceback
    assert sampler.generate(PROMPTS, PARAMS) == expected


def test_the_longest_expected_begin_first_and_no_token_changes(expected):
    sampler = sampler_of(slots=2)
    order: list[int] = []

    def on_tokens(prompt, sample, new):
        if prompt not in order:
            order.append(prompt)

    groups = sampler.generate(PROMPTS, PARAMS, expected_tokens=[1, 5, 2, 4, 3], on_tokens=on_tokens)
    assert [[r.token_ids for r in group] for group in groups] == [
        [r.token_ids for r in group] for group in expected
    ]
    assert order == [1, 3, 4, 2, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "2 values for 5 prompts"),
        ([1, 2, 3, 4, float("nan")], "prompt 4: expected_tokens=nan"),
        ([-1, 2, 3, 4, 5], "prompt 0: expected_tokens=-1"),
        ([1, None, 3, 4, 5], "prompt 1: expected_tokens=None: must be a number"),
        (5, "expected_tokens=5: must be a sequence"),
    ],
)
def test_expectations_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        sampler_of().generate(PROMPTS, PARAMS, expected_tokens=values)


# --- pause, resume, new weights ---


def test_nothing_moves_while_paused(expected):
    sampler = sampler_of()
    request = sampler.submit(PROMPTS, PARAMS)
    sampler.step()
    tokens = request.num_tokens
    sampler.pause()
    assert sampler.step()
    assert request.num_tokens == tokens > 0
    with pytest.raises(RuntimeError, match="paused"):
        sampler.generate(PROMPTS, PARAMS)
    sampler.resume()
    while sampler.step():
        pass
    answers = {(p, s): response for p, s, response in sampler.poll(request)}
    assert answers == flat(expected)


def test_new_weights_within_responses_go_on_from_the_tokens_so_far():
    """Greedy: after the update each response is the new weights' continuation of what was there."""
    params = SamplingParams(temperature=0.0, max_tokens=20)
    sampler = sampler_of()
    request = sampler.submit(PROMPTS, params)
    with pytest.raises(RuntimeError, match="pause the sampler"):
        sampler.update_weights(small_model(1))
    sampler.step()
    sampler.pause()
    sampler.update_weights(small_model(1))
    sampler.resume()
    assert sampler.stats()["pages_used"] == sampler.stats()["pages_idle"] == 0
    while sampler.step():
        pass
    other = Sampler(small_model(1), SIZES)
    old = Sampler(small_model(), SIZES)
    for p, _, response in sampler.poll(request):
        assert response.versions == ((0, 4), (1, 16))
        before, after = response.token_ids[:4], response.token_ids[4:]
        (begun,), (rest,) = (
            old.generate([PROMPTS[p]], dataclasses.replace(params, max_tokens=4))[0],
            other.generate([[*PROMPTS[p], *before]], dataclasses.replace(params, max_tokens=16))[0],
        )
        assert begun.token_ids == before
        assert rest.token_ids == after
    assert sampler.version == 1


def test_prompt_log_probs_are_those_of_the_weights_that_ended_the_response():
    sampler = sampler_of()
    params = SamplingParams(temperature=0.0, max_tokens=(2, 12), prompt_logprobs=True)
    request = sampler.submit(PROMPTS[:2], params)
    sampler.step()
    sampler.pause()
    sampler.update_weights(small_model(1))
    sampler.resume()
    answers = {p: response.prompt_logprobs for p, _, response in sampler.drive(request)}
    assert {p: r[0].prompt_logprobs for p, r in enumerate(request.responses())} == answers
    for p, model in enumerate((small_model(), small_model(1))):
        (wanted,) = prompt_logprobs(model, [tuple(PROMPTS[p])], [0.0])
        assert answers[p] == pytest.approx(wanted, abs=1e-4)


def test_the_pool_may_go_while_paused(expected):
    sampler = sampler_of()
    stream = sampler.stream(PROMPTS, PARAMS)
    got = [next(stream)]
    with pytest.raises(RuntimeError, match="live"):
        sampler.release_pool()
    sampler.pause()
    sampler.release()
    sampler.update_weights(small_model())
    sampler.resume()
    got += list(stream)
    assert {(p, s): r.token_ids for p, s, r in got} == {
        key: r.token_ids for key, r in flat(expected).items()
    }


def test_no_weights_no_tokens():
    sampler = sampler_of()
    sampler.release()
    with pytest.raises(RuntimeError, match="no weights"):
        sampler.generate(PROMPTS, PARAMS)


def test_new_weights_bring_their_own_end_ids():
    sampler, greedy = sampler_of(), SamplingParams(temperature=0.0, max_tokens=5)
    sampler.update_weights(random_model(CONFIG, 5))
    first = sampler.generate(PROMPTS[:1], greedy)[0][0].token_ids[0]
    sampler.update_weights(random_model(dataclasses.replace(CONFIG, end_ids=(first,)), 5))
    (response,) = sampler.generate(PROMPTS[:1], greedy)[0]
    assert (response.token_ids, response.finish_reason) == ((first,), "stop")


def test_weights_that_are_deleted_cost_the_old_ones_nothing(expected):
    sampler, dead = sampler_of(), random_model(CONFIG, 5)
    dead.embed_VD[...].delete()
    with pytest.raises(ValueError, match=r"model: 1 of its arrays are deleted, embed_VD first"):
        sampler.update_weights(dead)
    assert sampler.version == 0
    assert sampler.generate(PROMPTS, PARAMS) == expected


def test_after_an_update_that_failed_there_are_no_weights_until_one_succeeds(expected, monkeypatch):
    sampler = sampler_of()
    request = sampler.submit(PROMPTS, PARAMS)
    sampler.step()
    sampler.pause()

    def fail(*_, old, **__):
        for leaf in jax.tree.leaves(old):
            leaf.delete()
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "sync_weights", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            sampler.update_weights(small_model())
    sampler.resume()
    with pytest.raises(RuntimeError, match="no weights: call update_weights"):
        sampler.step()
    sampler.pause()
    sampler.update_weights(small_model())
    sampler.resume()
    answers = {(p, s): r.token_ids for p, s, r in sampler.drive(request)}
    assert answers == {key: r.token_ids for key, r in flat(expected).items()}
