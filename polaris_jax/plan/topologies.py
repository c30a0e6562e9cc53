"""Named topologies: `v5p:2x2x4`, `h100:32`, `cpu:8` -> devices; no hardware has to be present.

TPU devices come from libtpu. GPU devices come from jax's CUDA plugin and a target description in
this package. CPU devices are XLA's virtual devices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal

from polaris_jax.config import ConfigError
from polaris_jax.plan.chips import CHIPS, GPU_KINDS, TPU_KINDS, Chip

Platform = Literal["tpu", "gpu", "cpu"]
GPUS_PER_HOST = 8
FORMS = f"{'|'.join(TPU_KINDS)}:AxB[xC], {'|'.join(GPU_KINDS)}:N, or cpu:N"
# The usual pods of each chip, smallest first: a plan names the next one if a pod is too small.
LARGER: dict[str, tuple[str, ...]] = {
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8"),
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "tpu7x": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    "h100": ("1", "2", "4", "8", "16", "32", "64"),
    "h200": ("1", "2", "4", "8", "16", "32", "64"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A parsed topology name.

    Attributes:
        name: the text that was parsed.
        kind: the chip's name.
        shape: number of chips along each axis.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def platform(self) -> Platform:
        return "tpu" if self.kind in TPU_KINDS else "gpu" if self.kind in GPU_KINDS else "cpu"

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape)

    def chip(self, num_devices: int) -> Chip:
        """The figures of one device of `devices(topology)`."""
        return CHIPS[self.kind].per_device(max(1, num_devices // self.num_chips))


def parse_topology(text: str) -> Topology:
    """The topology that a name stands for.

    Raises:
        ConfigError: the chip is unknown, or the shape cannot be read.
    """
    kind, _, shape = text.partition(":")
    if kind not in CHIPS or not shape:
        raise ConfigError(f"--topology={text}: expected {FORMS}")
    parts = shape.split("x")
    dims = tuple(int(p) for p in parts if p.isdigit())
    wanted = (1,) if kind not in TPU_KINDS else (2,) if kind in ("v5e", "v6e") else (3,)
    if len(dims) != len(parts) or len(dims) not in wanted or min(dims) < 1:
        axes = {1: "N", 2: "AxB", 3: "AxBxC"}[wanted[0]]
        raise ConfigError(
            f"--topology={text}: the shape of {kind} is {axes}, e.g. {_example(kind)}"
        )
    if kind in GPU_KINDS and dims[0] > GPUS_PER_HOST and dims[0] % GPUS_PER_HOST:
        raise ConfigError(
            f"--topology={text}: whole hosts of {GPUS_PER_HOST} GPUs; name a multiple of "
            f"{GPUS_PER_HOST}, or fewer"
        )
    return Topology(text, kind, dims)


def _example(kind: str) -> str:
    return f"{kind}:{LARGER[kind][2]}" if kind in LARGER else f"{kind}:8"


def larger_topologies(topology: Topology) -> list[Topology]:
    """The same chip in the usual larger pods, smallest first."""
    family = [parse_topology(f"{topology.kind}:{s}") for s in LARGER.get(topology.kind, ())]
    return [other for other in family if other.num_chips > topology.num_chips]


def devices(topology: Topology) -> Sequence[Any]:
    """The topology's devices, in jax's order.

    Raises:
        ConfigError: the chip has no such shape, there are too few virtual devices, or the plugin
            that knows the chip is not installed.
    """
    import jax

    if topology.platform == "cpu":
        found = jax.devices("cpu")
        if len(found) < topology.num_chips:
            raise ConfigError(
                f"--topology={topology.name}: jax has {len(found)} CPU devices; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.num_chips}"
            )
        return found[: topology.num_chips]
    from jax.experimental import topologies

    try:
        if topology.platform == "tpu":
            # The two cores of a v4 are one device, as in jax's meshes and in real pods.
            options = {"chip_config_name": "megacore"} if topology.kind == "v4" else {}
            return topologies.get_topology_desc(
                platform="tpu", topology_name=topology.name, **options
            ).devices
        target = resources.files("polaris_jax.plan") / "targets" / f"{topology.kind}.txtpb"
        return topologies.get_topology_desc(
            topology.kind,
            platform="cuda",
            topology=_gpu_shape(topology.shape[0]),
            target_config=target.read_text(),
        ).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        extra = {"tpu": "tpu", "gpu": "cuda12"}[topology.platform]
        raise ConfigError(
            f"--topology={topology.name}: {' '.join(str(error).split())[:200]}; it needs "
            f"`pip install 'polaris_jax[{extra}]'` and a shape that the chip has"
        ) from error


def _gpu_shape(count: int) -> str:
    """Slices x hosts x GPUs of a host."""
    hosts = max(1, count // GPUS_PER_HOST)
    return f"1x{hosts}x{count // hosts}"
