"""A sampler that drafts gives the tokens of one that does not, in fewer steps."""

import dataclasses
import functools

import jax
import pytest

from polaris_jax.records import Response
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.draft_costs import NO_COSTS
from polaris_jax.sharding import make_sampler_mesh
from tests.support.rollout.native_kernels import needs_compiler
from tests.support.rollout.rollout_cases import (
    CONFIG,
    differing_tokens,
    random_prompts,
    small_model,
)
from tests.tolerances import SAMPLER_LOGPROB_ATOL, SCHEDULE_LOGPROB_ATOL

pytestmark = pytest.mark.xdist_group("drafts")  # one worker makes what its tests share

PROMPTS = random_prompts(4, seed=3)
TEMPERATURES = (1.0, 0.6, 1.5, 0.0)
SEEDS = (5, 6, 7, 8)
PARAMS = SamplingParams(
    temperature=TEMPERATURES,
    top_k=(0, 20, 0, 0),
    n=2,
    max_tokens=(30, 12, 25, 30),
    seed=SEEDS,
    stop_token_ids=(7, 9),
)
SIZES = SamplerConfig(slots=8, page_size=4, num_pages=128, max_len=64, decode_steps=4)
DRAFTS = dataclasses.replace(SIZES, draft="history", draft_tokens=5)


@functools.cache
def expected(attention: str = "auto") -> list[list[Response]]:
    return Sampler(small_model(), dataclasses.replace(SIZES, attention=attention)).generate(
        PROMPTS, PARAMS
    )


def drafting(config: SamplerConfig = DRAFTS, **made) -> Sampler:
    """A sampler that drafts whenever something matches."""
    sampler = Sampler(small_model(), config, **made)
    sampler._engine.draft_costs = NO_COSTS
    return sampler


def history(shift: int = 0) -> list[list[list[int]]]:
    """The responses to come; a `shift` makes every third token another one."""
    return [
        [
            [(t + shift * (i % 3 == 2)) % CONFIG.vocab_size for i, t in enumerate(r.token_ids)]
            for r in group
        ]
        for group in expected()
    ]


def assert_same(ours: list[list[Response]], *, bound: float = SCHEDULE_LOGPROB_ATOL) -> None:
    """Same tokens, same ends, same log-probs but for rounding."""
    parted, largest = differing_tokens(
        expected(),
        ours,
        model=small_model(),
        prompts=PROMPTS,
        temperatures=TEMPERATURES,
        seeds=SEEDS,
    )
    assert parted == 0
    assert largest <= bound
    ends = [[r.finish_reason for r in group] for group in ours]
    assert ends == [[r.finish_reason for r in group] for group in expected()]


BACKENDS = [
    pytest.param({"attention": "native"}, marks=needs_compiler, id="native"),
    pytest.param({"attention": "xla"}, id="staged", marks=pytest.mark.slow),
    pytest.param({"attention": "xla", "layout": "pages"}, id="pages"),
]


@pytest.mark.parametrize("changes", BACKENDS)
def test_drafts_change_no_token(changes):
    sampler = drafting(dataclasses.replace(DRAFTS, **changes))
    plain_steps = max(len(r.token_ids) for group in expected() for r in group)
    for shift, least in ((0, 0.6), (1, 0.0)):  # right, then with rejected tokens
        sampler.reset_stats()
        assert_same(sampler.generate(PROMPTS, PARAMS, history=history(shift)))
        stats = sampler.stats()
        assert stats["draft_rate"] > least
        assert stats["draft_steps_saved"] > (0.4 * plain_steps if shift == 0 else 0)
        assert stats["pages_used"] == 0
    assert stats["draft_accepted"] < stats["draft_tokens"]
    assert stats["compiles"] == 0  # all shapes were compiled before the first call
    sampler.reset_stats()
    ended = {(p, n): r for p, n, r in sampler.stream(PROMPTS, PARAMS, history=history())}
    assert_same([[ended[p, n] for n in range(PARAMS.n)] for p in range(len(PROMPTS))])
    assert sampler.stats()["draft_accepted"] > 0


def test_what_is_no_history_is_refused_before_anything_runs():
    sampler = drafting()
    for wrong, words in (
        ([[]], "history: 1 entries for 4 prompts"),
        ([[[1, 61]], [], [], []], r"history\[0\]\[0\]: must be .* token ids in \[0, 61\)"),
        ([[], [[[1]]], [], []], r"history\[1\]\[0\]: must be a flat sequence"),
        ([[[1], [2**40]], [], [], []], r"history\[0\]\[1\]: must be a flat sequence"),
        ([[[1.5]], [], [], []], r"history\[0\]\[0\]: must be a flat sequence"),
    ):
        with pytest.raises(ValueError, match=words):
            sampler.generate(PROMPTS, PARAMS, history=wrong)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"draft": "on"}, "draft='on': must be one of off, history"),
        ({"draft_tokens": 0}, "at least"),
    ],
)
def test_settings_out_of_range_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SIZES, **changes)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("data", "tensor"), [(2, 1), (1, 2), (2, 2)])
def test_drafts_change_no_token_on_a_mesh(data, tensor):
    config = dataclasses.replace(DRAFTS, slots=8 * data, num_pages=128 * data, dispatch_ahead=True)
    sampler = drafting(config, mesh=make_sampler_mesh(jax.devices(), data=data, tensor=tensor))
    bound = SAMPLER_LOGPROB_ATOL if tensor > 1 else SCHEDULE_LOGPROB_ATOL
    for shift in (0, 1):
        assert_same(sampler.generate(PROMPTS, PARAMS, history=history(shift)), bound=bound)
        assert sampler.stats()["draft_accepted"] > 0
    sampler.reset_stats()
    sampler.generate(PROMPTS, PARAMS, history=history())
    assert sampler.stats()["compiles"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("layout", ["staged", "pages"])
def test_drafts_change_no_token_with_8_bit_keys_and_values(layout):
    changes = {"kv_dtype": "int8", "layout": layout, "attention": "xla"}
    plain = Sampler(small_model(), dataclasses.replace(SIZES, **changes)).generate(PROMPTS, PARAMS)
    texts = [[list(r.token_ids) for r in group] for group in plain]
    sampler = drafting(dataclasses.replace(DRAFTS, **changes))
    drafted = sampler.generate(PROMPTS, PARAMS, history=texts)
    assert [[r.token_ids for r in g] for g in drafted] == [[r.token_ids for r in g] for g in plain]
    assert sampler.stats()["draft_accepted"] > 0
