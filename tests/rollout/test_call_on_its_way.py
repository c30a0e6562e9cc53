"""What ends while a decode call is on its way: aborted rows are dead in the call behind it."""

import pytest

from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from tests.support.rollout.fake_engine import FakeSampler, settings
from tests.support.rollout.rollout_cases import small_model

AHEAD = SamplerConfig(
    slots=4,
    page_size=4,
    num_pages=80,
    max_len=64,
    decode_steps=4,
    min_rows=4,
    attention="xla",
    dispatch_ahead=True,
)
PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]


def test_a_fake_engine_goes_on_without_the_row_that_was_aborted():
    sampler = FakeSampler(AHEAD)
    gone = sampler.submit([(1, 2)], [settings(40)])
    sampler.submit([(3, 4)], [settings(40, seed=1)], 3)
    sampler.step()
    assert sampler.driver._dispatched is not None
    sampler.abort(gone)
    behind = sampler.engine.dispatched_behind
    sampler.run()
    assert sampler.engine.dispatched_behind > behind


def test_the_engine_goes_on_without_the_row_that_was_aborted(monkeypatch):
    sampler = Sampler(small_model(), AHEAD)
    params = SamplingParams(max_tokens=40, seed=[1, 2, 3])
    expected = sampler.generate(PROMPTS, params)
    gone = sampler.submit([[9, 9]], SamplingParams(max_tokens=40))
    kept = sampler.submit(PROMPTS, params)
    sampler.step()
    assert sampler._live.driver is not None and sampler._live.driver._dispatched is not None
    flights, engine = [], sampler._engine
    dispatch_behind = engine.dispatch_behind

    def spied(*args, **kwargs):
        flights.append(dispatch_behind(*args, **kwargs))
        return flights[-1]

    monkeypatch.setattr(engine, "dispatch_behind", spied)
    sampler.abort(gone)
    while sampler.step():
        pass
    assert [[r.token_ids for r in group] for group in kept.responses()] == [
        [r.token_ids for r in group] for group in expected
    ]
    # In each call begun since, three rows of the four are alive.
    assert len(flights) > 3
    for flight in flights:
        assert (flight.packed.count_B > 0).sum() <= 3
    assert (flights[0].packed.count_B > 0).sum() == 3
    assert sampler.stats()["pages_used"] == 0


@pytest.mark.parametrize("ahead", [False, True], ids=["plain", "ahead"])
def test_on_tokens_is_never_called_without_tokens(ahead):
    """The stop ids of one request end rows of another, which are dead in the call on its way."""
    sizes = SamplerConfig(
        slots=4, page_size=4, num_pages=80, max_len=64, decode_steps=4, dispatch_ahead=ahead
    )
    sampler, told = FakeSampler(sizes), []
    sampler.submit([(1, 2)], [settings(40)], 2, stops=tuple(range(16)))
    sampler.submit(
        [(3, 4)], [settings(40, seed=1)], 2, on_tokens=lambda p, s, new: told.append(new)
    )
    sampler.run()
    assert all(told)
    assert sum(map(len, told)) == 80
