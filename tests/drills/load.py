"""Random load on the sampler: every request ends as it does alone, token by token.

Requests of one to four prompts with one to five samples come in bursts into pools so small that
they preempt one another; between steps some are aborted, or aborted and continued, the sampler is
paused, its pool released, its weights exchanged. A request counts once its responses are compared
with those of a sampler that serves nothing else. Where two sets of weights have made one response,
there is no such sampler: those are held against dense recomputation, and do not count. Half of the
drills draft, from texts that are right, of other weights, partly or wholly wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.drills.drill import Case, Drill, Place

ROW, DRAFTED_ROW = "sampler requests", "sampler requests with drafts"
DRILLS, REQUESTS, DRAFTED_REQUESTS = 4, 450, 1250
SHORT_REQUESTS = 60
# (slots, page size, pages, prefill budget, prefix cache, dispatch ahead): a row takes at most 10
# pages of 4 or 5 of 8. The second and last pool hold little more than one row.
SIZES = (
    (12, 4, 40, 0, True, True),
    (6, 4, 12, 3, True, False),
    (12, 8, 61, 16, False, True),
    (5, 8, 7, 0, True, True),
)
DRAFT_TOKENS = (3, 8, 1, 5)  # of the drill with drafts for each pool
LONGEST_PROMPT, LONGEST_RESPONSE, STEPS = 20, 20, 4
STOPS = (7, 9)


@dataclasses.dataclass(frozen=True)
class Asked:
    """The arguments of a request; the lists have an entry a prompt."""

    prompts: tuple[tuple[int, ...], ...]
    temperature: tuple[float, ...]
    top_k: tuple[int, ...]
    top_p: tuple[float, ...]
    min_p: tuple[float, ...]
    max_tokens: tuple[int, ...]
    seed: tuple[int, ...]
    n: int
    stops: bool

    def params(self) -> Any:
        """As `SamplingParams`."""
        from polaris_jax.rollout import SamplingParams

        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del own["prompts"], own["stops"]
        return SamplingParams(**own, stop_token_ids=STOPS if self.stops else ())


def drills(seed: int, short: bool) -> list[Drill]:
    """Two drills for each pool, without drafts and with them."""
    count = 1 if short else DRILLS
    return [
        Drill("load", f"{name}{i}", 1000 * seed + i, SHORT_REQUESTS if short else size)
        for name, size in (("pool", REQUESTS), ("draft", DRAFTED_REQUESTS))
        for i in range(count)
    ]


def run(drill: Drill, place: Place) -> Iterator[Case]:
    """Bursts of requests until enough are compared."""
    pick = random.Random(f"{drill.name} {drill.seed}")
    pool, drafts = int(drill.name[-1]), drill.name.startswith("draft")
    load = Load(SIZES[pool], DRAFT_TOKENS[pool] if drafts else 0)
    compared, row = 0, DRAFTED_ROW if drafts else ROW
    while compared < drill.size:
        faults, count = load.burst(pick)
        compared += count
        for fault in faults:
            yield Case(row, f"after {compared} requests", fault)
        yield Case(row, f"a burst before {compared}", count=count - len(faults))
    stats = load.sampler.stats()
    if stats["pages_used"]:
        yield Case(row, "the end", f"{stats['pages_used']} pages are not given back", 0)
    if drafts and not 0 < stats["draft_accepted"] < stats["draft_tokens"]:
        yield Case(row, "the end", f"{stats['draft_accepted']} drafted tokens were accepted", 0)
    print(
        f"{compared} requests, {stats['preemptions']} preemptions, {load.parted} near ties, "
        f"{load.ill_conditioned} ill-conditioned log-probs, "
        f"{stats['draft_accepted']} of {stats['draft_tokens']} drafted tokens accepted"
    )


class Load:
    """A sampler under load, and one that serves alone."""

    def __init__(self, sizes: tuple[int, int, int, int, bool, bool], draft_tokens: int) -> None:
        from polaris_jax.rollout import Sampler, SamplerConfig
        from polaris_jax.rollout.draft_costs import NO_COSTS
        from tests.support.rollout.rollout_cases import CONFIG, small_model

        self.vocab, self.model = CONFIG.vocab_size, small_model
        slots, page, pages, budget, cache, ahead = sizes
        shared = {"max_len": LONGEST_PROMPT + LONGEST_RESPONSE, "decode_steps": STEPS}
        config = SamplerConfig(
            slots=slots, page_size=page, num_pages=pages, prefill_budget=budget,
            prefix_cache=cache, dispatch_ahead=ahead, **shared,
            draft="history" if draft_tokens else "off", draft_tokens=draft_tokens or 1,
        )  # fmt: skip
        single = SamplerConfig(slots=5, page_size=4, num_pages=61, prefix_cache=False, **shared)
        self.sampler, self.drafts = Sampler(small_model(0), config), bool(draft_tokens)
        self.sampler._engine.draft_costs = NO_COSTS  # whatever matches is drafted
        self.alone = functools.cache(lambda weights: Sampler(small_model(weights), single))
        self.parted = self.ill_conditioned = self.tokens = 0

    def asked(self, pick: random.Random) -> Asked:
        """A random request; prompts often begin alike, filters are often off."""
        count = pick.choice([1, 1, 2, 3, 4])
        prompts = []
        for _ in range(count):
            text = [
                (7 * i + pick.randrange(2)) % self.vocab for i in range(pick.choice([0, 3, 8, 16]))
            ]
            own = [pick.randrange(self.vocab) for _ in range(pick.randrange(1, 7))]
            prompts.append(tuple([*text, *own][:LONGEST_PROMPT]))

        def each(*values: Any) -> tuple[Any, ...]:
            return tuple(pick.choice(values) for _ in range(count))

        return Asked(
            prompts=tuple(prompts),
            temperature=each(0.0, 0.7, 1.0, 1.0, 1.4),
            top_k=each(0, 0, 0, 1, 5),
            top_p=each(1.0, 1.0, 0.9, 0.3),
            min_p=each(0.0, 0.0, 0.05),
            max_tokens=tuple(pick.randrange(1, LONGEST_RESPONSE + 1) for _ in range(count)),
            seed=each(0, 1, 2**32 - 1, pick.randrange(2**32)),
            n=pick.choice([1, 1, 2, 3, 5]),
            stops=pick.random() < 0.5,
        )

    def burst(self, pick: random.Random) -> tuple[list[str], int]:
        """Some requests with what happens between them; (faults, requests compared)."""
        sampler, live, ended = self.sampler, [], []
        coming = pick.randrange(4, 16)
        while coming or live:
            if coming and (not live or pick.random() < 0.4):
                asked = self.asked(pick)
                history = self.history(pick, asked)
                request = sampler.submit(asked.prompts, asked.params(), history=history)
                live.append([asked, request, {}])
                coming -= 1
                continue
            self.act(pick, live)
            for one in live:
                self.poll(one)
            ended += [one for one in live if one[1].done or one[1].aborted]
            live = [one for one in live if not (one[1].done or one[1].aborted)]
        whole = [one for one in ended if not one[1].aborted]
        results = [self.compare(asked, answers) for asked, _, answers in whole]
        return [r for r in results if isinstance(r, str)], sum(r is not None for r in results)

    def history(self, pick: random.Random, asked: Asked) -> list[list[list[int]]] | None:
        """What is drafted from: what one of the weights says, some or all tokens exchanged."""
        if not self.drafts or pick.random() < 0.2:
            return None
        wrong = pick.choice([0.0, 0.1, 0.3, 1.0])
        return [
            [
                [pick.randrange(self.vocab) if pick.random() < wrong else t for t in r.token_ids]
                for r in responses
            ]
            for responses in self.alone(pick.randrange(2)).generate(asked.prompts, asked.params())
        ]

    def act(self, pick: random.Random, live: list[list[Any]]) -> None:
        """A step, or something rarer."""
        sampler = self.sampler
        what = pick.choice(
            ["step"] * 30 + ["abort", "leave", "leave", "pause", "update", "release"]
        )
        if what == "step":
            sampler.step()
        elif what in ("abort", "leave"):
            one = pick.choice(live)
            asked, request, _ = one
            if request.done or (what == "abort" and pick.random() < 0.5):
                return
            sampler.abort(request)
            self.poll(one)
            if what == "leave":
                begun = request.responses()
                one[1] = sampler.submit(asked.prompts, asked.params(), begun=begun)
        else:
            sampler.pause()
            if what == "update" and pick.random() < 0.5:
                sampler.update_weights(self.model((sampler.version + 1) % 2))
            elif what == "release":
                sampler.release_pool()
            sampler.step()  # nothing happens
            sampler.resume()

    def poll(self, one: list[Any]) -> None:
        """Adds what has ended of a request since the last time."""
        _, request, answers = one
        for prompt, sample, response in self.sampler.poll(request):
            assert (prompt, sample) not in answers, "a response is reported twice"
            answers[prompt, sample] = response

    def compare(self, asked: Asked, answers: dict[tuple[int, int], Any]) -> str | bool | None:
        """A fault; True if the request is as it is alone; None if there is no such request."""
        if len(answers) != asked.n * len(asked.prompts):
            return f"{len(answers)} of {asked.n * len(asked.prompts)} responses"
        versions = {version % 2 for r in answers.values() for version, _ in r.versions}
        if len(versions) != 1:
            return None
        (weights,) = versions
        whole = self.alone(weights).generate(asked.prompts, asked.params())
        for (p, s), response in answers.items():
            if fault := self.differs(asked, weights, p, s, response, whole[p][s]):
                return fault
        return True

    def differs(self, asked: Asked, weights: int, p: int, s: int, ours: Any, theirs: Any) -> str:
        """What differs beyond rounding; "" if nothing does."""
        from tests.tolerances import LAST_BIT_DEVIATIONS, NEAR_TIE, SCHEDULE_LOGPROB_ATOL

        pairs = list(zip(ours.token_ids, theirs.token_ids, strict=False))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        gap_T = np.abs(np.subtract(ours.logprobs[:same], theirs.logprobs[:same]))
        where = f"{asked}, prompt {p}, sample {s}"
        for at in np.flatnonzero(gap_T > SCHEDULE_LOGPROB_ATOL):
            tokens = [*asked.prompts[p], *ours.token_ids[: at + 1]]
            moved = self.moved_by_last_bits(weights, tokens, asked.temperature[p])
            if gap_T[at] > LAST_BIT_DEVIATIONS * moved:
                return f"log-probs differ by {gap_T[at]:.2e} (last bits: {moved:.2e}): {where}"
            self.ill_conditioned += 1
            if self.ill_conditioned > 1 + self.tokens // 10_000:
                return f"too many ill-conditioned log-probs: {where}"
        self.tokens += len(pairs)
        if ours.token_ids == theirs.token_ids:
            return "" if ours.finish_reason == theirs.finish_reason else f"another end: {where}"
        prompt = [*asked.prompts[p], *ours.token_ids[:same]]
        if same == len(pairs) or self.least_border(asked, weights, p, s, prompt, same) > NEAR_TIE:
            return f"tokens differ from {same} on: {ours.token_ids}, {theirs.token_ids}: {where}"
        self.parted += 1
        return "" if self.parted <= 1 + self.tokens // 10_000 else f"too many near ties: {where}"

    def moved_by_last_bits(self, weights: int, tokens: list[int], temperature: float) -> float:
        """How far the last token's log-prob moves if the last bit of every weight changes.

        Returns:
            The standard deviation over 8 random changes, in nats. Two orders of the same sums
            cannot be expected to agree more closely.
        """
        from tests.support.rollout.rollout_cases import dense_logits

        *before, last = tokens

        def logprob(model: Any) -> float:
            logit_V = dense_logits(model, before).astype(np.float64) / (temperature or 1.0)
            return float(logit_V[last] - np.logaddexp.reduce(logit_V))

        return float(np.std([logprob(self.model_beside(weights, i)) for i in range(8)]))

    def model_beside(self, weights: int, number: int) -> Any:
        """The model with every weight exchanged for one of its two neighbours in float32."""
        import jax

        rng = np.random.default_rng((weights, number))

        def beside(leaf: Any) -> Any:
            value = np.asarray(leaf)
            towards = np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf)
            return np.nextafter(value, towards.astype(value.dtype))

        return jax.tree.map(beside, self.model(weights))

    def least_border(
        self, asked: Asked, weights: int, p: int, s: int, tokens: list[int], at: int
    ) -> float:
        """How near the choice of a token was to another one: by its number, or by a filter."""
        from tests.support.rollout.rollout_cases import dense_logits, uniform_at

        logit_V = np.sort(dense_logits(self.model(weights), tokens).astype(np.float64))[::-1]
        if asked.temperature[p] == 0:
            return float(logit_V[0] - logit_V[1])
        unsorted_V = dense_logits(self.model(weights), tokens).astype(np.float64)
        mass_V = np.exp((unsorted_V - unsorted_V.max()) / asked.temperature[p])
        order_V = np.argsort(-mass_V, kind="stable")
        sorted_V, borders = mass_V[order_V], [1.0]
        k = asked.top_k[p] or len(sorted_V)
        if k < len(sorted_V):
            borders.append(float(logit_V[k - 1] - logit_V[k]))
        keep_V = (np.arange(len(sorted_V)) < k) & (sorted_V >= asked.min_p[p])
        if asked.min_p[p]:
            borders.append(float(np.abs(sorted_V - asked.min_p[p]).min()))
        kept_V = np.where(keep_V, sorted_V, 0.0)
        share_V = np.cumsum(kept_V) / kept_V.sum()
        if asked.top_p[p] < 1:
            borders.append(float(np.abs(share_V - asked.top_p[p]).min()))
            kept_V = np.where(share_V - kept_V / kept_V.sum() < asked.top_p[p], kept_V, 0.0)
        final_V = np.zeros_like(mass_V)
        final_V[order_V] = kept_V
        running_V = np.cumsum(final_V) / final_V.sum()
        borders.append(float(np.abs(running_V - uniform_at(asked.seed[p], s, at)).min()))
        return min(borders)
