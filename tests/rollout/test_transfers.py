"""Between host and device nothing goes but at the two named points, once a sampler is warm."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import pytest

from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.sharding import make_sampler_mesh
from tests.support.rollout.rollout_cases import random_prompts, small_model

SIZES = SamplerConfig(slots=4, page_size=8, num_pages=64, max_len=64, decode_steps=4, min_rows=4)
PROMPTS = random_prompts(4, seed=3)
PARAMS = SamplingParams(n=2, max_tokens=8, temperature=(0.0, 0.7, 1.0, 1.3), prompt_logprobs=True)
CASES = [
    pytest.param(None, {}, id="one"),
    pytest.param(None, {"attention": "xla", "dispatch_ahead": True}, id="ahead"),
    pytest.param((2, 2), {"dispatch_ahead": True}, id="2x2"),
]


@functools.cache
def warm_sampler(shape: tuple[int, int] | None, **settings) -> Sampler:
    mesh = shape and make_sampler_mesh(jax.devices(), data=shape[0], tensor=shape[1])
    sampler = Sampler(small_model(), dataclasses.replace(SIZES, **settings), mesh=mesh)
    everything(sampler)
    return sampler


def everything(sampler: Sampler) -> list:
    """Batches, a stream, weights and a pool that come anew."""
    first = sampler.generate(PROMPTS, PARAMS)
    assert len(list(sampler.stream(PROMPTS, PARAMS))) == 8
    sampler.release_pool()
    sampler.update_weights(small_model())
    second = sampler.generate(PROMPTS[:3], dataclasses.replace(PARAMS, temperature=0.9))
    return [first, second]


@pytest.mark.parametrize(("shape", "settings"), CASES)
def test_a_warm_sampler_sends_and_reads_at_the_named_points_alone(shape, settings, monkeypatch):
    sampler = warm_sampler(shape, **settings)
    expected = everything(sampler)
    named = unnamed = 0
    kind, device_get = type(jnp.zeros(())), jax.device_get
    value = kind._value

    def fetch(tree):
        nonlocal named, unnamed
        assert sys._getframe(1).f_code.co_name == "to_host"
        before, named = unnamed, named + 1
        out = device_get(tree)
        unnamed = before
        return out

    def read(array):
        nonlocal unnamed
        unnamed += 1
        return value.fget(array)

    # On a CPU no guard sees what the host reads. What is split over devices, and every number, is
    # read by `_value`; numpy takes the memory of an array on one device without it.
    monkeypatch.setattr(kind, "_value", property(read))
    monkeypatch.setattr(jax, "device_get", fetch)
    with jax.transfer_guard("disallow"):
        actual = everything(sampler)
    assert actual == expected
    assert unnamed == 0
    assert named > 0
