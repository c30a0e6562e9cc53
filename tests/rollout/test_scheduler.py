"""The scheduler and the driving loop on an engine that knows which tokens lie in which page."""

import numpy as np
import pytest

from polaris_jax.rollout.pages import PageAllocator, pages_for
from polaris_jax.rollout.samples import Prompt, Sample, Status
from polaris_jax.rollout.scheduler import Scheduler
from polaris_jax.rollout.settings import SamplerConfig
from tests.support.rollout.fake_engine import VOCAB, FakeSampler, settings


def world(**sizes) -> FakeSampler:
    defaults = {"slots": 4, "page_size": 4, "num_pages": 60, "decode_steps": 4, "max_len": 4096}
    return FakeSampler(SamplerConfig(**(defaults | sizes)))


def prompt_of(rng, length: int) -> tuple[int, ...]:
    return tuple(rng.integers(0, VOCAB, length).tolist())


def run_random_requests(sampler: FakeSampler, rng, total: int) -> None:
    count = 0
    while count < total:
        n = int(rng.choice([1, 1, 2, 8]))
        row = settings(int(rng.integers(1, 41)), seed=count)
        # A stop id is met once in about 50 tokens.
        sampler.submit([prompt_of(rng, int(rng.integers(1, 41)))], [row], n, stops=(3, 5))
        count += n
        if rng.random() < 0.3:
            sampler.step()
    sampler.run()


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("seed", range(6))
def test_200_requests_end_without_a_leak_and_read_only_their_own_tokens(seed, cache):
    rng = np.random.default_rng(seed)
    page_size = int(rng.choice([1, 4, 16]))
    longest = pages_for(40 + 40, page_size)
    sampler = world(
        slots=int(rng.choice([1, 2, 3, 16])),
        num_pages=1 + longest + int(rng.integers(0, 3 * longest)),
        page_size=page_size,
        decode_steps=int(rng.integers(1, 9)),
        prefill_budget=int(rng.choice([0, 3, 64])),
        prefix_cache=cache,
    )
    run_random_requests(sampler, rng, 200)


# --- order ---


def order_of_admission(sampler: FakeSampler) -> list[int]:
    begun: list[int] = []
    while sampler.driver.busy:
        before = {s.age for s in sampler.scheduler.live}
        live_before = set(begun) | before
        sampler.step()
        now = {s.age for s in sampler.scheduler.live}
        ended = {
            s.age
            for request, _ in sampler.requests
            for part in request.parts
            for s in part.samples
            if s.tokens
        }
        begun += sorted((now | ended) - live_before - set(begun))
    return begun


def test_without_expectations_the_first_to_come_is_the_first_to_be_served():
    sampler = world(slots=2)
    for _ in range(6):
        sampler.submit([(1, 2, 3)], [settings(5)])
    begun = order_of_admission(sampler)
    assert begun == list(range(6))


def test_the_longest_expected_begins_first_within_a_call_and_behind_earlier_calls():
    sampler = world(slots=1)
    first = sampler.submit([(1, 2), (3, 4)], [settings(4)] * 2, expected=[1, 2])
    second = sampler.submit([(5,), (6,), (7,)], [settings(4)] * 3, n=2, expected=[2.0, 9.0, 2.0])
    ends: list[tuple[int, int, int]] = []
    while sampler.driver.busy:
        answers = [set(a) for a in sampler.answers]
        sampler.step()
        for call, before in enumerate(answers):
            ends += [(call, *key) for key in sampler.answers[call].keys() - before]
    assert [part.prompt.index for part in first.parts] == [1, 0]
    assert [part.prompt.index for part in second.parts] == [1, 0, 2]
    assert ends == [(0, 1, 0), (0, 0, 0)] + [(1, p, s) for p in (1, 0, 2) for s in (0, 1)]


def test_the_youngest_is_preempted_and_the_oldest_never():
    sampler = world(num_pages=12)
    for seed in range(4):
        sampler.submit([(seed, 1, 2, 3)], [settings(36, seed=seed)])
    seen = 0
    while sampler.driver.busy:
        before = sampler.scheduler.live
        sampler.step()
        waiting = [s for _, s in sampler.scheduler._queue]
        gone = [s for s in before if s in waiting]
        if gone:
            assert before[0] not in gone
            assert gone == before[-len(gone) :]
            seen += len(gone)
    assert seen and sampler.scheduler.preemptions >= seen
    sampler.run()


# --- prefill ---


def test_eight_samples_on_three_slots_are_prefilled_once():
    sampler = world(slots=3)
    sampler.submit([tuple(range(11))], [settings(20)], 8)
    sampler.run()
    assert sampler.engine.prefilled_tokens == 10
    assert sampler.scheduler.prefix_hits == 7


@pytest.mark.parametrize("budget", [1, 5, 8, 64])
def test_no_more_than_the_budget_is_prefilled_between_two_decode_calls(budget):
    rng = np.random.default_rng(budget)
    sampler = world(slots=3, prefill_budget=budget)
    sampler.submit([(1, 2)], [settings(80)])
    sampler.step()
    for seed in range(6):
        sampler.submit([prompt_of(rng, 30)], [settings(8, seed=seed)], n=2)
    decoded = 0
    while sampler.scheduler.live and sampler.scheduler.live[0].age == 0:
        sampler.step()
        decoded += 1
    # The first goes on while the others' prompts are prefilled piece by piece.
    assert decoded == 19
    assert 0 < sampler.engine.most_prefilled <= budget
    sampler.run()


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_a_prompt_that_takes_several_calls_is_prefilled_once_for_its_samples(cache):
    sampler = world(slots=8, prefill_budget=5, num_pages=200, prefix_cache=cache)
    sampler.submit([tuple(range(32)), tuple(range(40, 60))], [settings(30)] * 2, 4)
    sampler.run()
    assert sampler.engine.prefilled_tokens == 31 + 19
    assert sampler.scheduler.prefix_hits == 6


def test_without_a_budget_every_slot_is_filled_at_once():
    sampler = world(slots=4, num_pages=200, prefill_budget=0)
    sampler.submit([prompt_of(np.random.default_rng(i), 40) for i in range(4)], [settings(9)] * 4)
    sampler.step()
    assert len(sampler.scheduler.decoding) == 4
    assert sampler.engine.most_prefilled == 4 * 39
    sampler.run()


def test_one_call_begins_with_at_least_one_prompt_however_long():
    sampler = world(slots=2, prefill_budget=7, num_pages=100)
    sampler.submit([tuple(range(40))], [settings(4)])
    for _ in range(5):
        sampler.step()
        assert not sampler.scheduler.decoding
    sampler.step()
    assert sampler.engine.prefilled_tokens == 39
    sampler.run()


def test_a_request_beyond_the_pool_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="needs 5 pages, the pool has 4"):
        world(num_pages=5).submit([tuple(range(10))], [settings(7)])


# --- what ends before its time ---


def test_an_abort_takes_its_own_and_nothing_else():
    sampler = world(slots=3)
    rows = [settings(12, seed=seed) for seed in range(3)]
    first = sampler.submit([tuple(range(9))] * 3, rows, 2)
    second = sampler.submit([tuple(range(7))] * 3, rows, 2)
    sampler.step()
    assert sampler.scheduler.live
    sampler.abort(first)
    assert first.aborted
    assert first.num_done < first.num_total
    sampler.run()
    assert second.num_done == second.num_total
    assert not second.aborted
    sampler.abort(second)
    assert not second.aborted


def test_drop_all_releases_live_waiting_and_kept_pages():
    sampler = world(slots=2)
    for seed in range(3):
        sampler.submit([tuple(range(9))], [settings(12, seed=seed)], 4)
    sampler.step()
    allocator = sampler.scheduler._allocator
    assert allocator.num_used > 0
    sampler.scheduler.drop_all()
    assert allocator.num_used == 0
    assert not sampler.scheduler.busy


def test_new_weights_void_every_page_and_change_no_response():
    sampler = world(slots=3, num_pages=30)
    request = sampler.submit([tuple(range(9))] * 3, [settings(20, seed=s) for s in range(3)], 2)
    for _ in range(3):
        sampler.step()
        sampler.update_weights()
        assert not sampler.scheduler.live
        assert sampler.scheduler._allocator.num_free == 29
        assert sampler.scheduler._allocator.num_idle == 0
    sampler.run()
    versions = {v for p in request.parts for s in p.samples for v, _ in s.versions}
    assert versions == {0, 1, 2, 3}


def test_another_requests_stop_token_ends_nobody():
    sampler = world(slots=4, decode_steps=8)
    rows = [settings(60, seed=seed) for seed in range(2)]
    sampler.submit([(1, 2, 3)] * 2, rows, stops=tuple(range(16)))
    sampler.submit([(1, 2, 3)] * 2, rows, stops=tuple(range(16, 24)))
    third = sampler.submit([(1, 2, 3)] * 2, rows)
    sampler.run()
    assert [len(s.tokens) for part in third.parts for s in part.samples] == [60, 60]


# --- prefixes ---


def prefilled(sampler: FakeSampler, prompt, row, n=1) -> int:
    before = sampler.engine.prefilled_tokens
    sampler.submit([tuple(prompt)], [row], n)
    sampler.run()
    return sampler.engine.prefilled_tokens - before


def test_a_prompt_that_begins_like_another_takes_its_full_pages_over():
    sampler = world()
    shared = list(range(10))
    assert prefilled(sampler, [*shared, 50, 51], settings(6)) == 11
    assert prefilled(sampler, [*shared, 60, 61, 62], settings(6)) == 12 - 8
    assert prefilled(sampler, [9, *shared], settings(6)) == 10
    assert sampler.scheduler.prefix_hits == 0
    assert sampler.scheduler.prefix_hit_tokens == 8
    assert sampler.scheduler.prefix_query_tokens == 11 + 12 + 10


def test_the_same_page_behind_another_beginning_is_another_page():
    sampler = world()
    first, second = [1, 2, 3, 4], [5, 6, 7, 8]
    assert prefilled(sampler, [*first, *second, 9], settings(3)) == 8
    assert prefilled(sampler, [*second, *first, 9], settings(3)) == 8
    assert prefilled(sampler, [*second, *second, 9], settings(3)) == 4


def test_the_next_turn_takes_prompt_and_response_over():
    sampler = world()
    first = tuple(range(9))
    request = sampler.submit([first], [settings(20)])
    sampler.run()
    ((_, wanted),) = sampler.requests
    turn = [*first, *wanted[0, 0], 40, 41]
    assert request.num_done == 1
    # 28 of 29 tokens lie in the cache, 7 full pages.
    assert prefilled(sampler, turn, settings(5)) == len(turn) - 1 - 28


def test_one_problem_twice_in_a_call_is_prefilled_once():
    sampler = world()
    prompt = tuple(range(21))
    rows = [settings(6, seed=1), settings(6, seed=2)]
    sampler.submit([prompt, prompt], rows, 2)
    sampler.run()
    assert sampler.engine.prefilled_tokens == 20
    sampler.update_weights()
    assert prefilled(sampler, prompt, rows[0]) == 20
    sampler.release_pool()
    assert prefilled(sampler, prompt, rows[0]) == 20


def test_a_chain_of_prompts_within_one_plan_is_prefilled_once():
    sampler = world(slots=6, num_pages=120)
    shared = list(range(8))
    middle = [*shared, *range(20, 28)]
    prompts = [(*shared, 1), (*middle, 2), (*middle, 3, 4, 5, 6, 7)]
    sampler.submit(prompts, [settings(5)] * 3, 2)
    sampler.step()
    assert sampler.engine.prefilled_tokens == 8 + (16 - 8) + (20 - 16)
    sampler.run()


def test_the_pages_longest_unused_make_way_and_never_those_in_use():
    sampler = world(slots=1, num_pages=9)
    assert prefilled(sampler, range(12), settings(4)) == 11
    assert prefilled(sampler, range(20, 32), settings(4)) == 11
    assert prefilled(sampler, range(20, 32), settings(4)) == 11 - 8
    assert prefilled(sampler, range(40, 56), settings(4)) == 15
    # Of the two, the one that was used again is the one still there.
    assert prefilled(sampler, range(20, 32), settings(4)) == 11 - 8
    assert prefilled(sampler, range(12), settings(4)) == 11


def test_a_preempted_sequence_finds_its_own_pages_again():
    def run(cache: bool) -> tuple[int, int]:
        sampler = world(num_pages=12, prefix_cache=cache)
        sampler.submit([(1, 2, 3, 4)] * 3, [settings(36, seed=s) for s in range(3)])
        sampler.run()
        return sampler.scheduler.preemptions, sampler.engine.prefilled_tokens

    with_cache, without = run(True), run(False)
    assert with_cache[0] and without[0]
    assert with_cache[1] < without[1]


def test_what_waits_goes_on_at_whichever_shard_has_a_slot():
    config = SamplerConfig(
        slots=4, page_size=4, num_pages=80, max_len=64, decode_steps=4, prefix_cache=False
    )
    sampler = FakeSampler(config, shards=2)
    # By expected tokens the first prompt's four samples belong to the first shard.
    sampler.submit([(1, 2), (3,)], [settings(40), settings(2)], 4, expected=[40, 2])
    sampler.run()
    # 164 + 8 tokens over 4 slots; alone the first shard would take 2 x 40 steps.
    assert sampler.driver.steps <= 52


def test_a_sample_that_was_sent_back_while_prefilling_leaves_nothing_where_it_was():
    scheduler = Scheduler(PageAllocator(12), slots=1, page_size=1, decode_steps=1, prefill_budget=2)
    prompt = Prompt(0, (1, 2, 3, 4, 5), settings(4), to_admit=1)
    sample = Sample(prompt, 0, 0)
    scheduler.add(prompt, [sample])
    scheduler.schedule()
    assert (sample.status, sample.prefilled) == (Status.PREFILLING, 2)
    scheduler.preempt_all()
    scheduler.withdraw(sample)
    assert not scheduler.busy and not scheduler._prompts


def test_a_callback_that_raises_keeps_nothing_from_other_requests():
    sampler, told = world(), []

    def fails(*_):
        raise ZeroDivisionError

    failing = sampler.submit([(1, 2)], [settings(20)], on_tokens=fails)
    sampler.submit([(3, 4)], [settings(8)], on_tokens=lambda p, s, new: told.append(len(new)))
    sampler.driver.step(0, version=0)
    assert not failing.aborted
    sampler.driver.step(0, version=0)  # the other's last tokens come in this step
    assert told == [4, 4]
    assert failing.aborted
    assert isinstance(failing.failure, ZeroDivisionError)


def ahead(num_pages=80, **fields):
    return FakeSampler(
        SamplerConfig(
            slots=4, page_size=4, num_pages=num_pages, max_len=64, decode_steps=4,
            dispatch_ahead=True, **fields,
        )
    )  # fmt: skip


def test_the_next_call_is_on_its_way_before_the_last_is_read():
    sampler = ahead()
    sampler.submit([(1, 2)], [settings(40)], 4)
    sampler.step()
    assert sampler.engine.dispatched_behind == 1
    sampler.run()
    # 40 tokens are 10 calls; the last two end all rows, so nothing goes on behind them.
    assert (sampler.blocks, sampler.engine.dispatched_behind) == (10, 9)


def test_nothing_is_dispatched_behind_where_somebody_waits_or_pages_lack():
    waiting, short = ahead(), ahead(num_pages=12)
    waiting.submit([(1, 2)], [settings(8)], 5)
    waiting.step()
    assert waiting.engine.dispatched_behind == 0
    waiting.run()
    # 11 pages: four rows of 5 tokens hold 8, and 4 tokens more each want 12.
    short.submit([(1, 2)], [settings(10)], 4)
    short.step()
    assert short.engine.dispatched_behind == 0
    short.run()


def test_a_call_on_its_way_is_let_go_where_its_rows_are():
    sampler = ahead()
    first = sampler.submit([(1, 2)], [settings(40)], 2)
    sampler.submit([(3, 4)], [settings(40)], 2)
    sampler.step()
    sampler.abort(first)
    # The newcomer gets the slots, once the call on its way has ended.
    sampler.submit([(5, 6, 7)], [settings(30)], 2)
    sampler.step()
    sampler.update_weights()
    sampler.run()
