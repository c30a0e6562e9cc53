"""ESTIMATES of how long a command samples, without compiling anything.

They rest on a chip's public figures and on the shares of them that a plan assumes (`roofline`). A
plan knows more, since it compiles: collectives, padding, the memory that programs take, and how far
the shards are from perfect balance.
"""

from __future__ import annotations

import dataclasses

from polaris_jax.config import RunConfig
from polaris_jax.models import ModelConfig
from polaris_jax.plan.job import MEAN_PROMPT_TOKENS, MEAN_RESPONSE_TOKENS
from polaris_jax.plan.lengths import Lengths, cut_lognormal
from polaris_jax.plan.roofline import (
    ASSUMED,
    balanced_rollout,
    further_forwards,
    live_context,
    update_model_flops,
)
from polaris_jax.plan.topologies import CHIPS, Chip
from polaris_jax.rollout.kv.layouts import XLA, XLA_INT8

# The chip of a jax device, by a part of its `device_kind` in lower case; the first match counts.
# Cards of the same name with slower memory are left out, so that nothing is promised for them.
# A part of a card (MIG) has less of everything.
KINDS: tuple[tuple[str, str], ...] = (
    (" mig ", ""),
    ("gh200", ""),
    ("v6 lite", "v6e"),
    ("v6e", "v6e"),
    ("v5 lite", "v5e"),
    ("v5e", "v5e"),
    ("v5p", "v5p"),
    ("v5", "v5p"),
    ("v4", "v4"),
    ("h100 pcie", ""),
    ("h100 nvl", ""),
    ("h100", "h100"),
    ("h200 nvl", ""),
    ("h200", "h200"),
)
POOL_SHARE = 0.7  # of a device's memory that weights and the KV pool take while sampling
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}


def known_chip(device_kind: str) -> Chip | None:
    """The chip of a jax device by its `device_kind`; None if its figures are not known."""
    kind = device_kind.lower()
    name = next((chip for part, chip in KINDS if part in kind), "")
    return CHIPS.get(name)


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices of a run.

    Attributes:
        chip: one device.
        devices: their number, over all processes.
        samplers: number of samplers that the devices serve, each with `rollout.slots`.
        sampling_devices: those that sample; 0: all.
        training_devices: those that train; 0: all.
    """

    chip: Chip
    devices: int
    samplers: int = 1
    sampling_devices: int = 0
    training_devices: int = 0


def expected_lengths(budget: int) -> Lengths:
    """Response lengths as `polaris plan` assumes them: 20,000 tokens, at most half of the budget.

    Args:
        budget: largest length of a response in tokens.
    """
    return cut_lognormal(min(MEAN_RESPONSE_TOKENS, budget / 2), budget)


def sampling_s(
    config: RunConfig, model: ModelConfig, machine: Machine, *, responses: int, n: int, budget: int
) -> float:
    """Estimated seconds of sampling one batch.

    Args:
        config: the run's config.
        model: the architecture.
        machine: the devices.
        responses: responses of the batch.
        n: responses to each prompt.
        budget: largest length of a response in tokens.
    """
    chip, tensor = machine.chip, config.rollout.tensor
    devices = machine.sampling_devices or machine.devices
    element, lengths = WEIGHT_BYTES[config.model.arithmetic], expected_lengths(budget)
    prompt_tokens = min(MEAN_PROMPT_TOKENS, config.data.max_prompt_tokens)
    weights = model.num_parameters * element / tensor
    layout = XLA_INT8 if config.rollout.kv_dtype == "int8" else XLA
    kv_token = layout.token_bytes(model, config.model.arithmetic)
    room = max(0.0, chip.hbm_bytes * POOL_SHARE - weights)
    held = int(room // (kv_token / tensor * live_context(lengths, prompt_tokens)))
    shards = max(1, devices // tensor)
    return balanced_rollout(
        model,
        chip,
        lengths,
        devices=devices,
        responses=responses,
        prompts=max(1, responses // n),
        prompt_tokens=prompt_tokens,
        weights_bytes=weights,
        kv_token_bytes=kv_token,
        sequences=min(responses, max(1, held) * shards, config.rollout.slots * machine.samplers),
    ).balanced_s


def step_s(config: RunConfig, model: ModelConfig, machine: Machine, *, budget: int) -> float:
    """Estimated seconds of a training step: its rollouts, and the update's arithmetic.

    Args:
        config: the run's config.
        model: the architecture.
        machine: the devices.
        budget: the stage's response budget in tokens.
    """
    rollout = config.rollout
    responses = rollout.prompts_per_step * rollout.responses_per_prompt
    flops = update_model_flops(
        model,
        expected_lengths(budget),
        responses=responses,
        prompt_tokens=min(MEAN_PROMPT_TOKENS, config.data.max_prompt_tokens),
    )
    forwards = 1 + further_forwards(config.objective) / 3
    devices = machine.training_devices or machine.devices
    update_s = flops * forwards / (devices * machine.chip.peak_flops * ASSUMED.mfu)
    n = rollout.responses_per_prompt
    sampled_s = sampling_s(config, model, machine, responses=responses, n=n, budget=budget)
    return sampled_s + update_s
