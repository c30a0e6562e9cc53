"""The hardware that `polaris init --hardware` names, and the layouts that are estimated to fit."""

from __future__ import annotations

import dataclasses

from polaris_jax.config import ConfigError
from polaris_jax.guide.choices import Memory
from polaris_jax.models import ModelConfig
from polaris_jax.plan.estimate import Layout, fits, layout, smallest_layout
from polaris_jax.plan.fit import gib
from polaris_jax.plan.topologies import (
    FORMS,
    Chip,
    Topology,
    larger_topologies,
    parse_topology,
)

CPU = "cpu"
SHORT_TOKENS = 2048  # the length by which larger hardware is suggested
MOST_SHOWN_TOKENS = 1_000_000  # of a KV pool: a small model's could hold far more than it needs
OTHER_GPU = "--hardware=h100:N with --hbm_gib=GIB, the memory of one"
CORES_PER_CHIP = {"tpu7x": 2}  # of chips whose cores are devices of their own


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Some devices of one kind.

    Attributes:
        topology: the pod; cpu:1 for a CPU.
        chip: one device.
        devices: number of devices.
    """

    topology: Topology
    chip: Chip
    devices: int

    @property
    def is_cpu(self) -> bool:
        return self.topology.platform == "cpu"

    @property
    def name(self) -> str:
        """What people call it."""
        if self.is_cpu:
            return CPU
        own = self.topology.chip(self.devices).hbm_bytes
        changed = f" with {gib(self.chip.hbm_bytes)} GiB a device"
        return self.topology.name + (changed if self.chip.hbm_bytes != own else "")


def named_hardware(name: str, *, cpu_bytes: int, hbm_gib: float = 0.0) -> Hardware:
    """The hardware of a name: cpu, or a pod such as h100:8.

    Args:
        name: the name.
        cpu_bytes: memory that the arrays of a run on this machine's CPU may take.
        hbm_gib: memory of a device, GiB, for a card that has no name here; 0: the named chip's.

    Raises:
        ConfigError: there is no such hardware.
    """
    if name == CPU:
        if hbm_gib:
            raise ConfigError(
                f"--hbm_gib={hbm_gib:g}: is the memory of an accelerator; name one, like "
                "--hardware=h100:1"
            )
        found = _devices(parse_topology("cpu:1"))
        return dataclasses.replace(
            found, chip=dataclasses.replace(found.chip, hbm_bytes=max(0, cpu_bytes))
        )
    try:
        found = _devices(parse_topology(name))
    except ConfigError as error:
        forms = f"cpu, {FORMS.removesuffix(', or cpu:N')}; another GPU is {OTHER_GPU}"
        text = str(error).replace("--topology=", "--hardware=").replace(FORMS, forms)
        raise ConfigError(text) from None
    if found.is_cpu:
        raise ConfigError(f"--hardware={name}: a run has one CPU device; name cpu")
    if hbm_gib:
        chip = dataclasses.replace(found.chip, hbm_bytes=int(hbm_gib * (1 << 30)))
        found = dataclasses.replace(found, chip=chip)
    return found


def _devices(topology: Topology) -> Hardware:
    count = topology.num_chips * CORES_PER_CHIP.get(topology.kind, 1)
    return Hardware(topology, topology.chip(count), count)


def memory_for(hardware: Hardware, model: ModelConfig, max_len: int) -> Memory | None:
    """The smallest layout that fits sequences of `max_len` tokens, or None."""
    found = _smallest(hardware, model, max_len)
    if found is None:
        return None
    pool = min(found.pool_tokens, MOST_SHOWN_TOKENS)
    more = "over " if pool < found.pool_tokens else ""
    why = (
        f"estimated for sequences of {max_len:,} tokens: {gib(found.update_bytes)} GiB of "
        f"{gib(found.budget_bytes)} GiB of {'memory' if hardware.is_cpu else 'each device'} in an "
        f"update, {gib(found.sampling_bytes)} GiB in sampling, and room for {more}{pool:,} tokens "
        "in the KV pool"
    )
    return Memory(found.context, found.tensor, found.slots, why)


def _smallest(hardware: Hardware, model: ModelConfig, max_len: int) -> Layout | None:
    if not hardware.is_cpu:
        return smallest_layout(
            model, hardware.topology, hardware.chip, devices=hardware.devices, max_len=max_len
        )
    found = layout(model, "cpu", hardware.chip, devices=1, max_len=max_len, width_bytes=4)
    return found if fits(found, max_len) else None


def misfit(hardware: Hardware, model: ModelConfig) -> str:
    """Why nothing fits, and what would."""
    least = layout(
        model,
        hardware.topology.platform,
        hardware.chip,
        devices=hardware.devices,
        max_len=SHORT_TOKENS,
        width_bytes=4 if hardware.is_cpu else 2,
    )
    text = (
        f"memory: {model.num_parameters / 1e9:.2f} B parameters need about "
        f"{gib(least.update_bytes)} GiB a device for an update, and {hardware.name} has "
        f"{gib(least.budget_bytes)} GiB to use"
    )
    changed = hardware.name != hardware.topology.name and not hardware.is_cpu
    own = f" --hbm_gib={hardware.chip.hbm_bytes / (1 << 30):g}" if changed else ""
    for topology in larger_topologies(hardware.topology):
        larger = dataclasses.replace(_devices(topology), chip=hardware.chip)
        if _smallest(larger, model, SHORT_TOKENS):
            return f"{text}; --hardware={topology.name}{own} would do, or take a smaller model"
    more = "an accelerator, such as --hardware=h100:1" if hardware.is_cpu else "another chip"
    return f"{text}; name {more}, or take a smaller model"
