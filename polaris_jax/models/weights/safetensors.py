"""Safetensors files in and out: byte ranges of tensors that are asked for, blocks of rows written.

A file is 8 bytes of header length, a JSON header (name -> dtype, shape, offsets), then the raw
tensors. The header is read here and not by the `safetensors` package, which keeps a complete file
mapped (its pages count as this process's memory), refuses a header for one unknown dtype without
naming the tensor, and opens local files only.

Files are written under their own names, without a rename (object stores have none). The caller then
writes the index and config.json, in this order, which make the directory complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np
from etils import epath

from polaris_jax.system.files import is_remote, matching
from polaris_jax.system.foreign import (
    DOWNLOAD,
    INDEX_BYTES,
    ForeignFileError,
    open_regular,
    parse_json,
    printable,
    read_json,
    require_plain_name,
    require_regular,
)

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_MOST_AXES = 8
_MOST_BYTES = 1 << 50  # of a file: an offset beyond it is damage

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Hugging Face's default.
MAX_SHARD_BYTES = 5_000_000_000

# Shape and dtype of a tensor.
Spec = tuple[tuple[int, ...], np.dtype]
# An index into a tensor: one slice a dimension, without steps; None is all of it.
Index = tuple[slice, ...] | None


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where one tensor lies: dtype as the file names it, offset in bytes from the file's start."""

    path: epath.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SafetensorsReader:
    """The tensors of a checkpoint directory; no file stays open or mapped between reads."""

    def __init__(self, directory: epath.Path) -> None:
        """Reads the header of the single file or, without one, of every file that the index names.

        A tensor is taken from the file that the index names for it, whatever others hold.

        Raises:
            FileNotFoundError: no weights here, or a file of the index is missing.
            ValueError: a damaged file or index, a tensor that is not in the file that the index
                names, or one in two files of which the index names neither.
        """
        files, indexed = _files_of(directory)
        self._stored: dict[str, _Stored] = {}
        for name in files:
            path = directory / name
            if not path.exists():
                raise FileNotFoundError(
                    2, f"missing, though {INDEX_FILE} names it; download it again", str(path)
                )
            require_regular(path)
            try:
                held = _read_header(path)
            except (ValueError, OSError) as error:
                raise ForeignFileError(f"{path}: damaged ({error}); {DOWNLOAD}") from error
            held = {t: stored for t, stored in held.items() if indexed.get(t, name) == name}
            if twice := sorted(held.keys() & self._stored.keys()):
                raise ValueError(
                    f"{path}: has {_some(twice)}, and so has {self._stored[twice[0]].path.name}; "
                    f"{INDEX_FILE} names neither file for it; download the checkpoint again"
                )
            self._stored |= held
        if absent := sorted(indexed.keys() - self._stored.keys()):
            raise ValueError(
                f"{directory / INDEX_FILE}: names {indexed[absent[0]]} for {_some(absent)}, which "
                "is not in it; download the checkpoint again"
            )

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header."""
        return self._stored[name].shape

    def dtype(self, name: str) -> np.dtype:
        """A tensor's dtype, from the file's header.

        Raises:
            ValueError: it is none of DTYPES, e.g. an 8-bit float.
        """
        stored = self._stored[name]
        if stored.dtype not in DTYPES:
            raise ValueError(
                f"{stored.path}: {printable(name)} has dtype {stored.dtype}; expected one of "
                f"{', '.join(DTYPES)}; take the unquantised checkpoint"
            )
        return DTYPES[stored.dtype]

    def read(self, name: str, index: Index = None) -> np.ndarray:
        """A tensor's values as stored, or the part at `index`; local files are mapped, not copied.

        The result is read-only and mapped to the file: copy values that must outlive a change of
        the file. Only the part's pages of a local file are touched; from a remote file the part's
        complete rows are read.
        """
        stored, dtype = self._stored[name], self.dtype(name)
        shape = stored.shape
        if not shape or 0 in shape:
            index, rows = None, slice(0, 1)
            shape, row_items = (1, *shape), math.prod(shape)
        else:
            rows = slice(*index[0].indices(shape[0])[:2]) if index else slice(0, shape[0])
            row_items = math.prod(shape[1:])
        count = (rows.stop - rows.start) * row_items
        offset = stored.offset + rows.start * row_items * dtype.itemsize
        if count == 0:
            flat = np.empty(0, dtype)
        elif not is_remote(stored.path):
            raw = np.memmap(stored.path, np.uint8, "r", offset, (count * dtype.itemsize,))
            flat = np.asarray(raw).view(dtype)
        else:
            flat = np.frombuffer(_read_range(stored.path, offset, count * dtype.itemsize), dtype)
        part = flat.reshape(rows.stop - rows.start, *shape[1:])
        if len(stored.shape) != len(shape):
            return part.reshape(stored.shape)
        return part if index is None else part[(slice(None), *index[1:])]


def _read_range(path: epath.Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{path}: has no {size} bytes at {offset}; it changed while it was read")
    return data


def _read_header(path: epath.Path) -> dict[str, _Stored]:
    """The tensors of a file, every offset checked against its size.

    Raises:
        ValueError: the file is not a complete safetensors file; the message says why.
    """
    size = path.stat().length
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"its {size} bytes do not hold the header of {length} that it claims")
        if length > INDEX_BYTES:
            raise ValueError(f"its header of {length} bytes is longer than {INDEX_BYTES}")
        header = parse_json(file.read(length), where="its header", remedy="")
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        dtype, shape, begin, end = _fields(name, entry)
        if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"{printable(name)} {dtype}{list(shape)} has {end - begin} bytes")
        tensors[name] = _Stored(path, dtype, shape, 8 + length + begin)
        spans.append((begin, end))
    wanted = max((end for _, end in spans), default=0)
    if size - 8 - length != wanted:
        raise ValueError(f"it has {size} bytes, and its header wants {8 + length + wanted}")
    spans.sort()
    ends = [0, *(end for _, end in spans)]
    if any(begin != end for (begin, _), end in zip(spans, ends, strict=False)):
        raise ValueError("its tensors overlap, or leave bytes between them")
    return tensors


def _fields(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(name) for name in ("dtype", "shape", "data_offsets"))
    named = isinstance(dtype, str) and len(dtype) <= 16
    if not (named and isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        raise ValueError(f"the entry of {_some([name])} lacks dtype, shape or data_offsets")
    begin, end = offsets
    possible = all(type(n) is int and 0 <= n <= _MOST_BYTES for n in [*shape, begin, end])
    if not possible or len(shape) > _MOST_AXES or begin > end:
        raise ValueError(f"the entry of {_some([name])} has an impossible shape or offset")
    return printable(str(dtype)), tuple(shape), begin, end


def _files_of(directory: epath.Path) -> tuple[list[str], dict[str, str]]:
    """File names, and the file that an index names for each tensor.

    The single file goes first, as in transformers: `save_pretrained` there leaves an earlier
    export's index behind.
    """
    if (directory / SINGLE_FILE).exists():
        return [SINGLE_FILE], {}
    index = directory / INDEX_FILE
    if index.exists():
        weight_map = _weight_map(index)
        return sorted(set(weight_map.values())), weight_map
    found = [path.name for path in matching(directory, "*.safetensors")]
    if len(found) == 1:
        return found, {}
    if found:
        raise FileNotFoundError(
            2, f"missing, though there are {len(found)} safetensors files", str(index)
        )
    others = matching(directory, "*.bin")
    hint = "; PyTorch .bin files are not read: convert them to safetensors" if others else ""
    raise FileNotFoundError(2, f"no {SINGLE_FILE} and no {INDEX_FILE} here{hint}", str(directory))


def _weight_map(index: epath.Path) -> dict[str, str]:
    """The file of each tensor, as an index says; every file lies within its directory."""
    weight_map = read_json(index, most_bytes=INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ForeignFileError(
            f"{index}: not an index of safetensors (no object weight_map in it); {DOWNLOAD}"
        )
    for tensor, name in weight_map.items():
        require_plain_name(name, where=f"{index}: weight_map.{_some([tensor])}")
    return weight_map


def _some(names: list[str]) -> str:
    """A few of many names, for an error."""
    shown = ", ".join(printable(name[:200]) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
