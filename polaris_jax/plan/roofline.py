"""ESTIMATES of a GRPO step's seconds from bytes, FLOPs and a chip's public figures.

Nothing here has been measured on the chip. An update takes as long as the slowest of its compute,
its memory traffic and its collectives. A rollout takes as long as reading the weights once a step
and every live key and value once a token. Host work is left out.
"""

from __future__ import annotations

import dataclasses
import math

from polaris_jax.metrics.throughput import forward_flops_per_token
from polaris_jax.models import ModelConfig
from polaris_jax.plan.topologies import Chip


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Shares of a chip's public figures that a step is assumed to reach.

    Attributes:
        mfu: model FLOPs utilisation of the update (recomputation not credited).
        bandwidth: share of the HBM's bandwidth that decode reaches.
        padding: share of a packed row that is padding.
    """

    mfu: float = 0.40
    bandwidth: float = 0.60
    padding: float = 0.03


ASSUMED = Efficiency()


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Moments of the response length in tokens: an exponential cut off at the budget.

    Attributes:
        mean: mean length.
        square: mean of the squared length.
        longest: the budget; some response of each step is assumed to reach the budget.
    """

    mean: float
    square: float
    longest: int


def truncated_exponential(mean: float, longest: int) -> Lengths:
    """Lengths on [0, longest] with density ~ exp(-rate x) and the given mean.

    A mean over half of `longest` needs a negative rate: most responses are near the budget then.
    """
    if mean >= longest:
        return Lengths(float(longest), float(longest) ** 2, longest)
    low, high = -700.0, 700.0  # rate x longest; exp overflows beyond
    for _ in range(200):
        middle = (low + high) / 2
        if _unit_mean(middle) > mean / longest:
            low = middle
        else:
            high = middle
    return Lengths(mean, _unit_square((low + high) / 2) * longest**2, longest)


def _unit_mean(rate: float) -> float:
    """Mean of a density ~ exp(-rate x) on [0, 1]."""
    if abs(rate) < 1e-4:
        return 0.5 - rate / 12
    return 1 / rate - 1 / math.expm1(rate)


def _unit_square(rate: float) -> float:
    """Mean square of a density ~ exp(-rate x) on [0, 1]."""
    if abs(rate) < 1e-4:
        return 1 / 3 - rate / 12
    return 2 / rate**2 - (1 + 2 / rate) / math.expm1(rate)


@dataclasses.dataclass(frozen=True)
class UpdateWork:
    """What an update moves on each device.

    Attributes:
        hbm_bytes: HBM bytes of all microbatches and the optimizer step.
        collective_s: seconds that their collectives take on the links.
        recompute: True if old log-probs take another forward pass.
    """

    hbm_bytes: float
    collective_s: float
    recompute: bool


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one GRPO step; all are estimates.

    Attributes:
        update_compute_s, update_hbm_s, update_collective_s: the update's three bounds.
        update_s: the largest of the three bounds.
        sequences: sequences decoded at once, over all devices.
        room_for: sequences that the pools hold at once at their mean length.
        decode_steps: decode steps from the first to the last token of a step's rollouts.
        kv_s, weights_s: time to read keys and values, and to read weights.
        decode_compute_s: arithmetic of the decoded tokens.
        decode_collective_s: collectives of the decode steps.
        prefill_s: prefill of every prompt once.
        rollout_s: max(kv + weights, compute) + collectives + prefill.
        sync_s: weight sync from trainer to sampler.
        step_s: rollout + update + sync.
        tokens_per_s: response tokens over step_s.
        tokens_per_s_device: response tokens over step_s, a device.
        update_mfu: model FLOPs utilisation of the update at update_s.
    """

    update_compute_s: float
    update_hbm_s: float
    update_collective_s: float
    update_s: float
    sequences: int
    room_for: int
    decode_steps: float
    kv_s: float
    weights_s: float
    decode_compute_s: float
    decode_collective_s: float
    prefill_s: float
    rollout_s: float
    sync_s: float
    step_s: float
    tokens_per_s: float
    tokens_per_s_device: float
    update_mfu: float


def update_model_flops(
    model: ModelConfig, lengths: Lengths, *, responses: int, prompt_tokens: float
) -> float:
    """Model FLOPs of one update: forward and backward of every prompt and response."""
    p = prompt_tokens
    tokens = p + lengths.mean
    # A token at position t attends to t + 1 keys: the sum over a sequence is (T^2 + T) / 2.
    square = p * p + 2 * p * lengths.mean + lengths.square
    keys = (square / tokens + 1) / 2
    return 3 * responses * tokens * forward_flops_per_token(model, keys)


def live_context(lengths: Lengths, prompt_tokens: float) -> float:
    """Mean tokens that a live sequence holds, over its lifetime and over all sequences."""
    return prompt_tokens + lengths.square / (2 * lengths.mean)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Seconds of sampling one batch; the attributes are those of `Estimate`."""

    decode_steps: float
    kv_s: float
    weights_s: float
    decode_compute_s: float
    decode_collective_s: float
    prefill_s: float
    rollout_s: float


def estimate_rollout(
    model: ModelConfig,
    chip: Chip,
    lengths: Lengths,
    *,
    devices: int,
    responses: int,
    prompts: int,
    prompt_tokens: float,
    weights_bytes: float,
    kv_token_bytes: float,
    sequences: int,
    step_collective_s: float = 0.0,
    efficiency: Efficiency = ASSUMED,
) -> Rollout:
    """The seconds of sampling a batch of responses; arguments as those of `estimate_step`."""
    speed = devices * chip.peak_flops * efficiency.mfu
    tokens = responses * lengths.mean
    context = live_context(lengths, prompt_tokens)
    steps = max(float(lengths.longest), tokens / sequences)
    bandwidth = chip.hbm_bytes_per_s * efficiency.bandwidth
    kv_s = tokens * context * kv_token_bytes / devices / bandwidth
    weights_s = steps * weights_bytes / bandwidth
    compute_s = tokens * forward_flops_per_token(model, context) / speed
    prefill_s = prompts * prompt_tokens * forward_flops_per_token(model, prompt_tokens / 2) / speed
    collective_s = steps * step_collective_s
    return Rollout(
        decode_steps=steps,
        kv_s=kv_s,
        weights_s=weights_s,
        decode_compute_s=compute_s,
        decode_collective_s=collective_s,
        prefill_s=prefill_s,
        rollout_s=max(kv_s + weights_s, compute_s) + collective_s + prefill_s,
    )


def estimate_step(
    model: ModelConfig,
    chip: Chip,
    lengths: Lengths,
    *,
    devices: int,
    responses: int,
    prompts: int,
    prompt_tokens: float,
    update: UpdateWork,
    weights_bytes: float,
    kv_token_bytes: float,
    sequences: int,
    room_for: int,
    step_collective_s: float,
    sync_s: float,
    efficiency: Efficiency = ASSUMED,
) -> Estimate:
    """The seconds of one step.

    Args:
        model: the architecture.
        chip: one device.
        lengths: moments of the response length.
        devices: number of devices in the topology.
        responses: responses of a step.
        prompts: prompts of a step.
        prompt_tokens: mean tokens of a prompt.
        update: what the update moves.
        weights_bytes: the sampler's weights on one device.
        kv_token_bytes: keys and values of one token, over all devices that share the token.
        sequences: sequences decoded at once, over all devices.
        room_for: sequences that the pools hold at once at their mean length.
        step_collective_s: seconds of one decode step's collectives.
        sync_s: seconds of the weight sync.
        efficiency: shares of the chip's figures that a step is assumed to reach.
    """
    speed = devices * chip.peak_flops * efficiency.mfu
    flops = update_model_flops(model, lengths, responses=responses, prompt_tokens=prompt_tokens)
    compute_s = flops * (4 / 3 if update.recompute else 1) / speed
    hbm_s = update.hbm_bytes / chip.hbm_bytes_per_s
    update_s = max(compute_s, hbm_s, update.collective_s)
    rollout = estimate_rollout(
        model,
        chip,
        lengths,
        devices=devices,
        responses=responses,
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        weights_bytes=weights_bytes,
        kv_token_bytes=kv_token_bytes,
        sequences=sequences,
        step_collective_s=step_collective_s,
        efficiency=efficiency,
    )
    tokens, step_s = responses * lengths.mean, rollout.rollout_s + update_s + sync_s
    return Estimate(
        update_compute_s=compute_s,
        update_hbm_s=hbm_s,
        update_collective_s=update.collective_s,
        update_s=update_s,
        sequences=sequences,
        room_for=room_for,
        **dataclasses.asdict(rollout),
        sync_s=sync_s,
        step_s=step_s,
        tokens_per_s=tokens / step_s,
        tokens_per_s_device=tokens / step_s / devices,
        update_mfu=flops / update_s / (devices * chip.peak_flops),
    )
