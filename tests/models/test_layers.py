"""Rotary frequencies equal transformers': stored references always, live torch in the slow test."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.config import ModelConfig
from polaris_jax.models.layers import rope_frequencies, scaled, shifted
from polaris_jax.models.weights.hf_config import parse_config
from tests.fixtures.rope_cases import ROPE_CASES, SCALINGS, rope_fields
from tests.tolerances import CLOSED_FORM_ATOL, ROPE_FREQUENCY_RTOL

STORED = Path(__file__).parents[1] / "fixtures" / "rope_frequencies.npz"


def stored(name: str) -> tuple[np.ndarray, float]:
    with np.load(STORED) as file:
        return file[name], float(file["attention_factors"][list(ROPE_CASES).index(name)])


def config_of(name: str) -> ModelConfig:
    return parse_config(rope_fields(name))


def assert_same(got: tuple[np.ndarray, float], want: tuple[np.ndarray, float]) -> None:
    np.testing.assert_allclose(got[0], want[0], rtol=ROPE_FREQUENCY_RTOL, atol=0)
    assert got[1] == pytest.approx(want[1], abs=CLOSED_FORM_ATOL)


@pytest.mark.parametrize("name", list(ROPE_CASES))
def test_frequencies_and_attention_factor_equal_stored_transformers(name):
    assert_same(rope_frequencies(config_of(name)), stored(name))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("linear", "factor", 2.0),
        ("llama3", "low_freq_factor", 2.0),
        ("llama3", "high_freq_factor", 8.0),
        ("llama3", "original_max_position_embeddings", 4096),
        ("yarn_not_truncated", "truncate", True),
        ("yarn_other_betas", "beta_fast", 32.0),
        ("yarn_other_betas", "beta_slow", 1.0),
        ("yarn_mscale", "attention_factor", None),
        ("yarn_equal_mscales", "attention_factor", None),
    ],
)
def test_every_field_shows_in_the_stored_numbers(name, field, value):
    """With one field changed the numbers are others, or the comparison could not see it."""
    config = config_of(name)
    scaling = dataclasses.replace(config.rope_scaling, **{field: value})
    other = rope_frequencies(dataclasses.replace(config, rope_scaling=scaling))
    with pytest.raises(AssertionError):
        assert_same(other, stored(name))


def test_every_scaling_is_stored_and_changes_something():
    with np.load(STORED) as file:
        assert set(file) == {*ROPE_CASES, "attention_factors"}
    for name in SCALINGS:
        plain = dataclasses.replace(config_of(name), rope_scaling=None)
        assert np.abs(rope_frequencies(plain)[0] / stored(name)[0] - 1).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ROPE_CASES))
def test_frequencies_and_attention_factor_equal_live_transformers(name):
    pytest.importorskip("torch", reason="live comparison; `pip install .[golden]` brings torch")
    from tests.fixtures.make_parity import torch_rope

    live = torch_rope(name)
    assert_same(rope_frequencies(config_of(name)), live)
    assert_same(stored(name), live)


@pytest.mark.parametrize("apply", [scaled, shifted])
def test_a_vectors_gradient_in_bfloat16_is_summed_in_float32(apply):
    """Over as many tokens as a row of the recipe has; the forward pass has the operator's bits."""
    key = jax.random.key(0)
    x_TW = jax.random.normal(key, (40_960, 8), jnp.bfloat16)
    weight_W = jnp.linspace(0.5, 1.5, 8, dtype=jnp.bfloat16)
    plain = x_TW * weight_W[None] if apply is scaled else x_TW + weight_W[None]
    np.testing.assert_array_equal(np.asarray(apply(x_TW, weight_W)), np.asarray(plain))
    found_W = jax.grad(lambda w: apply(x_TW, w).astype(jnp.float32).sum() / 40_960)(weight_W)
    each_TW = np.asarray(x_TW, np.float64) if apply is scaled else np.ones((40_960, 8))
    scale = np.float64(jnp.bfloat16(1 / 40_960))  # as it reaches each token
    bf16 = 2.0**-8
    np.testing.assert_allclose(
        np.asarray(found_W, np.float64), each_TW.sum(0) * scale, rtol=bf16, atol=0
    )
    jaxpr = str(
        jax.make_jaxpr(jax.grad(lambda w: apply(x_TW, w).astype(jnp.float32).sum()))(weight_W)
    )
    sums = [line for line in jaxpr.splitlines() if "reduce_sum" in line]
    assert sums and all("f32[" in line.split("=")[0] for line in sums)
