"""Settings are checked, and named with the value, before anything runs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.config import ModelSection, RolloutSection, RunConfig
from polaris_jax.rollout import SamplerConfig, SamplingParams
from polaris_jax.rollout.settings import per_prompt


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(temperature=[1.0, -0.1]), "prompt 1: temperature=-0.1: must be at least 0"),
        (SamplingParams(temperature=float("nan")), "prompt 0: temperature=nan"),
        (SamplingParams(temperature=1e-39), "prompt 0: temperature=1e-39: must be at least 0, and"),
        (SamplingParams(top_p=1e-46), r"prompt 0: top_p=1e-46: must be in \(0, 1\], and 1e-30"),
        (SamplingParams(top_k=2**31), "prompt 0: top_k=2147483648: must be at least 0"),
        (SamplingParams(top_p=0.0), r"prompt 0: top_p=0.0: must be in \(0, 1\]"),
        (SamplingParams(top_k=[-1, 0]), "prompt 0: top_k=-1"),
        (SamplingParams(min_p=1.5), "prompt 0: min_p=1.5"),
        (SamplingParams(max_tokens=[3, 0]), "prompt 1: max_tokens=0: must be at least 1"),
        (SamplingParams(seed=[0, 2**32]), "prompt 1: seed=4294967296"),
        (SamplingParams(seed=[1, 2, 3]), "seed: 3 values for 2 prompts"),
        (SamplingParams(n=0), "n=0: must be at least 1"),
        (SamplingParams(n=True), "n=True: must be a whole number, not bool; give an int"),
        (SamplingParams(n=2.0), "n=2.0: must be a whole number, not float"),
        (SamplingParams(n="2"), "n='2': must be a whole number, not str"),
        (SamplingParams(top_k=2.7), "prompt 0: top_k=2.7: must be a whole number"),
        (SamplingParams(top_k=float("inf")), "prompt 0: top_k=inf: must be a whole number"),
        (SamplingParams(max_tokens=[2, 2.9]), "prompt 1: max_tokens=2.9: must be a whole number"),
        (SamplingParams(max_tokens=None), "prompt 0: max_tokens=None: must be a whole number"),
        (SamplingParams(seed=1.9), "prompt 0: seed=1.9: must be a whole number"),
        (SamplingParams(seed=[[1, 2], [3]]), r"prompt 0: seed=\[1, 2\]: must be a whole number"),
        (SamplingParams(temperature=None), "prompt 0: temperature=None: must be a number"),
        (SamplingParams(temperature="hot"), "prompt 0: temperature='hot': must be a number"),
        (SamplingParams(temperature=1e39), "prompt 0: temperature=1e\\+39: .* at most 3.40"),
        (SamplingParams(top_p=[0.5, "1"]), "prompt 1: top_p='1': must be a number"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        per_prompt(params, 2)


def test_single_values_are_checked_without_a_prompt_too():
    with pytest.raises(ValueError, match=r"^temperature=-1\.0: must be at least 0"):
        per_prompt(SamplingParams(temperature=-1), 0)
    assert per_prompt(SamplingParams(), 0) == []


def test_numbers_of_numpy_and_jax_are_numbers():
    params = SamplingParams(
        temperature=jnp.float32(0.5), top_k=np.int64(3), seed=np.arange(2), max_tokens=jnp.int32(4)
    )
    first, second = per_prompt(params, 2)
    assert (first.temperature, first.top_k, first.max_tokens, second.seed) == (0.5, 3, 4, 1)
    assert all(type(x) in (int, float) for x in dataclasses.astuple(first))


def test_a_run_sets_every_size_that_its_rollout_section_has():
    asked = RolloutSection(
        slots=12,
        page_size=32,
        num_pages=7,
        reserve=0.3,
        attention="xla",
        kv_dtype="int8",
        decode_steps=3,
        prefill_chunk=5,
        prefill_budget=9,
        prefix_cache=False,
        draft="history",
        draft_tokens=5,
    )
    sizes = SamplerConfig.of_run(
        RunConfig(rollout=asked, model=ModelSection(dtype="bfloat16")), max_len=77
    )
    shared = {f.name for f in dataclasses.fields(RolloutSection)} & set(vars(sizes))
    own = {"max_len", "layout", "min_rows", "dtype", "dispatch_ahead"}
    assert shared | own == set(vars(sizes))
    for name in shared:
        assert getattr(sizes, name) == getattr(asked, name) != getattr(SamplerConfig(), name)
    assert (sizes.max_len, sizes.dtype) == (77, "bfloat16")
