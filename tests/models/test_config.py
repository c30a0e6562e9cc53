"""What a description of a model may claim, before anything of its size is made."""

import dataclasses

import pytest

from polaris_jax.models.config import MOST, RopeScaling, shortened
from polaris_jax.models.presets import PRESETS

CONFIG = next(iter(PRESETS.values()))


SIZES = {
    "0": 0,
    "-1": -1,
    "10^12": 10**12,
    "10^5000": 10**5000,
    "bool": True,
    "float": 2.0,
    "text": "2",
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", MOST)
def test_sizes_have_an_upper_limit(name, size):
    with pytest.raises(
        ValueError, match=f"^{name}=.*: must be a whole number from 1 to "
    ) as caught:
        dataclasses.replace(CONFIG, **{name: size})
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["rope_theta", "rms_norm_eps"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), 1e300, "x", True, None])
def test_numbers_are_finite_and_in_range(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.*: must be a number above 0"):
        dataclasses.replace(CONFIG, **{name: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"factor": 1e9},
        {"factor": float("inf")},
        {"attention_factor": -1.0},
        {"attention_factor": 1e12},
        {"original_max_position_embeddings": 1 << 40},
    ],
)
def test_rotary_scaling_is_in_range(fields):
    usual = {"factor": 2.0, "original_max_position_embeddings": 32768}
    with pytest.raises(ValueError, match="rope_scaling"):
        RopeScaling("yarn", **(usual | fields))


def test_all_presets_are_far_below_the_limits():
    for config in PRESETS.values():
        assert all(2 * getattr(config, name) <= most for name, most in MOST.items())


def test_a_long_value_is_shortened():
    assert shortened(10**5000) == "a number of thousands of digits"
    assert shortened("x" * 100) == repr("x" * 100)[:57] + "..."
    assert shortened([1]) == "[1]"
