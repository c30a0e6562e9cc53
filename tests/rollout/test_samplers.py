"""One sampler serves all stages of a run: room for the longest, results of each stage's own."""

import types
from typing import Any

import jax
import pytest

from polaris_jax.config import ConfigError, RunConfig, build_config, longest_response_tokens
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.samplers import Samplers
from polaris_jax.stage_change import stage_sampler
from tests.support.parts import Screen, make_parts, make_state, stage_at
from tests.support.rollout.rollout_cases import CONFIG, random_prompts, small_model

PROMPTS = random_prompts(3, longest=20)
# Pages a row at 4 tokens a page: 8 in stage 0, 11 in stage 1.
SHORT, LONG = 12, 24


def run_config(*, rope_factor: float = 1.0) -> RunConfig:
    return build_config(
        {
            "data": {"max_prompt_tokens": 20},
            "model": {"dtype": "float32"},
            "rope": {"yarn": {"original_max_position_embeddings": 32}},
            "rollout": {"slots": 8, "page_size": 4, "decode_steps": 4},
            "stages": [
                {"max_response_tokens": SHORT},
                {"max_response_tokens": LONG, "rope_factor": rope_factor},
            ],
        }
    )


def entered(config: RunConfig, index: int, sampler: Sampler | None) -> Sampler:
    """The sampler of stage `index` after a stage with `sampler`."""
    samplers = Samplers(config, jax.local_devices()[:1], Screen())
    parts = make_parts(config, samplers=samplers, model_config=CONFIG)
    state = make_state(train=types.SimpleNamespace(params=small_model()), sampler=sampler)
    return stage_sampler(parts, state, index, stage_at(0) if sampler else None)


def sampled(sampler: Sampler, budget: int) -> list[Any]:
    params = SamplingParams(n=2, max_tokens=budget, seed=[5, 6, 7], stop_token_ids=())
    groups = sampler.generate(PROMPTS, params)
    return [[(r.token_ids, r.logprobs) for r in group] for group in groups]


def test_a_longer_stage_compiles_no_program_and_samples_the_same():
    config = run_config()
    sampler = entered(config, 0, None)
    short = sampled(sampler, SHORT)
    sampler.reset_stats()
    assert entered(config, 1, sampler) is sampler
    long = sampled(sampler, LONG)
    assert sampler.stats()["compiles"] == 0
    # A sampler that is made for the stage alone has narrower page tables, and another pool.
    for budget, found in ((SHORT, short), (LONG, long)):
        alone = Sampler(small_model(), SamplerConfig.of_run(config, max_len=20 + budget))
        assert sampled(alone, budget) == found
        assert (alone.stats()["compiles"] > 0) == (budget == SHORT)


def test_a_full_pool_is_the_longest_stages_from_the_first_stage_on():
    sampler = entered(run_config(), 0, None)
    sampled(sampler, SHORT)
    assert sampler.config.max_len == 20 + longest_response_tokens(run_config()) == 44
    assert sampler._live.num_pages == 8 * 11 + 1


def test_a_stage_of_another_rotary_scaling_has_a_sampler_of_its_own():
    config = run_config(rope_factor=1.5)
    sampler = entered(config, 0, None)
    other = entered(config, 1, sampler)
    assert other is not sampler
    with pytest.raises(RuntimeError, match="no weights"):
        sampled(sampler, SHORT)  # it has been released


def test_a_sampler_that_leaves_out_a_process_is_refused():
    class Device:
        platform = "cpu"

        def __init__(self, process_index: int) -> None:
            self.process_index = process_index

    devices = [Device(i) for i in (0, 0, 1, 1)]
    config = run_config()
    with pytest.raises(ConfigError, match="2 processes has 1 devices, none of them of process 1"):
        Samplers(config, devices, Screen()).check(CONFIG, max_response_tokens=LONG)
