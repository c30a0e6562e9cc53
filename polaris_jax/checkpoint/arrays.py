"""Arrays of a checkpoint on disk by orbax, also one part at a time.

Orbax stores an array as zarr3 inside an OCDBT database, which tensorstore reads without orbax. A
chunk is read and written whole, so large arrays are cut along their first axis: then one layer of a
stacked parameter is one chunk, and reading it costs that and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import math
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

# Arrays above this size are cut, into chunks of at most this size where their shape allows.
CHUNK_BYTES = 64 << 20
# So much of an array is on its way to the disk at a time when it is written part by part.
IN_FLIGHT_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedArray:
    """An array that is made part by part while it is saved; restores as any other.

    Attributes:
        shape: of the array.
        dtype: of the array.
        read: the part at one slice for each axis, as a host array that nothing else changes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class _StreamedHandler(ocp.type_handlers.NumpyHandler):
    """Writes `StreamedArray`s chunk by chunk, one array after the other.

    After a failure the arrays that have not begun are passed over, and the last one raises: what is
    still under way when orbax closes its event loop would complain on stderr.
    """

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._turn, self._left = asyncio.Lock(), 0
        self._error: Exception | None = None

    def typestr(self) -> str:
        return "jax.Array"  # what a reader shall make of it

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
    """Waits for every write, also after one has failed; raises the first failure."""
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


@contextlib.contextmanager
def orbax(*, saving: bool = False, streamed: bool = False) -> Iterator[ocp.Checkpointer]:
    """Orbax's synchronous checkpointer, silent: what it logs of a failure it also raises.

    Args:
        saving: writes straight to the place, which holds a file `commit_success.txt` in the end,
            instead of renaming a directory.
        streamed: to save `StreamedArray`s, and nothing else.
    """
    # Uncompressed zarr3: compression saves 8% of float32 weights at twice the time (135M parameters
    # and their moments, 1.6 GB: 5.9 s with, 3.0 s without).
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
    """Where orbax reads or writes `directory`: the place itself, or a local copy of an s3:// one.

    Orbax 0.12 takes s3:// for a relative path. The copy is one process's, and needs local disk for
    all arrays.
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

    A stacked parameter gets one chunk a layer (a shard of it, where it is sharded), a matrix blocks
    of rows.
    """
    return {path: _cut(leaf.shape, leaf.dtype.itemsize) for path, leaf in leaves.items()}


def _cut(shape: tuple[int, ...], itemsize: int) -> ocp.SaveArgs:
    size = math.prod(shape) * itemsize
    if size <= CHUNK_BYTES or len(shape) < 2:
        return ocp.SaveArgs()
    if len(shape) > 2:
        return ocp.SaveArgs(shard_axes=(0,))
    # Orbax cuts to divisors: a vocabulary of a prime size would be cut row by row.
    row_bytes = size // shape[0]
    rows = [n for n in range(1, CHUNK_BYTES // row_bytes + 1) if shape[0] % n == 0]
    if not rows or rows[-1] * row_bytes < CHUNK_BYTES // 16:
        return ocp.SaveArgs()
    return ocp.SaveArgs(chunk_byte_size=rows[-1] * row_bytes)


def open_arrays(directory: epath.Path, names: list[str]) -> dict[str, ts.TensorStore]:
    """Arrays of a checkpoint by name, opened and not read: `array[index].read().result()` reads.

    Raises:
        ValueError: an array that is not there, or cannot be opened.
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
    """What tensorstore calls a directory on a disk or in a store."""
    scheme, _, rest = str(directory).rpartition("://")
    if not scheme:
        return {"driver": "file", "path": f"{directory.absolute()}/"}
    bucket, _, path = rest.partition("/")
    return {"driver": {"gs": "gcs"}.get(scheme, scheme), "bucket": bucket, "path": f"{path}/"}


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by "/"-joined path, in the tree's order."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [getattr(k, "name", getattr(k, "key", getattr(k, "idx", k))) for k in path]
        name = "/".join(str(k) for k in keys if k != "value")
        if name in leaves:
            raise ValueError(f"checkpoint: two arrays are named {name}")
        leaves[name] = leaf
    return leaves


def as_committed_as(like: Any, array: jax.Array) -> jax.Array:
    """A restored array, free to move between devices where `like` is."""
    # Orbax commits every array to its devices. One that was free to move must stay so, or the next
    # jit over a larger mesh refuses it (and one over the same mesh compiles anew).
    if isinstance(like, jax.Array) and not getattr(like, "committed", True):
        return jnp.asarray(np.asarray(array))
    return array
