"""When a step drafts: in the tail, as long as it pays, and by the requests alone."""

import dataclasses
import random

import hypothesis
import pytest
from hypothesis import strategies as st

from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.draft_costs import (
    LEAST_GAIN,
    CallCosts,
    CallShape,
    call_costs,
    verify_rows,
)
from polaris_jax.rollout.drafting import ROWS, Rates
from polaris_jax.rollout.pages import pages_for
from tests.support.rollout.fake_engine import VOCAB, FakeSampler, settings
from tests.support.rollout.fake_schedules import act_on_fake, history_of
from tests.support.rollout.schedules import LONGEST, cases, schedules

ROOMY = SamplerConfig(
    slots=16, page_size=4, num_pages=400, max_len=64, decode_steps=4, draft="history"
)
PROMPTS = [(1, 2, 3), (4, 5), (6,)]


def sampled(config: SamplerConfig, *, wrong: float | None, shards: int = 1) -> FakeSampler:
    """A sampler that has served three prompts with two samples each; wrong None: no history."""
    sampler = FakeSampler(config, shards)
    rows = [settings(40, seed) for seed in range(3)]
    history = None if wrong is None else history_of(PROMPTS, rows, 2, wrong=wrong)
    sampler.submit(PROMPTS, rows, 2, history=history)
    sampler.run()
    return sampler


def readings(sampler: FakeSampler) -> int:
    """How often the weights were read: once a decode step, once a verify call."""
    config, calls = sampler.engine.config, sum(sampler.driver.drafting.counts.calls)
    return sampler.driver.steps - config.draft_tokens * calls


@pytest.mark.parametrize("shards", [1, 2])
def test_history_saves_steps_and_changes_no_token(shards):
    plain = sampled(dataclasses.replace(ROOMY, draft="off"), wrong=0.0, shards=shards)
    right, near, hostile, none = (
        sampled(ROOMY, wrong=wrong, shards=shards) for wrong in (0.0, 0.1, 1.0, None)
    )
    for one in (right, near, hostile, none):
        assert one.answers == plain.answers
    counts = right.driver.drafting.counts.stats()
    assert counts["draft_accepted"] > 0.8 * counts["draft_tokens"] > 0
    # 40 tokens, 9 a call, and a call or two until a pair of tokens matches.
    assert readings(right) <= 8
    assert readings(right) < readings(near) < readings(plain) == 40
    assert counts["draft_accepted"] / 6 <= counts["draft_steps_saved"] <= counts["draft_accepted"]
    by_rows = counts["draft_accepted_by_rows"]
    assert sum(by_rows) == counts["draft_accepted"]
    assert by_rows[ROWS.index(8 if shards == 1 else 4)] > 0
    assert sum(counts["draft_steps_saved_by_rows"]) == counts["draft_steps_saved"]
    assert plain.driver.drafting.counts.stats()["verify_calls"] == 0


def test_a_full_batch_does_not_draft():
    rows = [settings(40, seed) for seed in range(20)]
    prompts = [(i,) for i in range(20)]
    sampler = FakeSampler(dataclasses.replace(ROOMY, slots=32))
    sampler.submit(prompts, rows, history=history_of(prompts, rows, 1))
    assert sampler.engine.verify_rows[-1] == 16
    for _ in range(5):
        sampler.step()
        assert sampler.driver.drafting.counts.stats()["verify_calls"] == 0
    sampler.run()


def counts_of_poor_drafts(costs: CallCosts) -> dict:
    """Of 240 tokens of one sample, whose history is right now and then only."""
    sampler = FakeSampler(dataclasses.replace(ROOMY, max_len=256))
    sampler.driver.drafting._costs = costs
    rows, noise, prompts = [settings(240)], random.Random(0), [(1,)]
    # What comes now and then is right, and what follows in the history never is.
    history = history_of(prompts, rows, 1)
    for (text,) in history:
        text[2::3] = [noise.randrange(VOCAB) for _ in text[2::3]]
    sampler.submit(prompts, rows, history=history)
    sampler.run()
    return sampler.driver.drafting.counts.stats()


def test_drafts_that_are_rejected_are_given_up():
    counts = counts_of_poor_drafts(CallCosts(token=1 / 20, call=0.05))
    assert 0 < counts["verify_calls"] < 12  # of 60 calls and more
    assert counts["draft_accepted"] < 0.3 * counts["draft_tokens"]


def test_drafts_that_are_rejected_become_short_where_their_tokens_cost():
    counts = counts_of_poor_drafts(CallCosts(token=1 / 20, call=0.05, listed=True))
    assert 0 < counts["verify_calls"] < 40  # of 240 steps
    assert counts["draft_tokens"] < 3 * counts["verify_calls"]


def test_siblings_and_earlier_samples_are_drafted_from():
    """One sample repeats what another says, so that its text is the history."""
    sampler = FakeSampler(dataclasses.replace(ROOMY, draft_tokens=3))
    rows = [settings(30)]
    text = history_of([(1,)], rows, 1)[0][0]
    request = sampler.submit([(1,)], rows, 3)
    for part in request.parts:
        part.samples[2].tokens[:] = text[:25].tolist()  # it has said what the first will say
    proposal = None
    while proposal is None or not proposal.offers:
        sampler.driver.step(0, version=0)
        proposal = sampler.driver.drafting.propose(
            sampler.driver.schedulers, sampler.driver._request_of
        )
    first = next(o for o in proposal.offers if o.slot == request.parts[0].samples[0].slot)
    at = len(request.parts[0].samples[0].tokens)
    assert first.tokens == text[at : at + 3].tolist()


def test_rates_follow_what_was_accepted():
    rates = Rates()
    before = rates.share(8)
    assert rates.best() == 0.0
    for _ in range(5):
        rates.record(8, accepted=8, rejected=False)
    assert before < rates.share(8) < 1
    assert rates.best() == rates.share(8)
    assert rates.share(2) == Rates().share(2)  # another class
    for _ in range(40):
        rates.record(8, accepted=0, rejected=True)
    assert rates.share(8) < 0.3
    assert rates.best() == 0.0
    for _ in range(400):
        rates.rest()
    assert rates.share(8) == pytest.approx(before, rel=0.1)  # it is tried again


def test_drafts_are_as_long_as_they_are_likely():
    """Where a call costs what is in it; elsewhere all of a draft is verified, or nothing."""
    listed = CallCosts(token=1 / 16, call=0.04, listed=True)
    call = CallShape(rows=4, most_rows=4, tokens=72, decode_steps=8)
    plain = 1 + 4 / 16 + 0.04 / 8
    lengths, speedup = listed.draft_lengths([(0.9, 8), (0.5, 8), (0.1, 8)], call)
    assert lengths == [8, 1, 0]
    gain = sum(0.9**i for i in range(1, 9)) + 0.5
    assert speedup == pytest.approx((1 + gain / 4) * plain / (1 + 13 / 16 + 0.04))
    # The same lengths as by trying out all.
    best = max(
        (4 + sum(0.9**i for i in range(1, a + 1)) + sum(0.5**i for i in range(1, b + 1)))
        / (1 + (4 + a + b) / 16 + 0.04)
        for a in range(9)
        for b in range(9)
    )
    assert speedup == pytest.approx(best * plain / 4)
    # More rows make a call long already, so that tokens must be likelier.
    many = CallShape(rows=24, most_rows=24, tokens=72, decode_steps=8)
    assert listed.draft_lengths([(0.9, 8), (0.5, 8), (0.1, 8)], many)[0] == [4, 0, 0]
    assert listed.draft_lengths([], call)[1] < 1
    assert listed.draft_lengths([(0.0, 8)], call) == ([0], listed.draft_lengths([], call)[1])
    whole = listed._replace(listed=False)
    lengths, speedup = whole.draft_lengths([(0.9, 8), (0.5, 8), (0.1, 3)], call)
    assert lengths == [8, 8, 3]
    assert speedup < 1  # 72 tokens for what 4 + 3 x 8 tokens at most are worth


@pytest.mark.parametrize(
    ("slots", "data", "tokens", "min_rows", "on_cpu", "rows"),
    [
        (64, 1, 8, 1, True, (1, 2, 4, 8, 16)),
        (64, 1, 8, 4, True, (4, 8, 16)),
        (4, 1, 8, 16, True, (4,)),
        (6, 2, 8, 1, True, (1, 2, 3)),
        (64, 1, 3, 8, True, (8, 16, 32)),
        (64, 1, 4, 8, True, (8, 16)),
        (512, 8, 8, 1, False, (8, 32)),
        (2, 1, 500, 1, False, (1,)),
    ],
)
def test_few_shapes_are_compiled(slots, data, tokens, min_rows, on_cpu, rows):
    config = SamplerConfig(slots=slots, draft="history", draft_tokens=tokens)
    assert verify_rows(config, data, min_rows=min_rows, on_cpu=on_cpu) == rows
    off = dataclasses.replace(config, draft="off")
    assert verify_rows(off, data, min_rows=min_rows, on_cpu=on_cpu) == ()


def test_the_more_rows_the_likelier_a_draft_must_be():
    """A CPU reads the weights anyway, and the first 8 tokens cost half."""
    costs = call_costs(on_cpu=True, weight_bytes=540e6, listed=True)
    assert costs.step(16) - costs.step(8) == pytest.approx(2 * (costs.step(8) - costs.step(0)))

    def pays(rows: int, share: float) -> bool:
        call = CallShape(rows=rows, most_rows=rows, tokens=9 * rows, decode_steps=8)
        return costs.draft_lengths([(share, 8)] * rows, call)[1] >= LEAST_GAIN

    shares = (0.3, 0.6, 0.75, 0.9)
    assert [pays(4, share) for share in shares] == [True, True, True, True]
    assert [pays(8, share) for share in shares] == [False, True, True, True]
    assert [pays(16, share) for share in shares] == [False, False, True, True]
    assert [pays(32, share) for share in shares] == [False, False, False, True]


def test_a_small_model_pays_for_its_calls():
    small, large = (call_costs(on_cpu=True, weight_bytes=b) for b in (4e6, 540e6))
    assert small.call > 1 > large.call


@st.composite
def drafting_samplers(draw) -> FakeSampler:
    shards = draw(st.sampled_from([1, 1, 2]))
    page_size = draw(st.sampled_from([1, 2, 4]))
    needed = pages_for(LONGEST, page_size)
    slots = draw(st.sampled_from([1, 3, 8]))
    config = SamplerConfig(
        slots=shards * slots,
        page_size=page_size,
        num_pages=shards * (1 + needed + draw(st.integers(0, 2 * needed))),
        max_len=LONGEST,
        decode_steps=draw(st.integers(1, 5)),
        prefill_budget=draw(st.sampled_from([0, 3, 16])),
        prefix_cache=draw(st.booleans()),
        dispatch_ahead=draw(st.booleans()),
        draft="history",
        draft_tokens=draw(st.sampled_from([1, 3, 8])),
    )
    return FakeSampler(config, shards)


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_schedules(count):
    calls = []

    @cases(count)
    @hypothesis.given(
        drafting_samplers(), schedules(VOCAB, 8), st.sampled_from([0.0, 0.1, 0.5, 1.0])
    )
    def check(sampler, schedule, wrong):
        for act in schedule:
            act_on_fake(sampler, act, wrong=wrong)
        sampler.run()
        calls.append(sampler.driver.drafting.counts.stats()["draft_accepted"])

    check()
    assert sum(accepted > 0 for accepted in calls) > count / 4
