"""Tokens per second, FLOPs of a model, the share of a device's peak, and memory in use.

FLOPs are counted from shapes: XLA's cost analysis counts a loop's body once and a Pallas kernel as
nothing.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from polaris_jax.models import ModelConfig
from polaris_jax.records import TrainBatch

# Dense bfloat16 FLOP/s of one jax device, by a part of its `device_kind` in lower case; the first
# match counts. A v4 or v5p device is a complete chip (megacore).
# Source: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e); NVIDIA H100 and H200 data sheets (SXM,
# without sparsity).
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    (" mig ", 0.0),  # a part of a card; 0: not known
    ("v6 lite", 918e12),
    ("v6e", 918e12),
    ("v5 lite", 197e12),
    ("v5e", 197e12),
    ("v5p", 459e12),
    ("v5", 459e12),
    ("v4", 275e12),
    ("h100 pcie", 756e12),
    ("h100 nvl", 835e12),
    ("h100", 989e12),
    ("h200 nvl", 835e12),
    ("h200", 989e12),
)


def forward_flops_per_token(model: ModelConfig, context_tokens: float) -> float:
    """FLOPs of one token's forward pass.

    A token takes two FLOPs for each weight that is multiplied (the head is multiplied, the
    embedding is only looked up). Attention takes four FLOPs for each query head, unit of head width
    and key (scores and weighted sum).

    Args:
        model: the architecture.
        context_tokens: mean number of keys that a token attends to, itself included: (T + 1) / 2
            over a causal sequence of T tokens.
    """
    # A tied table is looked up and multiplied: it is counted once, as the head.
    looked_up = 0 if model.tie_embeddings else model.vocab_size * model.hidden_size
    attention = 4 * model.num_layers * model.num_heads * model.head_dim * context_tokens
    return 2.0 * (model.num_parameters - looked_up) + attention


def train_flops_per_token(
    model: ModelConfig, context_tokens: float, *, remat: bool = False
) -> float:
    """FLOPs of one token's forward and backward pass (three times the forward: 6 N + attention).

    Args:
        model: the architecture.
        context_tokens: see `forward_flops_per_token`.
        remat: True to count the forward pass that rematerialisation repeats (hardware FLOPs).
            Model FLOPs utilisation leaves this pass out.

    Source: PaLM, Chowdhery et al. 2022 (arXiv:2204.02311), appendix B. Differs: causal attention
        counts only the keys that a token attends to, half of the paper's number.
    """
    return (4 if remat else 3) * forward_flops_per_token(model, context_tokens)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device by its `jax.Device.device_kind`; None when unknown."""
    kind = device_kind.lower()
    return next((peak for part, peak in PEAK_FLOPS if part in kind), None) or None


def mfu(flops: float, seconds: float, *, device_kind: str, devices: int) -> float | None:
    """Model FLOPs utilisation: share of the devices' peak, in [0, 1]; None if the peak is unknown.

    Args:
        flops: FLOPs of all devices together.
        seconds: duration.
        device_kind: `jax.Device.device_kind` of each device.
        devices: number of devices.
    """
    peak = peak_flops(device_kind)
    return flops / seconds / (peak * devices) if peak and seconds > 0 else None


def update_flops(model: ModelConfig, batches: Iterable[TrainBatch]) -> float:
    """Model FLOPs of an update on packed rows; padding does not count.

    Each token counts with the number of keys that the token attends to.
    """
    flops = 0.0
    for batch in batches:
        keys = batch.position_BT[batch.segment_BT > 0] + 1.0
        if len(keys):
            flops += len(keys) * train_flops_per_token(model, float(keys.mean()))
    return flops


def update_throughput(
    flops: float, seconds: float, devices: Sequence[Any]
) -> dict[str, float | None]:
    """`throughput/update_flops_per_s` and `update_mfu` of a step's update.

    Args:
        flops: model FLOPs over all devices.
        seconds: duration of the complete phase, including packing and the weight sync.
        devices: jax devices of the update, all of one kind; mfu is None if their peak is unknown.
    """
    if not flops or seconds <= 0:
        return {"throughput/update_flops_per_s": None, "throughput/update_mfu": None}
    kind, count = devices[0].device_kind, len(devices)
    return {
        "throughput/update_flops_per_s": flops / seconds,
        "throughput/update_mfu": mfu(flops, seconds, device_kind=kind, devices=count),
    }


def memory_metrics() -> dict[str, float | None]:
    """Memory of this process's host and devices, in bytes; None if the platform does not report it.

    `memory/host_bytes` and `memory/host_peak_bytes` are resident sizes of this process.
    `memory/device_bytes`, `_peak_bytes` and `_limit_bytes` are maxima over its local devices.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]

    def fullest(name: str) -> float | None:
        known = [s[name] for s in stats if name in s]
        return max(known) if known else None

    return {
        "memory/host_bytes": _resident_bytes(),
        "memory/host_peak_bytes": _peak_resident_bytes(),
        "memory/device_bytes": fullest("bytes_in_use"),
        "memory/device_peak_bytes": fullest("peak_bytes_in_use"),
        "memory/device_limit_bytes": fullest("bytes_limit"),
    }


def _resident_bytes() -> int | None:
    statm = Path("/proc/self/statm")  # Linux alone has it
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * resource.getpagesize()


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
