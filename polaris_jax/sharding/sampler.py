"""The sampler's mesh, and how its programs are split over it.

It lies over devices of one process, or of a few that share a sampler, and has two axes: `data`
splits slots and KV pools, each shard on its own (no collective crosses it); `tensor` splits
weights, heads and the pool's KV heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from polaris_jax.config import ConfigError
from polaris_jax.sharding.mesh import TENSOR

SAMPLER_AXES = ("data", TENSOR)


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
