"""The mesh, the tables that map logical axes to it, and the shardings of a pytree.

The one module that knows mesh axes. Models name logical axes (`models.param_axes`); the tables
below say where each goes. Axes of the mesh:

    data      splits batch rows; weights and moments are stored split over it too
    fsdp      splits batch rows, and the storage of weights, gradients and moments
    context   splits the tokens of a row, the vocabulary, and the storage of weights
    tensor    splits heads, MLP width, vocabulary, and tokens outside of the matrix products

The sampler has a mesh of its own over the devices of its process, with two of them: `data` splits
slots and KV pools, each shard on its own (no collective crosses it); `tensor` splits weights, heads
and the pool's KV heads.

All axes are `Auto`: the compiler propagates shardings (`jax.make_mesh` defaults to explicit axes,
where a plain gather raises ShardingTypeError).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from polaris_jax.config import ConfigError, MeshSection

CONTEXT, TENSOR = "context", "tensor"
MESH_AXES = ("data", "fsdp", CONTEXT, TENSOR)
SAMPLER_AXES = ("data", TENSOR)
ROW_AXES = ("data", "fsdp")
TOKEN_AXES = (CONTEXT, TENSOR)

# Logical axis -> mesh axes, in order of preference. An absent axis is not split.
Rules = Mapping[str, tuple[str, ...]]

# ZeRO-style: every matrix has an `embed` axis (a vocabulary's table: a `table` axis), whose storage
# is split over all that does not split the other one.
TRAINER_RULES: Rules = {
    "embed": ("data", "fsdp", "context"),
    "vocab": ("context", "tensor"),
    "table": ("data", "fsdp"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}
# A decode step reads every weight once a token: whole on each replica, split over tensor alone.
SAMPLER_RULES: Rules = {
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


def make_mesh(section: MeshSection, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, context, tensor over the devices.

    Args:
        section: axis sizes; fsdp=-1 takes the devices that the other axes leave.
        devices: default: all devices of all processes.

    Raises:
        ConfigError: a size below 1, or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    for name in MESH_AXES:
        size = getattr(section, name)
        if size < 1 and not (name == "fsdp" and size == -1):
            rule = "must be at least 1" + (", or -1 for the rest" if name == "fsdp" else "")
            raise ConfigError(f"mesh.{name}={size}: {rule}")
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
        # Split axes: 16 x 2 on a torus of 4 x 8 needs one of them cut, which make_mesh refuses.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices, dtype=object).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def split_devices(sampler_devices: int) -> tuple[list[Any], list[Any]]:
    """The trainer's devices, of all processes, and this process's sampler's.

    Args:
        sampler_devices: so many devices of each process, its last, sample and do nothing else; 0:
            every device does both.

    Raises:
        ConfigError: none of a process's devices is left to train on.
    """
    everywhere, here = jax.devices(), jax.local_devices()
    if sampler_devices == 0:
        return everywhere, here
    if not 0 < sampler_devices < len(here):
        raise ConfigError(
            f"rollout.devices={sampler_devices}: a process has {len(here)} devices and at least "
            "one must train; set it to 0 (shared) or below that number"
        )
    by_process: dict[int, list[Any]] = {}
    for device in everywhere:
        by_process.setdefault(device.process_index, []).append(device)
    trainer = [d for p in sorted(by_process) for d in by_process[p][:-sampler_devices]]
    return trainer, here[-sampler_devices:]


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a [B, T] array split over data x fsdp, tokens over context x tensor."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES, TOKEN_AXES))


def wide_axes(mesh: Mesh, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the axes that have more than one device."""
    return tuple(name for name in names if mesh.shape[name] > 1)


def in_host_memory(shardings: Any) -> Any:
    """The same shardings, of arrays that lie in the pinned memory of each device's host."""
    return jax.tree.map(lambda sharding: sharding.with_memory_kind("pinned_host"), shardings)


def on_device(shardings: Any) -> Any:
    """The same shardings, of arrays in the devices' own memory."""
    return jax.tree.map(lambda sharding: sharding.with_memory_kind("device"), shardings)


def moved(tree: Any, shardings: Any) -> Any:
    """A pytree's arrays at `shardings`; those that lay elsewhere are deleted there, one by one.

    For moves between a device's memory and its host's: the devices stay the same.
    """

    def move(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        if leaf.sharding == sharding:
            return leaf
        new = jax.block_until_ready(jax.device_put(leaf, sharding))
        leaf.delete()
        return new

    return jax.tree.map(move, tree, shardings)


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def leaf_spec(
    path: str, shape: tuple[int, ...], axes: tuple[str, ...], *, mesh: Mesh, rules: Rules
) -> PartitionSpec:
    """How one parameter is split.

    A mesh axis that does not divide its dimension is left out: that dimension is then split over
    the axes before it, or whole.

    Args:
        path: the parameter's name, for errors.
        shape: its shape.
        axes: its logical axes, one a dimension.
        mesh: the mesh.
        rules: logical axis -> mesh axes.

    Raises:
        ValueError: axes and shape differ in length, a rule names no mesh axis, or two dimensions
            of the parameter claim the same mesh axis.
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
        ValueError: see `leaf_spec`; or a leaf without logical axes.
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
    """A device array of a host array that every process holds alike; each uploads its shards.

    The one place where a step's data goes up: allowed under a transfer guard.
    """
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def private_copies(tree: Any, shardings: Any, *, dtype: Any = None) -> Any:
    """Copies of a pytree's arrays, placed by `shardings`; no buffer is shared with the source.

    A donated buffer is deleted, and a sampler that shares it dies: so the trainer owns its arrays.

    Args:
        tree: arrays, on host or device; in several processes alike in each, or already global.
        shardings: one NamedSharding a leaf.
        dtype: of the copies; default: the source's.
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
    # jnp.copy: an identity under jit would hand back its input's buffer.
    return jax.jit(jax.numpy.copy, out_shardings=sharding)


def make_sampler_mesh(devices: Sequence[Any], *, data: int = 0, tensor: int = 1) -> Mesh:
    """The sampler's mesh, axes data and tensor, over the first data x tensor devices.

    Args:
        devices: of one process (or, for planning, of a topology).
        data: shards of slots and pool; 0: as many as the devices allow, and 1 on a CPU, whose
            devices share the same cores.
        tensor: devices that share one copy of the weights.

    Raises:
        ConfigError: the sizes need more devices than there are, or leave some out unasked.
    """
    count = len(devices)
    if tensor < 1 or count % tensor:
        raise ConfigError(
            f"rollout.tensor={tensor}: must be at least 1 and divide the {count} devices of a "
            "process"
        )
    if data == 0:
        data = 1 if devices[0].platform == "cpu" else count // tensor
    if data < 0 or data * tensor > count:
        raise ConfigError(
            f"rollout.data={data}: with rollout.tensor={tensor} the sampler needs {data * tensor} "
            f"devices and a process has {count}; set it to 0 (all) or to at most {count // tensor}"
        )
    grid = np.array(list(devices)[: data * tensor], dtype=object).reshape(data, tensor)
    return Mesh(grid, SAMPLER_AXES, axis_types=(AxisType.Auto,) * 2)


def slot_shards(mesh: Mesh | None) -> int:
    """Into how many parts slots and pool are split."""
    return 1 if mesh is None else mesh.shape["data"]


def head_shards(mesh: Mesh | None) -> int:
    """Into how many parts heads are split."""
    return 1 if mesh is None else mesh.shape["tensor"]


def slot_sharding(mesh: Mesh) -> NamedSharding:
    """An array whose first axis goes over all slots of the sampler's mesh."""
    return NamedSharding(mesh, PartitionSpec("data"))


def pool_sharding(mesh: Mesh, *, page_axis: int, head_axis: int) -> NamedSharding:
    """An array of pages: pages over data, KV heads over tensor."""
    spec: list[str | None] = [None] * (1 + max(page_axis, head_axis))
    spec[page_axis], spec[head_axis] = "data", "tensor"
    return NamedSharding(mesh, PartitionSpec(*spec))


def over_slots(fn: Callable[..., Any], mesh: Mesh | None, *, in_axes: Any, out_axes: Any) -> Any:
    """`fn` run by each shard of slots on its own part, tensor axis left to the compiler.

    Args:
        fn: of positional arguments.
        mesh: the sampler's; None or of one device: `fn` itself.
        in_axes: as `jax.vmap`'s: for each argument (or a pytree of it) the axis that is split over
            the shards, or None.
        out_axes: the same for the results.
    """
    if mesh is None or mesh.size == 1:
        return fn
    return jax.shard_map(
        fn,
        mesh=mesh,
        # TPU kernels ask for no axis to be left to the compiler, not even one of size 1.
        axis_names={"data"} if head_shards(mesh) > 1 else {"data", "tensor"},
        in_specs=_specs(in_axes, "data"),
        out_specs=_specs(out_axes, "data"),
        check_vma=False,
    )


def over_heads(fn: Callable[..., Any], mesh: Mesh | None, *, in_axes: Any, out_axes: Any) -> Any:
    """`fn` run by each tensor shard on its own heads; to be called inside `over_slots`.

    Arguments as there; the axes are those of the heads.
    """
    if head_shards(mesh) == 1:
        return fn
    return jax.shard_map(
        fn,
        axis_names={"tensor"},
        in_specs=_specs(in_axes, "tensor"),
        out_specs=_specs(out_axes, "tensor"),
        check_vma=False,
    )


def _specs(axes: Any, name: str) -> Any:
    def spec(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, name)

    return jax.tree.map(spec, axes, is_leaf=lambda x: x is None)


def rows_of_logits(logit_BV: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Logits split over the vocabulary, exchanged so that each tensor shard has whole rows.

    A draw then is the same row-wise program whatever the mesh, and its work is split. To be called
    inside `over_slots`. Where the rows do not divide, every shard gets all of them.
    """
    shards = head_shards(mesh)
    if shards == 1:
        return logit_BV
    if logit_BV.shape[1] % shards == 0:
        # Named first, or the compiler would gather the head's weights instead of its logits.
        logit_BV = jax.lax.with_sharding_constraint(logit_BV, PartitionSpec(None, "tensor"))
    rows = "tensor" if logit_BV.shape[0] % shards == 0 else None
    return jax.lax.with_sharding_constraint(logit_BV, PartitionSpec(rows, None))


def whole(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays that every tensor shard holds whole; to be called inside `over_slots`."""
    if head_shards(mesh) == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def process_meshes(mesh: Mesh | None) -> Mesh:
    """One mesh over all processes whose part on each is that process's sampler mesh.

    Data shards of all processes follow one another; none shares a tensor group with another.

    Args:
        mesh: the sampler's on this process, alike in all of them; None: each one's first device.
    """
    mine = jax.local_devices()
    used = mine[:1] if mesh is None else list(mesh.devices.flat)
    places = [mine.index(device) for device in used]
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    tensor = head_shards(mesh)
    grid = np.array(
        [[by_process[p][i] for i in places] for p in sorted(by_process)], dtype=object
    ).reshape(-1, tensor)
    return Mesh(grid, SAMPLER_AXES, axis_types=(AxisType.Auto,) * 2)
