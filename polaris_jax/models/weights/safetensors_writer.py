"""Safetensors files out: shards and their index, a block of rows in memory at a time.

Files are written under their own names, without a rename (object stores have none). The caller then
writes the index and config.json, in this order, which make the directory complete.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
from etils import epath

from polaris_jax.models.weights.safetensors import DTYPES, SINGLE_FILE

# Hugging Face's default.
MAX_SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Shape and dtype of a tensor.
Spec = tuple[tuple[int, ...], np.dtype]


def write_safetensors(
    directory: epath.Path,
    specs: Mapping[str, Spec],
    blocks: Callable[[str], Iterable[np.ndarray]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    write: bool = True,
) -> dict[str, Any] | None:
    """Writes tensors as one file or as shards.

    Args:
        directory: exists.
        specs: shape and dtype of every tensor; its order is the order in the files.
        blocks: a tensor's values by its name, as consecutive blocks along its first axis; each is
            dropped before the next is made.
        max_shard_bytes: most bytes of tensors in a file; a larger tensor gets a file of its own.
        write: False makes every block and writes nothing: what the other processes do.

    Returns:
        The content of the index file, which the caller writes; None where one file holds all.

    Raises:
        OSError: the disk is full or not writable; its filename is the file's.
        ValueError: blocks that do not make the tensor that its spec promises.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in specs.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > max_shard_bytes:
            shards.append([])
        shards[-1].append(name)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        file = SINGLE_FILE if len(shards) == 1 else file
        weight_map |= dict.fromkeys(names, file)
        values = (block for name in names for block in _checked(name, specs[name], blocks(name)))
        if write:
            _write_file(directory / file, {n: specs[n] for n in names}, values)
        else:
            for _ in values:
                pass
    if len(shards) == 1:
        return None
    return {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}


def write_small_json(path: epath.Path, fields: Mapping[str, Any]) -> None:
    """Writes config.json or an index; after these files the directory is complete.

    Raises:
        OSError: see `write_safetensors`.
    """
    with created(path) as out:
        out.write((json.dumps(fields, indent=2, sort_keys=True) + "\n").encode())


@contextlib.contextmanager
def created(path: epath.Path) -> Iterator[IO[bytes]]:
    """A new file for writing, durable when the body ends.

    Raises:
        OSError: the disk is full or not writable; its filename is `path`.
    """
    try:
        with path.open("wb") as out:
            yield out
            out.flush()
            with contextlib.suppress(io.UnsupportedOperation, AttributeError):  # an object store's
                os.fsync(out.fileno())
    except OSError as error:
        if error.filename is not None:
            raise  # of a source, while its values were made
        raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error


def _checked(name: str, spec: Spec, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape, dtype = spec
    rows = 0
    for block in blocks:
        rows += block.shape[0] if block.ndim else 1
        if block.shape[1:] != shape[1:] or block.dtype != dtype:
            raise ValueError(f"{name}: a block is {block.dtype}{block.shape} of {dtype}{shape}")
        yield np.ascontiguousarray(block)
    if rows != (shape[0] if shape else 1):
        raise ValueError(f"{name}: its blocks have {rows} rows, expected {dtype}{shape}")


def _write_file(path: epath.Path, specs: Mapping[str, Spec], values: Iterator[np.ndarray]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in specs.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with created(path) as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for value in values:
            out.write(value.reshape(-1).view(np.uint8).data)
