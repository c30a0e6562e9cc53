"""Ten prompts with unlike settings, their rollouts, and when other rollouts are the same."""

import dataclasses
import functools

import numpy as np

from polaris_jax.records import Response
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from tests.support.rollout.rollout_cases import differing_tokens, random_prompts, small_model
from tests.tolerances import NEAR_TIE_SHARE

ROOMY = SamplerConfig(slots=16, page_size=16, num_pages=128, max_len=64, decode_steps=8)
PROMPTS = random_prompts(10)
TEMPERATURES = (1.0, 0.6, 1.5, 0.0, 1.0, 1.2, 0.8, 1.0, 1.4, 1.0)
SEEDS = tuple(range(100, 110))
STOPS = (7, 9)
PARAMS = SamplingParams(
    temperature=TEMPERATURES,
    top_k=(0, 0, 0, 0, 5, 0, 0, 0, 8, 0),
    top_p=(1.0,) * 6 + (0.9, 1.0, 0.8, 1.0),
    n=3,
    max_tokens=(30, 12, 25, 30, 1, 7, 30, 30, 2, 30),
    seed=SEEDS,
    stop_token_ids=STOPS,
)


def only(params: SamplingParams, keep: list[int]) -> SamplingParams:
    """The settings of some prompts, in the order given."""
    changes = {
        f.name: tuple(getattr(params, f.name)[i] for i in keep)
        for f in dataclasses.fields(params)
        if f.name not in ("n", "stop_token_ids") and np.ndim(getattr(params, f.name))
    }
    return dataclasses.replace(params, **changes)


@functools.cache
def reference() -> list[list[Response]]:
    return Sampler(small_model(), ROOMY).generate(PROMPTS, PARAMS)


def same_rollouts(actual, expected, keep=tuple(range(10))) -> float:
    """Largest log-prob difference; tokens agree but for near ties, which are counted."""
    parted, largest = differing_tokens(
        expected,
        actual,
        model=small_model(),
        prompts=[PROMPTS[i] for i in keep],
        temperatures=[TEMPERATURES[i] for i in keep],
        seeds=[SEEDS[i] for i in keep],
    )
    assert parted <= NEAR_TIE_SHARE * sum(len(r.token_ids) for g in expected for r in g)
    return largest
