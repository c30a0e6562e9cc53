"""Which data shard decodes which sample: dealt when a request comes, moved while others end.

A decode call lasts as long as its slowest shard, and what a shard reads grows with the tokens of
its live rows. So a shard with many tokens takes fewer steps in a call. The samples of a prompt have
similar lengths. So they are dealt to different shards, unless their prompt is long beside them. A
live row moves to an emptier shard if computing it anew costs less than it saves. Everything here is
a function of the requests alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polaris_jax.metrics.throughput import forward_flops_per_token
from polaris_jax.models import ModelConfig
from polaris_jax.rollout.samples import Plan, Sample
from polaris_jax.rollout.scheduler import Scheduler

# FLOPs that an accelerator computes in prefill (at 40% of its peak) while it reads a byte in decode
# (at 60% of its bandwidth). v5p: 111, v5e: 160, H100: 197, v6e: 373. The rule of `next_move` needs
# the order of magnitude alone.
FLOPS_A_BYTE = 150
# How long an imbalance lasts, as a share of a row's response so far: other rows end meanwhile.
# Simulated on a host of 8 H100s; 0.05 to 0.4 differ by less than half a percent of the rollout, and
# what a prompt's samples are expected to take does not improve it.
LASTS = 0.1


def assign_shards(
    costs: Sequence[int], shards: int, loads: Sequence[int] | None = None
) -> list[int]:
    """A shard for each item: in order, each item goes to the shard with the least load so far.

    The result depends on the arguments alone. Ties go to the lower shard.

    Args:
        costs: tokens that each item may take.
        shards: number of shards.
        loads: tokens that each shard has at first; None: 0 for all shards.
    """
    loads = list(loads or [0] * shards)
    return [placed for cost in costs for placed in deal([(0, [cost])], loads)[0]]


def deal(
    prompts: Iterable[tuple[int, Sequence[float]]], loads: list[int], *, at_least: int = 1
) -> list[list[int]]:
    """The shard of each sample, [prompt][sample].

    In order, the samples of a prompt are cut into parts, and each part goes to the shard that is
    cheapest for it: the load so far, plus the prompt's tokens unless the shard has that prompt. A
    part is expected to have at least as many response tokens as its prompt, so that samples of a
    long prompt with short responses meet, and the prompt is prefilled once. Ties go to the lower
    shard.

    Args:
        prompts: (tokens of the prompt, tokens that each of its samples may take).
        loads: tokens that each shard has; the samples are added.
        at_least: number of parts of a prompt that has as many samples, however long it is.
    """
    dealt = []
    for prompt, costs in prompts:
        tokens = [round(cost) for cost in costs]
        cuts = max(at_least, sum(tokens) // max(1, prompt))
        cuts = min(cuts, len(loads), len(tokens))
        shards: list[int] = []
        for cut in range(cuts):
            own = tokens[len(tokens) * cut // cuts : len(tokens) * (cut + 1) // cuts]
            extra = [0 if s in shards else prompt for s in range(len(loads))]
            shard = min(range(len(loads)), key=lambda s: (loads[s] + extra[s], s))
            loads[shard] += extra[shard] + sum(own)
            shards += [shard] * len(own)
        dealt.append(shards)
    return dealt


def recompute_reads(model: ModelConfig, *, max_len: int, kv_token_bytes: float) -> float:
    """The number of tokens that a decode step reads in the time in which one is computed anew.

    Args:
        model: the architecture.
        max_len: largest length of a sequence; a row that moves is taken to have half of it.
        kv_token_bytes: bytes of one token's keys and values, all layers and heads.
    """
    return forward_flops_per_token(model, max_len / 4) / FLOPS_A_BYTE / kv_token_bytes


def even_steps(
    schedulers: Sequence[Scheduler],
    plans: Sequence[Plan] = (),
    *,
    most: int,
    weights: float,
    recompute: float,
) -> list[int]:
    """Decode steps of each shard with which all shards of a call end at about the same time.

    A step of a shard takes the time to read its weights and its rows' tokens, and the prefill
    before the call takes its own. The shard that would end first takes `most` steps, and the others
    as many as fit into that time, at least one. Nothing waits for a slower shard then, although one
    program serves them all.

    Args:
        schedulers: one scheduler a data shard.
        plans: what each shard prefills before the call; empty: nothing.
        most: steps of a call.
        weights: the weights, in tokens that a step reads in the same time.
        recompute: cost of prefilling one token; see `recompute_reads`.
    """
    token_D = [sum(sample.length for sample in s.decoding) for s in schedulers]
    cost_D = [weights + tokens if tokens else 0.0 for tokens in token_D]
    parts_D = [plan.parts for plan in plans] or [[] for _ in schedulers]
    prefill_D = [sum(part.stop - part.start for part in parts) for parts in parts_D]
    longest = most * max(cost_D)
    begun_D = [min(recompute * tokens, longest) if tokens else 0.0 for tokens in prefill_D]
    ends = (b + most * c for b, c in zip(begun_D, cost_D, strict=True) if c)
    until = max(min(ends, default=0.0), *begun_D)
    steps_D = [round((until - b) / c) if c else most for b, c in zip(begun_D, cost_D, strict=True)]
    return [min(most, max(1, steps)) for steps in steps_D]


def next_move(
    schedulers: Sequence[Scheduler], reads: float
) -> tuple[Sample, Scheduler, Scheduler] | None:
    """(live sample, its shard, an emptier shard) if moving the sample there pays; else None.

    The sample's tokens are computed anew on the other shard. A move saves, at each step for which
    the imbalance would last, the tokens by which the larger of the two shards becomes smaller. No
    sample moves while another waits for a slot, because the waiting sample fills the
    emptier shard for less, or to a shard that still prefills. Each move makes the two shards'
    tokens more equal, so that no sample moves to and fro.

    Args:
        schedulers: one scheduler a data shard.
        reads: cost of computing one token anew; see `recompute_reads`.
    """
    if len(schedulers) == 1 or any(s.oldest_without_slot() is not None for s in schedulers):
        return None
    token_D = [scheduler.tokens for scheduler in schedulers]
    source = max(range(len(schedulers)), key=lambda k: (token_D[k], -k))
    targets = [k for k, s in enumerate(schedulers) if s.free_slots() and not s.prefilling]
    if not targets:
        return None
    target = min(targets, key=lambda k: (token_D[k], k))
    gap = token_D[source] - token_D[target]
    best, most = None, 0.0
    for sample in schedulers[source].decoding:
        saved = min(sample.length, gap - sample.length)
        gain = saved * _lasting_steps(sample) - reads * sample.length
        if gain > most and schedulers[target].has_room(sample):
            best, most = sample, gain
    return None if best is None else (best, schedulers[source], schedulers[target])


def _lasting_steps(sample: Sample) -> float:
    return min(LASTS * len(sample.tokens), sample.limit - sample.length)
