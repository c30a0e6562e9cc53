"""Who is decoded next and with which pages: host only, a function of the requests alone.

First come, first served. When pages run out, prompts that are only kept for later samples are let
go, then the youngest sequence is preempted: its pages are released and it is computed again later.
The oldest sequence always gets on, so there is no deadlock. Nothing here looks at a clock.

The samples of a prompt share its full pages; the page in which the prompt ends is copied, since
each sample goes on writing there.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence as Seq

from polaris_jax.rollout.page_allocator import PageAllocator
from polaris_jax.rollout.paged_kv import pages_for
from polaris_jax.rollout.sampling import PromptParams


@dataclasses.dataclass(eq=False)
class Prompt:
    """A prompt and, while samples of it have not begun, its prefilled pages.

    Attributes:
        index: its place in the caller's list.
        tokens: token ids.
        params: its sampling settings.
        to_begin: samples that were never admitted.
        pages: pages that hold all tokens but the last, kept by a reference of their own.
    """

    index: int
    tokens: tuple[int, ...]
    params: PromptParams
    to_begin: int
    pages: list[int] | None = None

    @property
    def cached(self) -> int:
        """Tokens that a prefill puts into pages: the last one is the first decode step's input."""
        return len(self.tokens) - 1


@dataclasses.dataclass(eq=False)
class Sequence:
    """One sample of a prompt on its way.

    Attributes:
        prompt: what it continues.
        sample: index among the prompt's samples.
        age: admission order; the smaller, the older.
        tokens: response token ids so far.
        logprobs: their log-probs.
        slot: where it is decoded, or None.
        pages: its pages in position order.
        begun: it has been admitted before.
    """

    prompt: Prompt
    sample: int
    age: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    slot: int | None = None
    pages: list[int] = dataclasses.field(default_factory=list)
    begun: bool = False

    @property
    def length(self) -> int:
        """Prompt and response tokens so far."""
        return len(self.prompt.tokens) + len(self.tokens)

    @property
    def limit(self) -> int:
        """Prompt tokens + max_tokens."""
        return len(self.prompt.tokens) + self.prompt.params.max_tokens

    def tokens_after(self, steps: int) -> int:
        """Tokens in the cache after `steps` more decode steps; the last drawn one never enters."""
        return min(self.length - 1 + steps, self.limit - 1)


@dataclasses.dataclass(frozen=True)
class Admission:
    """A sequence that enters a slot.

    Attributes:
        sequence: it; `slot` and `pages` are set.
        start: its cached tokens before this position come from the prompt's shared pages.
        copy: (from, to) page to copy before anything is written, or None.
    """

    sequence: Sequence
    start: int
    copy: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the device has to do before the next decode call.

    Attributes:
        preempted: (slot, sequence) pairs that leave.
        grown: live sequences whose pages changed.
        admitted: sequences that enter.
    """

    preempted: list[tuple[int, Sequence]]
    grown: list[Sequence]
    admitted: list[Admission]


class Scheduler:
    """Slots, pages and the queue of one rollout on one data shard.

    Args:
        allocator: of the shard's pages.
        slots: of the shard.
        page_size: tokens of a page.
        decode_steps: steps of a decode call at most.
        first_slot: number of the shard's first slot among all.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        *,
        slots: int,
        page_size: int,
        decode_steps: int,
        first_slot: int = 0,
    ):
        self._allocator = allocator
        self._first_slot = first_slot
        self._page_size = page_size
        self._steps = decode_steps
        self._slots: list[Sequence | None] = [None] * slots
        self._queue: list[tuple[int, Sequence]] = []
        self._prompts: list[Prompt] = []
        self._expired: list[int] = []
        self.preemptions = 0
        self.prefix_hits = 0

    @property
    def live(self) -> list[Sequence]:
        """Sequences in slots, oldest first."""
        return sorted((s for s in self._slots if s is not None), key=lambda s: s.age)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """There is something left to do."""
        return bool(self._queue) or any(s is not None for s in self._slots)

    def add(self, prompt: Prompt, sequences: Seq[Sequence]) -> None:
        """Queues the samples of a prompt.

        Raises:
            ValueError: the prompt and its response can never fit into the pool.
        """
        wanted = pages_for(len(prompt.tokens) + prompt.params.max_tokens, self._page_size)
        if wanted > self._allocator.num_usable:
            raise ValueError(
                f"prompt {prompt.index}: needs {wanted} pages, the pool has "
                f"{self._allocator.num_usable}"
            )
        self._prompts.append(prompt)
        for sequence in sequences:
            heapq.heappush(self._queue, (sequence.age, sequence))

    def schedule(self) -> Plan:
        """Gives every live sequence the pages of the next decode call, then admits waiting ones."""
        grown, preempted = self._grow()
        admitted: list[Admission] = []
        free_slots = [self._first_slot + i for i, s in enumerate(self._slots) if s is None]
        live = len(self._slots) - len(free_slots)
        for slot in free_slots:
            if not self._queue:
                break
            sequence = self._queue[0][1]
            # A page of reserve for each live sequence keeps it from being preempted at once.
            admission = self._admit(sequence, slot, reserve=live)
            if admission is None and live == 0:
                admission = self._admit_alone(sequence, slot)
            if admission is None:
                break
            heapq.heappop(self._queue)
            admitted.append(admission)
            live += 1
        # Only now: a page freed earlier could be given away before it was copied from.
        self._allocator.release(self._expired)
        self._expired = []
        return Plan(preempted, grown, admitted)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out of its slot and releases its pages."""
        assert sequence.slot is not None
        self._slots[sequence.slot - self._first_slot] = None
        sequence.slot = None
        self._allocator.release(sequence.pages)
        sequence.pages = []

    def drop_all(self) -> None:
        """Releases everything; nothing is live or waiting afterwards."""
        for sequence in self.live:
            self.finish(sequence)
        for prompt in self._prompts:
            self._let_go(prompt)
        self._allocator.release(self._expired)
        self._expired, self._queue, self._prompts = [], [], []

    def _grow(self) -> tuple[list[Sequence], list[tuple[int, Sequence]]]:
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
                    preempted.append(self._preempt())
        return [s for s in grown if s.slot is not None], preempted

    def _preempt(self) -> tuple[int, Sequence]:
        """Sends the youngest live sequence back to the queue."""
        sequence = self.live[-1]
        slot = sequence.slot
        assert slot is not None
        self.finish(sequence)
        heapq.heappush(self._queue, (sequence.age, sequence))
        self.preemptions += 1
        return slot, sequence

    def _let_go_youngest(self) -> bool:
        """Drops the kept pages of the youngest prompt that has any; False when none has."""
        for prompt in reversed(self._prompts):
            if prompt.pages is not None:
                self._let_go(prompt)
                return True
        return False

    def _let_go(self, prompt: Prompt) -> None:
        if prompt.pages is not None:
            self._allocator.release(prompt.pages)
            prompt.pages = None

    def _admit_alone(self, sequence: Sequence, slot: int) -> Admission | None:
        """Admits the head of the queue when nobody is live: everything kept makes way for it."""
        for prompt in reversed(self._prompts):
            if prompt is not sequence.prompt:
                self._let_go(prompt)
        admission = self._admit(sequence, slot, reserve=0)
        if admission is None:
            self._let_go(sequence.prompt)
            admission = self._admit(sequence, slot, reserve=0)
        assert admission is not None, "a request that fits the pool fits when it is alone"
        return admission

    def _admit(self, sequence: Sequence, slot: int, *, reserve: int) -> Admission | None:
        prompt = sequence.prompt
        kept = prompt.pages
        full = prompt.cached // self._page_size if kept is not None else 0
        own = pages_for(sequence.tokens_after(self._steps), self._page_size) - full
        if self._allocator.num_free < own + reserve:
            return None
        pages = self._allocator.allocate(own)
        assert pages is not None
        copy, start = None, 0
        if kept is not None:
            start = prompt.cached
            self._allocator.share(kept[:full])
            if len(kept) > full:
                copy = (kept[full], pages[0])
            pages = kept[:full] + pages
            self.prefix_hits += 1
        sequence.pages, sequence.slot = pages, slot
        self._slots[slot - self._first_slot] = sequence
        if not sequence.begun:
            sequence.begun = True
            prompt.to_begin -= 1
        self._keep_or_expire(prompt, pages)
        return Admission(sequence, start, copy)

    def _keep_or_expire(self, prompt: Prompt, pages: list[int]) -> None:
        if prompt.to_begin == 0:
            if prompt.pages is not None:
                self._expired += prompt.pages
                prompt.pages = None
            if prompt in self._prompts:
                self._prompts.remove(prompt)
        elif prompt.pages is None and prompt.cached > 0:
            prompt.pages = pages[: pages_for(prompt.cached, self._page_size)]
            self._allocator.share(prompt.pages)
