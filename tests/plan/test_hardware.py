"""Which hardware fits a model, and what is suggested in its place."""

import pytest

from polaris_jax.config import ConfigError
from polaris_jax.models.presets import preset
from polaris_jax.plan.hardware import memory_for, misfit, named_hardware

GIB = 1 << 30
LARGE = preset("qwen3-14b")


def named(name, gib=2):
    return named_hardware(name, cpu_bytes=gib * GIB)


def test_what_does_not_fit_names_what_would():
    assert memory_for(named("v5e:2x2"), LARGE, 8192) is None
    assert "--hardware=v5e:" in misfit(named("v5e:2x2"), LARGE)
    assert memory_for(named("cpu"), LARGE, 512) is None
    assert "such as --hardware=h100:1" in misfit(named("cpu"), LARGE)


def test_what_is_suggested_fits():
    name = misfit(named("v5e:2x2"), LARGE).partition("--hardware=")[2].split()[0]
    assert memory_for(named(name), LARGE, 2048)


def test_a_cpu_has_its_machines_memory():
    model = preset("qwen3-0.6b")
    assert memory_for(named("cpu", gib=8), model, 1024) is None
    assert memory_for(named("cpu", gib=64), model, 1024)


def test_a_card_without_a_name_has_the_memory_that_is_given():
    model = preset("qwen3-0.6b")
    small, chip = (named_hardware("h100:1", cpu_bytes=0, hbm_gib=gib) for gib in (12, 0))
    assert memory_for(small, model, 16_384) is None
    assert memory_for(chip, model, 16_384)
    text = misfit(small, preset("qwen3-4b"))
    assert "h100:1 with 12.00 GiB a device has" in text
    assert "--hardware=h100:16 --hbm_gib=12 would do" in text
    with pytest.raises(ConfigError, match="--hbm_gib=12: is the memory of an accelerator"):
        named_hardware("cpu", cpu_bytes=GIB, hbm_gib=12)


def test_both_cores_of_a_chip_are_devices():
    assert named("tpu7x:2x2x1").devices == 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h200", "--hardware=h200: expected cpu, "),
        ("a100:1", "another GPU is --hardware=h100:N with --hbm_gib=GIB"),
        ("cpu:2", "name cpu"),
        ("v6e:2", "--hardware"),
    ],
)
def test_other_names_are_refused(name, words):
    with pytest.raises(ConfigError) as error:
        named(name)
    assert words in str(error.value)
