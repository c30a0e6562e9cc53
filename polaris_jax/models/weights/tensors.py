"""Tensors by their Hugging Face names: which parameter each one is, and its way to the devices.

Every conversion from one form of weights to another reads through `Weights`, part by part, so that
no conversion holds a complete model: `param_reader` gives parts of our stacked parameters, and
`tensor_blocks` gives parts of a file's tensors.

Hugging Face keeps a matrix as [out, in], heads and head width merged, one tensor a layer; ours are
[in, out] with heads apart, stacked over layers. The letters are those of the dimension key.

A stacked [L, ...] parameter is filled on the devices: each layer's shards are read (by the process
whose devices hold them, and only those), put, and written into the donated stack. Beyond the
devices' own buffers the host then holds about one layer's tensor, whatever the model.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding

from polaris_jax.models.config import ModelConfig
from polaris_jax.models.family import PARAMS, dimensions, param_axes, param_shapes
from polaris_jax.models.weights.safetensors import Index
from polaris_jax.sharding import Rules, param_shardings
from polaris_jax.system.foreign import printable

EMBEDDING = PARAMS["embed_VD"].hf
HEAD = PARAMS["head_VD"].hf
# Tensors of the vocabulary's size are read in blocks of rows; a block has about this many bytes.
BLOCK_BYTES = 64 << 20
# A process's part of a parameter up to this size is put together on the host: one transfer.
STAGING_BYTES = 32 << 20
# Left in checkpoints by old versions; the model computes them.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
_SCALES = ("_scale", "_scale_inv")  # of quantised weights, and of caches

# A part of a parameter, from one slice for each of its axes.
ReadPart = Callable[[tuple[slice, ...]], np.ndarray]


class Weights(Protocol):
    """Tensors of a checkpoint by their Hugging Face names."""

    def names(self) -> set[str]:
        """Names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """The dtype of the arrays that `read` returns."""
        ...

    def read(self, name: str, index: Index = None) -> np.ndarray:
        """A tensor's values, or those at `index` (one slice an axis); may be a view."""
        ...


def check_weights(config: ModelConfig, weights: Weights, where: str) -> None:
    """Checks every name, shape and dtype against the architecture, before anything is written.

    Raises:
        ValueError: a tensor is missing, unexpected or misshapen, or its dtype is not supported; the
            message names the tensor.
    """
    shapes, names = hf_shapes(config), weights.names()
    if missing := [name for name in shapes if name not in names]:
        hint = "the checkpoint is not whole, or its config.json belongs to another"
        if missing == [HEAD]:
            hint = "if it is the embedding, set tie_word_embeddings to true in config.json"
        raise ValueError(f"{where}: tensor {_listed(missing)} is missing; {hint}")
    extra = sorted(n for n in names - shapes.keys() if not n.endswith(_IGNORED_SUFFIXES))
    tied_head = config.tie_embeddings and HEAD in extra
    if tied_head:
        extra.remove(HEAD)
    if extra:
        raise ValueError(
            f"{where}: tensor {_listed(extra)} is unexpected for model_type={config.model_type}; "
            + (
                "weights or KV caches in 8 bits are not supported: take the unquantised checkpoint"
                if all(name.endswith(_SCALES) for name in extra)
                else "its config.json does not describe these weights"
            )
        )
    for name, shape in shapes.items():
        if weights.shape(name) != shape:
            raise ValueError(
                f"{where}: {name} has shape {weights.shape(name)}, but config.json says {shape}; "
                + (
                    f"if the embedding was resized, vocab_size is {weights.shape(name)[0]}"
                    if name in (EMBEDDING, HEAD) and weights.shape(name)[1:] == shape[1:]
                    else "take the config.json that belongs to these weights"
                )
            )
        weights.dtype(name)
    # Many tied checkpoints store the head once more.
    if tied_head and not _equal(weights, HEAD, EMBEDDING):
        raise ValueError(
            f"{where}: {HEAD} differs from {EMBEDDING} though config.json ties them; set "
            "tie_word_embeddings to false"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(printable(name[:200]) for name in names[:5])
    return shown + (f" (and {len(names) - 5} more)" if len(names) > 5 else "")


def _equal(weights: Weights, a: str, b: str) -> bool:
    if weights.shape(a) != weights.shape(b):
        return False
    parts = row_slices(weights.shape(a), weights.dtype(a))
    return all(np.array_equal(weights.read(a, (p,)), weights.read(b, (p,))) for p in parts)


def row_slices(shape: tuple[int, ...], dtype: np.dtype) -> list[slice]:
    """Slices of the first axis that cover it, each of about `BLOCK_BYTES`."""
    rows = max(1, BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    return [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def tensor_blocks(weights: Weights, name: str, dtype: np.dtype) -> Iterator[np.ndarray]:
    """A tensor's values in `dtype` as consecutive blocks of rows.

    A layer's tensor is one block; a tensor of the vocabulary's size comes in several blocks.
    """
    if name in (EMBEDDING, HEAD):
        for rows in row_slices(weights.shape(name), dtype):
            yield weights.read(name, (rows,)).astype(dtype, copy=False)
    else:
        yield weights.read(name).astype(dtype, copy=False)


def param_dtype(path: str, config: ModelConfig, weights: Weights) -> np.dtype:
    """The narrowest dtype that holds a parameter's tensors of all layers exactly."""
    if not path.startswith("layers/"):
        return weights.dtype(config.family.hf_name(path))
    dtypes = {
        weights.dtype(config.family.hf_name(path, layer)) for layer in range(config.num_layers)
    }
    return dtypes.pop() if len(dtypes) == 1 else np.result_type(np.float32, *dtypes)


def param_reader(path: str, config: ModelConfig, weights: Weights, dtype: np.dtype) -> ReadPart:
    """A function that reads a part of a stacked parameter, layer by layer, and no more than that.

    Its results are copies in `dtype`, C-ordered, that share no memory with the source.

    Args:
        path: the parameter's path in `param_shapes`, e.g. `layers/q_DNH`.
        config: the architecture.
        weights: checked weights.
        dtype: dtype of the result; values are rounded to nearest.
    """

    def one(layer: int | None, index: tuple[slice, ...]) -> np.ndarray:
        theirs, rest = hf_part(path, index, config)
        tensor = weights.read(config.family.hf_name(path, layer), theirs)
        return from_hf(path, tensor, config)[rest]

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if not path.startswith("layers/"):
            return np.array(one(None, index), dtype, order="C")
        layers = range(config.num_layers)[index[0]]
        first = one(layers.start, index[1:])
        part = np.empty((len(layers), *first.shape), dtype)
        for i, layer in enumerate(layers):
            part[i] = first if i == 0 else one(layer, index[1:])
        return part

    return read


def hf_tensors(config: ModelConfig) -> dict[str, tuple[str, int | None]]:
    """Every tensor of a checkpoint in file order: name -> (our parameter path, layer or None)."""
    paths = param_shapes(config)
    tensors: dict[str, tuple[str, int | None]] = {EMBEDDING: ("embed_VD", None)}
    for layer in range(config.num_layers):
        for path in paths:
            if path.startswith("layers/"):
                tensors[config.family.hf_name(path, layer)] = (path, layer)
    for path in ("norm_D", "head_VD"):
        if path in paths:
            tensors[config.family.hf_name(path)] = (path, None)
    return tensors


def hf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint, in file order."""
    return {
        name: tuple(
            math.prod(dimensions(config)[letter] for letter in merged)
            for merged in PARAMS[path].hf_axes.split("-")
        )
        for name, (path, _) in hf_tensors(config).items()
    }


def from_hf(path: str, tensor: np.ndarray, config: ModelConfig) -> np.ndarray:
    """One layer's tensor, or full units of its axes, in our axes: [N*H, D] -> q [D, N, H]; a view.

    If the file merges two axes (N*H), a part of the tensor holds complete inner axes (H).
    """
    sizes, ours = dimensions(config), path.rsplit("_", 1)[-1]
    apart: list[int] = []
    for merged, size in zip(PARAMS[path].hf_axes.split("-"), tensor.shape, strict=True):
        inner = [sizes[letter] for letter in merged[1:]]
        apart += [size // math.prod(inner), *inner]
    theirs = PARAMS[path].hf_axes.replace("-", "")
    return tensor.reshape(apart).transpose([theirs.index(letter) for letter in ours])


def hf_part(
    path: str, index: tuple[slice, ...], config: ModelConfig
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Which part of the file's tensor a part of one layer's parameter needs.

    Args:
        path: the parameter.
        index: a slice for each of its axes (without the layers axis).
        config: the architecture.

    Returns:
        (index into the file's tensor, index into `from_hf` of that part). The second index selects
        everything unless inner axes (H of N*H) are split: complete inner axes are read then.
    """
    sizes, ours = dimensions(config), path.rsplit("_", 1)[-1]
    wanted = {
        letter: slice(*part.indices(sizes[letter])[:2])
        for letter, part in zip(ours, index, strict=True)
    }
    theirs: list[slice] = []
    rest = dict(wanted)
    for merged in PARAMS[path].hf_axes.split("-"):
        inner = math.prod(sizes[letter] for letter in merged[1:])
        outer = wanted[merged[0]]
        theirs.append(slice(outer.start * inner, outer.stop * inner))
        rest[merged[0]] = slice(None)
    return tuple(theirs), tuple(rest[letter] for letter in ours)


def to_hf(path: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `from_hf`: one layer's parameter as Hugging Face's tensor."""
    axes, ours = PARAMS[path].hf_axes, path.rsplit("_", 1)[-1]
    moved = value.transpose([ours.index(letter) for letter in axes.replace("-", "")])
    sizes = dict(zip(ours, value.shape, strict=True))
    return moved.reshape([math.prod(sizes[x] for x in merged) for merged in axes.split("-")])


def model_shardings(config: ModelConfig, mesh: Mesh, rules: Rules) -> dict[str, NamedSharding]:
    """The sharding of each parameter on a mesh, by its path, as `place_params` takes them.

    Args:
        config: the architecture.
        mesh: the mesh.
        rules: `TRAINER_RULES` or `SAMPLER_RULES`.

    Raises:
        ValueError: see `sharding.leaf_spec`.
    """
    abstract = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in param_shapes(config).items()
    }
    return param_shardings(abstract, mesh, rules, axes=param_axes(config))


def place_params(
    config: ModelConfig,
    weights: Weights,
    dtype: np.dtype,
    shardings: Mapping[str, Sharding] | None = None,
) -> dict[str, Array]:
    """Every parameter as a global array, keyed like `param_shapes`.

    With several processes, every process has to call this function with the same arguments. Each
    process reads only the parts that its own devices hold. A part that several devices of a process
    hold is read once.

    Args:
        config: the architecture.
        weights: checked weights.
        dtype: dtype of the parameters.
        shardings: where each parameter goes. A parameter without a sharding goes in full to the
            default device of every process, uncommitted (free to move).
    """
    return {
        path: place(
            shape, dtype, param_reader(path, config, weights, dtype), (shardings or {}).get(path)
        )
        for path, shape in param_shapes(config).items()
    }


def host_params(config: ModelConfig, weights: Weights, dtype: np.dtype) -> dict[str, Any]:
    """Every parameter as a complete numpy array, keyed like `param_shapes`; see `place_params`."""
    return {
        path: param_reader(path, config, weights, dtype)(tuple(slice(0, size) for size in shape))
        for path, shape in param_shapes(config).items()
    }


def place(
    shape: tuple[int, ...], dtype: np.dtype, read: ReadPart, sharding: Sharding | None
) -> Array:
    """One array from its parts; see `place_params`.

    Args:
        shape: shape of the complete array; a large array is filled entry by entry along its first
            axis.
        dtype: dtype of the result of `read`.
        read: returns a part of the array, as a C-ordered host array that nothing else changes.
        sharding: sharding of the array; None: the default device, uncommitted.
    """
    held = shape if sharding is None else sharding.shard_shape(shape)
    large = int(np.prod(held)) * dtype.itemsize > STAGING_BYTES
    if len(shape) < 3 or not large or held[0] != shape[0]:
        return _put(shape, read, sharding)
    zeros, with_entry = _programs(sharding)
    stack = zeros(shape, dtype)
    entry_shape = (1, *shape[1:])
    for i in range(shape[0]):

        def read_entry(index: tuple[slice, ...], i: int = i) -> np.ndarray:
            return read((slice(i, i + 1), *index[1:]))

        stack = with_entry(stack, _put(entry_shape, read_entry, sharding), i)
        stack.block_until_ready()  # or the entries in flight pile up on the host
    return stack


def _put(shape: tuple[int, ...], read: ReadPart, sharding: Sharding | None) -> Array:
    if sharding is None:
        return jnp.asarray(read(tuple(slice(0, size) for size in shape)))
    holders: dict[tuple[tuple[int, int], ...], list[Any]] = defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        spans = zip(index or (), shape, strict=True)
        holders[tuple(part.indices(size)[:2] for part, size in spans)].append(device)
    shards = []
    for spans, devices in holders.items():
        part = read(tuple(slice(*span) for span in spans))
        for i, device in enumerate(devices):
            place = SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
            # A CPU device may use the host buffer in place: two must not share one.
            own = part.copy() if i and device.platform == "cpu" else part
            shards.append(jax.device_put(own, place))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


@functools.lru_cache(maxsize=64)
def _programs(
    sharding: Sharding | None,
) -> tuple[Callable[[tuple[int, ...], np.dtype], Array], Callable[[Array, Array, int], Array]]:
    """An empty stack, and a stack with one entry replaced: compiled once for a shape."""

    def with_entry(stack: Array, entry: Array, i: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(stack, entry, i, axis=0)

    if sharding is None:
        return jnp.zeros, jax.jit(with_entry, donate_argnums=0)
    return (
        jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding),
        jax.jit(with_entry, donate_argnums=0, out_shardings=sharding),
    )
