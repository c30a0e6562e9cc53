"""Presets have the published numbers of parameters and go through config.json unchanged."""

import pytest

from polaris_jax.models.hf_config import config_json, parse_config
from polaris_jax.models.presets import PRESETS, preset

# As the safetensors files on Hugging Face's model pages count them.
PARAMETERS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "r1-distill-qwen-1.5b": 1_777_088_000,
    "r1-distill-qwen-7b": 7_615_616_512,
}


@pytest.mark.parametrize("name", list(PRESETS))
def test_parameter_counts_are_the_published_ones(name):
    assert PRESETS[name].num_parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive_config_json(name):
    assert parse_config(config_json(PRESETS[name], dtype="bfloat16")) == PRESETS[name]


def test_names_are_taken_with_or_without_owner():
    assert preset("Qwen/Qwen3-4B") is PRESETS["qwen3-4b"]
    assert preset("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B") is PRESETS["r1-distill-qwen-7b"]
    with pytest.raises(ValueError, match=r"qwen3-5b.*qwen3-4b"):
        preset("qwen3-5b")
