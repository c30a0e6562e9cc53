"""The scheduler against a simulated device that knows which tokens lie in which page."""

import numpy as np
import pytest

from polaris_jax.rollout.page_allocator import PageAllocator
from polaris_jax.rollout.paged_kv import pages_for
from polaris_jax.rollout.sampling import PromptParams
from polaris_jax.rollout.scheduler import Prompt, Scheduler, Sequence


def settings(max_tokens: int) -> PromptParams:
    return PromptParams(1.0, 1.0, 0, 0.0, max_tokens, 0)


class PageWorld:
    """Runs plans like the sampler, over pages that remember which token was written where.

    Every decode step checks that the sequence still finds all of its own tokens in its pages.
    """

    def __init__(self, *, slots: int, num_pages: int, page_size: int, steps: int, rng):
        self.allocator = PageAllocator(num_pages)
        self.scheduler = Scheduler(
            self.allocator, slots=slots, page_size=page_size, decode_steps=steps
        )
        self.page_size, self.steps, self.rng = page_size, steps, rng
        self.content = np.full((num_pages, page_size), -1, np.int64)
        self.lengths: dict[int, int] = {}
        self.prefills = 0
        self.done: list[Sequence] = []

    def add(self, prompt_len: int, max_tokens: int, n: int, index: int) -> None:
        tokens = tuple(int(t) for t in self.rng.integers(0, 1000, prompt_len))
        prompt = Prompt(index, tokens, settings(max_tokens), to_begin=n)
        samples = [Sequence(prompt, i, age=index * 100 + i) for i in range(n)]
        for sample in samples:
            self.lengths[sample.age] = int(self.rng.integers(1, max_tokens + 1))
        self.scheduler.add(prompt, samples)

    def write(self, sequence: Sequence, start: int, tokens) -> None:
        for at, token in enumerate(tokens, start):
            page = sequence.pages[at // self.page_size]
            assert page != 0
            self.content[page, at % self.page_size] = token

    def run_block(self) -> None:
        plan = self.scheduler.schedule()
        for phase in (0, 1):
            for admission in plan.admitted:
                sequence = admission.sequence
                if (admission.start > 0) != bool(phase):
                    continue
                tokens = [*sequence.prompt.tokens, *sequence.tokens][admission.start : -1]
                self.prefills += admission.start == 0 and not sequence.tokens and bool(tokens)
                self.write(sequence, admission.start, tokens)
            if phase == 0:
                for admission in plan.admitted:
                    if admission.copy:
                        source, target = admission.copy
                        self.content[target] = self.content[source]
        for sequence in self.scheduler.live:
            for _ in range(self.steps):
                everything = [*sequence.prompt.tokens, *sequence.tokens]
                self.write(sequence, len(everything) - 1, everything[-1:])
                self.check(sequence, everything)
                sequence.tokens.append(int(self.rng.integers(0, 1000)))
                if len(sequence.tokens) == self.lengths[sequence.age]:
                    self.done.append(sequence)
                    self.scheduler.finish(sequence)
                    break

    def check(self, sequence: Sequence, everything: list[int]) -> None:
        found = [
            self.content[sequence.pages[at // self.page_size], at % self.page_size]
            for at in range(len(everything))
        ]
        assert found == everything

    def run(self) -> None:
        blocks = 0
        while self.scheduler.busy:
            self.run_block()
            self.check_references()
            blocks += 1
            assert blocks < 10_000, "no progress"

    def check_references(self) -> None:
        """Every reference is a live sequence's or a kept prompt's."""
        held = [p for s in self.scheduler.live for p in s.pages]
        held += [p for prompt in self.scheduler._prompts for p in prompt.pages or ()]
        for page in range(1, self.allocator.num_usable + 1):
            assert self.allocator.references(page) == held.count(page)


@pytest.mark.parametrize("seed", range(12))
def test_500_requests_end_without_a_leak_and_read_only_their_own_tokens(seed):
    rng = np.random.default_rng(seed)
    page_size, steps = int(rng.choice([1, 4, 16])), int(rng.integers(1, 9))
    longest = pages_for(40 + 40, page_size)
    world = PageWorld(
        slots=int(rng.choice([1, 2, 3, 16])),
        num_pages=1 + longest + int(rng.integers(0, 3 * longest)),
        page_size=page_size,
        steps=steps,
        rng=rng,
    )
    count = 0
    while count < 500:
        n = int(rng.choice([1, 1, 2, 8]))
        world.add(int(rng.integers(1, 41)), int(rng.integers(1, 41)), n, index=count)
        count += n
        if rng.random() < 0.3:
            world.run_block()
    world.run()
    assert world.allocator.num_used == 0
    assert len(world.done) == count


def test_eight_samples_on_three_slots_are_prefilled_once():
    world = PageWorld(slots=3, num_pages=40, page_size=4, steps=4, rng=np.random.default_rng(0))
    world.add(11, 20, n=8, index=0)
    world.run()
    assert world.prefills == 1
    assert world.scheduler.prefix_hits == 7
    assert world.allocator.num_used == 0


def test_the_youngest_is_preempted_and_the_oldest_never():
    rng = np.random.default_rng(1)
    world = PageWorld(slots=4, num_pages=12, page_size=4, steps=4, rng=rng)
    for index in range(4):
        world.add(4, 36, n=1, index=index)
    world.lengths = dict.fromkeys(world.lengths, 36)
    preempted = []
    while world.scheduler.busy:
        before = world.scheduler.live
        world.run_block()
        gone = [s for s in before if s.slot is None and s not in world.done]
        if gone:
            assert before[0] not in gone
            assert gone == before[-len(gone) :]
        preempted += gone
    assert preempted and world.scheduler.preemptions >= len(preempted)
    assert [s.age for s in world.done] == sorted(s.age for s in world.done)


def test_admission_is_first_come_first_served():
    world = PageWorld(slots=2, num_pages=60, page_size=4, steps=2, rng=np.random.default_rng(2))
    for index in range(6):
        world.add(3, 5, n=1, index=index)
    begun = []
    while world.scheduler.busy:
        plan_before = {s.age for s in world.scheduler.live}
        world.run_block()
        now = {s.age for s in world.scheduler.live} | {s.age for s in world.done}
        begun += sorted(now - plan_before - set(begun))
    assert begun == sorted(begun)


def test_a_request_beyond_the_pool_is_refused_with_the_numbers():
    world = PageWorld(slots=2, num_pages=5, page_size=4, steps=2, rng=np.random.default_rng(3))
    with pytest.raises(ValueError, match="needs 5 pages, the pool has 4"):
        world.add(10, 7, n=1, index=0)


def test_drop_all_releases_live_waiting_and_kept_pages():
    world = PageWorld(slots=2, num_pages=60, page_size=4, steps=2, rng=np.random.default_rng(4))
    for index in range(3):
        world.add(9, 12, n=4, index=index)
    world.lengths = dict.fromkeys(world.lengths, 12)
    world.run_block()
    assert world.allocator.num_used > 0
    world.scheduler.drop_all()
    assert world.allocator.num_used == 0
    assert not world.scheduler.busy
