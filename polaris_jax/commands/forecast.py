"""How fast this machine samples, by published figures: what commands say before they start."""

from __future__ import annotations

import jax

from polaris_jax.assemble import base_model_config
from polaris_jax.config import RunConfig
from polaris_jax.measure.workload import Batches, Forecast
from polaris_jax.plan import speed
from polaris_jax.plan.job import MEAN_RESPONSE_TOKENS


def machine_forecast(config: RunConfig, *, trains: bool = False) -> Forecast:
    """What is known of the speed of this run's devices. jax has to be started.

    Nothing is known of CPUs, nor of accelerators whose figures the plan does not have.

    Args:
        config: the run's config.
        trains: True for `train`, which may keep devices for sampling alone; what only samples
            samples on all.
    """
    devices = jax.devices()
    kind = devices[0].device_kind
    chip = speed.known_chip(kind)
    if devices[0].platform == "cpu":  # its devices share the cores
        return Forecast("CPUs", jax.process_count())
    if chip is None:
        return Forecast(f"{len(devices)} {kind}", len(devices))
    rollout, processes = config.rollout, jax.process_count()
    samplers = max(1, processes // rollout.processes)
    only_sample = rollout.devices * processes if trains else 0
    sampling = only_sample or len(devices)
    if rollout.data:
        sampling = min(sampling, rollout.data * rollout.tensor * samplers)
    training = max(0, len(devices) - only_sample)
    machine = speed.Machine(chip, len(devices), samplers, sampling, training)

    def seconds(work: Batches) -> float:
        model = base_model_config(config)
        if work.updates:
            return speed.step_s(config, model, machine, budget=work.budget)
        return speed.sampling_s(
            config, model, machine, responses=work.batch, n=work.n, budget=work.budget
        )

    lengths = f"responses have {MEAN_RESPONSE_TOKENS:,} tokens, or half of the budget if less"
    return Forecast(f"{len(devices)} {chip.name}", len(devices), seconds, lengths)
