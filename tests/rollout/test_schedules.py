"""No schedule leaks a page, loses or repeats a response, stands still, or changes a token."""

import functools

import hypothesis
import pytest
from hypothesis import strategies as st

from polaris_jax.records import Response
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.paged_kv import pages_for
from tests.rollout.fake_engine import STOPS, VOCAB, FakeSampler, settings
from tests.rollout.rollout_cases import CONFIG, differing_tokens, small_model
from tests.rollout.schedules import (
    LONGEST_PROMPT,
    LONGEST_RESPONSE,
    Act,
    Submit,
    schedules,
)
from tests.tolerances import SCHEDULE_LOGPROB_ATOL

LONGEST = LONGEST_PROMPT + LONGEST_RESPONSE


def cases(count: int):
    """How many schedules to draw: the same ones in every run of the fast suite."""
    return hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=count < 1000,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


# --- host side alone ---


@st.composite
def fake_samplers(draw) -> FakeSampler:
    shards = draw(st.sampled_from([1, 1, 2, 3]))
    page_size = draw(st.sampled_from([1, 2, 4, 8]))
    needed = pages_for(LONGEST, page_size)
    pages = 1 + needed + draw(st.integers(0, 2 * needed))
    config = SamplerConfig(
        slots=shards * draw(st.sampled_from([1, 2, 3, 6])),
        page_size=page_size,
        num_pages=shards * pages,
        max_len=LONGEST,
        decode_steps=draw(st.integers(1, 8)),
        prefill_budget=draw(st.sampled_from([0, 1, 3, 16])),
        prefix_cache=draw(st.booleans()),
        dispatch_ahead=draw(st.booleans()),
    )
    return FakeSampler(config, shards)


def act_on_fake(sampler: FakeSampler, act: Submit | Act) -> None:
    if isinstance(act, Submit):
        sampler.submit(
            act.prompts,
            [settings(act.max_tokens, seed) for seed in act.seeds],
            act.n,
            stops=STOPS if act.stops else (),
            expected=act.expected,
        )
    elif act.what == "step":
        for _ in range(1 + act.number):
            sampler.step()
    elif act.what == "abort":
        sampler.abort(sampler.requests[act.number % len(sampler.requests)][0])
    elif act.what == "leave":
        sampler.leave(act.number % len(sampler.requests))
    elif act.what in ("pause", "resume"):
        sampler.paused = act.what == "pause"
    elif act.what == "update":
        sampler.update_weights()
    else:
        sampler.release_pool()


def check_fake(sampler: FakeSampler, schedule: list[Submit | Act]) -> None:
    for act in schedule:
        act_on_fake(sampler, act)
    sampler.run()
    budget = sampler.engine.config.prefill_budget
    assert budget == 0 or sampler.engine.most_prefilled <= max(1, budget // sampler.engine.data)


@cases(300)
@hypothesis.given(fake_samplers(), schedules(VOCAB, 10))
def test_300_schedules(sampler, schedule):
    check_fake(sampler, schedule)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@cases(10_000)
@hypothesis.given(fake_samplers(), schedules(VOCAB, 16))
def test_10_000_schedules(sampler, schedule):
    check_fake(sampler, schedule)


# --- on the engine ---

SIZES = {"slots": 6, "page_size": 4, "num_pages": 24, "max_len": LONGEST, "decode_steps": 4}
ROOMY = SamplerConfig(**(SIZES | {"num_pages": 120, "prefix_cache": False}))
REAL_STOPS = (7, 9)


@functools.cache
def roomy() -> Sampler:
    return Sampler(small_model(), ROOMY)


def params_of(act: Submit) -> SamplingParams:
    return SamplingParams(
        temperature=1.1,
        n=act.n,
        max_tokens=act.max_tokens,
        seed=act.seeds,
        stop_token_ids=REAL_STOPS if act.stops else (),
    )


class RealRun:
    """A sampler with few pages, and what it has been asked for."""

    def __init__(self, budget: int, prefix_cache: bool, dispatch_ahead: bool):
        config = SamplerConfig(
            **SIZES,
            prefill_budget=budget,
            prefix_cache=prefix_cache,
            dispatch_ahead=dispatch_ahead,
        )
        self.sampler = Sampler(small_model(), config)
        self.asked: list[tuple] = []

    def act(self, act: Submit | Act) -> None:
        sampler = self.sampler
        if isinstance(act, Submit):
            request = sampler.submit(act.prompts, params_of(act), expected_tokens=act.expected)
            self.asked.append((act, request, {}))
        elif act.what == "step":
            for _ in range(1 + act.number):
                sampler.step()
        elif act.what == "abort":
            sampler.abort(self.asked[act.number % len(self.asked)][1])
        elif act.what == "leave":
            self.leave(act.number % len(self.asked))
        elif act.what == "pause":
            sampler.pause()
        elif act.what == "resume":
            sampler.resume()
        else:
            sampler.pause()
            # The same weights: what is computed again must give the same tokens.
            update = act.what == "update"
            sampler.update_weights(small_model()) if update else sampler.release_pool()
            sampler.resume()
        for _, request, answers in self.asked:
            for prompt, sample, response in sampler.poll(request):
                assert (prompt, sample) not in answers
                answers[prompt, sample] = response

    def leave(self, which: int) -> None:
        """Aborts a request and asks anew for what is unfinished of it."""
        asked, request, answers = self.asked[which]
        if not request.done:
            self.sampler.abort(request)
            anew = self.sampler.submit(
                asked.prompts,
                params_of(asked),
                expected_tokens=asked.expected,
                begun=request.responses(),
            )
            self.asked[which] = asked, anew, answers

    def check(self) -> None:
        self.sampler.resume()
        while self.sampler.step():
            self.act(Act("step"))
        self.act(Act("step"))
        assert self.sampler.stats()["pages_used"] == 0
        parted = tokens = 0
        for act, request, answers in self.asked:
            assert request.aborted or len(answers) == act.n * len(act.prompts)
            expected = roomy().generate(act.prompts, params_of(act))
            for (p, s), response in answers.items():
                # An answer's place decides its noise: the others of the group are left out.
                group: list[Response] = [*expected[p][:s], response]
                apart, largest = differing_tokens(
                    [expected[p][: s + 1]],
                    [group],
                    model=small_model(),
                    prompts=[act.prompts[p]],
                    temperatures=[1.1],
                    seeds=[act.seeds[p]],
                )
                assert largest <= SCHEDULE_LOGPROB_ATOL
                parted, tokens = parted + apart, tokens + len(response.token_ids)
        assert parted <= 1 + tokens // 10_000


def check_real(
    budget: int, prefix_cache: bool, dispatch_ahead: bool, schedule: list[Submit | Act]
) -> None:
    run = RealRun(budget, prefix_cache, dispatch_ahead)
    for act in schedule:
        run.act(act)
    run.check()


REAL = (
    st.sampled_from([0, 3, 16]),
    st.booleans(),
    st.booleans(),
    schedules(CONFIG.vocab_size, 8),
)


@cases(10)
@hypothesis.given(*REAL)
def test_10_schedules_on_the_engine(budget, prefix_cache, dispatch_ahead, schedule):
    check_real(budget, prefix_cache, dispatch_ahead, schedule)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@cases(200)
@hypothesis.given(*REAL)
def test_200_schedules_on_the_engine(budget, prefix_cache, dispatch_ahead, schedule):
    check_real(budget, prefix_cache, dispatch_ahead, schedule)
