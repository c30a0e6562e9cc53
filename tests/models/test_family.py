"""Family records: the table is sound, and a family of one's own is what its record says."""

import dataclasses
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models import (
    FAMILIES,
    Decoder,
    Family,
    ModelConfig,
    Qwen,
    family,
    param_shapes,
)
from polaris_jax.models.family import PARAMS
from polaris_jax.models.layers import GATES, rope_frequencies
from tests.support.random_models import random_model
from tests.tolerances import PARITY_ATOL, PARITY_RTOL

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "rope_theta": 1e4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "tie_embeddings": True,
}
# What checkpoints recorded before there were records of families.
RECORDED = {
    "qwen2": {"qkv_bias": True, "qk_norm": False},
    "qwen3": {"qkv_bias": False, "qk_norm": True},
    "llama": {"qkv_bias": False, "qk_norm": False},
}


@pytest.mark.parametrize("path", list(PARAMS))
def test_dimensions_axes_and_hugging_faces_axes_agree(path):
    param, letters = PARAMS[path], path.rsplit("_", 1)[-1]
    assert len(param.axes) == len(letters)
    assert sorted(param.hf_axes.replace("-", "")) == sorted(letters)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_names_are_one_to_one_in_a_family(name):
    config = ModelConfig(**SIZES | {"tie_embeddings": False}, model_type=name)
    params = family.model_params(config)
    for names in (
        {config.family.hf_name(path) for path in params},
        {param.gguf for param in params.values()},
    ):
        assert len(names) == len(params)
    assert config.family.renamed.keys() <= params.keys()
    assert config.family.activation in GATES


@pytest.mark.parametrize("name", list(RECORDED))
def test_what_a_record_says_is_what_checkpoints_have_recorded(name):
    config = ModelConfig(**SIZES, model_type=name)
    recorded = SIZES | RECORDED[name] | {"rope_scaling": None, "model_type": name}
    assert config.architecture() == recorded
    assert ModelConfig(**recorded) == config


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match=r"model_type='mixtral': .*expected one of qwen2, qwen3"):
        ModelConfig(**SIZES, model_type="mixtral")


def test_a_record_of_ones_own_is_all_that_a_family_takes(monkeypatch):
    """Everything that no shipped family has together, against the same layers written out."""
    own = Family(
        "OwnForCausalLM",
        norms="both",
        qkv_bias=True,
        qk_norm="projection",
        scale_embeddings=True,
        renamed={"layers/mlp_norm_D": "pre_feedforward_layernorm.weight"},
    )
    monkeypatch.setattr(family, "FAMILIES", MappingProxyType(FAMILIES | {"own": own}))
    config = ModelConfig(**SIZES, model_type="own")
    assert config.qkv_bias
    assert param_shapes(config)["layers/k_norm_KH"] == (2, 2, 16)
    model = random_model(config, noise=0.1)
    token_BT = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    position_BT = np.arange(8)[None]
    got = model.unembed(model(token_BT, position_BT))[0]
    np.testing.assert_allclose(
        got, plain_logits(model, token_BT[0]), rtol=PARITY_RTOL, atol=PARITY_ATOL
    )


def plain_logits(model: Decoder, token_T: np.ndarray) -> np.ndarray:
    """[T, V], a layer and a head at a time, in float64."""
    config = model.config
    p = {path: np.asarray(x, np.float64) for path, x in model.params().items()}

    def norm(x, weight):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config.rms_norm_eps) * weight

    def rotated(x_TH):
        angle_Th = np.arange(len(x_TH))[:, None] * rope_frequencies(config)[0]
        first, second = np.split(x_TH, 2, axis=-1)
        cos, sin = np.cos(angle_Th), np.sin(angle_Th)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    x_TD = p["embed_VD"][token_T] * config.hidden_size**0.5
    for layer in range(config.num_layers):
        w = {path.removeprefix("layers/"): x[layer] for path, x in p.items() if "layers/" in path}
        y_TD = norm(x_TD, w["attn_norm_D"])
        q_TX, k_TX, v_TX = (
            (np.einsum("td,dnh->tnh", y_TD, w[weight]) + w[bias]).reshape(len(token_T), -1)
            for weight, bias in (
                ("q_DNH", "q_bias_NH"),
                ("k_DKH", "k_bias_KH"),
                ("v_DKH", "v_bias_KH"),
            )
        )
        q_TX = norm(q_TX, w["q_norm_NH"].reshape(-1))
        k_TX = norm(k_TX, w["k_norm_KH"].reshape(-1))
        width = config.head_dim
        out_TD = 0.0
        for head in range(config.num_heads):
            kv = head * config.num_kv_heads // config.num_heads
            q_TH = rotated(q_TX[:, head * width : (head + 1) * width])
            k_TH, v_TH = (x[:, kv * width : (kv + 1) * width] for x in (k_TX, v_TX))
            score_TT = q_TH @ rotated(k_TH).T / np.sqrt(width)
            score_TT[np.triu_indices(len(token_T), 1)] = -np.inf
            weight_TT = np.exp(score_TT - score_TT.max(-1, keepdims=True))
            weight_TT /= weight_TT.sum(-1, keepdims=True)
            out_TD = out_TD + weight_TT @ v_TH @ w["o_NHD"][head]
        x_TD = x_TD + norm(out_TD, w["attn_out_norm_D"])
        y_TD = norm(x_TD, w["mlp_norm_D"])
        gate_TF, up_TF = y_TD @ w["gate_DF"], y_TD @ w["up_DF"]
        out_TD = (gate_TF / (1 + np.exp(-gate_TF)) * up_TF) @ w["down_FD"]
        x_TD = x_TD + norm(out_TD, w["mlp_out_norm_D"])
    return norm(x_TD, p["norm_D"]) @ p["embed_VD"].T


def test_a_config_may_say_otherwise_than_its_family():
    config = ModelConfig(**SIZES, qkv_bias=True)
    assert config.qk_norm
    assert param_shapes(config)["layers/q_bias_NH"] == (2, 4, 16)
    bare = dataclasses.replace(config, qkv_bias=False, qk_norm=False)
    assert not any("bias" in path or "q_norm" in path for path in param_shapes(bare))
    assert jnp.isfinite(random_model(bare)(jnp.zeros((1, 3), int), jnp.arange(3)[None])).all()


def test_the_models_public_name_of_old_is_the_same_class():
    assert Qwen is Decoder
