"""Schedules the sequences and pages of each decode call, on the host.

A schedule depends on the requests alone, never on a clock. Sequences are admitted in the order of
their age, which the caller sets (longest expected first, then first come first served). Between two
decode calls at most `prefill_budget` tokens are prefilled, so a long prompt may take several calls
while other sequences decode. If pages run out, the pages of prompts that are only kept for later
samples are released first. Then the youngest sequence is preempted: its pages are released, and the
sequence is computed again later. The oldest sequence always advances, so there is no deadlock.

The samples of a prompt share its full pages. The page in which the prompt ends is copied, because
each sample continues to write there. With a prefix cache, a sequence also shares the full pages of
any other sequence that begins alike, even if these pages are not written yet. So a plan lists the
prefill in an order in which pages are written before they are read.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Sequence as Seq

from polaris_jax.rollout.pages import PageAllocator, PrefixCache, pages_for
from polaris_jax.rollout.sequences import Plan, PrefillPart, Prompt, Sequence, needed_pages

__all__ = ["Plan", "Prompt", "Scheduler", "Sequence"]


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
        preemptions: sequences that were preempted because pages ran out.
        voided: sequences that were preempted because their keys and values became void.
        prefix_hits: samples that shared a prompt that another sample had prefilled.
        prefix_query_tokens: tokens that admitted sequences needed in their pages.
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
        self._slots: list[Sequence | None] = [None] * slots
        self._queue: list[tuple[int, Sequence]] = []
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
    def live(self) -> list[Sequence]:
        """Sequences in slots, oldest first."""
        return sorted((s for s in self._slots if s is not None), key=lambda s: s.age)

    @property
    def decoding(self) -> list[Sequence]:
        """Live sequences with nothing left to prefill, oldest first."""
        return [s for s in self.live if s.decodes]

    @property
    def waiting(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._queue)

    @property
    def load(self) -> int:
        """Tokens still to compute: those expected of the samples, and prompts to prefill."""
        samples = [*self.live, *(sequence for _, sequence in self._queue)]
        to_prefill = {s.prompt for s in samples if not s.decodes and s.prompt.pages is None}
        left = sum(s.expected_left for s in samples)
        return round(left) + sum(len(prompt.tokens) for prompt in to_prefill)

    @property
    def busy(self) -> bool:
        """True if a sequence is live or waiting."""
        return bool(self._queue) or any(s is not None for s in self._slots)

    def add(self, prompt: Prompt, sequences: Seq[Sequence]) -> None:
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
        for sequence in sequences:
            heapq.heappush(self._queue, (sequence.age, sequence))

    def free_slots(self) -> int:
        """Number of free slots beyond those that waiting sequences will take."""
        return max(0, sum(s is None for s in self._slots) - len(self._queue))

    def oldest_to_spare(self) -> Sequence | None:
        """The oldest waiting sequence that no free slot is left for; None if there is none."""
        free = sum(s is None for s in self._slots)
        if len(self._queue) <= free:
            return None
        return heapq.nsmallest(free + 1, self._queue)[-1][1]

    def withdraw(self, sequence: Sequence) -> None:
        """Takes a waiting sequence out of the queue, so that another shard can serve it."""
        self._queue = [item for item in self._queue if item[1] is not sequence]
        heapq.heapify(self._queue)
        if not sequence.begun:
            sequence.prompt.to_begin -= 1
        if sequence.prompt.to_begin == 0:  # no sample that begins here will release its pages
            self._let_go(sequence.prompt)
            self._prompts = [p for p in self._prompts if p is not sequence.prompt]

    def schedule(self) -> Plan:
        """Plans the next decode call: pages for every live sequence, then admissions."""
        plan = self._grow()
        budget = self._prefill_budget or sys.maxsize
        for sequence in self.live:
            if not sequence.decodes:
                budget -= self._prefill(sequence, plan, budget)
        for slot, occupant in enumerate(self._slots, self._first_slot):
            if occupant is not None:
                continue
            if not self._queue:
                break
            sequence = self._queue[0][1]
            # One reserved page for each live sequence avoids an immediate preemption.
            live = sum(s is not None for s in self._slots)
            tokens = self._admit(sequence, slot, plan, budget, reserve=live)
            if tokens is None and live == 0:
                self._make_room(sequence.prompt)
                tokens = self._admit(sequence, slot, plan, budget, reserve=0)
                if tokens is None:
                    self._let_go(sequence.prompt)
                    tokens = self._admit(sequence, slot, plan, budget, reserve=0)
                assert tokens is not None, "a request that fits the pool fits when it is alone"
            if tokens is None:
                break
            heapq.heappop(self._queue)
            budget -= tokens
        # Released last: a page released earlier could be reused before the plan copies it.
        self._allocator.release(self._expired)
        self._expired = []
        return plan

    def grow_ahead(self, steps: int) -> list[Sequence] | None:
        """Gives every live sequence the pages of its next `steps` steps, without a preemption.

        Returns:
            The sequences whose pages changed. None, and no change, if a sequence waits or prefills,
            or if pages are missing.
        """
        live = self.live
        if self._queue or not all(s.decodes for s in live):
            return None
        missing = [
            (s, pages_for(s.tokens_after(steps), self._page_size) - len(s.pages)) for s in live
        ]
        grown = [(s, count) for s, count in missing if count > 0]
        if sum(count for _, count in grown) > self._allocator.num_free:
            return None
        for sequence, count in grown:
            pages = self._allocator.allocate(count)
            assert pages is not None
            sequence.pages = [*sequence.pages, *pages]
        return [s for s, _ in grown]

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out of its slot and releases its pages; the cache keeps full pages."""
        assert sequence.slot is not None
        self._remember(sequence)
        self._slots[sequence.slot - self._first_slot] = None
        sequence.slot = sequence.prefill_at = None
        self._allocator.release(sequence.pages)
        sequence.pages = []

    def abort(self, prompt: Prompt, sequences: Seq[Sequence]) -> list[int]:
        """Drops a prompt and its samples; returns the slots that are freed."""
        left = []
        for sequence in sequences:
            if sequence.slot is not None:
                left.append(sequence.slot)
                self.finish(sequence)
        gone = set(map(id, sequences))
        self._queue = [item for item in self._queue if id(item[1]) not in gone]
        heapq.heapify(self._queue)
        self._let_go(prompt)
        self._prompts = [p for p in self._prompts if p is not prompt]
        return left

    def preempt_all(self) -> list[int]:
        """Preempts every live sequence and forgets all pages; returns the slots that are freed."""
        left = [self._send_back()[0] for _ in self.live]
        self.voided += len(left)
        for prompt in self._prompts:
            self._let_go(prompt)
        if self._cache is not None:
            self._cache.clear()
        return left

    def drop_all(self) -> None:
        """Drops every sequence and releases all pages; nothing is live or waiting afterwards."""
        for sequence in self.live:
            self.finish(sequence)
        for prompt in self._prompts:
            self._let_go(prompt)
        self._allocator.release(self._expired)
        self._expired, self._queue, self._prompts = [], [], []

    def _grow(self) -> Plan:
        grown: list[Sequence] = []
        preempted: list[tuple[int, Sequence]] = []
        for sequence in self.live:
            while sequence.slot is not None:
                wanted = pages_for(sequence.tokens_after(self._steps), self._page_size)
                missing = max(0, wanted - len(sequence.pages))
                pages = self._allocator.allocate(missing)
                if pages is not None:
                    if pages:
                        sequence.pages = [*sequence.pages, *pages]
                        grown.append(sequence)
                    break
                if not self._let_go_youngest():
                    preempted.append(self._send_back())
                    self.preemptions += 1
        return Plan(preempted, [s for s in grown if s.decodes])

    def _send_back(self) -> tuple[int, Sequence]:
        """Puts the youngest live sequence back into the queue; returns (its slot, sequence)."""
        sequence = self.live[-1]
        slot = sequence.slot
        assert slot is not None
        self.finish(sequence)
        heapq.heappush(self._queue, (sequence.age, sequence))
        return slot, sequence

    def _let_go_youngest(self) -> bool:
        """Releases the kept pages of the youngest prompt that has any; False if none has."""
        for prompt in reversed(self._prompts):
            if prompt.pages is not None:
                self._let_go(prompt)
                return True
        return False

    def _let_go(self, prompt: Prompt) -> None:
        if prompt.pages is not None:
            self._allocator.release(prompt.pages)
            prompt.pages = None

    def _make_room(self, prompt: Prompt) -> None:
        """Releases the kept pages of every prompt but this one."""
        for other in reversed(self._prompts):
            if other is not prompt:
                self._let_go(other)

    def _admit(
        self, sequence: Sequence, slot: int, plan: Plan, budget: int, *, reserve: int
    ) -> int | None:
        """Gives the sequence a slot, pages and as much prefill as the budget allows.

        Returns the number of tokens to prefill. Returns None, and changes nothing, if pages or
        budget are missing. While one sample prefills the prompt, it uses up the budget, so the
        other samples of the prompt wait.
        """
        prompt, wanted = sequence.prompt, sequence.length - 1
        whole = prompt.pages if not sequence.tokens else None
        shared = self._found(sequence) if whole is None else whole[: wanted // self._page_size]
        start = len(shared) * self._page_size if whole is None else wanted
        own = pages_for(sequence.tokens_after(self._steps), self._page_size) - len(shared)
        idle = sum(self._allocator.references(page) == 0 for page in shared)
        if self._allocator.num_free - idle < own + reserve or (budget < 1 and start < wanted):
            return None
        self._allocator.share(shared)
        pages = self._allocator.allocate(own)
        assert pages is not None
        if whole is not None:
            if len(whole) > len(shared):
                plan.copies.append((whole[-1], pages[0]))
            self.prefix_hits += 1
        self.prefix_query_tokens += wanted
        self.prefix_hit_tokens += start
        sequence.pages, sequence.slot = [*shared, *pages], slot
        self._slots[slot - self._first_slot] = sequence
        if not sequence.begun:
            sequence.begun = True
            prompt.to_begin -= 1
        plan.admitted.append(sequence)
        sequence.prefill_at = start
        return self._prefill(sequence, plan, budget)

    def _found(self, sequence: Sequence) -> list[int]:
        """The known pages that hold the beginning of the sequence, or will after their prefill."""
        full, kept = (sequence.length - 1) // self._page_size, sequence.prompt.pages or []
        pages = kept[: min(full, sequence.prompt.cached // self._page_size)]
        if self._cache is not None:
            known = self._cache.find(sequence.page_keys(full * self._page_size, self._page_size))
            pages = max(pages, known, key=len)
        return list(pages)

    def _prefill(self, sequence: Sequence, plan: Plan, budget: int) -> int:
        """Plans the next part of the sequence's prefill; returns its number of tokens."""
        start, end = sequence.cached, sequence.length - 1
        stop = min(end, start + budget)
        if stop > start:
            plan.parts.append(PrefillPart(sequence, start, stop))
        sequence.prefill_at = stop if stop < end else None
        self._remember(sequence)
        if sequence.decodes:
            plan.started.append(sequence)
            self._keep_or_expire(sequence)
        return stop - start

    def _remember(self, sequence: Sequence) -> None:
        """Adds the full pages of a sequence to the prefix cache."""
        if self._cache is not None:
            keys = sequence.page_keys(sequence.cached, self._page_size)
            for key, page in zip(keys, sequence.pages, strict=False):
                self._cache.add(key, page)

    def _keep_or_expire(self, sequence: Sequence) -> None:
        prompt = sequence.prompt
        if prompt.to_begin == 0:
            if prompt.pages is not None:
                self._expired += prompt.pages
                prompt.pages = None
            self._prompts = [p for p in self._prompts if p is not prompt]
        elif prompt.pages is None and prompt.cached > 0:
            prompt.pages = sequence.pages[: pages_for(prompt.cached, self._page_size)]
            self._allocator.share(prompt.pages)
