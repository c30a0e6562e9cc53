"""The prompts of one call: dealt to data shards, told to the caller as they grow and end."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Sequence

from polaris_jax.records import Response
from polaris_jax.rollout.sampling import PromptParams
from polaris_jax.rollout.sequences import Prompt
from polaris_jax.rollout.sequences import Sequence as Sample
from polaris_jax.rollout.stop_strings import Decode, completing_token

OnProgress = Callable[[int, int, int], None]
OnTokens = Callable[[int, int, list[int]], None]
Ended = tuple[int, int, Response]


def deal(costs: Sequence[int], shards: int, loads: Sequence[int] | None = None) -> list[int]:
    """A shard for each request, in order, by the tokens it may take: the least loaded so far.

    A function of the requests alone; ties go to the lower shard.

    Args:
        costs: tokens of each request.
        shards: how many there are.
        loads: tokens that each shard has before; None: none has any.
    """
    loads, dealt = list(loads or [0] * shards), []
    for cost in costs:
        shard = min(range(shards), key=lambda s: (loads[s], s))
        loads[shard] += cost
        dealt.append(shard)
    return dealt


@dataclasses.dataclass(frozen=True)
class Part:
    """A prompt with those of its samples that one data shard decodes.

    Attributes:
        prompt: the prompt, as that shard's scheduler knows it.
        samples: some or all of its samples.
    """

    prompt: Prompt
    samples: list[Sample]

    @property
    def cost(self) -> int:
        """Tokens that they are expected to take yet, the prompt's included."""
        return round(len(self.prompt.tokens) + sum(s.expected_left for s in self.samples))


class Request:
    """Prompts that were submitted together, and what has come of them.

    Attributes:
        parts: longest expected first, then in the order of the prompts.
        num_total: responses in all, those that had ended before included.
        num_prompt_tokens: of its prompts, each counted once.
        num_done: responses that have ended.
        num_tokens: response tokens that it was given so far.
        aborted: no more comes of it.
        failure: what a callback or `decode` of its own raised; it is aborted for that, and its
            callbacks are not called again. None: nothing.
        prompts: token ids.
        temperatures: one a prompt.
        scores_prompts: somebody asks for the log-probs of the prompts' own tokens.
        prompt_logprobs: these, once they are computed.
        scored: they are computed, and by the present weights.
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
        shards: int = 1,
        on_progress: OnProgress | None = None,
        on_tokens: OnTokens | None = None,
    ):
        """See `Sampler.submit`; the driver adds the ages of earlier requests to its samples'."""
        expected = [row.max_tokens for row in rows] if expected_tokens is None else expected_tokens
        order = list(range(len(prompts)))
        if expected_tokens is not None:
            order.sort(key=lambda i: -expected_tokens[i])
        # Fewer prompts than shards: the samples of one go to several.
        most_cuts = -(-shards // max(1, len(prompts)))
        ages = itertools.count()
        self.parts: list[Part] = []
        self._begun = (
            [[Response((), (), "unfinished")] * n] * len(prompts) if begun is None else begun
        )
        for index in order:
            wanted = [sample for sample in range(n) if not self._begun[index][sample].ended]
            cuts = min(len(wanted), most_cuts)
            for cut in range(cuts):
                own = wanted[len(wanted) * cut // cuts : len(wanted) * (cut + 1) // cuts]
                prompt = Prompt(
                    index,
                    tuple(prompts[index]),
                    rows[index],
                    to_begin=len(own),
                    expected=expected[index],
                )
                samples = [
                    Sample(prompt, sample, next(ages), *_so_far(self._begun[index][sample]))
                    for sample in own
                ]
                self.parts.append(Part(prompt, samples))
        self.stop_ids = frozenset(stop_ids)
        self.prompts = tuple(prompts)
        self.temperatures = [row.temperature for row in rows]
        self.scores_prompts = scores_prompts
        self.prompt_logprobs: list[tuple[float, ...]] | None = None
        self.scored = False
        self._scores_at_end: dict[tuple[int, int], tuple[float, ...]] = {}
        self._stop_strings = tuple(stop_strings)
        self._decode = decode if stop_strings else None
        self.num_total = n * len(prompts)
        self.num_prompt_tokens = sum(map(len, prompts))
        self.num_done = sum(response.ended for group in self._begun for response in group)
        self.num_tokens = 0
        self.aborted = False
        self.failure: Exception | None = None
        self._on_progress = on_progress
        self._on_tokens = on_tokens
        self._news: deque[tuple[int, int, list[int]]] = deque()
        self._ended: list[Sample] = []

    @property
    def done(self) -> bool:
        """Nothing of it is live or waiting."""
        return self.aborted or self.num_done == self.num_total

    def split(self, sample: Sample) -> Part:
        """Makes a part of its own of one waiting sample, for another shard."""
        (at,) = (i for i, part in enumerate(self.parts) if part.prompt is sample.prompt)
        old = self.parts[at]
        self.parts[at] = Part(old.prompt, [s for s in old.samples if s is not sample])
        sample.prompt = dataclasses.replace(
            old.prompt, to_begin=int(not sample.begun), pages=None, keys=list(old.prompt.keys)
        )
        self.parts.append(Part(sample.prompt, [sample]))
        return self.parts[-1]

    def take(
        self, sample: Sample, tokens: list[int], logprobs: list[float], *, version: int
    ) -> bool:
        """Gives a sample its next tokens, up to the one that ends it; True when it has ended.

        Raises:
            Exception: whatever `decode` raises; nothing has changed then.
        """
        count = self._count_to_stop(sample, tokens)
        sample.stopped = count is not None
        new = tokens[:count]
        sample.add(new, logprobs[:count], version)
        ended = sample.stopped or len(sample.tokens) >= sample.prompt.params.max_tokens
        self.num_tokens += len(new)
        self.num_done += ended
        if new and self._on_tokens is not None:
            self._news.append((sample.prompt.index, sample.sample, new))
        if ended:
            self._ended.append(sample)
            if self.prompt_logprobs is not None:  # later weights have others
                prompt = sample.prompt.index
                self._scores_at_end[prompt, sample.sample] = self.prompt_logprobs[prompt]
        return ended

    def _count_to_stop(self, sample: Sample, tokens: list[int]) -> int | None:
        """How many of a sample's next tokens go up to its first stop; None where there is none."""
        count = next((i for i, t in enumerate(tokens, 1) if t in self.stop_ids), None)
        if self._decode is None or not tokens:
            return count
        before = len(sample.tokens)
        grown = [*sample.tokens, *tokens[:count]]
        at = completing_token(grown, before, self._stop_strings, self._decode)
        return count if at is None else at + 1 - before

    def deliver(self) -> None:
        """Tells the caller what has come since the last time."""
        while self._news and self._on_tokens is not None:
            self._on_tokens(*self._news.popleft())  # it may raise: the rest is told the next time
        if self._on_progress is not None:
            self._on_progress(self.num_done, self.num_total, self.num_tokens)

    def take_ended(self) -> list[Ended]:
        """(prompt index, sample index, response) of what has ended since the last time."""
        ended, self._ended = self._ended, []
        return [(s.prompt.index, s.sample, self._response(s)) for s in ended]

    def responses(self) -> list[list[Response]]:
        """All responses, [prompt][sample], as far as they have come."""
        groups = [list(group) for group in self._begun]
        for part in self.parts:
            for sample in part.samples:
                groups[part.prompt.index][sample.sample] = self._response(sample)
        return groups

    def _response(self, sample: Sample) -> Response:
        scores, index = self.prompt_logprobs, sample.prompt.index
        at_end = self._scores_at_end.get((index, sample.sample))
        spent = len(sample.tokens) >= sample.prompt.params.max_tokens
        return Response(
            tuple(sample.tokens),
            tuple(sample.logprobs),
            "stop" if sample.stopped else "length" if spent else "unfinished",
            prompt_logprobs=at_end if at_end or scores is None else scores[index],
            versions=tuple(sample.versions),
        )


def _so_far(response: Response) -> tuple[list[int], list[float], list[tuple[int, int]]]:
    """What a sample goes on from: tokens, log-probs, versions."""
    return list(response.token_ids), list(response.logprobs), list(response.versions)
