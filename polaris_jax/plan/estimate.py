"""What a step needs of each device's memory, from sizes alone: no program is compiled.

`polaris plan` compiles and is the judge. `polaris init` needs a first answer in a second, for
many settings. The two constants of a platform are fitted to the plans of docs/results/plan.md,
which the estimate meets to a tenth (tests/plan/test_estimate.py).
"""

from __future__ import annotations

import dataclasses

from polaris_jax.models import ModelConfig
from polaris_jax.plan.fit import BUDGET
from polaris_jax.plan.topologies import GPUS_PER_HOST, Chip, Platform, Topology

STATE_BYTES = 16  # float32 weights, gradients and both moments of a parameter
SAMPLING_STATE_BYTES = 12  # the same without gradients
CHIPS_PER_TPU_HOST = 4
MIN_FULL_ROWS = 2  # sequences of full length that a pool should hold
MOST_SLOTS = 32  # of a data shard
PAGE_TOKENS = 64  # rollout.page_size on an accelerator


@dataclasses.dataclass(frozen=True)
class Temporaries:
    """The update's temporaries with remat=layer, for arithmetic of 2 bytes.

    Attributes:
        token: bytes of a token for each unit of width, beside the layers' inputs.
        parameter: bytes of each parameter that a device holds.
    """

    token: float
    parameter: float


# Of the CPU nothing is fitted: XLA's CPU programs keep about as much as the TPU's.
TEMPORARIES: dict[Platform, Temporaries] = {
    "gpu": Temporaries(token=82, parameter=5),
    "tpu": Temporaries(token=162, parameter=10),
    "cpu": Temporaries(token=162, parameter=10),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A setting and the memory that it is estimated to need.

    Attributes:
        context: mesh.context.
        tensor: rollout.tensor.
        slots: rollout.slots, of one process.
        update_bytes: bytes of a device during the update.
        sampling_bytes: bytes of a device during sampling, without the KV pool.
        pool_tokens: tokens that the KV pool of a data shard has room for.
        budget_bytes: bytes of a device that may be used.
    """

    context: int
    tensor: int
    slots: int
    update_bytes: int
    sampling_bytes: int
    pool_tokens: int
    budget_bytes: int


def layout(
    model: ModelConfig,
    platform: Platform,
    chip: Chip,
    *,
    devices: int,
    context: int = 1,
    tensor: int = 1,
    max_len: int,
    width_bytes: int = 2,
) -> Layout:
    """The estimated memory of one setting with one packed row a shard.

    Args:
        model: the architecture.
        platform: tpu, gpu or cpu.
        chip: one device.
        devices: number of devices.
        context: parts of a row.
        tensor: devices that share one copy of the sampler's weights and its pool.
        max_len: prompt and response tokens of the longest sequence.
        width_bytes: bytes of a number in the trainer's arithmetic and in the sampler.
    """
    extra = TEMPORARIES[platform]
    shards = 1  # an axis that does not divide the width is left out (`sharding.leaf_spec`)
    for ways in (devices // context, context):
        shards *= ways if model.hidden_size % (shards * ways) == 0 else 1
    params, width = model.num_parameters / shards, model.hidden_size * width_bytes / 2
    tokens = -(-max_len // context)
    weights = model.num_parameters * width_bytes / tensor
    temporaries = tokens * width * (2 * model.num_layers + extra.token) + extra.parameter * params
    update = STATE_BYTES * params + weights + temporaries
    sampling = SAMPLING_STATE_BYTES * params + weights
    budget = int(BUDGET * chip.hbm_bytes)
    heads = model.num_kv_heads * model.head_dim / tensor
    token_bytes = 2 * model.num_layers * heads * width_bytes
    room = int(max(0.0, budget - sampling) // token_bytes)
    per_process = min(
        devices, {"gpu": GPUS_PER_HOST, "tpu": CHIPS_PER_TPU_HOST, "cpu": 1}[platform]
    )
    slots = MOST_SLOTS
    while slots > 1 and slots * max_len > 4 * room:  # few reach the full length at once
        slots //= 2
    shards = max(1, per_process // tensor)
    return Layout(context, tensor, slots * shards, int(update), int(sampling), room, budget)


def fits(found: Layout, max_len: int) -> bool:
    """True if the update fits and the pool holds `MIN_FULL_ROWS` sequences of full length."""
    rows = found.pool_tokens // max_len
    return found.update_bytes <= found.budget_bytes and rows >= MIN_FULL_ROWS


def smallest_layout(
    model: ModelConfig, topology: Topology, chip: Chip, *, devices: int, max_len: int
) -> Layout | None:
    """The setting with the fewest parts that fits, or None.

    Args:
        model: the architecture.
        topology: the pod; its processes bound the sampler's tensor axis.
        chip: one device.
        devices: number of devices of the pod.
        max_len: prompt and response tokens of the longest sequence.
    """
    local = min(devices, GPUS_PER_HOST if topology.platform == "gpu" else CHIPS_PER_TPU_HOST)
    tensors = [t for t in (1, 2, 4, 8) if local % t == 0 and model.num_kv_heads % t == 0]
    contexts = [c for c in (1, 2, 4, 8, 16) if devices % c == 0]
    for context, tensor in sorted(
        ((c, t) for c in contexts for t in tensors), key=lambda pair: (pair[0] * pair[1], pair)
    ):
        found = layout(
            model,
            topology.platform,
            chip,
            devices=devices,
            context=context,
            tensor=tensor,
            max_len=max_len,
        )
        if fits(found, max_len):
            return found
    return None
