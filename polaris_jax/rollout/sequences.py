"""What the scheduler moves about: prompts, their samples, and the plan of one decode call."""

from __future__ import annotations

import dataclasses

from polaris_jax.rollout.paged_kv import pages_for
from polaris_jax.rollout.prefix_cache import extend_keys
from polaris_jax.rollout.sampling import PromptParams


@dataclasses.dataclass(eq=False)
class Prompt:
    """A prompt and, while samples of it have not begun, its prefilled pages.

    Attributes:
        index: its place in the caller's list.
        tokens: token ids.
        params: its sampling settings.
        to_begin: samples that were never admitted.
        expected: response tokens that a sample of it is expected to take.
        pages: pages that hold all tokens but the last, kept by a reference of their own.
        keys: of its full pages, as far as they were asked for.
    """

    index: int
    tokens: tuple[int, ...]
    params: PromptParams
    to_begin: int
    expected: float = 0.0
    pages: list[int] | None = None
    keys: list[bytes] = dataclasses.field(default_factory=list)

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
        versions: (version of the weights, tokens sampled from it) in order.
        slot: where it is decoded, or None.
        pages: its pages in position order.
        begun: it has been admitted before.
        stopped: a stop token or string has ended it.
        prefill_at: the position that its prefill goes on from; None when nothing is left of it.
    """

    prompt: Prompt
    sample: int
    age: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    versions: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    slot: int | None = None
    pages: list[int] = dataclasses.field(default_factory=list)
    begun: bool = False
    stopped: bool = False
    prefill_at: int | None = None

    @property
    def length(self) -> int:
        """Prompt and response tokens so far."""
        return len(self.prompt.tokens) + len(self.tokens)

    @property
    def limit(self) -> int:
        """Prompt tokens + max_tokens."""
        return len(self.prompt.tokens) + self.prompt.params.max_tokens

    @property
    def expected_left(self) -> float:
        """Tokens that it is expected to take yet."""
        return max(0.0, self.prompt.expected - len(self.tokens))

    @property
    def cached(self) -> int:
        """Tokens that its pages hold; the last token enters with the next decode step."""
        return self.length - 1 if self.prefill_at is None else self.prefill_at

    @property
    def decodes(self) -> bool:
        """It is in a slot and nothing is left to prefill."""
        return self.slot is not None and self.prefill_at is None

    def history(self, start: int, stop: int) -> list[int]:
        """Prompt and response tokens at positions start to stop - 1."""
        prompt = self.prompt.tokens
        shift = len(prompt)
        return [*prompt[start:stop], *self.tokens[max(0, start - shift) : max(0, stop - shift)]]

    def tokens_after(self, steps: int) -> int:
        """Tokens in the cache after `steps` more decode steps; the last drawn one never enters."""
        return min(self.length - 1 + steps, self.limit - 1)

    def page_keys(self, tokens: int, page_size: int) -> list[bytes]:
        """Keys of the full pages of its first `tokens` tokens."""
        prompt, pages = self.prompt, tokens // page_size
        extend_keys(prompt.keys, prompt.tokens[: pages * page_size], page_size)
        keys = prompt.keys[:pages]
        if len(keys) < pages:
            extend_keys(keys, self.history(0, pages * page_size), page_size)
        return keys

    def add(self, tokens: list[int], logprobs: list[float], version: int) -> None:
        """Appends tokens that weights of `version` gave."""
        self.tokens += tokens
        self.logprobs += logprobs
        if not tokens:
            return
        if self.versions and self.versions[-1][0] == version:
            version, before = self.versions.pop()
            self.versions.append((version, before + len(tokens)))
        else:
            self.versions.append((version, len(tokens)))


@dataclasses.dataclass(frozen=True)
class PrefillPart:
    """Tokens from `start` to `stop` - 1 that go into the pages of a sequence."""

    sequence: Sequence
    start: int
    stop: int


@dataclasses.dataclass
class Plan:
    """What the device has to do before the next decode call, in this order.

    Attributes:
        preempted: (slot, sequence) pairs that leave.
        grown: live sequences whose pages changed.
        admitted: sequences that got a slot.
        parts: to prefill, in an order in which each reads only what those before it write.
        copies: (from, to) pages, once everything is prefilled.
        started: sequences whose prefill is done by now, so that they decode from this call on.
    """

    preempted: list[tuple[int, Sequence]]
    grown: list[Sequence]
    admitted: list[Sequence] = dataclasses.field(default_factory=list)
    parts: list[PrefillPart] = dataclasses.field(default_factory=list)
    copies: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    started: list[Sequence] = dataclasses.field(default_factory=list)

    @property
    def prefill_tokens(self) -> int:
        """Tokens that the plan prefills."""
        return sum(part.stop - part.start for part in self.parts)


def needed_pages(prompt: Prompt, page_size: int) -> int:
    """Pages that the prompt and its longest response take."""
    return pages_for(len(prompt.tokens) + prompt.params.max_tokens, page_size)
