"""What `model.dtype=auto` becomes."""

import dataclasses

import jax
import pytest

from polaris_jax.config import build_config
from polaris_jax.rollout import native
from polaris_jax.rollout.samplers import with_dtype


@dataclasses.dataclass
class Device:
    platform: str


def fail():
    raise native.BuildFailed("no C++ compiler")


@pytest.mark.parametrize(
    ("platform", "count", "attention", "there", "dtype", "why"),
    [
        ("tpu", 4, "auto", fail, "bfloat16", ""),
        ("cuda", 1, "xla", fail, "bfloat16", ""),
        ("cpu", 1, "auto", lambda: True, "bfloat16", ""),
        ("cpu", 1, "native", lambda: True, "bfloat16", ""),
        ("cpu", 1, "auto", lambda: False, "float32", "no AVX512-BF16"),
        ("cpu", 1, "auto", fail, "float32", "no C++ compiler"),
        ("cpu", 1, "xla", lambda: True, "float32", "rollout.attention='xla'"),
        ("cpu", 2, "auto", lambda: True, "float32", "one CPU device of one process"),
    ],
)
def test_auto_is_bfloat16_unless_a_cpu_has_no_kernels(
    monkeypatch, platform, count, attention, there, dtype, why
):
    monkeypatch.setattr(native, "multiplies_bfloat16", there)
    config = build_config({"rollout": {"attention": attention}})
    assert config.model.dtype == "auto"
    said = []
    decided = with_dtype(config, [Device(platform)] * count, said.append)
    assert decided.model.dtype == decided.model.arithmetic == dtype
    assert len(said) == 1
    assert said[0].startswith(f"model.dtype=auto: {dtype}")
    assert why in said[0]


def test_several_processes_take_float32_on_cpus(monkeypatch):
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert with_dtype(build_config({}), [Device("cpu")]).model.dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_type_of_the_users_own_is_kept(dtype):
    config = build_config({"model": {"dtype": dtype}})
    assert with_dtype(config, [Device("cpu")], pytest.fail) == config
    assert config.model.arithmetic == dtype
