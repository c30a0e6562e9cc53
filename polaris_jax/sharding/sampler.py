"""The sampler's mesh, and how the sampler's programs are split over the mesh.

The mesh spans devices of one process, or of several processes that share a sampler. The mesh has
two axes: `data` splits slots and KV pools (no collective crosses data shards); `tensor` splits
weights, heads and the pool's KV heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from polaris_jax.config import ConfigError
from polaris_jax.sharding.mesh import TENSOR, global_array, replicated

SAMPLER_AXES = ("data", TENSOR)


def split_devices(sampler_devices: int, processes: int = 1) -> tuple[list[Any], list[Any]]:
    """The trainer's devices in all processes, and the devices of this process's sampler.

    Args:
        sampler_devices: number of devices of each process, taken from the end, that only sample;
            0: every device trains and samples.
        processes: number of consecutive processes that share a sampler.

    Raises:
        ConfigError: no device of a process is left for training, or `processes` does not divide
            the number of processes.
    """
    here, count = len(jax.local_devices()), jax.process_count()
    if sampler_devices and not 0 < sampler_devices < here:
        raise ConfigError(
            f"rollout.devices={sampler_devices}: a process has {here} devices and at least one "
            "must train; set it to 0 (shared) or below that number"
        )
    if processes < 1 or count % processes:
        raise ConfigError(
            f"rollout.processes={processes}: the run has {count} processes; choose a divisor"
        )
    by_process = _by_process()
    first = jax.process_index() // processes * processes
    members = [by_process[p] for p in range(first, first + processes)]
    sampler = [d for devices in members for d in devices[-sampler_devices:]]
    if not sampler_devices:
        return jax.devices(), sampler
    return [d for p in sorted(by_process) for d in by_process[p][:-sampler_devices]], sampler


def _by_process() -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for device in jax.devices():
        found.setdefault(device.process_index, []).append(device)
    return found


def make_sampler_mesh(devices: Sequence[Any], *, data: int = 0, tensor: int = 1) -> Mesh:
    """The sampler's mesh, axes data and tensor, over the first data x tensor devices.

    Args:
        devices: devices of one process, or of the processes that share a sampler, process by
            process (or, for planning, of a topology).
        data: number of shards of slots and pool; 0: as many as the devices allow, or 1 on a CPU,
            whose devices share the same cores.
        tensor: number of devices that share one copy of the weights.

    Raises:
        ConfigError: `tensor` does not divide the number of devices, or the sizes need more devices
            than there are.
    """
    count = len(devices)
    if tensor < 1 or count % tensor:
        raise ConfigError(
            f"rollout.tensor={tensor}: must be at least 1 and divide the {count} devices of a "
            "sampler"
        )
    if data == 0:
        data = 1 if devices[0].platform == "cpu" else count // tensor
    if data < 0 or data * tensor > count:
        raise ConfigError(
            f"rollout.data={data}: with rollout.tensor={tensor} the sampler needs {data * tensor} "
            f"devices and has {count}; set it to 0 (all) or to at most {count // tensor}"
        )
    grid = np.array(list(devices)[: data * tensor], dtype=object).reshape(data, tensor)
    return Mesh(grid, SAMPLER_AXES, axis_types=(AxisType.Auto,) * 2)


def unless_default(mesh: Mesh | None) -> Mesh | None:
    """The mesh; None in place of one of jax's default device alone, which needs no mesh."""
    default = mesh is not None and list(mesh.devices.flat) == jax.local_devices()[:1]
    return None if default else mesh


def slot_shards(mesh: Mesh | None) -> int:
    """The number of parts into which slots and pool are split."""
    return 1 if mesh is None else mesh.shape["data"]


def head_shards(mesh: Mesh | None) -> int:
    """The number of parts into which heads are split."""
    return 1 if mesh is None else mesh.shape["tensor"]


def slot_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis has an entry for each slot of the sampler."""
    return NamedSharding(mesh, PartitionSpec("data"))


def pool_sharding(mesh: Mesh, *, page_axis: int, head_axis: int) -> NamedSharding:
    """The sharding of an array of pages: pages over data, KV heads over tensor."""
    spec: list[str | None] = [None] * (1 + max(page_axis, head_axis))
    spec[page_axis], spec[head_axis] = "data", "tensor"
    return NamedSharding(mesh, PartitionSpec(*spec))


def over_slots(fn: Callable[..., Any], mesh: Mesh | None, *, in_axes: Any, out_axes: Any) -> Any:
    """`fn` run by each data shard on its own slots; the tensor axis is left to the compiler.

    Args:
        fn: function of positional arguments.
        mesh: the sampler's mesh; with None or a mesh of one device, `fn` itself is returned.
        in_axes: for each argument (or each leaf of an argument), the axis that is split over the
            shards, or None; the form is that of `jax.vmap`.
        out_axes: the same for the results.
    """
    if mesh is None or mesh.size == 1:
        return fn
    return jax.shard_map(
        fn,
        mesh=mesh,
        # TPU kernels do not allow an axis to be left to the compiler, not even one of size 1.
        axis_names={"data"} if head_shards(mesh) > 1 else {"data", "tensor"},
        in_specs=_specs(in_axes, "data"),
        out_specs=_specs(out_axes, "data"),
        check_vma=False,
    )


def over_heads(fn: Callable[..., Any], mesh: Mesh | None, *, in_axes: Any, out_axes: Any) -> Any:
    """`fn` run by each tensor shard on its own heads; call this inside `over_slots`.

    The arguments are those of `over_slots`, and the axes are the axes of the heads.
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
    """Logits split over the vocabulary, exchanged so that each tensor shard has complete rows.

    A draw is then the same row-wise program on every mesh, and its work is split. Call this inside
    `over_slots`. If the rows do not divide over the shards, every shard gets all rows.
    """
    shards = head_shards(mesh)
    if shards == 1:
        return logit_BV
    if logit_BV.shape[1] % shards == 0:
        # Without this constraint the compiler would gather the head's weights, not its logits.
        logit_BV = jax.lax.with_sharding_constraint(logit_BV, PartitionSpec(None, "tensor"))
    rows = "tensor" if logit_BV.shape[0] % shards == 0 else None
    return jax.lax.with_sharding_constraint(logit_BV, PartitionSpec(rows, None))


def whole(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays that every tensor shard holds in full; call this inside `over_slots`."""
    if head_shards(mesh) == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def member_processes(mesh: Mesh | None) -> list[int]:
    """The numbers of the processes that have devices in the sampler's mesh."""
    if not jax.distributed.is_initialized():
        return [0]  # also for the mesh of a topology that is only planned for
    if mesh is None:
        return [jax.process_index()]
    return sorted({device.process_index for device in mesh.devices.flat})


def sampler_share(mesh: Mesh | None) -> tuple[int, int]:
    """(the index of this process's sampler, the number of samplers in the run)."""
    members = len(member_processes(mesh))
    return jax.process_index() // members, jax.process_count() // members


def from_host(program: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`program(*args, **kwargs)`; host arrays among the arguments are uploaded.

    A sampler's step uploads arrays only here, so the upload is allowed under a transfer guard.
    `jax.device_put` is not used: for the 14 small arrays of a decode call it takes 150 us more on a
    CPU, as long as a small model's step.
    """
    with jax.transfer_guard_host_to_device("allow"):
        return program(*args, **kwargs)


def to_host(tree: Any) -> Any:
    """The arrays as numpy arrays. A sampler's step reads from its devices only here."""
    return jax.device_get(tree)


def on_members(tree: Any, mesh: Mesh | None, *, axis: int | None = 0) -> Any:
    """Host arrays in the form that programs on the mesh take.

    If the mesh spans one process, the arrays are returned unchanged. If it spans several, global
    arrays are returned: each process holds the same host arrays and uploads its own part.

    Args:
        tree: pytree of numpy arrays.
        mesh: the sampler's mesh.
        axis: the axis that has an entry for each slot; None: every device gets the complete array.
    """
    if len(member_processes(mesh)) == 1:
        return tree
    assert mesh is not None
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data")
    where = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: global_array(np.asarray(x), where), tree)


def on_slots(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays with an entry for each slot, from the host or a program, in the slots' sharding.

    A program is compiled again for arguments with another sharding. With this function the
    sharding is always the same.
    """
    where = jax.local_devices()[0] if mesh is None else slot_sharding(mesh)
    return jax.device_put(tree, where)


def to_members(mesh: Mesh) -> NamedSharding:
    """The sharding of a program's results that the host reads.

    The results are split by slots. If several processes read them, every device holds the complete
    result.
    """
    return slot_sharding(mesh) if len(member_processes(mesh)) == 1 else replicated(mesh)


def greatest(value: int, mesh: Mesh | None) -> int:
    """The greatest of the values that the processes of a sampler pass in, in each process.

    All processes of the sampler have to call this function together. They use it to agree on a
    number if their own numbers may differ. Values are int32.
    """
    if len(member_processes(mesh)) == 1:
        return value
    assert mesh is not None
    where = NamedSharding(mesh, PartitionSpec(SAMPLER_AXES))
    mine = np.array([value], np.int32)
    values_X = from_host(jax.make_array_from_callback, (mesh.size,), where, lambda _: mine)
    return int(to_host(_maximum(mesh)(values_X)))


@functools.cache
def _maximum(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jax.numpy.max, out_shardings=replicated(mesh))


def process_meshes(mesh: Mesh | None) -> Mesh:
    """One mesh over all samplers of the run, made of the samplers' meshes.

    The data shards of all samplers follow one another. No two samplers share a tensor group.

    Args:
        mesh: the mesh of this process's sampler, which has the same form in every sampler; None:
            each process's first device.
    """
    by_process, members = _by_process(), member_processes(mesh)
    used = jax.local_devices()[:1] if mesh is None else list(mesh.devices.flat)
    places = [
        (device.process_index - members[0], by_process[device.process_index].index(device))
        for device in used
    ]
    grid = np.array(
        [
            [by_process[first + p][i] for p, i in places]
            for first in range(0, jax.process_count(), len(members))
        ],
        dtype=object,
    ).reshape(-1, head_shards(mesh))
    return Mesh(grid, SAMPLER_AXES, axis_types=(AxisType.Auto,) * 2)
