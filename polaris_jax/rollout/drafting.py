"""When a step drafts, and what the drafts were worth.

A decode step of few rows takes the time to read the weights, and a verify call of some tokens a row
little more. So drafts pay in the tail of a rollout, where few rows are live, and not in a full
batch. Whether they pay is computed from the number of live rows and from the share of drafted
tokens that this request has accepted, by the length of the match that gave the draft. Nothing here
knows the clock: a schedule is a function of the requests alone, and of the weights.

Source: the length of a match as a draft's merit, SuffixDecoding, Oliaro et al. 2024
(arXiv:2411.04975), section 3; drafts for the tail alone, DAS (arXiv:2511.13841). Differs: shares
are counted for each request. One shape is compiled: where that costs what its longest draft does,
no draft is shorter by its merit; native kernels pay for each token, and there drafts are.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polaris_jax.rollout.draft_costs import LEAST_GAIN, NO_COSTS, CallCosts, CallShape
from polaris_jax.rollout.drafts import NOWHERE, PromptTexts
from polaris_jax.rollout.request import Request
from polaris_jax.rollout.samples import Sample, Status
from polaris_jax.rollout.scheduler import Scheduler
from polaris_jax.rollout.settings import SamplerConfig

INDEXED_TOKENS = 8192  # of a prompt's texts, between two device calls
MOST_INDEXED = 1 << 17  # of a prompt's texts: about 10 MB
# Shares of accepted tokens before anything is known, by matches of 2, 4, 8, 16 and 32 tokens and of
# whole responses. They count as much as `PRIOR_TOKENS` tries.
PRIOR = (0.5, 0.6, 0.7, 0.8, 0.85, 0.75)
PRIOR_TOKENS = 6.0
KEPT = 0.9  # of what is known, when a draft of the same class was verified
KEPT_UNUSED = 0.99  # the same when none was, so that a class is tried again at some time
HOT_TOKENS = 2.0  # accepted not long ago: worth looking for the next draft soon
ROWS = (1, 2, 4, 8)  # live rows by which the counts are given: up to each of these, and more


def drafting_of(engine: Any) -> Drafting:
    """What decides for a driver of the engine."""
    config: SamplerConfig = engine.config
    if config.draft == "off":
        return Drafting(tokens=0, rows=(), costs=NO_COSTS, decode_steps=config.decode_steps)
    return Drafting(
        tokens=config.draft_tokens,
        rows=engine.verify_rows,
        costs=engine.draft_costs,
        decode_steps=config.decode_steps,
    )


class Offer(NamedTuple):
    """A row's draft in a verify call, and where the result counts."""

    slot: int
    tokens: list[int]
    match: int
    rates: Rates


@dataclasses.dataclass(frozen=True)
class Proposal:
    """The drafts of a verify call.

    Attributes:
        offers: one for each row that has a draft.
        rows: live rows of all data shards.
        most_rows: the most live rows of a data shard.
    """

    offers: list[Offer]
    rows: int
    most_rows: int

    @property
    def drafts(self) -> dict[int, list[int]]:
        """The drafted tokens of each slot that has some."""
        return {offer.slot: offer.tokens for offer in self.offers}


class Rates:
    """Shares of drafted tokens that were accepted, by the class of the match."""

    def __init__(self) -> None:
        self._tried = [0.0] * len(PRIOR)
        self._accepted = [0.0] * len(PRIOR)

    @staticmethod
    def _class(match: int) -> int:
        return min(match.bit_length() - 2, len(PRIOR) - 1)

    def share(self, match: int) -> float:
        """The share of tokens that is expected to be accepted after those that were; below 1."""
        return self._share(self._class(match))

    def best(self) -> float:
        """The same for the class that is accepted best; 0 if little was accepted not long ago."""
        if sum(self._accepted) < HOT_TOKENS:
            return 0.0
        return max(self._share(k) for k, accepted in enumerate(self._accepted) if accepted)

    def record(self, match: int, *, accepted: int, rejected: bool) -> None:
        """Counts a draft: tokens accepted, and whether one was rejected after them."""
        k = self._class(match)
        self._tried[k] = KEPT * self._tried[k] + accepted + rejected
        self._accepted[k] = KEPT * self._accepted[k] + accepted

    def rest(self) -> None:
        """Counts a step without a draft."""
        self._tried = [KEPT_UNUSED * x for x in self._tried]
        self._accepted = [KEPT_UNUSED * x for x in self._accepted]

    def _share(self, k: int) -> float:
        accepted = self._accepted[k] + PRIOR[k] * PRIOR_TOKENS
        return accepted / (self._tried[k] + PRIOR_TOKENS)


class RequestTexts:
    """The texts of a request's prompts, and the rates of its drafts."""

    def __init__(self, request: Request) -> None:
        self.rates = Rates()
        self._samples: dict[int, list[Sample]] = {}
        for part in request.parts:
            self._samples.setdefault(part.prompt.index, []).extend(part.samples)
        self._ended = {index: request.ended_texts(index) for index in self._samples}
        self._texts: dict[int, PromptTexts] = {}
        self._places: dict[Sample, tuple[int, int]] = {}  # a draft's place, tokens so far

    def offer(self, sample: Sample, most: int) -> Offer | None:
        """A draft of up to `most` tokens for a live sample; None if nothing matches."""
        if most < 1:
            return None
        texts, hint = self._grown(sample.prompt.index), NOWHERE
        if sample in self._places:
            place, length = self._places[sample]
            hint = place + len(sample.tokens) - length
        tokens, match, place = texts.follow(sample.tokens, most, hint=hint)
        if not tokens:
            return None
        self._places[sample] = place, len(sample.tokens)
        assert sample.slot is not None
        return Offer(sample.slot, tokens, match, self.rates)

    def forget_others(self, samples: Collection[Sample]) -> None:
        """Frees what no live sample drafts from."""
        live = {sample.prompt.index for sample in samples}
        self._texts = {index: texts for index, texts in self._texts.items() if index in live}
        self._places = {
            sample: place
            for sample, place in self._places.items()
            if sample.prompt.index in live and sample.status is not Status.ENDED
        }

    def _grown(self, index: int) -> PromptTexts:
        """The texts of a prompt, with up to `INDEXED_TOKENS` tokens more than last time."""
        texts = self._texts.setdefault(index, PromptTexts())
        sources: list[Any] = [*self._ended[index], *(s.tokens for s in self._samples[index])]
        room = min(INDEXED_TOKENS, MOST_INDEXED - texts.tokens)
        for text, source in enumerate(sources):
            if text == len(texts):
                texts.new_text()
            known = texts.length(text)
            if known < len(source) and room > 0:
                part = source[known : known + room]
                texts.extend(text, part.tolist() if isinstance(part, np.ndarray) else part)
                room -= len(part)
        return texts


@dataclasses.dataclass
class DraftCounts:
    """What drafts were worth, by live rows: up to each of `ROWS`, and more.

    Attributes:
        calls: verify calls.
        drafted: tokens drafted.
        accepted: tokens of these that were accepted.
        steps_saved: decode steps that the accepted tokens would have taken: their mean over the
            live rows, summed over the calls.
    """

    calls: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(ROWS) + 1))
    drafted: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(ROWS) + 1))
    accepted: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(ROWS) + 1))
    steps_saved: list[float] = dataclasses.field(default_factory=lambda: [0.0] * (len(ROWS) + 1))

    def add(self, proposal: Proposal, accepted: int) -> None:
        """Adds a verify call."""
        k = next((i for i, rows in enumerate(ROWS) if proposal.most_rows <= rows), len(ROWS))
        self.calls[k] += 1
        self.drafted[k] += sum(len(offer.tokens) for offer in proposal.offers)
        self.accepted[k] += accepted
        self.steps_saved[k] += accepted / proposal.rows

    def stats(self) -> dict[str, Any]:
        """The numbers for `Sampler.stats`, by name."""
        drafted, accepted = sum(self.drafted), sum(self.accepted)
        return {
            "verify_calls": sum(self.calls),
            "draft_tokens": drafted,
            "draft_accepted": accepted,
            "draft_rate": accepted / drafted if drafted else 0.0,
            "draft_steps_saved": sum(self.steps_saved),
            "verify_calls_by_rows": list(self.calls),
            "draft_tokens_by_rows": list(self.drafted),
            "draft_accepted_by_rows": list(self.accepted),
            "draft_steps_saved_by_rows": list(self.steps_saved),
        }


class Drafting:
    """Decides for each step whether it drafts; keeps the texts of live requests.

    Args:
        tokens: tokens of a draft.
        rows: row counts of the compiled verify programs; (): no step drafts.
        costs: what a call takes.
        decode_steps: most steps of a plain decode call.

    Attributes:
        most_tokens: the most tokens that a row may get from a call.
        counts: what the drafts were worth.
        hot: True if the newest `propose` expects that a draft pays as soon as something matches.
    """

    def __init__(
        self, *, tokens: int, rows: Sequence[int], costs: CallCosts, decode_steps: int
    ) -> None:
        self._tokens, self._rows, self._costs, self._steps = tokens, rows, costs, decode_steps
        self._texts: weakref.WeakKeyDictionary[Request, RequestTexts] = weakref.WeakKeyDictionary()
        self.most_tokens = max(decode_steps, tokens + 1)
        self.counts = DraftCounts()
        self.hot = False

    def propose(
        self, schedulers: Sequence[Scheduler], request_of: Mapping[int, Request]
    ) -> Proposal | None:
        """The drafts for the next call; None if a plain decode call is the better one.

        Args:
            schedulers: one scheduler a data shard.
            request_of: the request of each prompt, by the prompt's `id`.
        """
        self.hot = False
        if not self._rows:
            return None
        rows_D = [shard.decoding for shard in schedulers]
        most = max(map(len, rows_D))
        if not 0 < most <= self._rows[-1]:
            return None
        live = [(request_of[id(s.prompt)], s) for rows in rows_D for s in rows]
        texts = {request: self._of(request) for request, _ in live}
        for request, known in texts.items():
            known.forget_others([sample for other, sample in live if other is request])
        offers = [
            offer
            for request, sample in live
            if (offer := texts[request].offer(sample, self._room(sample)))
        ]
        lengths, speedup = self._costs.draft_lengths(
            [(offer.rates.share(offer.match), len(offer.tokens)) for offer in offers],
            self._call(len(live), most),
        )
        if speedup >= LEAST_GAIN:
            self.hot = True
            drafts = [
                offer._replace(tokens=offer.tokens[:length])
                for offer, length in zip(offers, lengths, strict=True)
                if length
            ]
            return Proposal(drafts, len(live), most)
        for known in texts.values():
            known.rates.rest()
        best = max(known.rates.best() for known in texts.values())
        _, speedup = self._costs.draft_lengths(
            [(best, self._tokens)] * most, self._call(most, most)
        )
        self.hot = speedup >= LEAST_GAIN
        return None

    def plain_steps(self) -> int:
        """Most steps of the plain decode call that follows a `propose` without drafts."""
        if not self.hot:
            return self._steps
        # Two tokens can match again. The host's part of a call must not outweigh them.
        return min(self._steps, max(2, math.ceil(16 * self._costs.call)))

    def record(self, proposal: Proposal | None, count_B: np.ndarray, alive_B: np.ndarray) -> None:
        """Counts the result of a call.

        Args:
            proposal: what was verified; None: nothing, it was a plain decode call.
            count_B: new tokens of each slot.
            alive_B: slots whose row did not end.
        """
        if proposal is None:
            return
        total = 0
        for offer in proposal.offers:
            count = int(count_B[offer.slot])
            if not count:  # the slot was cleared meanwhile
                continue
            accepted, drafted = count - 1, len(offer.tokens)
            rejected = accepted < drafted and bool(alive_B[offer.slot])
            offer.rates.record(offer.match, accepted=accepted, rejected=rejected)
            total += accepted
        self.counts.add(proposal, total)

    def _of(self, request: Request) -> RequestTexts:
        if request not in self._texts:
            self._texts[request] = RequestTexts(request)
        return self._texts[request]

    def _room(self, sample: Sample) -> int:
        """Most tokens to draft: the verify call draws one more, within the sample's limit."""
        return min(self._tokens, sample.limit - sample.length - 1)

    def _call(self, rows: int, most: int) -> CallShape:
        bucket = next(b for b in self._rows if b >= most)
        return CallShape(rows, most, bucket * (self._tokens + 1), self._steps)
