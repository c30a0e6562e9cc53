"""What `model.dtype=auto` becomes."""

import dataclasses

import jax
import pytest

from polaris_jax.config import build_config
from polaris_jax.rollout import native
from polaris_jax.rollout.samplers import with_dtype
from tests.support.rollout.rollout_cases import CONFIG


@dataclasses.dataclass
class Device:
    platform: str


def fail():
    raise native.BuildFailed("no C++ compiler")


@pytest.fixture
def kernels(monkeypatch):
    """Sets what the native kernels can do; None: they cannot be compiled."""

    def there(bfloat16: bool | None) -> None:
        monkeypatch.setattr(native, "load", fail if bfloat16 is None else lambda: "c++ 12")
        monkeypatch.setattr(native, "multiplies_bfloat16", lambda: bool(bfloat16))

    return there


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_it_is_bfloat16_on_accelerators(platform, kernels):
    kernels(None)
    said = []
    decided = with_dtype(build_config({}), CONFIG, [Device(platform)] * 4, said.append)
    assert decided.model.dtype == "bfloat16"
    assert said == ["model.dtype=auto: bfloat16"]


@pytest.mark.parametrize(
    ("rollout", "bfloat16", "why"),
    [
        ({}, True, ""),
        ({"attention": "native"}, True, ""),
        ({}, False, "AVX512-BF16"),
        ({"attention": "native"}, False, "AVX512-BF16"),
        ({}, None, "no C++ compiler"),
        ({"attention": "xla"}, True, "rollout.attention='xla'"),
        ({"data": 2}, True, "is for one device without a mesh"),
        ({"kv_dtype": "int8"}, True, "rollout.kv_dtype='int8'"),
    ],
    ids=str,
)
def test_on_a_cpu_it_is_what_the_native_kernels_serve(kernels, rollout, bfloat16, why):
    kernels(bfloat16)
    objective = {"old_logprobs": "sampler"} if "kv_dtype" in rollout else {}
    config = build_config({"rollout": rollout, "objective": objective})
    assert config.model.dtype == "auto"
    said = []
    decided = with_dtype(config, CONFIG, jax.devices()[:2], said.append)
    assert decided.model.dtype == decided.model.arithmetic == ("float32" if why else "bfloat16")
    assert len(said) == 1
    assert said[0].startswith(f"model.dtype=auto: {decided.model.dtype}")
    assert why in said[0]


def test_several_processes_take_float32_on_cpus(monkeypatch, kernels):
    kernels(True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert with_dtype(build_config({}), CONFIG, jax.devices()[:1]).model.dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_type_of_the_users_own_is_kept(dtype, kernels):
    kernels(True)
    config = build_config({"model": {"dtype": dtype}})
    assert with_dtype(config, CONFIG, jax.devices()[:1], pytest.fail) == config
    assert config.model.arithmetic == dtype


def test_bfloat16_of_the_users_own_is_kept_with_a_warning_where_it_is_slow(kernels):
    kernels(False)
    config, said = build_config({"model": {"dtype": "bfloat16"}}), []
    assert with_dtype(config, CONFIG, jax.devices()[:1], said.append) == config
    (line,) = said
    assert line.startswith("warning: model.dtype=bfloat16 is several times slower")
    assert "AVX512-BF16" in line
    assert line.endswith("set model.dtype=auto or float32")
    assert with_dtype(config, CONFIG, [Device("tpu")], pytest.fail) == config
