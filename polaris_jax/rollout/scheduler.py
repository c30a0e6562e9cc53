"""Schedules the samples and pages of each decode call, on the host.

A schedule depends on the requests alone, never on a clock. Samples are admitted in the order of
their age, which the caller sets (longest expected first, then first come first served). Between two
decode calls at most `prefill_budget` tokens are prefilled, so a long prompt may take several calls
while other samples decode. If pages run out, the pages of prompts that are only kept for later
samples are released first. Then the youngest sample is preempted: its pages are released, and the
sample is computed again later. The oldest sample always advances, so there is no deadlock.

The samples of a prompt share its full pages. The page in which the prompt ends is copied, because
each sample continues to write there. With a prefix cache, a sample also shares the full pages of
any other sample that begins alike, even if these pages are not written yet. So a plan lists the
prefill in an order in which pages are written before they are read.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Sequence

from polaris_jax.rollout.pages import PageAllocator, PrefixCache, pages_for
from polaris_jax.rollout.samples import (
    Plan,
    PrefillPart,
    Prompt,
    Sample,
    Status,
    needed_pages,
)

ROOM_CALLS = 8  # decode calls for which a moved sample and its new neighbours should find pages


class Scheduler:
    """Slots, pages and the queue of one data shard.

    Args:
        allocator: allocator of the shard's pages.
        slots: number of slots of the shard.
        page_size: tokens of a page.
        decode_steps: maximum number of steps of a decode call.
        first_slot: index of the shard's first slot among the slots of all shards.
        prefill_budget: maximum number of tokens prefilled between two decode calls; 0: no limit.
        cache: prefix cache of the same allocator; None: only samples of one prompt share pages.

    Attributes:
        preemptions: samples that were preempted because pages ran out.
        voided: samples that were preempted because their keys and values became void.
        prefix_hits: samples that shared a prompt that another sample had prefilled.
        prefix_query_tokens: tokens that admitted samples needed in their pages.
        prefix_hit_tokens: those of these tokens that were in pages already.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        *,
        slots: int,
        page_size: int,
        decode_steps: int,
        first_slot: int = 0,
        prefill_budget: int = 0,
        cache: PrefixCache | None = None,
    ):
        self._allocator = allocator
        self._cache = cache
        self._first_slot = first_slot
        self._page_size = page_size
        self._steps = decode_steps
        self._prefill_budget = prefill_budget
        self._slots: list[Sample | None] = [None] * slots
        self._queue: list[tuple[int, Sample]] = []
        self._prompts: list[Prompt] = []
        self._expired: list[int] = []
        self.reset_counts()

    def reset_counts(self) -> None:
        """Sets every count to 0."""
        self.preemptions = self.voided = self.prefix_hits = 0
        self.prefix_query_tokens = self.prefix_hit_tokens = 0

    def take_counts(self, former: Scheduler) -> None:
        """Continues the counts of a scheduler that this one replaces."""
        self.preemptions, self.voided = former.preemptions, former.voided
        self.prefix_hits = former.prefix_hits
        self.prefix_query_tokens = former.prefix_query_tokens
        self.prefix_hit_tokens = former.prefix_hit_tokens

    @property
    def live(self) -> list[Sample]:
        """Samples in slots, oldest first."""
        return sorted((s for s in self._slots if s is not None), key=lambda s: s.age)

    @property
    def decoding(self) -> list[Sample]:
        """Live samples with nothing left to prefill, oldest first."""
        return [s for s in self.live if s.status is Status.DECODING]

    @property
    def waiting(self) -> int:
        """Samples that wait for a slot."""
        return len(self._queue)

    @property
    def tokens(self) -> int:
        """Prompt and response tokens so far of the live and the waiting samples."""
        live = sum(sample.length for sample in self._slots if sample is not None)
        return live + sum(sample.length for _, sample in self._queue)

    @property
    def prefilling(self) -> bool:
        """True if a sample waits, or is in a slot with tokens left to prefill."""
        return bool(self._queue) or any(
            s is not None and s.status is Status.PREFILLING for s in self._slots
        )

    @property
    def load(self) -> int:
        """Tokens still to compute: those expected of the samples, and prompts to prefill."""
        samples = [*self.live, *(sample for _, sample in self._queue)]
        to_prefill = {
            s.prompt for s in samples if s.status is not Status.DECODING and s.prompt.pages is None
        }
        left = sum(s.expected_left for s in samples)
        return round(left) + sum(len(prompt.tokens) for prompt in to_prefill)

    @property
    def busy(self) -> bool:
        """True if a sample is live or waiting."""
        return bool(self._queue) or any(s is not None for s in self._slots)

    def add(self, prompt: Prompt, samples: Sequence[Sample]) -> None:
        """Queues the samples of a prompt.

        Raises:
            ValueError: the prompt and its longest response do not fit into the pool.
        """
        wanted = needed_pages(prompt, self._page_size)
        if wanted > self._allocator.num_usable:
            raise ValueError(
                f"prompt {prompt.index}: needs {wanted} pages, the pool has "
                f"{self._allocator.num_usable}"
            )
        self._prompts.append(prompt)
        for sample in samples:
            heapq.heappush(self._queue, (sample.age, sample))

    def free_slots(self) -> int:
        """Number of free slots beyond those that waiting samples will take."""
        return max(0, sum(s is None for s in self._slots) - len(self._queue))

    def has_room(self, sample: Sample) -> bool:
        """True if the next plan can admit a sample without taking pages that others soon need."""
        live = sum(s is not None for s in self._slots)
        needed = pages_for(sample.tokens_after(self._steps), self._page_size)
        return self._allocator.num_free >= needed + (1 + ROOM_CALLS) * (live + 1)

    def oldest_without_slot(self) -> Sample | None:
        """The oldest waiting sample that no free slot is left for; None if there is none."""
        free = sum(s is None for s in self._slots)
        if len(self._queue) <= free:
            return None
        return heapq.nsmallest(free + 1, self._queue)[-1][1]

    def withdraw(self, sample: Sample) -> None:
        """Takes a waiting sample out of the queue, so that another shard can serve it."""
        self._queue = [item for item in self._queue if item[1] is not sample]
        heapq.heapify(self._queue)
        if not sample.admitted:
            sample.prompt.to_admit -= 1
        if sample.prompt.to_admit == 0:  # no sample that begins here will release its pages
            self._release_prompt(sample.prompt)
            self._prompts = [p for p in self._prompts if p is not sample.prompt]

    def schedule(self) -> Plan:
        """Plans the next decode call: pages for every live sample, then admissions."""
        plan = self._grow()
        budget = self._prefill_budget or sys.maxsize
        for sample in self.live:
            if sample.status is Status.PREFILLING:
                budget -= self._prefill(sample, plan, budget)
        for slot, occupant in enumerate(self._slots, self._first_slot):
            if occupant is not None:
                continue
            if not self._queue:
                break
            sample = self._queue[0][1]
            # One reserved page for each live sample avoids an immediate preemption.
            live = sum(s is not None for s in self._slots)
            tokens = self._admit(sample, slot, plan, budget, reserve=live)
            if tokens is None and live == 0:
                self._release_other_prompts(sample.prompt)
                tokens = self._admit(sample, slot, plan, budget, reserve=0)
                if tokens is None:
                    self._release_prompt(sample.prompt)
                    tokens = self._admit(sample, slot, plan, budget, reserve=0)
                assert tokens is not None, "a request that fits the pool fits when it is alone"
            if tokens is None:
                break
            heapq.heappop(self._queue)
            budget -= tokens
        # Released last: a page released earlier could be reused before the plan copies it.
        self._allocator.release(self._expired)
        self._expired = []
        return plan

    def grow_ahead(self, steps: int) -> list[Sample] | None:
        """Gives every live sample the pages of its next `steps` steps, without a preemption.

        Returns:
            The samples whose pages changed. None, and no change, if a sample waits or prefills,
            or if pages are missing.
        """
        live = self.live
        if self._queue or not all(s.status is Status.DECODING for s in live):
            return None
        missing = [
            (s, pages_for(s.tokens_after(steps), self._page_size) - len(s.pages)) for s in live
        ]
        grown = [(s, count) for s, count in missing if count > 0]
        if sum(count for _, count in grown) > self._allocator.num_free:
            return None
        for sample, count in grown:
            pages = self._allocator.allocate(count)
            assert pages is not None
            sample.pages = [*sample.pages, *pages]
        return [s for s, _ in grown]

    def release(self, sample: Sample, status: Status = Status.ENDED) -> int:
        """Releases a live sample's slot and pages; the cache keeps full pages.

        Args:
            sample: a sample in a slot.
            status: the sample's status from now on.

        Returns:
            The slot.
        """
        slot = sample.slot
        assert slot is not None
        self._add_to_cache(sample)
        self._slots[slot - self._first_slot] = None
        self._allocator.release(sample.pages)
        sample.slot, sample.pages, sample.status = None, [], status
        return slot

    def abort(self, prompt: Prompt, samples: Sequence[Sample]) -> list[int]:
        """Drops a prompt and its samples; returns the slots that are freed."""
        slots = [self.release(sample) for sample in samples if sample.slot is not None]
        for sample in samples:
            sample.status = Status.ENDED
        gone = set(map(id, samples))
        self._queue = [item for item in self._queue if id(item[1]) not in gone]
        heapq.heapify(self._queue)
        self._release_prompt(prompt)
        self._prompts = [p for p in self._prompts if p is not prompt]
        return slots

    def preempt_all(self) -> list[int]:
        """Preempts every live sample and forgets all pages; returns the slots that are freed."""
        slots = [self._preempt_youngest()[0] for _ in self.live]
        self.voided += len(slots)
        for prompt in self._prompts:
            self._release_prompt(prompt)
        if self._cache is not None:
            self._cache.clear()
        return slots

    def drop_all(self) -> None:
        """Drops every sample and releases all pages; nothing is live or waiting afterwards."""
        for sample in self.live:
            self.release(sample)
        for prompt in self._prompts:
            self._release_prompt(prompt)
        self._allocator.release(self._expired)
        self._expired, self._queue, self._prompts = [], [], []

    def _grow(self) -> Plan:
        grown: list[Sample] = []
        preempted: list[tuple[int, Sample]] = []
        for sample in self.live:
            while sample.status is not Status.WAITING:
                wanted = pages_for(sample.tokens_after(self._steps), self._page_size)
                missing = max(0, wanted - len(sample.pages))
                pages = self._allocator.allocate(missing)
                if pages is not None:
                    if pages:
                        sample.pages = [*sample.pages, *pages]
                        grown.append(sample)
                    break
                if not self._release_youngest_prompt():
                    preempted.append(self._preempt_youngest())
                    self.preemptions += 1
        return Plan(preempted, [s for s in grown if s.status is Status.DECODING])

    def _preempt_youngest(self) -> tuple[int, Sample]:
        """Puts the youngest live sample back into the queue; returns (its slot, sample)."""
        sample = self.live[-1]
        slot = self.release(sample, Status.WAITING)
        heapq.heappush(self._queue, (sample.age, sample))
        return slot, sample

    def _release_youngest_prompt(self) -> bool:
        """Releases the kept pages of the youngest prompt that has any; False if none has."""
        for prompt in reversed(self._prompts):
            if prompt.pages is not None:
                self._release_prompt(prompt)
                return True
        return False

    def _release_prompt(self, prompt: Prompt) -> None:
        if prompt.pages is not None:
            self._allocator.release(prompt.pages)
            prompt.pages = None

    def _release_other_prompts(self, prompt: Prompt) -> None:
        """Releases the kept pages of every prompt but this one."""
        for other in reversed(self._prompts):
            if other is not prompt:
                self._release_prompt(other)

    def _admit(
        self, sample: Sample, slot: int, plan: Plan, budget: int, *, reserve: int
    ) -> int | None:
        """Gives the sample a slot, pages and as much prefill as the budget allows.

        Returns the number of tokens to prefill. Returns None, and changes nothing, if pages or
        budget are missing. While one sample prefills the prompt, it uses up the budget, so the
        other samples of the prompt wait.
        """
        prompt, wanted = sample.prompt, sample.length - 1
        kept = prompt.pages if not sample.tokens else None
        shared = self._cached_pages(sample) if kept is None else kept[: wanted // self._page_size]
        start = len(shared) * self._page_size if kept is None else wanted
        own = pages_for(sample.tokens_after(self._steps), self._page_size) - len(shared)
        idle = sum(self._allocator.references(page) == 0 for page in shared)
        if self._allocator.num_free - idle < own + reserve or (budget < 1 and start < wanted):
            return None
        self._allocator.share(shared)
        pages = self._allocator.allocate(own)
        assert pages is not None
        if kept is not None:
            if len(kept) > len(shared):
                plan.copies.append((kept[-1], pages[0]))
            self.prefix_hits += 1
        self.prefix_query_tokens += wanted
        self.prefix_hit_tokens += start
        sample.pages, sample.slot = [*shared, *pages], slot
        self._slots[slot - self._first_slot] = sample
        if not sample.admitted:
            sample.admitted = True
            prompt.to_admit -= 1
        plan.admitted.append(sample)
        sample.status, sample.prefilled = Status.PREFILLING, start
        return self._prefill(sample, plan, budget)

    def _cached_pages(self, sample: Sample) -> list[int]:
        """The known pages that hold the beginning of the sample, or will after their prefill."""
        full, kept = (sample.length - 1) // self._page_size, sample.prompt.pages or []
        pages = kept[: min(full, sample.prompt.cached // self._page_size)]
        if self._cache is not None:
            known = self._cache.find(sample.page_keys(full * self._page_size, self._page_size))
            pages = max(pages, known, key=len)
        return list(pages)

    def _prefill(self, sample: Sample, plan: Plan, budget: int) -> int:
        """Plans the next part of the sample's prefill; returns its number of tokens."""
        start, end = sample.cached, sample.length - 1
        stop = min(end, start + budget)
        if stop > start:
            plan.parts.append(PrefillPart(sample, start, stop))
        sample.prefilled = stop
        if stop == end:
            sample.status = Status.DECODING
        self._add_to_cache(sample)
        if sample.status is Status.DECODING:
            plan.started.append(sample)
            self._keep_or_expire(sample)
        return stop - start

    def _add_to_cache(self, sample: Sample) -> None:
        """Adds the full pages of a sample to the prefix cache."""
        if self._cache is not None:
            keys = sample.page_keys(sample.cached, self._page_size)
            for key, page in zip(keys, sample.pages, strict=False):
                self._cache.add(key, page)

    def _keep_or_expire(self, sample: Sample) -> None:
        prompt = sample.prompt
        if prompt.to_admit == 0:
            if prompt.pages is not None:
                self._expired += prompt.pages
                prompt.pages = None
            self._prompts = [p for p in self._prompts if p is not prompt]
        elif prompt.pages is None and prompt.cached > 0:
            prompt.pages = sample.pages[: pages_for(prompt.cached, self._page_size)]
            self._allocator.share(prompt.pages)
