"""Memory, speed and links of each chip: public figures, each with its source."""

from __future__ import annotations

import dataclasses

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, or the part of it that is one jax device (see `per_device`).

    Attributes:
        name: the chip's part of a topology's name, e.g. "v5p".
        hbm_bytes: memory that a program may use.
        peak_flops: dense bfloat16, FLOP/s.
        hbm_bytes_per_s: memory bandwidth.
        link_bytes_per_s: what one device sends to its group in a ring: one torus axis in both
            directions on a TPU, NVLink in one direction on a GPU.
        far_link_bytes_per_s: what one device sends between groups of `near` devices (GPU hosts);
            0: there are no such groups.
        near: number of devices that `link_bytes_per_s` joins; 0: all.
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
        """The share of one of a chip's devices (in a deviceless topology each core of a tpu7x is
        a device). `hbm_bytes` is per device already, because the compiler names it per device."""
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
