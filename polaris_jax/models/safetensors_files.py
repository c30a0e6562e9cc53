"""Safetensors on disk, tensor by tensor: sharded reading through the index, streamed writing.

Neither way holds more than one tensor (the reader) or one shard's table of contents (the writer).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# Hugging Face's default.
MAX_SHARD_BYTES = 5_000_000_000

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsReader:
    """The tensors of a checkpoint directory; files stay open (mapped) while the reader lives."""

    def __init__(self, directory: Path) -> None:
        """Opens every file that the index names, or the single file.

        Raises:
            FileNotFoundError: no weights here, or a file of the index is missing.
            ValueError: a damaged file or index, or a tensor that the index names and no file has.
        """
        files, indexed = _files_of(directory)
        self._files = {}
        self._home: dict[str, str] = {}
        for name in files:
            path = directory / name
            if not path.is_file():
                raise FileNotFoundError(
                    2, f"missing, though {INDEX_FILE} names it; download it again", str(path)
                )
            try:
                self._files[name] = safe_open(path, framework="np")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: damaged ({error}); download it again") from error
            self._home |= dict.fromkeys(self._files[name].keys(), name)
        if absent := sorted(indexed - self._home.keys()):
            raise ValueError(
                f"{directory / INDEX_FILE}: names {_some(absent)}, which no file holds; download "
                "the checkpoint again"
            )

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._home)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header."""
        return tuple(self._files[self._home[name]].get_slice(name).get_shape())

    def dtype(self, name: str) -> np.dtype:
        """A tensor's dtype, from the file's header.

        Raises:
            ValueError: it is none of DTYPES, e.g. an 8-bit float.
        """
        stored = self._files[self._home[name]].get_slice(name).get_dtype()
        if stored not in DTYPES:
            raise ValueError(
                f"{self._home[name]}: {name} has dtype {stored}; expected one of "
                f"{', '.join(DTYPES)}; take the unquantised checkpoint"
            )
        return DTYPES[stored]

    def read(self, name: str) -> np.ndarray:
        """A tensor's values, as stored."""
        self.dtype(name)
        return self._files[self._home[name]].get_tensor(name)


def _files_of(directory: Path) -> tuple[list[str], set[str]]:
    """File names, and the tensors that an index promises."""
    index = directory / INDEX_FILE
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted(set(weight_map.values())), set(weight_map)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{index}: not an index of safetensors ({error!r}); download it again"
            ) from error
    if (directory / SINGLE_FILE).is_file():
        return [SINGLE_FILE], set()
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if len(found) == 1:
        return found, set()
    if found:
        raise FileNotFoundError(
            2, f"missing, though there are {len(found)} safetensors files", str(index)
        )
    others = [path.name for path in directory.glob("*.bin")]
    hint = "; PyTorch .bin files are not read: convert them to safetensors" if others else ""
    raise FileNotFoundError(2, f"no {SINGLE_FILE} and no {INDEX_FILE} here{hint}", str(directory))


def _some(names: list[str]) -> str:
    """A few of many names, for an error."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def write_safetensors(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    tensors: Iterable[tuple[str, Callable[[], np.ndarray]]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    write: bool = True,
) -> None:
    """Writes tensors as one file, or as shards with an index, one tensor in memory at a time.

    A file appears under its name only when it is whole; the index comes last.

    Args:
        directory: exists.
        shapes: shape of every tensor; its order is the order in the files.
        dtype: of all tensors.
        tensors: (name, function that makes the values), in the same order.
        max_shard_bytes: most bytes of tensors in a file; a larger tensor gets a file of its own.
        write: False makes every tensor and writes nothing: what the other processes do.
    """
    sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > max_shard_bytes:
            shards.append([])
        shards[-1].append(name)
    stream = iter(tensors)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        file = SINGLE_FILE if len(shards) == 1 else file
        weight_map |= dict.fromkeys(names, file)
        values = (_checked(next(stream), name, shapes[name], dtype) for name in names)
        if write:
            _write_file(directory / file, {n: shapes[n] for n in names}, sizes, dtype, values)
        else:
            for _ in values:
                pass
    if not write:
        return
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        partial = directory / f"{INDEX_FILE}.partial"
        partial.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, directory / INDEX_FILE)


def _checked(
    item: tuple[str, Callable[[], np.ndarray]], name: str, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    made_for, make = item
    value = make()
    if made_for != name or value.shape != shape or value.dtype != dtype:
        raise ValueError(
            f"{name}: the writer was given {made_for} {value.dtype}{value.shape}, expected "
            f"{dtype}{shape}"
        )
    return np.ascontiguousarray(value)


def _write_file(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    dtype: np.dtype,
    values: Iterable[np.ndarray],
) -> None:
    # The format: 8 bytes of header length, a JSON header padded to 8 bytes, then the raw tensors.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + sizes[name]
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for value in values:
            out.write(value.reshape(-1).view(np.uint8).data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, path)
