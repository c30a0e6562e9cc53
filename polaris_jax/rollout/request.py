"""One request: its prompts and samples, their data shards, its stop strings, and its reports."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import numpy as np
from jax.sharding import Mesh

from polaris_jax import sharding
from polaris_jax.records import Response
from polaris_jax.rollout.balance import deal
from polaris_jax.rollout.samples import Prompt, Sample
from polaris_jax.rollout.settings import PromptParams

OnProgress = Callable[[int, int, int], None]
OnTokens = Callable[[int, int, list[int]], None]
Ended = tuple[int, int, Response]
Decode = Callable[[list[int]], str]
Tokens = Sequence[int] | np.ndarray

# What decoding may change at the beginning of a piece: a stripped space, a character cut in two.
MARGIN_CHARS = 8


@dataclasses.dataclass(frozen=True)
class Part:
    """A prompt and those of its samples that one data shard decodes.

    Attributes:
        prompt: the prompt in that shard's scheduler.
        samples: some or all of its samples.
    """

    prompt: Prompt
    samples: list[Sample]


class Request:
    """Prompts that were submitted together, and their responses so far.

    Attributes:
        parts: parts of the request, the longest expected first, then in the order of the prompts.
            Before `deal` all samples of a prompt are one part.
        num_total: number of responses, including those that had ended before the request.
        num_prompt_tokens: tokens of the prompts, each prompt counted once.
        num_done: number of responses that have ended.
        num_tokens: response tokens that the request was given so far.
        aborted: True if the request gets no more tokens.
        failure: the error that a callback or `decode` of the request raised. The request is aborted
            then, and its callbacks are not called again. None: no error.
        prompts: token ids of each prompt.
        temperatures: one temperature a prompt.
        scores_prompts: True if the caller wants the log-probs of the prompts' own tokens.
        prompt_logprobs: these log-probs in nats, once they are computed.
        scored: True if the present weights computed `prompt_logprobs`.
        history: earlier responses to each prompt, from which drafts are taken; token ids.
    """

    def __init__(
        self,
        prompts: Sequence[tuple[int, ...]],
        rows: Sequence[PromptParams],
        n: int,
        stop_ids: Sequence[int] = (),
        *,
        stop_strings: Sequence[str] = (),
        decode: Decode | None = None,
        scores_prompts: bool = False,
        expected_tokens: Sequence[float] | None = None,
        begun: Sequence[Sequence[Response]] | None = None,
        samples: Sequence[Sequence[int]] | None = None,
        history: Sequence[Sequence[Tokens]] | None = None,
        on_progress: OnProgress | None = None,
        on_tokens: OnTokens | None = None,
    ):
        """See `Sampler.submit`. Samples count their ages from 0; the driver adds an offset."""
        expected = [row.max_tokens for row in rows] if expected_tokens is None else expected_tokens
        order = list(range(len(prompts)))
        if expected_tokens is not None:
            order.sort(key=lambda i: -expected_tokens[i])
        ages = itertools.count()
        self.parts: list[Part] = []
        self._begun = (
            [[Response((), (), "unfinished")] * n] * len(prompts) if begun is None else begun
        )
        asked = [range(n)] * len(prompts) if samples is None else samples
        for index in order:
            wanted = [sample for sample in asked[index] if not self._begun[index][sample].ended]
            if not wanted:
                continue
            prompt = Prompt(
                index,
                tuple(prompts[index]),
                rows[index],
                to_admit=len(wanted),
                expected=expected[index],
            )
            self.parts.append(
                Part(
                    prompt,
                    [
                        Sample(prompt, sample, next(ages), *_so_far(self._begun[index][sample]))
                        for sample in wanted
                    ],
                )
            )
        self.history = [()] * len(prompts) if history is None else history
        self.stop_ids = frozenset(stop_ids)
        self.prompts = tuple(prompts)
        self.temperatures = [row.temperature for row in rows]
        self.scores_prompts = scores_prompts
        self.prompt_logprobs: list[tuple[float, ...]] | None = None
        self.scored = False
        self._scores_at_end: dict[tuple[int, int], tuple[float, ...]] = {}
        self._stop_strings = tuple(stop_strings)
        self._decode = decode if stop_strings else None
        self.num_total = sum(map(len, asked))
        self.num_prompt_tokens = sum(map(len, prompts))
        self.num_done = self.num_total - next(ages)
        self.num_tokens = 0
        self.aborted = False
        self.failure: Exception | None = None
        self._on_progress = on_progress
        self._on_tokens = on_tokens
        self._news: deque[tuple[int, int, list[int]]] = deque()
        self._ended: list[Sample] = []

    @property
    def done(self) -> bool:
        """True if no sample is live or waiting."""
        return self.aborted or self.num_done == self.num_total

    def ended_texts(self, prompt: int) -> list[Tokens]:
        """Token ids of responses to a prompt that ended before this request, the oldest first."""
        begun = [response.token_ids for response in self._begun[prompt] if response.ended]
        return [*self.history[prompt], *begun]

    def deal(self, loads: Sequence[int]) -> list[int]:
        """Cuts the prompts' samples into parts by data shard; returns the shard of each part.

        Args:
            loads: tokens that each data shard still has to compute; see `balance.deal`.
        """
        dealt = deal(
            [(len(p.prompt.tokens), [s.expected_left for s in p.samples]) for p in self.parts],
            list(loads),
            # If there are fewer prompts than shards, every shard gets samples.
            at_least=-(-len(loads) // max(1, len(self.parts))),
        )
        parts, shards = [], []
        for part, places in zip(self.parts, dealt, strict=True):
            for shard in dict.fromkeys(places):
                own = [s for s, k in zip(part.samples, places, strict=True) if k == shard]
                prompt = dataclasses.replace(part.prompt, to_admit=len(own), keys=[])
                for sample in own:
                    sample.prompt = prompt
                parts.append(Part(prompt, own))
                shards.append(shard)
        self.parts = parts
        return shards

    def split(self, sample: Sample) -> Part:
        """Moves one sample that has no slot into a new part, for another shard."""
        (at,) = (i for i, part in enumerate(self.parts) if part.prompt is sample.prompt)
        old = self.parts[at]
        self.parts[at] = Part(old.prompt, [s for s in old.samples if s is not sample])
        sample.prompt = dataclasses.replace(
            old.prompt, to_admit=int(not sample.admitted), pages=None, keys=list(old.prompt.keys)
        )
        self.parts.append(Part(sample.prompt, [sample]))
        return self.parts[-1]

    def take(
        self, sample: Sample, tokens: list[int], logprobs: list[float], *, version: int
    ) -> bool:
        """Gives a sample its next tokens, up to the one that ends it; True when it has ended.

        Raises:
            Exception: whatever `decode` raises. Nothing has changed then.
        """
        count = self._count_to_stop(sample, tokens)
        sample.stopped = count is not None
        new = tokens[:count]
        sample.add(new, logprobs[:count], version)
        ended = sample.stopped or len(sample.tokens) >= sample.prompt.params.max_tokens
        self.num_tokens += len(new)
        self.num_done += ended
        if new and self._on_tokens is not None:
            self._news.append((sample.prompt.index, sample.index, new))
        if ended:
            self._ended.append(sample)
            if self.prompt_logprobs is not None:  # later weights will give other values
                prompt = sample.prompt.index
                self._scores_at_end[prompt, sample.index] = self.prompt_logprobs[prompt]
        return ended

    def _count_to_stop(self, sample: Sample, tokens: list[int]) -> int | None:
        """Number of a sample's next tokens up to its first stop; None if there is no stop."""
        count = next((i for i, t in enumerate(tokens, 1) if t in self.stop_ids), None)
        if self._decode is None or not tokens:
            return count
        before = len(sample.tokens)
        grown = [*sample.tokens, *tokens[:count]]
        at = completing_token(grown, before, self._stop_strings, self._decode)
        return count if at is None else at + 1 - before

    def deliver(self) -> None:
        """Calls the callbacks with the tokens and counts since the last call."""
        while self._news and self._on_tokens is not None:
            self._on_tokens(*self._news.popleft())  # if this raises, the rest stays queued
        if self._on_progress is not None:
            self._on_progress(self.num_done, self.num_total, self.num_tokens)

    def take_ended(self) -> list[Ended]:
        """(prompt index, sample index, response) of each response ended since the last call."""
        ended, self._ended = self._ended, []
        return [(s.prompt.index, s.index, self._response(s)) for s in ended]

    def responses(self) -> list[list[Response]]:
        """All responses, [prompt][sample]; some may be unfinished."""
        groups = [list(group) for group in self._begun]
        for part in self.parts:
            for sample in part.samples:
                groups[part.prompt.index][sample.index] = self._response(sample)
        return groups

    def _response(self, sample: Sample) -> Response:
        scores, index = self.prompt_logprobs, sample.prompt.index
        at_end = self._scores_at_end.get((index, sample.index))
        spent = len(sample.tokens) >= sample.prompt.params.max_tokens
        return Response(
            tuple(sample.tokens),
            tuple(sample.logprobs),
            "stop" if sample.stopped else "length" if spent else "unfinished",
            prompt_logprobs=at_end if at_end or scores is None else scores[index],
            versions=tuple(sample.versions),
        )


def _so_far(response: Response) -> tuple[list[int], list[float], list[tuple[int, int]]]:
    """The tokens, log-probs and versions that a sample continues."""
    return list(response.token_ids), list(response.logprobs), list(response.versions)


class RolloutAborted(RuntimeError):
    """The request was aborted; all of its pages have been released."""


class RolloutPaused(RuntimeError):
    """The sampler was paused before the request had ended; the request stays live.

    Attributes:
        request: the live request. After `resume`, continue it with `drive` or drop it with `abort`.
    """

    def __init__(self, request: Request):
        super().__init__(
            f"this sampler is paused with {request.num_done} of {request.num_total} responses "
            "done: call resume, then drive or abort this error's `request`"
        )
        self.request = request


class Steps(Protocol):
    """The part of a sampler that steps."""

    paused: bool

    def step(self) -> bool:
        """See `Sampler.step`."""
        ...

    def abort(self, request: Request) -> None:
        """See `Sampler.abort`."""
        ...


def driven(
    sampler: Steps, request: Request, should_abort: Callable[[], bool] | None, mesh: Mesh | None
) -> Generator[Ended, None, None]:
    """See `Sampler.drive`; `mesh` is the sampler's."""
    try:
        while not request.done:
            if sampler.paused:
                raise RolloutPaused(request)
            if sharding.greatest(int(should_abort is not None and should_abort()), mesh):
                raise RolloutAborted(
                    f"rollout aborted with {request.num_done} of {request.num_total} responses done"
                )
            if not sampler.step() and not request.done:
                raise ValueError(
                    f"request: {request.num_done} of {request.num_total} responses done, and this "
                    "sampler does not have it; drive it with the sampler that it was submitted to"
                )
            yield from request.take_ended()
        # Another caller's step may have ended the last responses.
        yield from request.take_ended()
        if request.failure is not None:
            raise request.failure
        if request.aborted:
            raise RolloutAborted(
                f"the request was aborted with {request.num_done} of {request.num_total} "
                "responses done"
            )
    except RolloutPaused:
        raise
    except BaseException:  # also if the caller closes the generator early
        sampler.abort(request)
        raise


def completing_token(
    tokens: Sequence[int], first_new: int, strings: Sequence[str], decode: Decode
) -> int | None:
    """The index of the token with which the text first contains one of the strings.

    Text is decoded from a few tokens before the new tokens, not from the first token on. So
    decoding must be local: the text of a part must be the same part of the complete text, except
    for the first few characters.

    Args:
        tokens: token ids of the response.
        first_new: index of the first new token; the text before it contains none of the strings.
        strings: non-empty strings.
        decode: the text of token ids.

    Returns:
        The index, or None if the text contains none of the strings.
    """
    start = _context_start(tokens, first_new, max(map(len, strings)) + MARGIN_CHARS, decode)

    def found(end: int) -> bool:
        text = decode(list(tokens[start:end]))
        return any(string in text for string in strings)

    if not found(len(tokens)):
        return None
    return next(end for end in range(first_new + 1, len(tokens) + 1) if found(end)) - 1


def _context_start(tokens: Sequence[int], first_new: int, chars: int, decode: Decode) -> int:
    """An index from which the tokens before `first_new` have `chars` characters or more, else 0."""
    back = chars
    while back < first_new and len(decode(list(tokens[first_new - back : first_new]))) < chars:
        back *= 2
    return max(0, first_new - back)
