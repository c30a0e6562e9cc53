"""Named topologies and their chips, e.g. `v5p:2x2x4`, `h100:32`, `cpu:8`.

jax compiles for the devices of a topology without the hardware. TPU devices come from libtpu. GPU
devices come from jax's CUDA plugin and a target description in this package. CPU devices are XLA's
virtual devices. A chip's memory, speed and links are public figures, each with its source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal

from polaris_jax.config import ConfigError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, or the part of it that is one jax device (see `per_device`).

    Attributes:
        name: the chip's part of a topology's name, e.g. "v5p".
        hbm_bytes: device memory that a program may use, in bytes.
        peak_flops: peak of dense bfloat16 products, in FLOP/s.
        hbm_bytes_per_s: bandwidth of the device memory.
        link_bytes_per_s: bandwidth at which one device sends in a ring of near devices: one torus
            axis in both directions on a TPU, NVLink in one direction on a GPU.
        far_link_bytes_per_s: bandwidth at which one device sends to devices that are not near (in
            other GPU hosts); 0: all devices are near.
        near: number of devices that are near one another (a GPU host); 0: all.
        source: where the figures are from.
    """

    name: str
    hbm_bytes: int
    peak_flops: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    source: str
    far_link_bytes_per_s: float = 0.0
    near: int = 0

    def per_device(self, devices_per_chip: int) -> Chip:
        """The figures of one jax device, if the chip is split into several.

        In a topology without hardware each of the two cores of a tpu7x is a device. Speed and
        bandwidths are divided; `hbm_bytes` is already the memory of one device, as libtpu reports.

        Args:
            devices_per_chip: number of jax devices of one chip.
        """
        if devices_per_chip == 1:
            return self
        return dataclasses.replace(
            self,
            peak_flops=self.peak_flops / devices_per_chip,
            hbm_bytes_per_s=self.hbm_bytes_per_s / devices_per_chip,
            link_bytes_per_s=self.link_bytes_per_s / devices_per_chip,
        )


_TPU = (
    "HBM: the limit that libtpu 0.0.42 names when it refuses a program, per device (v4: that of "
    "earlier ones, in public reports); speed: "
    "cloud.google.com/tpu/docs, jax-ml.github.io/scaling-book"
)
_NVIDIA = "NVIDIA data sheet (SXM); HBM in decimal GB, CUDA's and NCCL's own share not taken off"

CHIPS: dict[str, Chip] = {
    "v4": Chip("v4", int(30.75 * GIB), 275e12, 1228e9, 90e9, _TPU),
    "v5e": Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 90e9, _TPU),
    "v5p": Chip("v5p", int(95.73 * GIB), 459e12, 2765e9, 180e9, _TPU),
    "v6e": Chip("v6e", int(31.24 * GIB), 918e12, 1640e9, 180e9, _TPU),
    "tpu7x": Chip("tpu7x", int(94.74 * GIB), 2307e12, 7380e9, 180e9, _TPU),
    "h100": Chip("h100", int(80e9), 989e12, 3350e9, 450e9, _NVIDIA, 50e9, 8),
    "h200": Chip("h200", int(141e9), 989e12, 4800e9, 450e9, _NVIDIA, 50e9, 8),
    # Virtual devices, for tests and for a first look at a small config.
    "cpu": Chip("cpu", 16 * GIB, 2e11, 1e10, 1e10, "nominal: 2 cores of a laptop"),
}
TPU_KINDS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
GPU_KINDS = ("h100", "h200")


Platform = Literal["tpu", "gpu", "cpu"]
GPUS_PER_HOST = 8
FORMS = f"{'|'.join(TPU_KINDS)}:AxB[xC], {'|'.join(GPU_KINDS)}:N, or cpu:N"
# Usual shapes of each chip, smallest first. If a config does not fit a topology, the plan suggests
# larger ones from this table.
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
        kind: name of the chip, a key of `CHIPS`.
        shape: number of chips along each axis of the TPU torus; for GPUs and CPU devices their
            number alone.
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
        """The figures of one jax device of this topology.

        Args:
            num_devices: number of devices that `devices` returns for the topology.
        """
        return CHIPS[self.kind].per_device(max(1, num_devices // self.num_chips))


def parse_topology(text: str) -> Topology:
    """The topology that a name such as `v5p:2x2x4` stands for.

    Raises:
        ConfigError: the chip is unknown, the shape cannot be read or has another number of axes
            than the chip, or a number of GPUs above 8 is not a multiple of 8.
    """
    kind, _, shape = text.partition(":")
    if kind not in CHIPS or not shape:
        raise ConfigError(f"--topology={text}: expected {FORMS}")
    parts = shape.split("x")
    dims = tuple(int(p) for p in parts if p.isdigit())
    wanted = (1,) if kind not in TPU_KINDS else (2,) if kind in ("v5e", "v6e") else (3,)
    if len(dims) != len(parts) or len(dims) not in wanted or min(dims) < 1:
        axes = {1: "N", 2: "AxB", 3: "AxBxC"}[wanted[0]]
        example = LARGER[kind][2] if kind in LARGER else 8
        raise ConfigError(
            f"--topology={text}: the shape of {kind} is {axes}, e.g. {kind}:{example}"
        )
    if kind in GPU_KINDS and dims[0] > GPUS_PER_HOST and dims[0] % GPUS_PER_HOST:
        raise ConfigError(
            f"--topology={text}: whole hosts of {GPUS_PER_HOST} GPUs; name a multiple of "
            f"{GPUS_PER_HOST}, or fewer"
        )
    return Topology(text, kind, dims)


def larger_topologies(topology: Topology) -> list[Topology]:
    """The usual topologies of the same chip that have more chips, smallest first."""
    family = [parse_topology(f"{topology.kind}:{s}") for s in LARGER.get(topology.kind, ())]
    return [other for other in family if other.num_chips > topology.num_chips]


def devices(topology: Topology) -> Sequence[Any]:
    """The jax devices of a topology, in jax's order.

    Raises:
        ConfigError: the chip has no such shape, jax has too few virtual CPU devices, or the plugin
            for the chip (libtpu, jax's CUDA plugin) is not installed.
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
        hosts = max(1, topology.num_chips // GPUS_PER_HOST)
        target = resources.files("polaris_jax.plan") / "targets" / f"{topology.kind}.txtpb"
        return topologies.get_topology_desc(
            topology.kind,
            platform="cuda",
            topology=f"1x{hosts}x{topology.num_chips // hosts}",  # slices x hosts x GPUs of a host
            target_config=target.read_text(),
        ).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        extra = {"tpu": "tpu", "gpu": "cuda12"}[topology.platform]
        raise ConfigError(
            f"--topology={topology.name}: {' '.join(str(error).split())[:200]}; it needs "
            f"`pip install 'polaris_jax[{extra}]'` and a shape that the chip has"
        ) from error
