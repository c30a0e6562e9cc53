"""From the trainer's parameters to the sampler's weights: another dtype, another sharding.

The trainer's parameters are float32 and split over all devices of all processes. The sampler's
weights have its own dtype, are complete on each data shard of each sampler, and are split over
tensor alone. On a mesh the leaves are copied one by one. One jitted function casts and reshards a
leaf, and the leaf's old weight is freed before the new one is made, because memory beside both sets
of weights suffices for one leaf only.

Across processes the target is one mesh over all processes, of which each sampler's mesh is a part.
Afterwards a sampler keeps the shards on its own devices as arrays of its own mesh, so that no
collective crosses samplers while they run.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from polaris_jax.models import Decoder, model_shardings
from polaris_jax.rollout.fused_weights import FusedWeights, Model, fuse
from polaris_jax.rollout.programs.spec import ProgramSpec
from polaris_jax.sharding import (
    SAMPLER_RULES,
    from_host,
    global_array,
    in_host_memory,
    on_device,
    process_meshes,
    replicated,
    to_host,
)


@dataclasses.dataclass(frozen=True)
class SyncReport:
    """The cost of a sync for this process.

    Attributes:
        bytes: bytes of new weights written to this process's devices, each copy counted.
        seconds: wall clock seconds until the weights were written.
    """

    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: SyncReport) -> SyncReport:
        return SyncReport(self.bytes + other.bytes, self.seconds + other.seconds)


class LiveWeights:
    """A sampler's own copy of a model, in the form that its programs take.

    Attributes:
        model: the weights; None if there are none.
        synced: total cost of the syncs since the last reset.
    """

    def __init__(self, spec: ProgramSpec, mesh: Mesh | None, dtype: DTypeLike):
        self._spec, self._mesh, self._dtype = spec, mesh, dtype
        self.model: Model | None = None
        self.synced = SyncReport()

    def take(self, model: Decoder) -> None:
        """Copies `model`, which `check_live` must have accepted.

        The old weights are freed leaf by leaf, so there are no weights if the copy fails.
        """
        spec, old = self._spec, self.model
        self.model = None
        self.model, report = sync_weights(
            model, self._dtype, self._mesh, old=old, fused=spec.fused, packed=spec.native
        )
        self.synced += report

    def free(self) -> None:
        """Deletes the weights."""
        for leaf in jax.tree.leaves(self.model):
            leaf.delete()
        self.model = None


def sync_weights(
    params: Decoder,
    dtype: DTypeLike,
    mesh: Mesh | None,
    *,
    old: Decoder | FusedWeights | None = None,
    fused: bool = False,
    packed: bool = False,
) -> tuple[Any, SyncReport]:
    """The sampler's weights, in arrays of their own, from the trainer's parameters.

    The weights are copied because the trainer donates its parameters to the next update, which
    deletes them; a sampler must not share them.

    Args:
        params: parameters on this process's devices or in their host's memory, or sharded in any
            way over the devices of all processes.
        dtype: dtype of the sampler's weights.
        mesh: the sampler's mesh on this process; None: jax's default device.
        old: the weights that the new ones replace; their memory is freed.
        fused: True: make `FusedWeights`; on one device only.
        packed: True: make matrices for the native kernels.
    """
    began_s = time.perf_counter()
    dtype = jnp.dtype(dtype)
    if mesh is None and _on_one_device(params):
        if old is not None:
            _delete(old)
        weights: Any = from_host(_cast_all, params, dtype, fused, packed)
    else:
        if isinstance(old, FusedWeights):
            _delete(old)
            old = None
        weights = _resharded(params, dtype, mesh, old)
        if fused:
            stacked, weights = weights, _cast_all(weights, dtype, fused, packed)
            _delete(stacked)
    jax.block_until_ready(weights)
    written = sum(
        shard.data.nbytes for x in jax.tree.leaves(weights) for shard in x.addressable_shards
    )
    return weights, SyncReport(written, time.perf_counter() - began_s)


def check_live(params: Decoder) -> None:
    """Checks that every parameter can be read.

    Raises:
        ValueError: some of the parameters are deleted.
    """
    leaves = params.params().items()
    gone = [path for path, x in leaves if isinstance(x, jax.Array) and x.is_deleted()]
    if gone:
        raise ValueError(
            f"model: {len(gone)} of its arrays are deleted, {gone[0]} first; give a model whose "
            "arrays are live (an update that donates them deletes the old ones)"
        )


def weight_shardings(params: Decoder, mesh: Mesh) -> dict[str, NamedSharding]:
    """Sharding of each weight on the sampler's mesh, by path."""
    return model_shardings(params.config, mesh, SAMPLER_RULES)


@functools.cache
def cast_to(dtype: np.dtype, where: Sharding) -> Any:
    """Jitted: an array in `dtype` and sharded as `where`, never sharing its input's memory."""
    # jnp.copy: an identity under jit would hand back its input's buffer.
    return jax.jit(lambda x: jnp.copy(x.astype(dtype)), out_shardings=where)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _cast_all(
    params: Decoder, dtype: np.dtype, fused: bool, packed: bool
) -> Decoder | FusedWeights:
    cast = jax.tree.map(lambda x: x.astype(dtype), params)
    return jax.tree.map(jnp.copy, fuse(cast, packed=packed) if fused else cast)


def _on_one_device(params: Decoder) -> bool:
    here = jax.local_devices()[0]
    return all(
        isinstance(x, jax.Array) and x.sharding.device_set == {here} and not _is_parked(x.sharding)
        for x in jax.tree.leaves(params)
    )


def _is_parked(where: Sharding) -> bool:
    return where.memory_kind == in_host_memory(where).memory_kind


def _delete(weights: Any) -> None:
    for leaf in jax.tree.leaves(weights):
        leaf.delete()


def _resharded(params: Decoder, dtype: np.dtype, mesh: Mesh | None, old: Decoder | None) -> Decoder:
    leaves = params.params()
    old_leaves = {} if old is None else old.params()
    global_ = any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in leaves.values())
    shared = process_meshes(mesh) if global_ else mesh
    targets: dict[str, Any]
    if shared is None:
        here = SingleDeviceSharding(jax.local_devices()[0])
        # Numpy arrays go there without being committed to it, like the weights that were loaded
        # first: the programs would be compiled again for committed ones.
        targets = {path: here if isinstance(x, jax.Array) else None for path, x in leaves.items()}
    else:
        targets = {**weight_shardings(params, shared)}
    new = {}
    for path, leaf in leaves.items():
        if path in old_leaves:
            _delete(old_leaves[path])
        moved = _moved(leaf, dtype, targets[path])
        # One leaf at a time, because the temporaries of two leaves would add up.
        new[path] = jax.block_until_ready(_local(moved, targets[path], mesh))
    return Decoder.from_params(params.config, new)


def _moved(leaf: Any, dtype: np.dtype, target: Sharding | None) -> jax.Array:
    """The leaf with sharding `target`; the cast runs on the leaf's present devices if possible.

    Args:
        leaf: a leaf of the trainer's parameters.
        dtype: dtype of the result.
        target: sharding of the result; None, of a numpy array: the default device, uncommitted.
    """
    ours_alone = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    if ours_alone and target is not None and not target.is_fully_addressable:
        assert isinstance(target, NamedSharding)  # the leaf is alike in all processes
        return global_array(np.array(to_host(leaf), dtype), target)
    if not isinstance(leaf, jax.Array):
        return jax.device_put(np.array(leaf, dtype), target)
    assert target is not None
    source = leaf.sharding
    if _is_parked(source):  # copy only this leaf to the device; the host keeps the parked leaf
        source = on_device(source)
        leaf = jax.device_put(leaf, source)
    if _device_order(source) == _device_order(target):
        return cast_to(dtype, target)(leaf)
    if leaf.is_fully_addressable or source.device_set == target.device_set:
        return jax.device_put(cast_to(dtype, source)(leaf), target)
    # The sampler uses only some of the trainer's devices: one step can only move complete copies.
    assert isinstance(source, NamedSharding)
    assert isinstance(source.mesh, Mesh)
    return cast_to(dtype, replicated(source.mesh))(leaf)


def _device_order(where: Sharding) -> list[Any]:
    if isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh):
        return list(where.mesh.devices.flat)
    return sorted(where.device_set, key=lambda device: device.id)


def _local(x: jax.Array, target: Sharding, mesh: Mesh | None) -> jax.Array:
    """This process's part of a global array, as an array of the sampler's own mesh."""
    if x.is_fully_addressable:
        return x
    by_device = {shard.device: shard.data for shard in x.addressable_shards}
    if mesh is None:
        return by_device[jax.local_devices()[0]]
    assert isinstance(target, NamedSharding)
    where = NamedSharding(mesh, target.spec)
    if x.is_fully_replicated and where.is_fully_addressable:
        return jax.device_put(x.addressable_data(0), where)
    if not all(device in by_device for device in where.addressable_devices):
        return global_array(to_host(x.addressable_data(0)), where)
    return jax.make_array_from_single_device_arrays(
        x.shape, where, [by_device[device] for device in where.addressable_devices]
    )
