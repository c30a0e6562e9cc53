"""Presets have the published numbers of parameters and go through config.json unchanged."""

import math

import pytest

from polaris_jax.models import param_shapes
from polaris_jax.models.presets import PRESETS, preset
from polaris_jax.models.weights.hf_config import config_json, parse_config
from polaris_jax.models.weights.tensors import hf_shapes

# Hidden, mlp, layers, heads, kv heads, vocabulary, rotary base, positions, tied: config.json.
PUBLISHED = {
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 151_936, 1e6, 40_960, True),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 151_936, 1e6, 40_960, True),
    "qwen3-4b": (2560, 9728, 36, 32, 8, 151_936, 1e6, 40_960, True),
    "qwen3-8b": (4096, 12_288, 36, 32, 8, 151_936, 1e6, 40_960, False),
    "qwen3-14b": (5120, 17_408, 40, 40, 8, 151_936, 1e6, 40_960, False),
    "r1-distill-qwen-1.5b": (1536, 8960, 28, 12, 2, 151_936, 1e4, 131_072, False),
    "r1-distill-qwen-7b": (3584, 18_944, 28, 28, 4, 152_064, 1e4, 131_072, False),
    "olmo-2-0425-1b": (2048, 8192, 16, 16, 16, 100_352, 5e5, 4096, False),
    "olmo-2-1124-7b": (4096, 11_008, 32, 32, 32, 100_352, 5e5, 4096, False),
}
# As the model pages count them. The files of Qwen3-0.6B and 1.7B hold the tied head once more,
# which the pages count too: 751,632,384 and 2,031,739,904 there.
PARAMETERS = {
    "qwen3-0.6b": 751_632_384 - 151_936 * 1024,
    "qwen3-1.7b": 2_031_739_904 - 151_936 * 2048,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "r1-distill-qwen-1.5b": 1_777_088_000,
    "r1-distill-qwen-7b": 7_615_616_512,
    "olmo-2-0425-1b": 1_484_916_736,
    "olmo-2-1124-7b": 7_298_617_344,
}


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_the_published_config_json(name):
    c = PRESETS[name]
    assert PUBLISHED[name] == (
        c.hidden_size,
        c.intermediate_size,
        c.num_layers,
        c.num_heads,
        c.num_kv_heads,
        c.vocab_size,
        c.rope_theta,
        c.max_position_embeddings,
        c.tie_embeddings,
    )
    assert c.head_dim == 128
    assert c.rms_norm_eps == 1e-6
    assert c.rope_scaling is None
    family = {"qwen3": ("qwen3", True, False), "olmo-": ("olmo2", True, False)}
    assert (c.model_type, c.qk_norm, c.qkv_bias) == family.get(name[:5], ("qwen2", False, True))


@pytest.mark.parametrize("name", list(PRESETS))
def test_parameter_counts_are_the_published_ones_and_the_shapes_own(name):
    config = PRESETS[name]
    assert config.num_parameters == PARAMETERS[name]
    for shapes in (param_shapes(config), hf_shapes(config)):
        assert sum(math.prod(shape) for shape in shapes.values()) == PARAMETERS[name]
    assert ("lm_head.weight" in hf_shapes(config)) == (not config.tie_embeddings)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive_config_json(name):
    assert parse_config(config_json(PRESETS[name], dtype="bfloat16")) == PRESETS[name]


def test_names_are_taken_with_or_without_owner():
    assert preset("Qwen/Qwen3-4B") is PRESETS["qwen3-4b"]
    assert preset("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B") is PRESETS["r1-distill-qwen-7b"]
    with pytest.raises(ValueError, match=r"qwen3-5b.*qwen3-4b"):
        preset("qwen3-5b")
