"""The sampler's weights are a copy in its own dtype."""

import jax
import jax.numpy as jnp
import numpy as np

from polaris_jax.models import Qwen
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.weight_sync import sync_weights
from tests.rollout.rollout_cases import CONFIG, small_model


def test_weights_are_cast_and_the_structure_stays():
    cast, _ = sync_weights(small_model(), jnp.bfloat16, None)
    assert jax.tree.structure(cast) == jax.tree.structure(small_model())
    assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.dtype(jnp.bfloat16)}


def test_the_trainers_arrays_may_be_deleted():
    model = Qwen.init(CONFIG, jax.random.key(3))
    copy, _ = sync_weights(model, jnp.float32, None)
    expected = [np.asarray(x) for x in jax.tree.leaves(model)]
    for leaf in jax.tree.leaves(model):
        leaf.delete()
    for leaf, value in zip(jax.tree.leaves(copy), expected, strict=True):
        np.testing.assert_array_equal(leaf, value)


def test_a_bfloat16_sampler_takes_float32_weights():
    sampler = Sampler(
        small_model(), SamplerConfig(slots=2, num_pages=9, max_len=32, dtype="bfloat16")
    )
    sampler.update_weights(small_model(1))
    response = sampler.generate([[1, 2, 3]], SamplingParams(max_tokens=5))[0][0]
    assert len(response.token_ids) == 5
    assert max(response.logprobs) <= 0
