"""The trainer's mesh, and how batches and parameters lie on it.

Axes of the mesh:

    data      splits batch rows, and the storage of weights and moments
    fsdp      splits batch rows, and the storage of weights, gradients and moments
    context   splits the tokens of a row, the vocabulary, and the storage of weights
    tensor    splits heads, MLP width, vocabulary, and tokens outside of the matrix products

All axes are `Auto`, so that the compiler propagates shardings. (`jax.make_mesh` defaults to
explicit axes, with which a plain gather raises ShardingTypeError.)

Models name logical axes (`models.param_axes`); the tables map each logical axis to mesh axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from polaris_jax.config import ConfigError, MeshSection, check_mesh
from polaris_jax.system.text import one_line

CONTEXT, TENSOR = "context", "tensor"
MESH_AXES = ("data", "fsdp", CONTEXT, TENSOR)
ROW_AXES = ("data", "fsdp")
TOKEN_AXES = (CONTEXT, TENSOR)


def mesh_shape(section: MeshSection, devices: int) -> tuple[int, int, int, int]:
    """The sizes of data, fsdp, context and tensor; fsdp=-1 takes what the other axes leave.

    Raises:
        ConfigError: a size is below 1, or the sizes do not multiply to the number of devices.
    """
    check_mesh(section)
    others = section.data * section.context * section.tensor
    fsdp = devices // others if section.fsdp == -1 else section.fsdp
    if others * fsdp != devices:
        raise ConfigError(
            f"mesh.fsdp={section.fsdp}: with data={section.data}, context={section.context}, "
            f"tensor={section.tensor} the mesh needs {others * max(fsdp, 1)} devices and there are "
            f"{devices}; choose sizes whose product is {devices}, or fsdp=-1"
        )
    return section.data, fsdp, section.context, section.tensor


def make_mesh(section: MeshSection, devices: Sequence[Any] | None = None) -> Mesh:
    """The trainer's mesh over the devices, with axes data, fsdp, context and tensor.

    Args:
        section: axis sizes; fsdp=-1 takes the devices that the other axes leave.
        devices: devices of the mesh; None: all devices of all processes.

    Raises:
        ConfigError: a size is below 1, or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(section, len(devices))
    if math.prod(shape) > 1 and devices[0].platform == "tpu":
        # A mesh of 16 x 2 on a torus of 4 x 8 splits an axis of the torus; make_mesh refuses that.
        try:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except (AssertionError, NotImplementedError, ValueError) as error:
            raise ConfigError(
                f"mesh={dict(zip(MESH_AXES, shape, strict=True))}: jax cannot lay it over the "
                f"{len(devices)} TPU devices that train ({one_line(error)[:200]}); their chips "
                "must be a block without holes: set rollout.devices so that they are, or to 0, or "
                "choose other axes"
            ) from None
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


# Logical axis -> mesh axes, in order of preference. An absent axis is not split.
Rules = Mapping[str, tuple[str, ...]]

# ZeRO-style: every matrix has an `embed` axis (a vocabulary table has a `table` axis instead). Its
# storage is split over all mesh axes that do not split the matrix's other axes.
TRAINER_RULES: Rules = {
    "embed": ("data", "fsdp", "context"),
    "vocab": ("context", "tensor"),
    "table": ("data", "fsdp"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}
# A decode step reads every weight once a token, so each replica holds all weights, split over
# `tensor` alone.
SAMPLER_RULES: Rules = {
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


def leaf_spec(
    path: str, shape: tuple[int, ...], axes: tuple[str, ...], *, mesh: Mesh, rules: Rules
) -> PartitionSpec:
    """How one parameter is split over the mesh.

    A mesh axis whose size does not divide a dimension is left out: the dimension is then split over
    the rule's other axes only, or not at all.

    Args:
        path: the parameter's name in errors.
        shape: the parameter's shape.
        axes: the parameter's logical axes, one for each dimension.
        mesh: the mesh.
        rules: logical axis -> mesh axes.

    Raises:
        ValueError: axes and shape differ in length, a rule names an axis that the mesh lacks, or
            two dimensions of the parameter claim the same mesh axis.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{path}: shape {shape} has {len(shape)} dimensions, axes {axes} differ")
    owners: dict[str, str] = {}
    spec: list[tuple[str, ...] | str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        for mesh_axis in rules.get(axis, ()):
            if mesh_axis not in mesh.shape:
                raise ValueError(
                    f"{path}: the rule {axis!r} -> {mesh_axis!r} names no axis of the mesh "
                    f"{tuple(mesh.shape)}"
                )
            if mesh_axis in owners:
                raise ValueError(
                    f"{path}: logical axes {owners[mesh_axis]!r} and {axis!r} both claim mesh axis "
                    f"{mesh_axis!r}; an axis can split one dimension only: change the rules"
                )
            owners[mesh_axis] = axis
        taken = _most_shards(size, [(name, mesh.shape[name]) for name in rules.get(axis, ())])
        spec.append(None if not taken else taken[0] if len(taken) == 1 else tuple(taken))
    return PartitionSpec(*spec)


def _most_shards(size: int, axes: Sequence[tuple[str, int]]) -> list[str]:
    """The axes that together split a dimension into the most equal parts; of equals the first."""
    wide = [(name, ways) for name, ways in axes if ways > 1]
    subsets = [
        subset
        for count in range(len(wide) + 1)
        for subset in itertools.combinations(wide, count)
        if size % math.prod(ways for _, ways in subset) == 0
    ]
    return [name for name, _ in max(subsets, key=lambda s: math.prod(ways for _, ways in s))]


def param_shardings(
    abstract_model: Any, mesh: Mesh, rules: Rules, *, axes: Mapping[str, tuple[str, ...]]
) -> Any:
    """`abstract_model` with a NamedSharding in place of every leaf.

    Args:
        abstract_model: a pytree of arrays or ShapeDtypeStructs.
        mesh: the mesh.
        rules: `TRAINER_RULES` or `SAMPLER_RULES`.
        axes: logical axes by path, `models.param_axes(config)`.

    Raises:
        ValueError: a leaf has no logical axes; and see `leaf_spec`.
    """

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = _path(key_path)
        if path not in axes:
            raise ValueError(f"{path}: no logical axes are declared for this parameter")
        spec = leaf_spec(path, tuple(leaf.shape), tuple(axes[path]), mesh=mesh, rules=rules)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract_model)


def _path(key_path: tuple[Any, ...]) -> str:
    names = [str(getattr(k, "name", getattr(k, "key", k))) for k in key_path]
    return "/".join(n for n in names if n != "value")


def global_array(host: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """The device array of a host array that is the same in every process.

    Each process uploads the shards of its own devices. All data of a training step is uploaded
    here, so this upload is allowed under a transfer guard.
    """
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def private_copies(tree: Any, shardings: Any, *, dtype: Any = None) -> Any:
    """Copies of a pytree's arrays, placed by `shardings`; no buffer is shared with the source.

    A donated buffer is deleted, and a sampler that shares the buffer would fail. So the trainer has
    arrays of its own.

    Args:
        tree: arrays on host or device. With several processes the arrays are the same in each
            process, or already global.
        shardings: one NamedSharding for each leaf.
        dtype: dtype of the copies; None: the source's.
    """

    def copy(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            # jnp.copy, because an identity under jit would return its input's buffer.
            duplicate = jax.jit(jax.numpy.copy, out_shardings=sharding)
            return duplicate(leaf if dtype is None else leaf.astype(dtype))
        host = np.asarray(leaf)
        # np.array copies: on the CPU jax may use a host buffer in place.
        return jax.make_array_from_callback(
            host.shape, sharding, lambda index: np.array(host[index], dtype or host.dtype)
        )

    return jax.tree.map(copy, tree, shardings)


def in_host_memory(shardings: Any) -> Any:
    """The shardings with their arrays in the pinned memory of each device's host."""
    return jax.tree.map(lambda sharding: sharding.with_memory_kind("pinned_host"), shardings)


def on_device(shardings: Any) -> Any:
    """The shardings with their arrays in the devices' own memory."""
    return jax.tree.map(lambda sharding: sharding.with_memory_kind("device"), shardings)


def moved(tree: Any, shardings: Any) -> Any:
    """A pytree's arrays, moved to `shardings` one by one; a moved array's source is deleted.

    The function moves arrays between a device's memory and its host's memory; the devices stay the
    same.
    """

    def move(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        if leaf.sharding == sharding:
            return leaf
        new = jax.block_until_ready(jax.device_put(leaf, sharding))
        leaf.delete()
        return new

    return jax.tree.map(move, tree, shardings)
