"""The placement of parameters: tables from logical axes to mesh axes, and moves between memories.

Models name logical axes (`models.param_axes`); the tables map each logical axis to mesh axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
        taken: list[str] = []
        shards = 1
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
            ways = mesh.shape[mesh_axis]
            if ways > 1 and size % (shards * ways) == 0:
                taken.append(mesh_axis)
                shards *= ways
        spec.append(None if not taken else taken[0] if len(taken) == 1 else tuple(taken))
    return PartitionSpec(*spec)


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
            return _compiled_copy(sharding)(leaf if dtype is None else leaf.astype(dtype))
        host = np.asarray(leaf)
        # np.array copies: on the CPU jax may use a host buffer in place.
        return jax.make_array_from_callback(
            host.shape, sharding, lambda index: np.array(host[index], dtype or host.dtype)
        )

    return jax.tree.map(copy, tree, shardings)


def _compiled_copy(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    # jnp.copy, because an identity under jit would return its input's buffer.
    return jax.jit(jax.numpy.copy, out_shardings=sharding)


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
