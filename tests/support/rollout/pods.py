"""The shipped pods as a simulation sees them: sizes from `polaris plan`, clocks from data."""

from __future__ import annotations

import dataclasses

import numpy as np

from polaris_jax.metrics.throughput import forward_flops_per_token
from polaris_jax.models.presets import preset
from polaris_jax.plan.lengths import Lengths, cut_lognormal
from polaris_jax.plan.rollout_clock import Clock, Shards
from polaris_jax.plan.roofline import (
    ASSUMED,
    Efficiency,
    Estimate,
    UpdateWork,
    estimate_step,
    live_context,
)
from polaris_jax.plan.topologies import CHIPS, GIB
from polaris_jax.rollout.balance import recompute_reads

MODEL = preset("qwen3-4b")
KV_TOKEN_BYTES = 2 * 2 * MODEL.num_layers * MODEL.num_kv_heads * MODEL.head_dim
WEIGHT_BYTES = 2 * MODEL.num_parameters
PROMPTS, RESPONSES, PROMPT_TOKENS = 128, 8, 300
LENGTHS: Lengths = cut_lognormal(20_000.0, 52_224)


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod of configs/_targets.py.

    Attributes:
        chip: a key of `CHIPS`.
        devices: devices of the pod.
        samplers: its hosts.
        slots: slots of a data shard.
        tensor: devices of a data shard.
        pool_gib: pages of a device, as docs/results/plan.md has them.
    """

    chip: str
    devices: int
    samplers: int
    slots: int
    tensor: int
    pool_gib: float

    @property
    def sampler(self) -> Shards:
        tokens = int(self.pool_gib * GIB * self.tensor / KV_TOKEN_BYTES)
        shards = self.devices // self.samplers // self.tensor
        return Shards(shards, self.slots, tokens)

    def clock(self, *, moves: bool = True, efficiency: Efficiency = ASSUMED) -> Clock:
        """What the roofline says of a shard; without `moves` no live row moves."""
        chip, tensor = CHIPS[self.chip], self.tensor
        bandwidth = chip.hbm_bytes_per_s * efficiency.bandwidth * tensor
        flops = forward_flops_per_token(MODEL, live_context(LENGTHS, PROMPT_TOKENS))
        token_s = flops / (chip.peak_flops * efficiency.mfu * tensor)
        clock = Clock(
            WEIGHT_BYTES / bandwidth,
            KV_TOKEN_BYTES / bandwidth,
            token_s,
            token_s,
            efficiency.host_call_s,
        )
        reads = recompute_reads(
            MODEL, max_len=PROMPT_TOKENS + LENGTHS.longest, kv_token_bytes=KV_TOKEN_BYTES
        )
        return dataclasses.replace(clock, recompute_reads=reads) if moves else clock

    def balanced_s(self, token_PR: np.ndarray, *, samplers: int | None = None) -> float:
        """A rollout in which every shard reads an equal part and no slot is ever empty."""
        clock, shards = self.clock(), (samplers or self.samplers) * self.sampler.shards
        context = live_context(LENGTHS, PROMPT_TOKENS)
        rows = min(self.slots, self.sampler.pool_tokens // context) * shards
        steps = max(float(token_PR.max()), token_PR.sum() / rows)
        kv_tokens = (token_PR * (PROMPT_TOKENS + token_PR / 2)).sum()
        prefill = len(token_PR) * PROMPT_TOKENS * clock.prefill_token_s
        return float((kv_tokens * clock.kv_token_s + prefill) / shards + steps * clock.weights_s)

    def estimate(self) -> Estimate:
        """The plan's."""
        return estimate_step(
            MODEL,
            CHIPS[self.chip],
            LENGTHS,
            devices=self.devices,
            responses=PROMPTS * RESPONSES,
            prompts=PROMPTS,
            prompt_tokens=PROMPT_TOKENS,
            update=UpdateWork(0.0, 0.0, 0),
            weights_bytes=WEIGHT_BYTES / self.tensor,
            kv_token_bytes=KV_TOKEN_BYTES,
            samplers=self.samplers,
            sampler=self.sampler,
            by_sample=True,
            step_collective_s=0.0,
            sync_s=0.0,
        )


PODS = {
    "h100:32": Pod("h100", 32, 4, 32, 1, 57.96),
    "v5p:2x2x4": Pod("v5p", 16, 4, 32, 1, 74.60),
    "v6e:8x8": Pod("v6e", 64, 16, 64, 4, 25.51),
}
