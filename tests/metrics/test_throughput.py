"""FLOP counts against matrix products written out, peaks by device name, memory in bytes."""

import dataclasses
import mmap
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from polaris_jax.metrics import throughput
from polaris_jax.models import ModelConfig

SMALL = ModelConfig(
    vocab_size=97,
    hidden_size=24,
    intermediate_size=40,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_position_embeddings=64,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
)


def products(config: ModelConfig, tokens: int) -> int:
    """FLOPs of all matrix products of one causal sequence, one by one."""
    d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
    n, k = config.num_heads, config.num_kv_heads
    layer = 2 * tokens * (d * n * h + 2 * d * k * h + n * h * d + 3 * d * f)
    for t in range(tokens):
        layer += 2 * 2 * n * h * (t + 1)
    return config.num_layers * layer + 2 * tokens * d * config.vocab_size


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_forward_flops_are_those_of_the_matrix_products(tied):
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    tokens = 33
    counted = tokens * throughput.forward_flops_per_token(config, (tokens + 1) / 2)
    norms = 2 * tokens * (2 * config.num_layers + 1) * config.hidden_size  # elementwise weights
    assert counted - norms == products(config, tokens)


def test_training_is_three_forwards_and_four_with_remat():
    forward = throughput.forward_flops_per_token(SMALL, 10)
    assert throughput.train_flops_per_token(SMALL, 10) == 3 * forward
    assert throughput.train_flops_per_token(SMALL, 10, remat=True) == 4 * forward


def test_six_n_dominates_at_short_context():
    flops = throughput.train_flops_per_token(SMALL, 0)
    assert flops == 6 * SMALL.num_parameters


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peak_by_device_kind(kind, teraflops):
    peak = throughput.peak_flops(kind)
    assert peak == (None if teraflops is None else teraflops * 1e12)


def test_mfu_is_a_share_of_all_devices_and_unknown_is_none():
    assert throughput.mfu(275e12, 2.0, device_kind="TPU v4", devices=4) == pytest.approx(0.125)
    assert throughput.mfu(1e12, 1.0, device_kind="cpu", devices=1) is None
    assert throughput.mfu(1e12, 0.0, device_kind="TPU v4", devices=1) is None


def test_an_update_counts_real_tokens_with_the_keys_they_attend_to():
    segment_BT = np.array([[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0], [0] * 6], np.int32)
    position_BT = np.array([[0, 1, 2, 0, 1, 0], [0, 0, 0, 0, 0, 0], [0] * 6], np.int32)
    batch: Any = SimpleNamespace(segment_BT=segment_BT, position_BT=position_BT)
    # Sequences of 3, 2 and 1 tokens: 6 tokens that attend to (1 + 2 + 3) + (1 + 2) + 1 keys.
    expected = sum(throughput.train_flops_per_token(SMALL, k) for k in (1, 2, 3, 1, 2, 1))
    assert throughput.update_flops(SMALL, [batch]) == pytest.approx(expected)
    assert throughput.update_flops(SMALL, [batch, batch]) == pytest.approx(2 * expected)
    empty: Any = SimpleNamespace(segment_BT=segment_BT[2:], position_BT=position_BT[2:])
    assert throughput.update_flops(SMALL, [empty]) == 0.0


@pytest.mark.parametrize(
    ("flops", "seconds", "kind", "rate", "mfu"),
    [
        (275e12, 2.0, "TPU v4", 137.5e12, 0.25),
        (100.0, 2.0, "cpu", 50.0, None),
        (0.0, 2.0, "TPU v4", None, None),  # a step without an update
    ],
)
def test_update_throughput(flops, seconds, kind, rate, mfu):
    devices = [SimpleNamespace(device_kind=kind)] * 2
    values = throughput.update_throughput(flops, seconds, devices)
    assert values["throughput/update_flops_per_s"] == rate
    assert values["throughput/update_mfu"] == mfu


def test_memory_is_in_bytes_and_devices_without_figures_are_none():
    before = throughput.memory_metrics()
    block = mmap.mmap(-1, 64 << 20)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # Linux may count a thread's pages 64 faults late: nothing of small ones, all of huge ones.
        block.madvise(mmap.MADV_NOHUGEPAGE)
    np.frombuffer(block, np.uint8)[:: mmap.PAGESIZE] = 1
    after = throughput.memory_metrics()
    assert after["memory/host_bytes"] - before["memory/host_bytes"] >= 0.9 * len(block)
    assert after["memory/host_peak_bytes"] >= after["memory/host_bytes"] * 0.9
    assert jax.devices()[0].platform == "cpu"
    assert after["memory/device_peak_bytes"] is None
    assert set(before) == set(after)


def test_memory_of_the_fullest_device_is_reported(monkeypatch):
    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {"bytes_in_use": self.used, "bytes_limit": 100}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(9), Device(5)])
    memory = throughput.memory_metrics()
    assert memory["memory/device_bytes"] == 9
    assert memory["memory/device_limit_bytes"] == 100
    assert memory["memory/device_peak_bytes"] is None
