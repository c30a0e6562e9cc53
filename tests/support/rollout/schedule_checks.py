"""What holds of scheduler, pages and prefix cache after every action, as one checkable function."""

from collections import Counter

from polaris_jax.rollout.pages import TRASH_PAGE, PageAllocator, PrefixCache, pages_for
from polaris_jax.rollout.samples import Status
from polaris_jax.rollout.scheduler import Scheduler


def check_schedule(scheduler: Scheduler) -> None:
    """Returns when every invariant holds.

    Raises:
        AssertionError: pages are lost, shared without a reference or twice in one sample; a
            sample is in two places or in none.
    """
    live = [s for s in scheduler._slots if s is not None]
    waiting = [s for _, s in scheduler._queue]
    assert len({id(s) for s in [*live, *waiting]}) == len(live) + len(waiting)
    for index, sample in enumerate(scheduler._slots):
        if sample is None:
            continue
        assert sample.slot == scheduler._first_slot + index
        assert len(set(sample.pages)) == len(sample.pages)
        assert len(sample.pages) >= pages_for(sample.cached, scheduler._page_size)
        assert sample.admitted
        assert sample.status in (Status.PREFILLING, Status.DECODING)
    for sample in waiting:
        assert sample.slot is None
        assert sample.status is Status.WAITING
        assert not sample.pages
    assert not scheduler._expired
    held = Counter(p for s in live for p in s.pages)
    held += Counter(p for prompt in scheduler._prompts for p in prompt.pages or ())
    check_pages(scheduler._allocator, held, scheduler._cache)


def check_pages(allocator: PageAllocator, held: Counter[int], cache: PrefixCache | None) -> None:
    """Each page is free, idle or referenced, and referenced as often as it is held."""
    free, idle = allocator._free, list(allocator._idle)
    assert TRASH_PAGE not in held
    assert len(set(free)) == len(free)
    assert not set(free) & set(idle)
    assert not (set(free) | set(idle)) & set(held)
    assert len(free) + len(idle) + len(held) == allocator.num_usable
    for page in range(allocator.num_usable + 1):
        assert allocator.references(page) == held[page], page
    assert set(idle) <= allocator._kept
    assert not set(free) & allocator._kept
    if cache is None:
        assert not allocator._kept
        return
    assert {cache._page_of[key]: key for key in cache._page_of} == cache._key_of
    assert set(cache._key_of) == allocator._kept
