"""With native kernels a row has the same bits however many rows there are."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from tests.support.random_models import random_model
from tests.support.rollout.native_kernels import DTYPES, needs_compiler
from tests.support.rollout.rollout_cases import CONFIG
from tests.tolerances import SCHEDULE_LOGPROB_ATOL

pytestmark = needs_compiler
PROMPTS = [[5, 9, 2, 7, 11, 3], [8, 1, 4], [6, 6, 2, 12, 10]]
TOKENS = 24


@pytest.fixture(scope="module", params=DTYPES, ids=lambda dtype: jnp.dtype(dtype).name)
def model(request: Any) -> Any:
    """As wide as SmolLM2, at which few rows gave other bits on AVX2 cores."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_heads": 9, "num_kv_heads": 3}
    sizes["vocab_size"] = (1 << 14) + 256  # the native kernel draws
    made = random_model(dataclasses.replace(CONFIG, **sizes, head_dim=64), 0)
    return jax.tree.map(lambda x: x.astype(request.param), made)


def sampled(model: Any, *, prompts: Any = PROMPTS, history: Any = None, **sizes: Any) -> Any:
    """(tokens, log-probs) of each prompt."""
    sampler = Sampler(model, SamplerConfig(num_pages=0, max_len=48, page_size=8, **sizes))
    # So small a model would hardly draft by what its calls cost the host.
    sampler._engine.draft_costs = sampler._engine.draft_costs._replace(call=0.0)
    assert sampler._engine.draft_costs.listed and sampler.kernels.startswith("native")
    params = SamplingParams(
        temperature=1.0,
        max_tokens=TOKENS,
        seed=[100 + number for number in range(len(prompts))],
        stop_token_ids=(),
    )
    groups = sampler.generate(prompts, params, history=history)
    return [(list(group[0].token_ids), list(group[0].logprobs)) for group in groups], sampler


def test_few_slots_change_no_bit(model):
    wanted, _ = sampled(model, slots=16)
    assert sampled(model, slots=1)[0] == wanted


@pytest.mark.parametrize("drafts", [1, 5])
def test_drafts_change_no_token(model, drafts):
    wanted, _ = sampled(model, slots=3)
    history = [[[*tokens[:9], 1, *tokens[10:]]] for tokens, _ in wanted]
    found, sampler = sampled(model, slots=3, draft="history", draft_tokens=drafts, history=history)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
    gaps = [np.subtract(one, two) for (_, one), (_, two) in zip(found, wanted, strict=True)]
    assert np.abs(gaps).max() <= SCHEDULE_LOGPROB_ATOL
    assert sampler.stats()["draft_accepted"] > 0
