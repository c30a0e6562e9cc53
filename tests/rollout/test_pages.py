"""The allocator's invariants after every action, whatever the actions."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from polaris_jax.rollout.pages import TRASH_PAGE, PageAllocator

NUM_PAGES = 9


class AllocatorMachine(RuleBasedStateMachine):
    """Holders are lists of pages, each a reference to every page in it."""

    def __init__(self):
        super().__init__()
        self.allocator = PageAllocator(NUM_PAGES)
        self.holders: list[list[int]] = []

    @rule(count=st.integers(0, 5))
    def allocate(self, count):
        free = self.allocator.num_free
        pages = self.allocator.allocate(count)
        if count > free:
            assert pages is None
            assert self.allocator.num_free == free
        else:
            held = {p for h in self.holders for p in h}
            assert len(set(pages)) == count and not held & set(pages)
            self.holders.append(pages)

    @rule(data=st.data())
    def share(self, data):
        if self.holders:
            pages = data.draw(st.sampled_from(self.holders))
            self.allocator.share(pages)
            self.holders.append(list(pages))

    @rule(data=st.data())
    def release(self, data):
        if self.holders:
            index = data.draw(st.integers(0, len(self.holders) - 1))
            self.allocator.release(self.holders.pop(index))

    @invariant()
    def counts_add_up(self):
        held = [p for h in self.holders for p in h]
        for page in range(NUM_PAGES):
            assert self.allocator.references(page) == held.count(page)
        assert TRASH_PAGE not in held
        assert self.allocator.num_used == len(set(held))
        assert self.allocator.num_used + self.allocator.num_free == NUM_PAGES - 1
        assert self.allocator.peak_used >= self.allocator.num_used


AllocatorMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestAllocator = AllocatorMachine.TestCase


def test_a_free_page_is_neither_shared_nor_released():
    allocator = PageAllocator(4)
    pages = allocator.allocate(2)
    allocator.release(pages)
    with pytest.raises(ValueError, match="released more often"):
        allocator.release(pages)
    with pytest.raises(ValueError, match="is free"):
        allocator.share(pages)


def test_kept_pages_make_way_last_of_a_sequence_first_and_can_be_shared_until_then():
    allocator = PageAllocator(5)
    evicted = []
    allocator.on_evict = evicted.append
    pages = allocator.allocate(3)
    for page in pages:
        allocator.keep(page)
    allocator.release(pages)
    assert (allocator.num_used, allocator.num_free, allocator.num_idle) == (0, 4, 3)
    allocator.allocate(2)  # the one that is free, then the idle sequence's last
    assert evicted == [pages[2]]
    allocator.share(pages[:1])
    assert (allocator.num_used, allocator.num_idle) == (3, 1)
    with pytest.raises(ValueError, match="is free"):
        allocator.keep(pages[1])
    allocator.forget(pages[1])
    assert (allocator.num_free, allocator.num_idle) == (1, 0)
    with pytest.raises(ValueError, match="is free"):
        allocator.share(pages[1:2])


def test_a_pool_needs_a_page_beside_the_trash_page():
    with pytest.raises(ValueError, match="at least 2"):
        PageAllocator(1)
