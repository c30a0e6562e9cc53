"""The sampler's host side without a model: an engine whose tokens can be computed beforehand.

A token is a pure function of prompt, seed, sample and position. A page remembers for every position
the token and a chain: a number made of the weights, the token, and the chain of the position before
it *as it was found in the pages when it was written*. So whoever reads a page too early, too late,
or one of other weights carries a wrong chain on, and the next decode step sees it.
"""

import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from polaris_jax.rollout.decode_state import DecodeState
from polaris_jax.rollout.draft_costs import NO_COSTS, verify_rows
from polaris_jax.rollout.driver import Driver
from polaris_jax.rollout.engine import ResultTokens
from polaris_jax.rollout.live import CompileCounter
from polaris_jax.rollout.pages import pages_for
from polaris_jax.rollout.request import Request
from polaris_jax.rollout.settings import PromptParams, SamplerConfig
from tests.support.rollout.schedule_checks import check_schedule

VOCAB = 97
STOPS = (3, 5)
MASK = (1 << 61) - 1


def row_buckets(slots: int) -> list[int]:
    """Powers of two, and the slots."""
    return [*(1 << i for i in range(slots.bit_length()) if 1 << i < slots), slots]


def settings(max_tokens: int, seed: int = 0) -> PromptParams:
    """Settings of one prompt."""
    return PromptParams(1.0, 1.0, 0, 0.0, max_tokens, seed)


def token_at(prompt: tuple[int, ...], seed: int, sample: int, position: int) -> int:
    """The token at a position of the response, counted from 0."""
    return zlib.crc32(repr((prompt, seed, sample, position)).encode()) % VOCAB


def expected_tokens(
    prompt: tuple[int, ...], seed: int, sample: int, *, max_tokens: int, stops: tuple[int, ...]
) -> list[int]:
    """The whole response."""
    tokens: list[int] = []
    while len(tokens) < max_tokens and not (tokens and tokens[-1] in stops):
        tokens.append(token_at(prompt, seed, sample, len(tokens)))
    return tokens


def link(before: int, token: int) -> int:
    """The chain of a position, from that of the position before it."""
    return (before * 1_000_003 + token + 1) & MASK


def chain_start(model: int) -> int:
    """What the chain of a sequence begins with under some weights."""
    return 7919 * (model + 1)


class FakePool:
    """[shard][page][offset] (token, chain) of each position; lists, as they are read one by one."""

    def __init__(self, shards: int, pages: int, page_size: int):
        self.shards = [[[(-1, -1)] * page_size for _ in range(pages)] for _ in range(shards)]


@dataclasses.dataclass
class FakeCall:
    index: list[int]
    bucket: int
    tokens: dict[int, list[int]]
    alive: dict[int, bool]
    steps: int


class FakeEngine:
    """The part of `Engine` that the driver calls; the model is a number."""

    def __init__(self, config: SamplerConfig, shards: int = 1):
        self.config, self.data = config, shards
        self.slots_a_shard = config.slots // shards
        self.row_buckets = row_buckets(self.slots_a_shard)
        self.dispatches_ahead = bool(config.dispatch_ahead)
        self.recompute_reads = self.weight_reads = 1.0
        self.draft_costs = NO_COSTS
        self.verify_rows = verify_rows(config, shards, min_rows=1, on_cpu=True)
        self.dispatched_behind = 0
        self.prefilled_tokens = 0
        self.most_prefilled = 0  # in a step, by one shard
        self.begin_step()

    def begin_step(self) -> None:
        self._in_step = [0] * self.data

    def new_pool(self) -> FakePool:
        return FakePool(self.data, self.config.num_pages // self.data, self.config.page_size)

    def warm(self, model: Any, state: DecodeState) -> None:
        assert isinstance(state.pool, FakePool)

    def prefill_rows(self, model: int, state: DecodeState, jobs_by_shard: Any):
        assert len(jobs_by_shard) == self.data
        size = self.config.page_size
        for shard, jobs in enumerate(jobs_by_shard):
            pages = state.pool.shards[shard]
            for job in jobs:
                assert job.tokens
                chain = chain_start(model)
                if job.start:
                    before = job.start - 1
                    chain = pages[job.pages[before // size]][before % size][1]
                for at, token in enumerate(job.tokens, job.start):
                    assert job.pages[at // size] != 0
                    chain = link(chain, token)
                    pages[job.pages[at // size]][at % size] = (token, chain)
                self.prefilled_tokens += len(job.tokens)
                self._in_step[shard] += len(job.tokens)
        self.most_prefilled = max(self.most_prefilled, *self._in_step)

    def copy_pages(self, state: DecodeState, pairs_by_shard: Any) -> None:
        for pages, pairs in zip(state.pool.shards, pairs_by_shard, strict=True):
            found = [list(pages[source]) for source, _ in pairs]
            for (_, target), values in zip(pairs, found, strict=True):
                assert target != 0
                pages[target] = values

    def dispatch(
        self,
        model: int,
        state: DecodeState,
        *,
        stop_token_ids: Any,
        exit_below: Any,
        steps: list[int],
    ) -> FakeCall:
        position_B, token_B = state.rows.position_B, state.rows.token_B
        begin = {
            int(slot): (int(position_B[slot]), int(token_B[slot]))
            for slot in np.flatnonzero(state.rows.alive_B)
        }
        rows = Counter(slot // self.slots_a_shard for slot in begin)
        bucket = next(b for b in self.row_buckets if b >= max(rows.values()))
        return self._run(model, state, begin, bucket, stop_token_ids, exit_below, steps)

    def dispatch_behind(
        self,
        model: int,
        state: DecodeState,
        call: FakeCall,
        *,
        stop_token_ids: Any,
        steps: list[int],
    ) -> FakeCall:
        """Begins at what the call holds; the host's rows are those from before it."""
        self.dispatched_behind += 1
        begin = {}
        host_alive_B = state.rows.alive_B  # but for slots cleared since
        for slot in (s for s in call.index if call.alive[s] and host_alive_B[s]):
            new, before = call.tokens[slot], int(state.rows.position_B[slot])
            token = new[-1] if new else int(state.rows.token_B[slot])
            begin[slot] = before + len(new), token
        ends = [1] * self.data
        behind = self._run(model, state, begin, call.bucket, stop_token_ids, ends, steps)
        for slot in call.index:
            behind.tokens.setdefault(slot, [])
            behind.alive.setdefault(slot, False)
        return dataclasses.replace(behind, index=call.index)

    def verify(
        self, model: int, state: DecodeState, drafts: dict[int, list[int]], *, stop_token_ids: Any
    ) -> FakeCall:
        """Writes the last token and all drafted ones, right or wrong, then draws."""
        rows, live = state.rows, np.flatnonzero(state.rows.alive_B).tolist()
        call = FakeCall(live, len(live), {}, {}, 1 + self.config.draft_tokens)
        assert drafts.keys() <= set(live)
        for slot in live:
            draft, position = drafts.get(slot, []), int(rows.position_B[slot])
            assert len(draft) <= self.config.draft_tokens
            shard, token = slot // self.slots_a_shard, int(rows.token_B[slot])
            row = self._read(model, state, shard, slot, position, token)
            drawn = [self._decode_one(state, shard, slot, row)]
            for token in draft:
                row[0][-1] = token
                drawn.append(self._decode_one(state, shard, slot, row))
            count, alive = 0, True
            while alive and (count == 0 or draft[count - 1 : count] == drawn[count - 1 : count]):
                ended = drawn[count] in stop_token_ids
                alive = not ended and position + count + 2 < rows.limit_B[slot]
                count += 1
            call.tokens[slot], call.alive[slot] = drawn[:count], alive
        return call

    def fits_smaller_bucket(self, call: FakeCall, rows: int) -> bool:
        return call.bucket > next(b for b in self.row_buckets if b >= rows)

    def _run(
        self,
        model: int,
        state: DecodeState,
        begin: dict[int, tuple[int, int]],
        bucket: int,
        stop_token_ids: Any,
        exit_below: Any,
        most_steps: list[int],
    ) -> FakeCall:
        assert len(stop_token_ids) <= 16
        assert all(1 <= most <= self.config.decode_steps for most in most_steps)
        assert max(most_steps) == self.config.decode_steps or self.config.draft != "off"
        live = list(begin)
        call = FakeCall(live, bucket, {}, {}, 0)
        smaller = max((b for b in self.row_buckets if b < bucket), default=0)
        for shard in range(self.data):
            own = [slot for slot in live if slot // self.slots_a_shard == shard]
            rows = {slot: self._read(model, state, shard, slot, *begin[slot]) for slot in own}
            alive = set(own)
            steps, least = 0, max(exit_below[shard], smaller + 1)
            least = 1 if len(alive) < least else least
            while steps < most_steps[shard] and len(alive) >= least:
                steps += 1
                for slot in sorted(alive):
                    new = self._decode_one(state, shard, slot, rows[slot])
                    position = len(rows[slot][0]) - 1
                    if new in stop_token_ids or position + 1 >= state.rows.limit_B[slot]:
                        alive.discard(slot)
            for slot in own:
                call.tokens[slot] = rows[slot][0][begin[slot][0] + 1 :]
                call.alive[slot] = slot in alive
            call.steps = max(call.steps, steps)
        return call

    def _read(
        self, model: int, state: DecodeState, shard: int, slot: int, position: int, token: int
    ) -> tuple[list, list]:
        """(history with the last token, chain of all but the last), checked against each other."""
        rows, size, pages = state.rows, self.config.page_size, state.pages[slot]
        last = min(position + self.config.decode_steps, int(rows.limit_B[slot]) - 1)
        assert len(pages) >= pages_for(last, size), "no page for the tokens of this call"
        used = [state.pool.shards[shard][page] for page in pages]
        entries = [entry for page in used for entry in page][:position]
        history = [seen for seen, _ in entries]
        chain = chain_start(model)
        for seen, found in entries:
            chain = link(chain, seen)
            assert found == chain, "a page was read before it was written"
        return [*history, token], [chain]

    def _decode_one(self, state: DecodeState, shard: int, slot: int, row: tuple[list, list]) -> int:
        history, chain = row
        size, params = self.config.page_size, state.rows.params
        at, prompt_len = len(history) - 1, int(state.rows.prompt_len_B[slot])
        page = state.pages[slot][at // size]
        assert page != 0
        chain[0] = link(chain[0], history[-1])
        state.pool.shards[shard][page][at % size] = (history[-1], chain[0])
        new = token_at(
            tuple(history[:prompt_len]),
            int(params.seed_B[slot]),
            int(params.sample_B[slot]),
            len(history) - prompt_len,
        )
        history.append(new)
        return new

    def collect(self, state: DecodeState, call: FakeCall) -> ResultTokens:
        steps = max([self.config.decode_steps, *(len(call.tokens[slot]) for slot in call.index)])
        slots, rows = self.config.slots, state.rows
        data = np.zeros((slots, 2 * steps + 1), np.int32)
        counts = np.zeros(slots, np.int32)
        for slot in call.index:
            new = call.tokens[slot]
            if not state.pages[slot] or not (new or call.alive[slot]):
                continue
            counts[slot] = len(new)
            data[slot, : len(new)] = new
            if new:
                rows.token_B[slot] = new[-1]
            rows.position_B[slot] += len(new)
            rows.alive_B[slot] = call.alive[slot]
        return ResultTokens(
            data=data,
            tokens_idx=(0, steps),
            valid_idx=(steps, 2 * steps),
            length_idx=(2 * steps, 2 * steps + 1),
            samples_per_slot=1,
            logprobs=-data[:, :steps].astype(np.float32),
            count=counts,
            alive=rows.alive_B.copy(),
            steps=call.steps,
            row_steps=len(call.index) * call.steps,
        )


class FakeSampler:
    """A driver on a fake engine, every invariant checked after every action."""

    def __init__(self, config: SamplerConfig, shards: int = 1):
        self.engine = FakeEngine(config, shards)
        self.state = DecodeState(
            self.engine.new_pool(), config, num_pages=config.num_pages, data=shards
        )
        self.driver = Driver(self.engine, self.state, CompileCounter())
        self.model = 0
        self.paused = False
        self.requests: list[tuple[Request, dict[tuple[int, int], list[int]]]] = []
        self.asked: list[Callable[..., Request]] = []
        self.answers: list[dict[tuple[int, int], list[int]]] = []
        self.blocks = 0

    @property
    def scheduler(self):
        return self.driver.schedulers[0]

    def submit(self, prompts, rows, n=1, *, stops=(), expected=None, **callbacks) -> Request:
        ask = functools.partial(
            Request,
            prompts,
            rows,
            n,
            stops,
            expected_tokens=expected,
            **callbacks,
        )
        request = ask()
        wanted = {
            (index, sample): expected_tokens(
                tuple(prompt), row.seed, sample, max_tokens=row.max_tokens, stops=tuple(stops)
            )
            for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
            for sample in range(n)
        }
        self.driver.submit(request)
        self.requests.append((request, wanted))
        self.asked.append(ask)
        self.answers.append({})
        self.check()
        return request

    def step(self) -> None:
        if self.paused:
            return
        self.engine.begin_step()
        self.driver.step(self.model, version=self.model)
        self.blocks += 1
        self.poll()
        self.check()

    def poll(self) -> None:
        """Every response comes once and is the one that prompt, seed and sample give."""
        for (request, wanted), answers in zip(self.requests, self.answers, strict=True):
            for index, sample, response in request.take_ended():
                assert (index, sample) not in answers, "a response came twice"
                answers[index, sample] = list(response.token_ids)
                assert list(response.token_ids) == wanted[index, sample]
                assert len(response.logprobs) == len(response.token_ids)

    def abort(self, request: Request) -> None:
        self.driver.abort(request)
        self.check()

    def leave(self, which: int) -> None:
        """Aborts a request and asks anew for what is unfinished of it."""
        request, wanted = self.requests[which]
        if request.done:
            return
        self.abort(request)
        begun = request.responses()
        ended = {(p, s) for p, group in enumerate(begun) for s, r in enumerate(group) if r.ended}
        assert ended == self.answers[which].keys()
        anew = self.asked[which](begun=begun)
        self.driver.submit(anew)
        self.requests[which] = anew, wanted
        self.check()

    def update_weights(self) -> None:
        self.model += 1
        self.driver.preempt_all()
        self.check()

    def release_pool(self) -> None:
        self.driver.preempt_all()
        self.state.pool = self.engine.new_pool()
        self.check()

    def check(self) -> None:
        for scheduler in self.driver.schedulers:
            check_schedule(scheduler)
            for sequence in scheduler.decoding:
                assert self.state.pages[sequence.slot] == sequence.pages
        decoding = {s.slot for scheduler in self.driver.schedulers for s in scheduler.decoding}
        assert set(np.flatnonzero(self.state.rows.alive_B).tolist()) <= decoding

    def run(self, limit: int = 20_000) -> None:
        """Until nothing is left; then no page is held and every response has come."""
        self.paused = False
        while self.driver.busy:
            self.step()
            assert self.blocks < limit, "no progress"
        for scheduler in self.driver.schedulers:
            assert scheduler._allocator.num_used == 0
            assert not scheduler._prompts
        for (request, wanted), answers in zip(self.requests, self.answers, strict=True):
            assert request.done
            assert request.aborted or answers.keys() == wanted.keys()
