"""The requests of one `generate` call: dealt to data shards, told to the caller as they grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polaris_jax.records import Response
from polaris_jax.rollout.sampling import PromptParams
from polaris_jax.rollout.scheduler import Prompt
from polaris_jax.rollout.scheduler import Sequence as Sample

OnProgress = Callable[[int, int, int], None]
OnTokens = Callable[[int, int, list[int]], None]


def deal(costs: Sequence[int], shards: int) -> list[int]:
    """A shard for each request, in order, by the tokens it may take: the least loaded so far.

    A function of the requests alone; ties go to the lower shard.
    """
    loads, dealt = [0] * shards, []
    for cost in costs:
        shard = min(range(shards), key=lambda s: (loads[s], s))
        loads[shard] += cost
        dealt.append(shard)
    return dealt


class Run:
    """The requests of one `generate` call and what has come of them."""

    def __init__(
        self,
        prompts: list[tuple[int, ...]],
        rows: list[PromptParams],
        n: int,
        stop_ids: frozenset[int],
        *,
        shards: int,
        on_progress: OnProgress | None,
        on_tokens: OnTokens | None,
    ):
        self.requests: list[tuple[int, Prompt, list[Sample]]] = []
        # Fewer prompts than shards: the samples of one go to several.
        parts = min(n, -(-shards // max(1, len(prompts))))
        for index, (tokens, row) in enumerate(zip(prompts, rows, strict=True)):
            for part in range(parts):
                own = range(n * part // parts, n * (part + 1) // parts)
                prompt = Prompt(index, tokens, row, to_begin=len(own))
                samples = [Sample(prompt, sample, age=index * n + sample) for sample in own]
                self.requests.append((0, prompt, samples))
        costs = [
            len(p.tokens) + len(samples) * p.params.max_tokens for _, p, samples in self.requests
        ]
        self.requests = [
            (shard, prompt, samples)
            for shard, (_, prompt, samples) in zip(deal(costs, shards), self.requests, strict=True)
        ]
        self.longest_prompt = max((len(p) for p in prompts), default=1)
        self.num_total = n * len(prompts)
        self._num_prompts = len(prompts)
        self.num_done = 0
        self.num_tokens = 0
        self._stop_ids = stop_ids
        self._on_progress = on_progress
        self._on_tokens = on_tokens
        self._news: list[tuple[int, int, list[int]]] = []

    def note(self, sample: Sample, new: list[int], ended: bool) -> None:
        """Counts new tokens and keeps them for the caller."""
        self.num_tokens += len(new)
        self.num_done += ended
        if self._on_tokens is not None:
            self._news.append((sample.prompt.index, sample.sample, new))

    def deliver(self) -> None:
        """Tells the caller what has come since the last time."""
        news, self._news = self._news, []
        if self._on_tokens is not None:
            for prompt_index, sample_index, new in news:
                self._on_tokens(prompt_index, sample_index, new)
        if self._on_progress is not None:
            self._on_progress(self.num_done, self.num_total, self.num_tokens)

    def responses(self) -> list[list[Response]]:
        """All responses, [prompt][sample]."""
        groups: list[list[Response]] = [[] for _ in range(self._num_prompts)]
        for _, prompt, samples in self.requests:
            groups[prompt.index] += [self._response(sample) for sample in samples]
        return groups

    def _response(self, sample: Sample) -> Response:
        stopped = sample.tokens[-1] in self._stop_ids
        return Response(
            tuple(sample.tokens), tuple(sample.logprobs), "stop" if stopped else "length"
        )
