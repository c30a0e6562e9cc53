"""The trainer's mesh and the shardings of its batches.

Axes of the mesh:

    data      splits batch rows, and the storage of weights and moments
    fsdp      splits batch rows, and the storage of weights, gradients and moments
    context   splits the tokens of a row, the vocabulary, and the storage of weights
    tensor    splits heads, MLP width, vocabulary, and tokens outside of the matrix products

All axes are `Auto`, so that the compiler propagates shardings. (`jax.make_mesh` defaults to
explicit axes, with which a plain gather raises ShardingTypeError.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from polaris_jax.config import ConfigError, MeshSection, check_mesh

CONTEXT, TENSOR = "context", "tensor"
MESH_AXES = ("data", "fsdp", CONTEXT, TENSOR)
ROW_AXES = ("data", "fsdp")
TOKEN_AXES = (CONTEXT, TENSOR)


def make_mesh(section: MeshSection, devices: Sequence[Any] | None = None) -> Mesh:
    """The trainer's mesh over the devices, with axes data, fsdp, context and tensor.

    Args:
        section: axis sizes; fsdp=-1 takes the devices that the other axes leave.
        devices: devices of the mesh; None: all devices of all processes.

    Raises:
        ConfigError: a size is below 1, or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    check_mesh(section)
    others = section.data * section.context * section.tensor
    fsdp = len(devices) // others if section.fsdp == -1 else section.fsdp
    if others * fsdp != len(devices):
        raise ConfigError(
            f"mesh.fsdp={section.fsdp}: with data={section.data}, context={section.context}, "
            f"tensor={section.tensor} the mesh needs {others * max(fsdp, 1)} devices and there are "
            f"{len(devices)}; choose sizes whose product is {len(devices)}, or fsdp=-1"
        )
    shape = (section.data, fsdp, section.context, section.tensor)
    if math.prod(shape) > 1 and devices[0].platform == "tpu":
        # A mesh of 16 x 2 on a torus of 4 x 8 splits an axis of the torus; make_mesh refuses that.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices, dtype=object).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding under which every device holds the complete array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a [B, T] array: rows over data x fsdp, tokens over context x tensor."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES, TOKEN_AXES))


def stack_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of U batches [U, B, T], each split as by `batch_sharding`."""
    return NamedSharding(mesh, PartitionSpec(None, ROW_AXES, TOKEN_AXES))


def wide_axes(mesh: Mesh, names: Sequence[str]) -> tuple[str, ...]:
    """The axes of `names` that have more than one device."""
    return tuple(name for name in names if mesh.shape[name] > 1)


def row_shards(mesh: Mesh) -> int:
    """The number of parts into which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)
