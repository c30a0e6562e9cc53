"""Where weights come from, by their Hugging Face names: files, a model in memory, a checkpoint.

Every conversion from one form of weights to another reads through `Weights`, part by part, so that
no conversion holds a complete model: `param_reader` gives parts of our stacked parameters, and
`tensor_blocks` gives parts of a file's tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from polaris_jax.models.config import ModelConfig
from polaris_jax.models.weights.hf_names import (
    EMBEDDING,
    HEAD,
    from_hf,
    hf_name,
    hf_part,
    hf_shapes,
)
from polaris_jax.models.weights.safetensors import Index

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
        return weights.dtype(hf_name(path))
    dtypes = {weights.dtype(hf_name(path, layer)) for layer in range(config.num_layers)}
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
        return from_hf(path, weights.read(hf_name(path, layer), theirs), config)[rest]

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
