"""The files in configs/ build, are locked, and carry the recipe's numbers."""

import importlib.util
import pathlib

import pytest

from polaris_jax.config import build_config

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


def load(name):
    path = next(p for p in CONFIGS if p.stem == name)
    spec = importlib.util.spec_from_file_location(f"config_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_builds_and_is_locked(path):
    config = load(path.stem)
    build_config(config)
    assert config.is_locked
    assert all(stage.is_locked for stage in config.stages)
    with pytest.raises(AttributeError):
        config.rollout.no_such_field = 1


# recipe: max response tokens and rollout temperature of every stage, validation temperature.
RECIPE = {
    "polaris_4b": ([(39_936, 1.4), (48_128, 1.45), (52_224, 1.5)], 1.2),
    "polaris_7b": ([(15_360, 0.7), (23_552, 1.0), (31_744, 1.1)], 0.6),
    "polaris_1p7b": ([(39_936, 1.5), (48_128, 1.55)], 1.2),
}


@pytest.mark.parametrize("name", RECIPE)
def test_the_recipes_numbers(name):
    config = build_config(load(name))
    stages, validation = RECIPE[name]
    assert [(s.max_response_tokens, s.temperature) for s in config.stages] == stages
    assert config.evaluate.temperature == validation
    assert all(s.reset_optimizer and s.drop_above == 0.9 for s in config.stages)
    assert (config.rollout.prompts_per_step, config.rollout.responses_per_prompt) == (128, 8)
    assert (config.rollout.top_p, config.rollout.top_k) == (1.0, 0)
    assert config.data.max_prompt_tokens == 1024
    assert config.model.dtype == "bfloat16"
    assert config.model.remat == "layer"
    o = config.optimizer
    assert (o.learning_rate, o.b1, o.b2, o.eps) == (1e-6, 0.9, 0.999, 1e-8)
    assert (o.weight_decay, o.max_grad_norm) == (0.01, 1.0)
    j = config.objective
    assert (j.clip_low, j.clip_high, j.dual_clip) == (0.2, 0.28, 3.0)
    assert (j.kl_coef, j.entropy_coef, j.minibatches) == (0.0, 0.0, 1)
    assert (j.old_logprobs, j.aggregation, j.tis_cap) == ("current", "token_mean", 2.0)
    assert (config.checkpoint.every_steps, config.evaluate.every_steps) == (10, 10)
    assert config.evaluate.n == 8
    assert (config.rope.yarn.factor, config.rope.yarn.attention_factor) == (1.5, 1.0)
    assert config.rope.yarn.original_max_position_embeddings == 32_768
    assert config.batch.min_informative == pytest.approx(1 / 3)
