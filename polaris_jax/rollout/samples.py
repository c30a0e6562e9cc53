"""The scheduler's records: prompts, their samples, and the plan of one decode call."""

from __future__ import annotations

import dataclasses
import enum

from polaris_jax.rollout.pages import extend_keys, pages_for
from polaris_jax.rollout.settings import PromptParams


@dataclasses.dataclass(eq=False)
class Prompt:
    """A prompt and, until all of its samples are admitted, its prefilled pages.

    Attributes:
        index: index in the caller's list of prompts.
        tokens: token ids.
        params: sampling settings.
        to_admit: number of samples that were never admitted.
        expected: expected number of response tokens of a sample.
        pages: pages that hold all tokens but the last; the prompt holds a reference to each.
        keys: prefix cache keys of the first full pages; the list grows on demand.
    """

    index: int
    tokens: tuple[int, ...]
    params: PromptParams
    to_admit: int
    expected: float = 0.0
    pages: list[int] | None = None
    keys: list[bytes] = dataclasses.field(default_factory=list)

    @property
    def cached(self) -> int:
        """Tokens that a prefill writes; the last token is the input of the first decode step."""
        return len(self.tokens) - 1


class Status(enum.Enum):
    """What a sample is doing.

    WAITING: in the queue, without a slot or pages. PREFILLING: in a slot, while its pages do not
    hold all of its tokens yet. DECODING: in a slot, one token a decode step. ENDED: the sample gets
    no more tokens, because it has stopped, reached its limit or was aborted.
    """

    WAITING = enum.auto()
    PREFILLING = enum.auto()
    DECODING = enum.auto()
    ENDED = enum.auto()


@dataclasses.dataclass(eq=False)
class Sample:
    """One sample of a prompt, and its progress.

    Attributes:
        prompt: the prompt that the sample continues.
        index: index among the prompt's samples.
        age: admission order; a smaller age is older.
        tokens: response token ids so far.
        logprobs: log-probs of these tokens, in nats.
        versions: (version of the weights, number of tokens sampled from it) in order.
        status: what the sample is doing; the scheduler sets it.
        slot: the sample's slot; None while it waits, and once it has ended.
        pages: pages of the sample, in position order.
        admitted: True if the sample has had a slot before.
        stopped: True if a stop token or string has ended the sample.
        prefilled: tokens that the pages hold; counts only while the sample prefills.
        keys: keys of its full pages that `page_keys` knows, if they reach beyond the prompt.
    """

    prompt: Prompt
    index: int
    age: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    versions: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    status: Status = Status.WAITING
    slot: int | None = None
    pages: list[int] = dataclasses.field(default_factory=list)
    prefilled: int = 0
    admitted: bool = False
    stopped: bool = False
    keys: list[bytes] = dataclasses.field(default_factory=list)

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
        """Number of response tokens that are still expected."""
        return max(0.0, self.prompt.expected - len(self.tokens))

    @property
    def cached(self) -> int:
        """Tokens that the pages hold; the next decode step writes the last token."""
        return self.prefilled if self.status is Status.PREFILLING else self.length - 1

    def history(self, start: int, stop: int) -> list[int]:
        """Prompt and response tokens at positions start to stop - 1."""
        prompt = self.prompt.tokens
        shift = len(prompt)
        return [*prompt[start:stop], *self.tokens[max(0, start - shift) : max(0, stop - shift)]]

    def tokens_after(self, steps: int) -> int:
        """Tokens in pages after `steps` more decode steps; the last drawn token is not written."""
        return min(self.length - 1 + steps, self.limit - 1)

    def page_keys(self, tokens: int, page_size: int) -> list[bytes]:
        """Keys of the full pages of the first `tokens` tokens."""
        prompt, pages = self.prompt, tokens // page_size
        extend_keys(prompt.keys, prompt.tokens[: pages * page_size], page_size)
        if len(prompt.keys) >= pages:
            return prompt.keys[:pages]
        # Kept, as a sample that waits for pages is looked up at each plan. Tokens are only added.
        self.keys = self.keys or prompt.keys[:]
        if len(self.keys) < pages:
            extend_keys(self.keys, self.history(0, pages * page_size), page_size)
        return self.keys[:pages]

    def add(self, tokens: list[int], logprobs: list[float], version: int) -> None:
        """Appends tokens that weights of version `version` sampled."""
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
    """Positions `start` to `stop` - 1 of a sample, to be prefilled into its pages."""

    sample: Sample
    start: int
    stop: int


@dataclasses.dataclass
class Plan:
    """The work of the device before the next decode call, in this order.

    Attributes:
        preempted: (former slot, sample) of each preempted sample.
        grown: live samples whose pages changed.
        admitted: samples that got a slot.
        parts: parts to prefill. A part reads only pages that are written, or that earlier parts
            write.
        copies: (from, to) pages to copy after the prefill.
        started: samples whose prefill ends with this plan; they decode from this call on.
    """

    preempted: list[tuple[int, Sample]]
    grown: list[Sample]
    admitted: list[Sample] = dataclasses.field(default_factory=list)
    parts: list[PrefillPart] = dataclasses.field(default_factory=list)
    copies: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    started: list[Sample] = dataclasses.field(default_factory=list)

    @property
    def prefill_tokens(self) -> int:
        """Tokens that the plan prefills."""
        return sum(part.stop - part.start for part in self.parts)


def needed_pages(prompt: Prompt, page_size: int) -> int:
    """Number of pages that the prompt and its longest response take."""
    return pages_for(len(prompt.tokens) + prompt.params.max_tokens, page_size)
