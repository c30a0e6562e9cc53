"""Rotary frequencies equal transformers': stored references always, live torch in the slow test."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from polaris_jax.models.config import ModelConfig
from polaris_jax.models.layers import rope_frequencies
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
