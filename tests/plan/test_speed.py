"""Hours of a command by published figures: near the plan's own, which compiles."""

import dataclasses
from pathlib import Path

import pytest

from polaris_jax.commands.config_file import load_config
from polaris_jax.config import build_config
from polaris_jax.models.presets import preset
from polaris_jax.plan.speed import Machine, known_chip, sampling_s, step_s
from polaris_jax.plan.topologies import CHIPS
from tests.tolerances import SPEED_RTOL

ROOT = Path(__file__).resolve().parents[2]
CONFIG = build_config(load_config(str(ROOT / "configs/polaris_4b.py")))
MODEL = preset("qwen3-4b")


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_its_kind(kind, chip):
    found = known_chip(kind)
    assert (found and found.name) == chip


@pytest.mark.parametrize(
    ("chip", "devices", "seconds"),
    [("h100", 32, 1020), ("h100", 8, 3550), ("v5p", 16, 2348), ("v6e", 64, 914)],
)
def test_a_step_takes_as_long_as_in_the_plans_table(chip, devices, seconds):
    """docs/results/plan.md has rollout and update of the longest stage, with compiled programs."""
    budget = max(stage.max_response_tokens for stage in CONFIG.stages)
    found = step_s(CONFIG, MODEL, Machine(CHIPS[chip], devices, devices), budget=budget)
    assert found == pytest.approx(seconds, rel=SPEED_RTOL)


def test_the_recipe_takes_days_on_32_h100():
    machine = Machine(CHIPS["h100"], 32, 4)
    steps = [
        stage.steps * step_s(CONFIG, MODEL, machine, budget=stage.max_response_tokens)
        for stage in CONFIG.stages
    ]
    assert 7 < sum(steps) / 86400 < 9
    batch = sampling_s(CONFIG, MODEL, machine, responses=512, n=8, budget=39_936)
    assert 4 < batch * 53_291 * 8 / 512 / 86400 < 5


def test_devices_that_only_sample_do_not_train():
    def seconds(sampling: int, training: int) -> tuple[float, float]:
        machine = Machine(CHIPS["h100"], 8, 1, sampling, training)
        sampled = sampling_s(CONFIG, MODEL, machine, responses=512, n=8, budget=8_192)
        return sampled, step_s(CONFIG, MODEL, machine, budget=8_192) - sampled

    (all_sampled, all_trained), (sampled, trained) = seconds(0, 0), seconds(2, 6)
    assert sampled > 1.5 * all_sampled  # each step reads the weights for more rows
    assert trained > all_trained > 0


def test_more_devices_and_fewer_responses_take_less():
    def seconds(devices: int, responses: int, slots: int = 1024) -> float:
        rollout = dataclasses.replace(CONFIG.rollout, slots=slots)
        config = dataclasses.replace(CONFIG, rollout=rollout)
        machine = Machine(CHIPS["h100"], devices)
        return sampling_s(config, MODEL, machine, responses=responses, n=8, budget=8_192)

    assert seconds(16, 512) < seconds(8, 512) < seconds(8, 1024)
    assert seconds(8, 512, slots=8) > seconds(8, 512)  # 8 slots sample one after another
