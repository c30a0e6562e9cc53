"""Families in the sampler and the trainer: what is drawn and learnt is the plain model's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.config import MeshSection
from polaris_jax.models import token_logprobs
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.sharding import make_mesh, make_sampler_mesh
from polaris_jax.train.state import init_train_state
from tests.support.random_models import random_model
from tests.support.rollout.rollout_cases import CONFIG, dense_logits, random_prompts
from tests.support.train.cases import (
    OPTIMIZER,
    QWEN3,
    accumulated_gradient,
    make_graded,
    make_updater,
    max_leaf_difference,
    one_device_mesh,
    pack_case,
    plain_gradient,
    values,
)
from tests.tolerances import GRADIENT_RTOL, SAMPLER_LOGPROB_ATOL

# The other families have the tests of sampler and trainer to themselves.
FAMILIES = ["llama", "olmo2"]
OWN = {"tie_embeddings": False, "qkv_bias": None, "qk_norm": None}


@pytest.mark.parametrize(
    ("name", "attention", "tensor"),
    [(name, attention, 1) for name in FAMILIES for attention in ("xla", "auto")]
    + [("olmo2", "xla", 2)],
)
def test_the_sampler_draws_from_the_dense_model(name, attention, tensor):
    """Greedy tokens are the dense argmax, log-probs the trainer's: each kernel, and on a mesh."""
    model = random_model(dataclasses.replace(CONFIG, **OWN, model_type=name), scale=3.0)
    sizes = SamplerConfig(slots=4, page_size=4, num_pages=64, max_len=64, attention=attention)
    mesh = make_sampler_mesh(jax.devices(), data=2, tensor=tensor) if tensor > 1 else None
    sampler = Sampler(model, sizes, mesh=mesh)
    prompts = random_prompts(3, seed=5, longest=20)
    greedy = sampler.generate(prompts, SamplingParams(temperature=0.0, max_tokens=12))
    for prompt, (response,) in zip(prompts, greedy, strict=True):
        tokens = list(prompt)
        for token in response.token_ids:
            assert int(np.argmax(dense_logits(model, tokens))) == token
            tokens.append(token)
    drawn = sampler.generate(prompts, SamplingParams(temperature=1.3, max_tokens=12, seed=1))
    for prompt, (response,) in zip(prompts, drawn, strict=True):
        token_BT = np.zeros((1, 64), np.int32)
        tokens = [*prompt, *response.token_ids]
        token_BT[0, : len(tokens)] = tokens
        logp_BT, _ = jax.jit(token_logprobs)(
            model, token_BT, np.arange(64)[None], None, jnp.float32(1.3)
        )
        logp_T = np.asarray(logp_BT)[0, len(prompt) - 1 : len(tokens) - 1]
        np.testing.assert_allclose(response.logprobs, logp_T, atol=SAMPLER_LOGPROB_ATOL)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_update_is_the_plain_one_on_a_device_and_on_a_mesh(name):
    """The gradient of a sequence after another; then a step, which changes every parameter."""
    model = random_model(dataclasses.replace(QWEN3, **OWN, model_type=name), noise=0.1)
    graded = make_graded()
    want = plain_gradient(model, graded)
    for mesh in (one_device_mesh(), make_mesh(MeshSection(fsdp=2, context=2, tensor=2))):
        updater = make_updater(mesh=mesh)
        got = accumulated_gradient(updater, model, pack_case(graded))
        assert max_leaf_difference(got, want, relative=True) <= GRADIENT_RTOL
    state = init_train_state(model, OPTIMIZER, mesh)
    state, metrics = updater.update(state, pack_case(graded))
    assert np.isfinite(values(metrics)["update/loss"])
    before, after = model.params(), state.params.params()
    assert all(np.any(np.asarray(after[path]) != x) for path, x in before.items())
