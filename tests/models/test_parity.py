"""Logits equal transformers': stored references always, live torch in the slow tests."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models import Decoder, RopeScaling, load_pretrained, save_pretrained
from tests.fixtures.parity_cases import (
    ARCHITECTURES,
    CASE_IDS,
    CASES,
    ORIGINAL_POSITIONS,
    ROPES,
    STORED_POSITIONS,
    row_tokens,
    write_checkpoint,
)
from tests.tolerances import PARITY_ATOL, PARITY_RTOL, PARITY_SENSITIVITY

STORED = Path(__file__).parents[1] / "fixtures" / "parity_logits.npz"
PARAMS = [pytest.param(*case, id=name) for name, case in zip(CASE_IDS, CASES, strict=True)]
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def stored(architecture, rope) -> np.ndarray:
    with np.load(STORED) as file:
        return file[f"{architecture.name}-{rope}"]


def logits(model: Decoder, token_BT: np.ndarray) -> np.ndarray:
    position_BT = np.arange(token_BT.shape[1])[None]
    return np.asarray(_forward(model, np.int32(token_BT), np.int32(position_BT)))[0]


@jax.jit
def _forward(model, token_BT, position_BT):
    return model.unembed(model(token_BT, position_BT))


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference in units of the tolerance; at most 1 passes."""
    return float((np.abs(got - want) / (PARITY_ATOL + PARITY_RTOL * np.abs(want))).max())


@pytest.mark.parametrize(("architecture", "rope"), PARAMS)
def test_logits_equal_stored_transformers(architecture, rope, tmp_path):
    model, tokenizer = load_pretrained(write_checkpoint(tmp_path, architecture, rope))
    assert tokenizer is None
    want = stored(architecture, rope)
    assert want.std() >= 1
    assert STORED_POSITIONS.max() > 1.5 * ORIGINAL_POSITIONS
    got = logits(model, row_tokens(architecture))[STORED_POSITIONS]
    assert distance(got, want) <= 1


@pytest.mark.parametrize("name", list(BY_NAME))
def test_every_feature_shows_in_the_stored_logits(name, tmp_path):
    """Leaving a feature out moves the logits by a hundred tolerances and more."""
    architecture = BY_NAME[name]
    token_BT = row_tokens(architecture)
    model, _ = load_pretrained(write_checkpoint(tmp_path, architecture, "yarn"))
    want = stored(architecture, "yarn")

    def moved(other: Decoder) -> float:
        return distance(logits(other, token_BT)[STORED_POSITIONS], want)

    assert moved(model) <= 1
    assert moved(model.with_rope_scaling(None)) >= PARITY_SENSITIVITY
    scaling = model.config.rope_scaling
    without_factor = dataclasses.replace(scaling, attention_factor=1.0)
    assert moved(model.with_rope_scaling(without_factor)) >= PARITY_SENSITIVITY
    other_original = dataclasses.replace(scaling, original_max_position_embeddings=512)
    assert moved(model.with_rope_scaling(other_original)) >= PARITY_SENSITIVITY
    params = model.params()
    for kind in ("q_bias_NH", "k_bias_KH", "v_bias_KH"):
        if architecture.bias:
            path = f"layers/{kind}"
            zeroed = params | {path: jnp.zeros_like(params[path])}
            assert moved(Decoder.from_params(model.config, zeroed)) >= PARITY_SENSITIVITY
    if architecture.qk_norm:
        bare = dataclasses.replace(model.config, qk_norm=False)
        rest = {
            p: x for p, x in params.items() if not p.startswith(("layers/q_norm", "layers/k_norm"))
        }
        assert moved(Decoder.from_params(bare, rest)) >= PARITY_SENSITIVITY


@pytest.mark.parametrize("rope", ["yarn", "yarn_factor_1"])
def test_rope_scaling_argument_means_what_config_json_means(rope, tmp_path):
    architecture = BY_NAME["qwen3"]
    plain = write_checkpoint(tmp_path, architecture, "plain")
    by_dict, _ = load_pretrained(plain, rope_scaling=ROPES[rope])
    factor = ROPES[rope].get("attention_factor")
    by_value, _ = load_pretrained(
        plain, rope_scaling=RopeScaling("yarn", 1.5, ORIGINAL_POSITIONS, attention_factor=factor)
    )
    assert by_dict.config == by_value.config
    got = logits(by_dict, row_tokens(architecture))[STORED_POSITIONS]
    assert distance(got, stored(architecture, rope)) <= 1
    yarn = write_checkpoint(tmp_path / "yarn", architecture, rope)
    taken_away, _ = load_pretrained(yarn, rope_scaling={"rope_type": "default"})
    assert taken_away.config.rope_scaling is None


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "rope"), PARAMS)
def test_logits_equal_live_transformers_before_and_after_export(architecture, rope, tmp_path):
    pytest.importorskip("torch", reason="live comparison; `pip install .[golden]` brings torch")
    from tests.fixtures.make_parity import torch_logits

    token_BT = row_tokens(architecture)
    source = write_checkpoint(tmp_path / "source", architecture, rope)
    want = torch_logits(source, token_BT)
    model, _ = load_pretrained(source)
    assert distance(logits(model, token_BT), want) <= 1
    save_pretrained(model, tmp_path / "export", max_shard_bytes=20_000)
    exported = torch_logits(tmp_path / "export", token_BT)
    np.testing.assert_array_equal(exported, want)
    assert distance(stored(architecture, rope), want[STORED_POSITIONS]) <= 1
