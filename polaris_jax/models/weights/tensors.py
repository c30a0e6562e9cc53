"""Tensors by their Hugging Face names: where they come from, and which parameter each one is.

Every conversion from one form of weights to another reads through `Weights`, part by part, so that
no conversion holds a complete model: `param_reader` gives parts of our stacked parameters, and
`tensor_blocks` gives parts of a file's tensors.

Hugging Face keeps a matrix as [out, in], heads and head width merged, one tensor a layer; ours are
[in, out] with heads apart, stacked over layers. The letters are those of the dimension key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from polaris_jax.models.config import ModelConfig
from polaris_jax.models.family import PARAMS, dimensions, param_shapes
from polaris_jax.models.weights.safetensors import Index

EMBEDDING = PARAMS["embed_VD"].hf
HEAD = PARAMS["head_VD"].hf
# Tensors of the vocabulary's size are read in blocks of rows; a block has about this many bytes.
BLOCK_BYTES = 64 << 20
# Left in checkpoints by old versions; the model computes them.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)

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
            "its config.json does not describe these weights"
        )
    for name, shape in shapes.items():
        if weights.shape(name) != shape:
            raise ValueError(
                f"{where}: {name} has shape {weights.shape(name)}, but config.json says {shape}"
            )
        weights.dtype(name)
    # Many tied checkpoints store the head once more.
    if tied_head and not _equal(weights, HEAD, EMBEDDING):
        raise ValueError(
            f"{where}: {HEAD} differs from {EMBEDDING} though config.json ties them; set "
            "tie_word_embeddings to false"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" (and {len(names) - 5} more)" if len(names) > 5 else "")


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
