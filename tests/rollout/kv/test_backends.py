"""The platform's own kernel by default; what a back end cannot serve is refused."""

import dataclasses
import typing

import jax
import pytest

from polaris_jax.config import ConfigError, RolloutSection
from polaris_jax.models.presets import PRESETS
from polaris_jax.rollout import SamplerConfig, native
from polaris_jax.rollout.kv import ragged_v3
from polaris_jax.rollout.kv.backends import (
    AUTO,
    BACKENDS,
    SMEM_BYTES,
    Sizes,
    choose_backend,
    smem_bytes,
)
from polaris_jax.rollout.programs.spec import program_spec
from polaris_jax.sharding import make_sampler_mesh
from tests.support.rollout.rollout_cases import CONFIG

QWEN3_4B = PRESETS["qwen3-4b"]


def choose(attention="auto", platform="tpu", config=QWEN3_4B, **sizes):
    sizes = {"page_size": 64, "rows": 64, "pages": 832} | sizes
    return choose_backend(attention, Sizes(platform, config, **sizes))[0].name


def test_the_config_names_the_backends_of_the_table():
    named = typing.get_args(typing.get_type_hints(RolloutSection)["attention"])
    assert set(named) == {AUTO, *(row.name for row in BACKENDS)}


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu", "cuda", "rocm", "metal"])
def test_every_platform_has_the_reference(platform):
    serving = [row for row in BACKENDS if row.runs_on(platform) and not row.limits]
    assert serving
    assert choose("xla", platform=platform) == "xla"


def test_auto_takes_the_platforms_own_kernel():
    assert choose() == "ragged"
    assert choose(platform="gpu") == choose(platform="cuda") == "pallas_gpu"
    assert choose(platform="cpu") == "xla"
    assert choose(config=CONFIG) == "xla"  # head_dim 16
    assert choose(platform="gpu", page_size=24) == "xla"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "ragged_v3"}, "'ragged_v3': is for bfloat16, .* dtype is unknown yet"),
        (
            {"attention": "ragged", "platform": "cpu"},
            "'ragged': runs on tpu, the devices are cpu; use auto",
        ),
        (
            {"attention": "pallas_gpu"},
            "runs on gpu or cuda or rocm, the devices are tpu",
        ),
        ({"attention": "ragged", "config": CONFIG}, "needs head_dim=128, the model has 16"),
        ({"attention": "dense"}, "rollout.attention='dense': expected auto"),
        (
            {"rows": 256, "page_size": 16, "pages": 3328},
            "page_size=16: .* 256 slots x 3328 pages x 4 bytes = 3409924 bytes .* 1048576 .*"
            "page_size=64",
        ),
        (
            {"attention": "pallas_gpu", "platform": "gpu", "page_size": 24},
            "a power of 2, page_size=24 is none",
        ),
    ],
)
def test_what_a_back_end_cannot_serve_is_refused_with_the_numbers(settings, message):
    with pytest.raises(ConfigError, match=message):
        choose(**settings)


def test_8_bit_keys_and_values_go_to_the_kernels_that_read_them():
    assert choose(kv_dtype="int8") == "ragged"
    assert choose(kv_dtype="int8", tensor=4) == "ragged"  # 2 KV heads a device
    assert choose(platform="gpu", kv_dtype="int8") == "pallas_gpu"
    assert choose(platform="cpu", kv_dtype="int8", dtype="float32", staged=True) == "xla"
    for sizes, why in (
        ({"tensor": 8}, "needs 2, 4, 8 or a multiple of 16 KV heads on a device, and has 1 with"),
        ({"config": dataclasses.replace(QWEN3_4B, model_type="olmo2")}, "constant scales"),
    ):
        assert choose(kv_dtype="int8", **sizes) == "xla"
        with pytest.raises(ConfigError, match=why):
            choose("ragged", kv_dtype="int8", **sizes)
    with pytest.raises(ConfigError, match="'native': does not read keys and values of rollout"):
        choose("native", platform="cpu", kv_dtype="int8")


@pytest.mark.parametrize(
    ("kv_heads", "tensor", "dtype", "serves"),
    [
        (40, 1, "bfloat16", "ragged"),
        (40, 2, "bfloat16", "xla"),  # Llama-2-13B: 20 a device
        (40, 4, "bfloat16", "xla"),
        (40, 8, "bfloat16", "xla"),
        (8, 2, "bfloat16", "ragged"),
        (52, 1, "bfloat16", "xla"),
        (52, 1, "float32", "ragged"),
        (3, 1, "bfloat16", "xla"),
    ],
)
def test_key_value_heads_that_the_kernel_of_a_tpu_cannot_tile(kv_heads, tensor, dtype, serves):
    config = dataclasses.replace(QWEN3_4B, num_heads=kv_heads, num_kv_heads=kv_heads)
    assert choose(config=config, tensor=tensor, dtype=dtype) == serves
    if serves == "xla":
        with pytest.raises(ConfigError, match=r"needs 1, 2, 4, 8 or a multiple of 8 KV heads"):
            choose("ragged", config=config, tensor=tensor, dtype=dtype)


def test_the_suggested_page_size_fits():
    assert smem_bytes(256, 3328) >= SMEM_BYTES > smem_bytes(256, 832)
    assert choose(rows=256, page_size=64, pages=832) == "ragged"


@pytest.mark.parametrize(
    ("platform", "head_dim", "page_size", "attention", "kernels"),
    [
        ("tpu", 128, 64, "auto", "ragged (the kernel of a tpu)"),
        (
            "tpu",
            64,
            64,
            "auto",
            "xla (rollout.attention='ragged': needs head_dim=128, the model has 64)",
        ),
        ("tpu", 128, 64, "xla", "xla (rollout.attention='xla')"),
        ("gpu", 128, 16, "auto", "pallas_gpu (the kernel of a gpu)"),
        (
            "cuda",
            128,
            24,
            "auto",
            "xla (rollout.attention='pallas_gpu': needs a power of 2, page_size=24 is none)",
        ),
        (
            "gpu",
            96,
            16,
            "auto",
            "xla (rollout.attention='pallas_gpu': needs a power of 2, head_dim=96 is none)",
        ),
        (
            "gpu",
            8,
            16,
            "auto",
            "xla (rollout.attention='pallas_gpu': needs head_dim of at least 16, not 8)",
        ),
        ("gpu", 128, 16, "pallas_gpu", "pallas_gpu (rollout.attention='pallas_gpu')"),
    ],
)
def test_what_serves_an_accelerator_is_said_with_the_reason(
    platform, head_dim, page_size, attention, kernels, monkeypatch
):
    class Chip:
        pass

    chip = Chip()
    chip.platform = platform
    monkeypatch.setattr(jax, "local_devices", lambda: [chip])
    config = dataclasses.replace(QWEN3_4B, head_dim=head_dim)
    sizes = SamplerConfig(slots=64, page_size=page_size, max_len=4096, attention=attention)
    assert program_spec(config, sizes, None).kernels == kernels


@pytest.mark.parametrize("there", [True, False], ids=["installed", "not installed"])
def test_the_third_version_is_taken_by_name_alone_and_with_its_package(there, monkeypatch):
    monkeypatch.setattr(ragged_v3, "installed", lambda: there)
    assert choose(dtype="bfloat16") == "ragged"
    if there:
        assert choose("ragged_v3", dtype="bfloat16") == "ragged_v3"
    else:
        with pytest.raises(ConfigError, match="pip install --no-deps tpu-inference"):
            choose("ragged_v3", dtype="bfloat16")


def test_without_a_compiler_bfloat16_is_xlas_and_nothing_is_compiled_for_a_mesh(monkeypatch):
    calls = []

    def fail():
        calls.append(1)
        raise native.BuildFailed("no C++ compiler")

    monkeypatch.setattr(native, "load", fail)
    monkeypatch.setattr(native, "multiplies_bfloat16", fail)
    kernels = {
        dtype: program_spec(QWEN3_4B, SamplerConfig(dtype=dtype), None).kernels
        for dtype in ("float32", "bfloat16")
    }
    assert kernels["float32"] == kernels["bfloat16"]
    assert kernels["bfloat16"].startswith("xla (") and "no C++ compiler" in kernels["bfloat16"]
    assert len(calls) == 2
    mesh = make_sampler_mesh(jax.devices()[:2], data=2)
    program_spec(QWEN3_4B, SamplerConfig(dtype="bfloat16"), mesh)
    assert len(calls) == 2
