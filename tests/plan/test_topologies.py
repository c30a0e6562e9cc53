"""Names of topologies, and the figures of their chips."""

import re
from importlib import resources

import pytest

from polaris_jax.config import ConfigError
from polaris_jax.metrics.throughput import peak_flops
from polaris_jax.plan.topologies import (
    CHIPS,
    GIB,
    GPU_KINDS,
    devices,
    larger_topologies,
    parse_topology,
)

TARGET_FIELDS = ("device_memory_size", "memory_bandwidth")


@pytest.mark.parametrize(
    ("name", "platform", "chips"),
    [
        ("v5p:2x2x4", "tpu", 16),
        ("v6e:8x8", "tpu", 64),
        ("v5e:16x16", "tpu", 256),
        ("tpu7x:2x2x1", "tpu", 4),
        ("h100:32", "gpu", 32),
        ("h200:8", "gpu", 8),
        ("cpu:8", "cpu", 8),
    ],
)
def test_names(name, platform, chips):
    topology = parse_topology(name)
    assert (topology.platform, topology.num_chips) == (platform, chips)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v7:2x2", "expected v4"),
        ("v5p", "expected v4"),
        ("v5p:2x2", "the shape of v5p is AxBxC, e.g. v5p:2x2x4"),
        ("v6e:8x8x8", "the shape of v6e is AxB, e.g."),
        ("h100:2x4", "the shape of h100 is N"),
        ("h100:12", "a multiple of 8"),
        ("v5e:0x4", "the shape of v5e"),
        ("v5e:4x-4", "the shape of v5e"),
    ],
)
def test_bad_names_say_what_is_wrong(name, words):
    with pytest.raises(ConfigError, match="--topology=") as error:
        parse_topology(name)
    assert words in str(error.value)


def test_virtual_devices():
    assert len(devices(parse_topology("cpu:4"))) == 4
    with pytest.raises(ConfigError, match="device_count=64"):
        devices(parse_topology("cpu:64"))


def test_the_next_larger_pods_of_a_family():
    assert [t.name for t in larger_topologies(parse_topology("v5e:4x4"))] == [
        "v5e:4x8",
        "v5e:8x8",
        "v5e:8x16",
        "v5e:16x16",
    ]


def test_a_core_has_its_share_of_a_chip():
    """A deviceless tpu7x lists its two cores apart; a v4 or v5p chip is one device."""
    whole, core = CHIPS["tpu7x"], parse_topology("tpu7x:2x2x1").chip(8)
    assert core.peak_flops == whole.peak_flops / 2
    assert core.hbm_bytes == whole.hbm_bytes == int(94.74 * GIB)
    assert parse_topology("v5p:2x2x1").chip(4) == CHIPS["v5p"]


@pytest.mark.parametrize("kind", GPU_KINDS)
def test_what_a_gpu_is_compiled_for_is_what_it_is_judged_by(kind):
    text = (resources.files("polaris_jax.plan") / "targets" / f"{kind}.txtpb").read_text()
    found = {name: int(re.findall(rf"{name}: (\d+)", text)[0]) for name in TARGET_FIELDS}
    chip = CHIPS[kind]
    assert found == dict(zip(TARGET_FIELDS, (chip.hbm_bytes, chip.hbm_bytes_per_s), strict=True))
    assert f'"NVIDIA {kind.upper()}' in text


@pytest.mark.parametrize("kind", ["v4", "v5e", "v5p", "v6e", "h100", "h200"])
def test_peaks_agree_with_those_that_utilisation_is_measured_by(kind):
    assert CHIPS[kind].peak_flops == peak_flops(kind)
