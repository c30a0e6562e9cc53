"""Reads and writes a checkpoint's arrays with orbax, also one part at a time.

Orbax stores an array as zarr3 inside an OCDBT database, which tensorstore reads without orbax. A
chunk is read and written as a unit, so large arrays are cut along their first axis. Then one layer
of a stacked parameter is one chunk, and reading a layer reads nothing else.

`differing_fields` and `differing_arrays` say why a checkpoint does not fit a model.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from polaris_jax.system.files import files_below

# Arrays above this size are cut into chunks of at most this size, if their shape allows.
CHUNK_BYTES = 64 << 20
# Bytes of an array that are being written at a time, if the array is written part by part.
IN_FLIGHT_BYTES = 64 << 20
SPARE_DESCRIPTORS = 64  # that a save or a restore may use at a time: its threads, loops and files


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedArray:
    """An array that is produced part by part while it is saved. It is restored like any array.

    Attributes:
        shape: shape of the complete array.
        dtype: element type of the array.
        read: function of one slice for each axis; returns that part as a host array that nothing
            else changes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)


class _StreamedHandler(ocp.type_handlers.NumpyHandler):
    """Writes `StreamedArray`s chunk by chunk, one array after the other.

    After a failure, arrays that have not started are skipped, and the last array raises the error.
    An array still in progress when orbax closes its event loop would print errors to stderr.
    """

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._turn, self._left = asyncio.Lock(), 0
        self._error: Exception | None = None

    def typestr(self) -> str:
        return "jax.Array"  # the type that readers restore

    async def serialize(self, values: Sequence[Any], infos: Any, args: Any = None) -> Any:
        self._left = len(values)
        return await super().serialize(values, infos, args)

    async def _open_and_write(
        self, value: Any, tspec: dict[str, Any], ts_context: ts.Context
    ) -> None:
        async with self._turn:
            self._left -= 1
            if self._error is None:
                try:
                    await _write_chunks(value, tspec, ts_context)
                except Exception as error:  # noqa: BLE001  # raised below, after all have ended
                    self._error = error
            if self._error is not None and self._left == 0:
                raise self._error


async def _write_chunks(value: StreamedArray, tspec: dict[str, Any], context: ts.Context) -> None:
    store = await ts.open(ts.Spec(tspec), create=True, open=True, context=context)
    chunk: Any = store.chunk_layout.write_chunk.shape
    writes, in_flight = [], 0
    for index in chunks(value.shape, chunk):
        part = value.read(index)
        writes.append(store[index].write(part))
        in_flight += part.nbytes
        if in_flight >= IN_FLIGHT_BYTES:
            await _all_of(writes)
            writes, in_flight = [], 0
    await _all_of(writes)


async def _all_of(writes: Sequence[Any]) -> None:
    """Waits for all writes, even after one has failed, and raises the first failure."""
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def chunks(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Indices that cover an array of `shape` by its chunks."""
    starts = (range(0, size, step) for size, step in zip(shape, chunk, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(
            slice(start, min(start + step, size))
            for start, step, size in zip(corner, chunk, shape, strict=True)
        )


def _require_descriptors() -> None:
    """Checks that files can be opened. Orbax, without them, fails in pages of tracebacks.

    Raises:
        OSError: the limit on open files is reached, or nearly so.
    """
    spare: list[int] = []
    try:
        while len(spare) < SPARE_DESCRIPTORS:
            spare.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in spare:
            os.close(descriptor)


@contextlib.contextmanager
def orbax(*, saving: bool = False, streamed: bool = False) -> Iterator[ocp.Checkpointer]:
    """Orbax's synchronous checkpointer without its log; every failure that it logs is raised.

    Args:
        saving: True: writes directly to the final directory, and a file `commit_success.txt` last,
            instead of renaming a directory.
        streamed: True: saves only `StreamedArray`s.
    """
    # Uncompressed zarr3: compression saves 8% of float32 weights at twice the time (135M parameters
    # and their moments, 1.6 GB: 5.9 s with, 3.0 s without).
    _require_descriptors()
    kinds: dict[str, Any] = {}
    if streamed:
        kinds["type_handler_registry"] = ocp.type_handlers.create_type_handler_registry(
            (StreamedArray, _StreamedHandler())
        )

    def not_orbax(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(not_orbax)
    try:
        handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt=True, use_zarr3=True, use_compression=False, **kinds
        )
        in_place = ocp.path.atomicity.CommitFileTemporaryPath if saving else None
        yield ocp.Checkpointer(handler, temporary_path_class=in_place)
    finally:
        logger.removeFilter(not_orbax)


@contextlib.contextmanager
def within_reach(directory: epath.Path, *, saving: bool) -> Iterator[epath.Path]:
    """The path at which orbax reads or writes `directory`: a local copy if it is on s3://.

    Orbax 0.12 treats s3:// as a relative path. The copy belongs to one process and needs local disk
    for all arrays.
    """
    if not str(directory).startswith("s3://"):
        yield directory
        return
    with tempfile.TemporaryDirectory() as folder:
        local = epath.Path(folder) / directory.name
        if not saving:
            _copy_folder(directory, local)
        yield local
        if saving:
            _copy_folder(local, directory)


def _copy_folder(source: epath.Path, target: epath.Path) -> None:
    for path in files_below(source):
        place = target / str(path.relative_to(source))
        place.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as old, place.open("wb") as new:
            shutil.copyfileobj(old, new, 1 << 24)


def save_args(leaves: Mapping[str, Any]) -> dict[str, ocp.SaveArgs]:
    """How each array is cut into chunks: large ones along their first axis.

    A stacked parameter gets one chunk for each layer (or for each shard of a layer, if sharded). A
    matrix is cut into blocks of rows.
    """
    return {path: _cut(leaf.shape, leaf.dtype.itemsize) for path, leaf in leaves.items()}


def _cut(shape: tuple[int, ...], itemsize: int) -> ocp.SaveArgs:
    size = math.prod(shape) * itemsize
    if size <= CHUNK_BYTES or len(shape) < 2:
        return ocp.SaveArgs()
    if len(shape) > 2:
        return ocp.SaveArgs(shard_axes=(0,))
    # Orbax cuts only to divisors: a vocabulary of prime size would be cut row by row.
    row_bytes = size // shape[0]
    rows = [n for n in range(1, CHUNK_BYTES // row_bytes + 1) if shape[0] % n == 0]
    if not rows or rows[-1] * row_bytes < CHUNK_BYTES // 16:
        return ocp.SaveArgs()
    return ocp.SaveArgs(chunk_byte_size=rows[-1] * row_bytes)


def open_arrays(directory: epath.Path, names: list[str]) -> dict[str, ts.TensorStore]:
    """Opened arrays of a checkpoint by name; `array[index].read().result()` reads a part.

    Raises:
        ValueError: an array does not exist or cannot be opened.
    """
    base = {"driver": "ocdbt", "base": storage(directory)}
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    opening = {
        name: ts.open(
            {"driver": "zarr3", "kvstore": base | {"path": name}},
            open=True,
            read=True,
            context=context,
        )
        for name in names
    }
    return {name: future.result() for name, future in opening.items()}


def storage(directory: epath.Path) -> dict[str, str]:
    """Tensorstore's name for a directory on a disk or in a store."""
    scheme, _, rest = str(directory).rpartition("://")
    if not scheme:
        return {"driver": "file", "path": f"{directory.absolute()}/"}
    bucket, _, path = rest.partition("/")
    return {"driver": {"gs": "gcs"}.get(scheme, scheme), "bucket": bucket, "path": f"{path}/"}


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path (names joined with "/"), in the tree's order."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [getattr(k, "name", getattr(k, "key", getattr(k, "idx", k))) for k in path]
        name = "/".join(str(k) for k in keys if k != "value")
        if name in leaves:
            raise ValueError(f"checkpoint: two arrays are named {name}")
        leaves[name] = leaf
    return leaves


def as_committed_as(like: Any, array: jax.Array) -> jax.Array:
    """The restored array, uncommitted to devices if `like` is."""
    # Orbax commits every array to its devices. An uncommitted array must stay uncommitted, or the
    # next jit over a larger mesh refuses the array (and a jit over the same mesh compiles again).
    if isinstance(like, jax.Array) and not getattr(like, "committed", True):
        return jnp.asarray(np.asarray(array))
    return array


MAX_SHOWN = 6
NOT_COMPARED = ("end_ids",)  # fields of `ModelConfig` that do not describe the weights


def has_streamed(leaves: Mapping[str, Any]) -> bool:
    """True if one of the leaves is a `StreamedArray`."""
    return any(isinstance(leaf, StreamedArray) for leaf in leaves.values())


def shape_and_dtype(leaf: Any) -> list[Any]:
    """The JSON-able description of an array for the manifest."""
    return [str(leaf.dtype), list(leaf.shape)]


def differing_fields(saved: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """The fields in which two architectures differ; empty if they are equal."""
    names = sorted((saved.keys() | present.keys()) - set(NOT_COMPARED))
    return _shortened(
        f"{name}={saved.get(name)!r} there, {present.get(name)!r} here"
        for name in names
        if saved.get(name) != present.get(name)
    )


def differing_arrays(
    saved: Mapping[str, list[Any]], leaves: Mapping[str, Any], *, partial: bool
) -> str:
    """Arrays that differ in shape or dtype, or are on one side only; empty if all are equal.

    Args:
        saved: `shape_and_dtype` by name, from the manifest.
        leaves: arrays or ShapeDtypeStructs by name.
        partial: True: saved arrays that `leaves` lacks are not a difference.
    """
    differing = []
    for path in sorted(saved.keys() | leaves.keys()):
        there = saved.get(path)
        here = shape_and_dtype(leaves[path]) if path in leaves else None
        if there != here and not (partial and here is None):
            differing.append(f"{path} is {_spelt(there)} there, {_spelt(here)} here")
    return _shortened(differing)


def _spelt(entry: list[Any] | None) -> str:
    if entry is None:
        return "absent"
    dtype, shape = entry
    return f"{dtype}[{','.join(map(str, shape))}]"


def _shortened(items: Any) -> str:
    items = list(items)
    more = len(items) - MAX_SHOWN
    return ", ".join(items[:MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
