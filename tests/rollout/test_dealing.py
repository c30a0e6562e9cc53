"""Two hosts sample a step together: each its samples, and both end with the same groups."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from polaris_jax.rollout import SamplingParams, groups
from polaris_jax.rollout.groups import begin, places_of, sample_groups
from tests.test_step import BUDGET, SEED, STOPS, Loader, Tokenizer, new_sampler

N = 4


def drawn(count: int):
    return begin(Loader().take(count), n=N, version=0, seed_parts=(SEED,))


def sampled(sampler, count: int, wanted: int, **more):
    return sample_groups(
        sampler,
        drawn(count),
        SamplingParams(n=N, max_tokens=BUDGET, stop_token_ids=STOPS),
        tokenizer=Tokenizer(),
        wanted=wanted,
        **more,
    )


class Hosts:
    """Stands for jax and the gathers of as many processes as there are threads."""

    def __init__(self, count: int):
        self._count, self._mine = count, threading.local()
        self._barrier, self._given = threading.Barrier(count, timeout=60), [""] * count

    def begin(self, index: int) -> None:
        self._mine.index = index

    def process_index(self) -> int:
        return self._mine.index

    def process_count(self) -> int:
        return self._count

    def gather_objects(self, value):
        self._given[self._mine.index] = json.dumps(value)
        self._barrier.wait()
        found = [json.loads(text) for text in self._given]
        self._barrier.wait()
        return found


@pytest.mark.parametrize("expected", [None, [30.0, 3.0, 20.0, 9.0]], ids=["unknown", "known"])
def test_two_hosts_end_with_the_groups_of_one(monkeypatch, expected):
    alone = sampled(new_sampler(8, 1), 4, 4, expected_tokens=expected)
    hosts = Hosts(2)
    monkeypatch.setattr(groups, "jax", hosts)
    monkeypatch.setattr(groups, "processes", SimpleNamespace(gather_objects=hosts.gather_objects))
    given: list[list[tuple[int, int]]] = [[], []]

    def host(k: int):
        hosts.begin(k)
        sampler = new_sampler(4, 1)
        sampler.share, sampler.members = (k, 2), (k,)

        def on_ended(i, group, texts):
            assert all(group.responses[s].ended for s in texts)
            given[k] += [(i, s) for s in texts]

        return sampled(sampler, 4, 4, expected_tokens=expected, on_ended=on_ended)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(host, range(2))
    assert first == second == alone
    # Each response was given to one host for grading, and each host had about half of them.
    assert sorted(given[0] + given[1]) == [(i, s) for i in range(4) for s in range(N)]
    assert min(map(len, given)) >= N


def places(count: int, samplers: int, *, by_sample: bool, expected=None):
    return places_of(
        drawn(count),
        samplers,
        expected_tokens=expected,
        max_tokens=1000,
        by_sample=by_sample,
    )


def test_each_sample_has_one_place():
    for by_sample in (True, False):
        dealt = places(5, 3, by_sample=by_sample)
        assert sorted((i, s) for own in dealt for i, samples in own.items() for s in samples) == [
            (i, s) for i in range(5) for s in range(N)
        ]
    assert all(samples == list(range(N)) for own in dealt for samples in own.values())


def test_the_samples_of_a_group_are_spread_and_their_tokens_even():
    rng = np.random.default_rng(0)
    expected = rng.lognormal(8, 0.5, 16).tolist()
    dealt = places(16, 4, by_sample=True, expected=expected)
    tokens = [sum(len(s) * expected[i] for i, s in own.items()) for own in dealt]
    assert max(tokens) < 1.01 * min(tokens)
    assert all(len(samples) == 1 for own in dealt for samples in own.values())


def test_what_has_ended_is_dealt_to_nobody():
    (only,) = sampled(new_sampler(8, 1), 1, 1)
    group = drawn(1)[0].with_response(2, only.responses[2])
    (own,) = places_of([group, only], 1, expected_tokens=None, max_tokens=BUDGET, by_sample=True)
    assert own == {0: [0, 1, 3]}
