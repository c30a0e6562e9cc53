"""ESTIMATES of a GRPO step's seconds from bytes, FLOPs and a chip's public figures.

Nothing here has been measured on the chip. An update takes as long as the slowest of its compute,
its memory traffic and its collectives. A perfectly balanced rollout takes as long as reading the
weights once a step and every live key and value once a token. A rollout takes as long as the
product's own schedulers need for it under that clock (`rollout_clock`): shards wait for the slowest
one, samples wait for pages, and devices wait for the host.
"""

from __future__ import annotations

import dataclasses
import functools

from polaris_jax.config import ObjectiveSection
from polaris_jax.metrics.throughput import forward_flops_per_token
from polaris_jax.models import ModelConfig
from polaris_jax.plan.lengths import Lengths, draw
from polaris_jax.plan.rollout_clock import DRAFT_RATES, Clock, Shards, drafted_s, time_pod
from polaris_jax.plan.topologies import Chip
from polaris_jax.rollout.balance import recompute_reads


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Shares of a chip's public figures that a step is assumed to reach.

    Attributes:
        mfu: model FLOPs utilisation of the update (recomputation not credited).
        bandwidth: share of the HBM's bandwidth that decode reaches.
        padding: share of a packed row that is padding.
        host_call_s: the host's seconds for one decode call. Scheduling 256 rows on 8 data shards
            takes about 1 ms of one core; the rest, dispatch and read-back, is a guess.
    """

    mfu: float = 0.40
    bandwidth: float = 0.60
    padding: float = 0.03
    host_call_s: float = 0.003


ASSUMED = Efficiency()
DRAWS = 4  # of a step's lengths; they differ by up to a fifth on many small hosts


@dataclasses.dataclass(frozen=True)
class UpdateWork:
    """What an update moves on each device.

    Attributes:
        hbm_bytes: HBM bytes of all microbatches and the optimizer step.
        collective_s: seconds that their collectives take on the links.
        further_forwards: see `further_forwards`. Their FLOPs alone are counted.
        sharing: see `update_model_flops`.
    """

    hbm_bytes: float
    collective_s: float
    further_forwards: int
    sharing: float = 1.0


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
        balanced_s: a rollout in which no shard waits: max(kv + weights, compute) + collectives +
            prefill.
        rollout_s: a rollout as the product's schedulers make it, with its collectives.
        imbalance: rollout_s over balanced_s.
        host_s: seconds of the rollout in which the devices wait for the host.
        preemptions: samples of one host that were preempted because pages ran out.
        moves: live samples of one host that moved to another data shard.
        tail_s: seconds of the rollout in which no data shard has more live rows than
            `rollout.draft=history` drafts for; part of rollout_s.
        drafted_s: rollout_s with `rollout.draft=history`, by the share of drafted tokens, each
            behind accepted ones, that is accepted (`DRAFT_RATES`).
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
    balanced_s: float
    rollout_s: float
    imbalance: float
    host_s: float
    preemptions: float
    moves: float
    tail_s: float
    drafted_s: dict[str, float]
    sync_s: float
    step_s: float
    tokens_per_s: float
    tokens_per_s_device: float
    update_mfu: float


def update_model_flops(
    model: ModelConfig,
    lengths: Lengths,
    *,
    responses: int,
    prompt_tokens: float,
    sharing: float = 1.0,
) -> float:
    """Model FLOPs of one update: forward and backward of every prompt and response.

    Args:
        model: the architecture.
        lengths: moments of the response length.
        responses: responses of a step.
        prompt_tokens: mean tokens of a prompt.
        sharing: mean number of responses for which a prompt is computed once.
    """
    p = prompt_tokens
    tokens = p / sharing + lengths.mean
    # A token at position t attends to t + 1 keys: the sum over a sequence is (T^2 + T) / 2.
    square = p * p / sharing + 2 * p * lengths.mean + lengths.square
    keys = (square / tokens + 1) / 2
    return 3 * responses * tokens * forward_flops_per_token(model, keys)


def further_forwards(objective: ObjectiveSection) -> int:
    """Forward passes of an update beside the one that is differentiated: old policy, reference."""
    return (objective.old_logprobs == "recompute") + (objective.kl_coef > 0)


def live_context(lengths: Lengths, prompt_tokens: float) -> float:
    """Mean tokens that a live sequence holds, over its lifetime and over all sequences."""
    return prompt_tokens + lengths.square / (2 * lengths.mean)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Seconds of a rollout in which no shard waits; the attributes are those of `Estimate`."""

    decode_steps: float
    kv_s: float
    weights_s: float
    decode_compute_s: float
    decode_collective_s: float
    prefill_s: float
    balanced_s: float


def balanced_rollout(
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
    """The seconds of sampling a batch of responses in perfect balance.

    Args:
        sequences: sequences decoded at once, over all devices.
        model, chip, lengths, devices, responses, prompts, prompt_tokens, weights_bytes,
            kv_token_bytes, step_collective_s, efficiency: see `estimate_step`.
    """
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
        balanced_s=max(kv_s + weights_s, compute_s) + collective_s + prefill_s,
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
    samplers: int,
    sampler: Shards,
    by_sample: bool,
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
        samplers: number of samplers, which share the step.
        sampler: the sizes of one sampler.
        by_sample: True if samples are dealt to the samplers, False if groups are.
        step_collective_s: seconds of one decode step's collectives.
        sync_s: seconds of the weight sync.
        efficiency: shares of the chip's figures that a step is assumed to reach.
    """
    speed = devices * chip.peak_flops * efficiency.mfu
    flops = update_model_flops(
        model,
        lengths,
        responses=responses,
        prompt_tokens=prompt_tokens,
        sharing=update.sharing,
    )
    compute_s = flops * (1 + update.further_forwards / 3) / speed
    hbm_s = update.hbm_bytes / chip.hbm_bytes_per_s
    update_s = max(compute_s, hbm_s, update.collective_s)

    tokens = responses * lengths.mean
    context = live_context(lengths, prompt_tokens)
    shards = samplers * sampler.shards
    held = int(sampler.pool_tokens // context)  # sequences of mean length in a shard's pool
    sequences = min(max(1, min(held, sampler.slots)) * shards, responses)
    balanced = balanced_rollout(
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

    bandwidth = chip.hbm_bytes_per_s * efficiency.bandwidth
    token_s = forward_flops_per_token(model, context) / (speed / shards)
    clock = Clock(
        weights_s=weights_bytes / bandwidth,
        kv_token_s=kv_token_bytes * shards / devices / bandwidth,
        row_s=token_s,
        prefill_token_s=token_s,
        host_call_s=efficiency.host_call_s,
        recompute_reads=recompute_reads(
            model, max_len=int(prompt_tokens) + lengths.longest, kv_token_bytes=kv_token_bytes
        ),
    )
    waste, mean = _simulated(
        lengths,
        prompts,
        responses // prompts,
        int(prompt_tokens),
        samplers,
        sampler,
        clock,
        by_sample=by_sample,
        rows=sequences // shards,
    )
    collective_s = balanced.decode_collective_s
    rollout_s = (balanced.balanced_s - collective_s) * waste + collective_s
    step_s = rollout_s + update_s + sync_s
    return Estimate(
        update_compute_s=compute_s,
        update_hbm_s=hbm_s,
        update_collective_s=update.collective_s,
        update_s=update_s,
        sequences=sequences,
        room_for=held * shards,
        **dataclasses.asdict(balanced),
        rollout_s=rollout_s,
        imbalance=rollout_s / balanced.balanced_s,
        host_s=mean["host_s"],
        preemptions=mean["preemptions"],
        moves=mean["moves"],
        tail_s=rollout_s * mean["tail_share"],
        drafted_s={
            f"{rate:g}": drafted_s(
                rollout_s,
                tail_s=rollout_s * mean["tail_share"],
                step_s=mean["tail_step_s"],
                rate=rate,
                tokens=sampler.draft_tokens,
                host_call_s=efficiency.host_call_s,
            )
            for rate in DRAFT_RATES
        },
        sync_s=sync_s,
        step_s=step_s,
        tokens_per_s=tokens / step_s,
        tokens_per_s_device=tokens / step_s / devices,
        update_mfu=flops / update_s / (devices * chip.peak_flops),
    )


@functools.cache
def _simulated(
    lengths: Lengths,
    prompts: int,
    responses: int,
    prompt_tokens: int,
    samplers: int,
    sampler: Shards,
    clock: Clock,
    *,
    by_sample: bool,
    rows: int,
) -> tuple[float, dict[str, float]]:
    """(time over that of perfect balance, means of fields of `Timed`) over some draws of a step.

    A draw has other moments than its distribution, so each is compared with its own balance.

    Args:
        lengths: the distribution.
        prompts: prompts of a step.
        responses: responses to a prompt.
        prompt_tokens: tokens of a prompt.
        samplers: number of samplers.
        sampler: the sizes of one sampler.
        clock: what work costs.
        by_sample: see `estimate_step`.
        rows: rows of mean length that a data shard decodes at once.
    """
    shards, wastes, times, tails = samplers * sampler.shards, [], [], []
    for seed in range(DRAWS):
        token_PR, expected_P = draw(lengths, prompts=prompts, responses=responses, seed=seed)
        timed = time_pod(
            samplers,
            sampler,
            clock,
            token_PR,
            prompt_tokens=prompt_tokens,
            longest=lengths.longest,
            expected_P=expected_P,
            by_sample=by_sample,
        )
        tokens = float(token_PR.sum())
        kv_tokens = float((token_PR * (prompt_tokens + token_PR / 2)).sum())
        steps = max(float(token_PR.max()), tokens / (max(1, rows) * shards))
        read_s = kv_tokens * clock.kv_token_s / shards + steps * clock.weights_s
        prefill_s = prompts * prompt_tokens * clock.prefill_token_s / shards
        tails.append(timed.tail_s / timed.time_s)
        wastes.append(timed.time_s / (max(read_s, tokens * clock.row_s / shards) + prefill_s))
        times.append(timed)
    means = {
        field: sum(getattr(timed, field) for timed in times) / DRAWS
        for field in ("host_s", "preemptions", "moves", "tail_s", "tail_steps")
    }
    means["tail_share"] = sum(tails) / DRAWS
    means["tail_step_s"] = means.pop("tail_s") / max(1.0, means.pop("tail_steps"))
    return sum(wastes) / DRAWS, means
