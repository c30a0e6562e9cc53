"""A run's snapshots: saved as checkpoints, none of them twice; their host state as exact JSON.

In the JSON an array is replaced by its dtype, its shape and its offset in a binary file. The
reason: the rescue sink of a long run takes gigabytes. As text it would be half as large again, and
slow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from polaris_jax.system.foreign import naming, parse_json

if TYPE_CHECKING:
    from polaris_jax.checkpoint.checkpointer import Checkpointer


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything that a resume needs of a run between two steps.

    Attributes:
        step: steps done.
        stage: index of the stage.
        pending: True if the newest step's metrics are not written yet.
        arrays: device state, as a pytree.
        host: the rest, as JSON-able values and numpy arrays.
        facts: what a reader of the weights must know without the config, for the manifest.
    """

    step: int
    stage: int
    pending: bool
    arrays: Any
    host: dict[str, Any]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[int, int, bool]:
        """Identifies a snapshot within its run."""
        return self.step, self.stage, self.pending


class SnapshotSaver:
    """Saves the snapshots of a training run.

    Args:
        checkpointer: writes and reads them.
        before_save: called before each save.

    Attributes:
        checkpointer: writes and reads the checkpoints.
    """

    def __init__(self, checkpointer: Checkpointer, *, before_save: Callable[[], None]) -> None:
        self.checkpointer = checkpointer
        self._before_save = before_save
        self._newest: tuple[int, int, bool] | None = None

    def found(self, snapshot: Snapshot) -> None:
        """Records that `snapshot` has been restored and need not be saved again."""
        self._newest = snapshot.key

    def save(self, snapshot: Snapshot) -> None:
        """Saves a snapshot, unless it is the one that was saved or restored last.

        A snapshot of the same step, taken before the next stage was entered or before its metrics
        were written, is replaced; the old one stays complete until the new one is.
        """
        if snapshot.key == self._newest:
            return
        self._before_save()
        self.checkpointer.save(snapshot.step, snapshot.arrays, snapshot.host, facts=snapshot.facts)
        self._newest = snapshot.key


ARRAY = "__array__"  # [dtype, shape, offset in bytes]


def plain(value: Any) -> Any:
    """The value as JSON returns it, so that a saved dict compares equal to a present one."""
    return json.loads(json.dumps(value, default=_number, sort_keys=True))


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")


def canonical_json(host: dict[str, Any], name: str) -> tuple[bytes, list[np.ndarray]]:
    """The host state as JSON, and its arrays; equal states give equal bytes.

    Args:
        host: dicts with string keys, lists, plain values, numpy scalars and arrays of numbers.
        name: name of the state's owner, for error messages.

    Returns:
        (JSON text, arrays in the order of their offsets, little-endian).

    Raises:
        ValueError: the state is not JSON-able.
    """
    arrays: list[np.ndarray] = []
    offset = 0

    def beside(value: Any) -> Any:
        nonlocal offset
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            return _number(value)
        fields = [value.dtype.name, list(value.shape), offset]
        arrays.append(np.ascontiguousarray(value, value.dtype.newbyteorder("<")))
        offset += value.nbytes
        return {ARRAY: fields}

    try:
        _check_keys(host, "host")
        # NaN is allowed: Python can read it, and a state that holds a NaN must still be saved.
        text = json.dumps(host, sort_keys=True, separators=(",", ":"), default=beside)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: host state cannot be saved: {error}") from error
    return text.encode(), arrays


def read_host(text: bytes, open_arrays: Callable[[], IO[bytes]]) -> dict[str, Any]:
    """The state that `canonical_json` was given, with tuples as lists.

    Args:
        text: the JSON.
        open_arrays: opens the file that holds all arrays one after the other; called only if there
            are arrays.
    """
    with contextlib.ExitStack() as opened:
        file: IO[bytes] | None = None

        def with_array(fields: dict[str, Any]) -> Any:
            nonlocal file
            if ARRAY not in fields:
                return fields
            file = file or opened.enter_context(open_arrays())
            dtype, shape, offset = _array_of(fields[ARRAY])
            size = dtype.itemsize * math.prod(shape)
            if offset + size > file.seek(0, os.SEEK_END):
                raise ValueError(f"host state: an array of {size} bytes is not in its file")
            file.seek(offset)
            data = file.read(size)
            return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)

        # The tables of a long run have more values than a file from elsewhere may have.
        return parse_json(
            text, where="host state", strict=False, most_values=len(text), object_hook=with_array
        )


def _array_of(entry: Any) -> tuple[np.dtype, list[int], int]:
    """An array's dtype, shape and offset, checked.

    Raises:
        ValueError: the entry is not what `canonical_json` writes.
    """
    with naming("host state", remedy="the checkpoint is damaged"):
        name, shape, offset = entry
        dtype = np.dtype(str(name))
        counts = [*shape, offset]
        if dtype.kind not in "biuf" or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError(f"an array is described as {str(entry)[:100]}")
        return dtype, list(shape), offset


def _check_keys(value: Any, path: str) -> None:
    # json silently turns the key 1 into "1": the restored state would differ.
    if isinstance(value, dict):
        for key, item in value.items():
            if key == ARRAY:
                raise TypeError(f"{path} has the key {key!r}, which marks an array")
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}; JSON keys are strings")
            _check_keys(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if isinstance(item, dict | list | tuple):
                _check_keys(item, f"{path}[{i}]")
