"""A sampler's life by a random schedule, and every token of it held against what it must be.

Two sets of weights take turns. A response is held against dense recomputation, each token under the
weights that `Response.versions` names; what one set alone has sampled also against a sampler that
has no other request and drafts nothing.
"""

import functools
import random
from collections.abc import Iterator

import jax
import numpy as np
from hypothesis import strategies as st
from jax.sharding import Mesh

from polaris_jax.records import Response
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.draft_costs import NO_COSTS
from polaris_jax.rollout.request import Request
from polaris_jax.sharding import make_sampler_mesh
from tests.support.rollout.rollout_cases import (
    CONFIG,
    dense_logits_along,
    differing_tokens,
    is_near_tie,
    small_model,
    uniforms_of,
)
from tests.support.rollout.schedules import CUTS, LONGEST, Act, Submit, pick
from tests.tolerances import SAMPLER_LOGPROB_ATOL, SCHEDULE_LOGPROB_ATOL

STEPS = 4
STOPS = (7, 9)
# (slots, page size, pages) of a data shard: preempts now and then, often, never. A response and its
# prompt take at most 10 pages of 4, or 5 of 8. Each is compiled once.
SIZES = [(12, 4, 40), (6, 4, 12), (12, 8, 61)]


def config_of(sizes: tuple[int, int, int], shards: int, **settings) -> SamplerConfig:
    slots, page_size, pages = sizes
    return SamplerConfig(
        slots=shards * slots,
        page_size=page_size,
        num_pages=shards * pages,
        max_len=LONGEST,
        decode_steps=STEPS,
        **settings,
    )


@functools.cache
def mesh_of(shards: int) -> Mesh | None:
    if shards == 1:
        return None
    return make_sampler_mesh(jax.devices()[:shards], data=shards, tensor=1)


@functools.cache
def alone(weights: int, shards: int) -> Sampler:
    """A sampler that serves one request after the other, each from nothing."""
    config = config_of(SIZES[0], shards, prefix_cache=False)
    return Sampler(small_model(weights), config, mesh=mesh_of(shards))


def params_of(act: Submit) -> SamplingParams:
    return SamplingParams(
        temperature=act.temperature,
        n=act.n,
        max_tokens=act.max_tokens,
        seed=act.seeds,
        stop_token_ids=STOPS if act.stops else (),
    )


class EngineRun:
    """A sampler, and what it has been asked for.

    If it drafts, it does so whenever something matches. Its history is what one of the two sets of
    weights says alone, with a share `wrong` of the tokens exchanged.
    """

    def __init__(self, config: SamplerConfig, shards: int, *, wrong: float = 0.0):
        self.sampler = Sampler(small_model(0), config, mesh=mesh_of(shards))
        self.sampler._engine.draft_costs = NO_COSTS
        self.shards, self.wrong = shards, wrong
        self.asked: list[tuple] = []

    def act(self, act: Submit | Act) -> None:
        sampler = self.sampler
        if isinstance(act, Submit):
            request = sampler.submit(
                act.prompts,
                params_of(act),
                expected_tokens=act.expected,
                history=self.history(act),
            )
            self.asked.append((act, request, {}))
        elif act.what == "step":
            for _ in range(1 + act.number):
                sampler.step()
        elif act.what in ("abort", "leave"):
            self.cut(act.number % len(self.asked), act.what)
        elif act.what in CUTS:
            sampler.resume()
            sampler.step()
            which = pick([request for _, request, _ in self.asked], act.number)
            if which is not None:
                self.cut(which, act.what.removeprefix("step, "))
        elif act.what == "pause":
            sampler.pause()
        elif act.what == "resume":
            sampler.resume()
        else:
            sampler.pause()
            if act.what == "update":
                sampler.update_weights(small_model(weights_of(sampler.version + 1)))
            else:
                sampler.release_pool()
            sampler.resume()
        for _, request, answers in self.asked:
            self.poll(request, answers)

    def poll(self, request: Request, answers: dict[tuple[int, int], Response]) -> None:
        """Adds what has ended of it since the last time."""
        for prompt, sample, response in self.sampler.poll(request):
            assert (prompt, sample) not in answers
            answers[prompt, sample] = response

    def cut(self, which: int, what: str) -> None:
        """Aborts a request; "leave" asks anew for what is unfinished of it."""
        asked, request, answers = self.asked[which]
        if request.done:
            return
        self.sampler.abort(request)
        self.poll(request, answers)  # its next caller is not given the responses that have ended
        if what == "leave":
            anew = self.sampler.submit(
                asked.prompts,
                params_of(asked),
                expected_tokens=asked.expected,
                begun=request.responses(),
                history=self.history(asked),
            )
            self.asked[which] = asked, anew, answers

    def check(self) -> None:
        self.sampler.resume()
        while self.sampler.step():
            self.act(Act("step"))
        self.act(Act("step"))
        assert self.sampler.stats()["pages_used"] == 0
        parted = tokens = 0
        for act, request, answers in self.asked:
            assert request.aborted or len(answers) == act.n * len(act.prompts)
            for (p, s), response in answers.items():
                parted += check_dense(act, p, s, response)
                parted += self.check_alone(act, p, s, response)
                tokens += len(response.token_ids)
        assert parted <= 1 + tokens // 10_000

    def check_alone(self, act: Submit, p: int, s: int, response: Response) -> int:
        """1 if the response parts from that of a sampler of its own, at a near tie."""
        used = {weights_of(version) for version, _ in response.versions}
        if len(used) > 1:
            return 0
        (weights,) = used
        expected = self.expected(act, weights)[p]
        # An answer's place decides its noise: the others of the group are left out.
        parted, largest = differing_tokens(
            [expected[: s + 1]],
            [[*expected[:s], response]],
            model=small_model(weights),
            prompts=[act.prompts[p]],
            temperatures=[act.temperature],
            seeds=[act.seeds[p]],
        )
        assert largest <= SCHEDULE_LOGPROB_ATOL
        return parted

    def history(self, act: Submit) -> list[list[list[int]]] | None:
        """What is drafted from: right, of other weights, or partly nonsense."""
        if self.sampler.config.draft == "off":
            return None
        noise = random.Random(act.n)
        return [
            [
                [
                    noise.randrange(CONFIG.vocab_size) if noise.random() < self.wrong else token
                    for token in response.token_ids
                ]
                for response in responses
            ]
            for responses in self.expected(act, act.n % 2)
        ]

    @functools.cache  # noqa: B019 - a run lives as long as its schedule
    def expected(self, act: Submit, weights: int) -> list[list[Response]]:
        return alone(weights, self.shards).generate(act.prompts, params_of(act))


def weights_of(version: int) -> int:
    """Which of the two sets of weights has this number."""
    return version % 2


def spans(response: Response) -> Iterator[tuple[int, int, int]]:
    """(weights, first token, end) of what each version has sampled."""
    at = 0
    for version, count in response.versions:
        yield weights_of(version), at, at + count
        at += count
    assert at == len(response.token_ids)


def check_dense(act: Submit, p: int, s: int, response: Response) -> int:
    """1 if some token is the other one of a near tie; all others are what the definition gives."""
    prompt, tokens = act.prompts[p], list(response.token_ids)
    uniforms = uniforms_of(act.seeds[p], s, len(tokens))
    near = 0
    for weights, begin, end in spans(response):
        logit_TV = dense_logits_along(small_model(weights), [*prompt, *tokens])
        logit_TV = logit_TV[len(prompt) - 1 :][begin:end].astype(np.float64)
        scaled_TV = logit_TV / (act.temperature or 1.0)
        scaled_TV -= scaled_TV.max(axis=-1, keepdims=True)
        mass_TV = np.exp(scaled_TV)
        logp_TV = scaled_TV - np.log(mass_TV.sum(axis=-1, keepdims=True))
        running_TV = np.cumsum(mass_TV, axis=-1) / mass_TV.sum(axis=-1, keepdims=True)
        for i, token in enumerate(tokens[begin:end]):
            uniform = uniforms[begin + i]
            wanted = int(np.searchsorted(running_TV[i], uniform, side="right"))
            wanted = wanted if act.temperature else int(logit_TV[i].argmax())
            if token != wanted:
                pair = {token, wanted}
                assert is_near_tie(logit_TV[i], act.temperature, uniform, pair), (p, s, begin + i)
                near = 1
            assert abs(response.logprobs[begin + i] - logp_TV[i, token]) <= SAMPLER_LOGPROB_ATOL
    return near


def check_engine(
    config: SamplerConfig, shards: int, schedule: list[Submit | Act], *, wrong: float = 0.0
) -> int:
    """Drafted tokens that were accepted, if all is right."""
    run = EngineRun(config, shards, wrong=wrong)
    for act in schedule:
        run.act(act)
    run.check()
    return run.sampler.stats()["draft_accepted"]


def configs(
    sizes: list[tuple[int, int, int]], shards: int, **settings: st.SearchStrategy
) -> st.SearchStrategy[SamplerConfig]:
    return st.builds(
        config_of,
        st.sampled_from(sizes),
        st.just(shards),
        prefill_budget=st.sampled_from([0, 3, 16]),
        prefix_cache=st.booleans(),
        dispatch_ahead=st.booleans(),
        **settings,
    )
