"""TensorBoard's event files of a run; in an object store as copies of local ones."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from etils import epath

from polaris_jax.files import is_remote, write_bytes

TENSORBOARD = "tensorboard"


class EventFiles:
    """Writes `tensorboard/` in a workdir.

    Event files grow by appending, which a store cannot: there they are kept in a temporary folder
    of this machine and go up whole after every step.

    Args:
        workdir: gets the folder.
        first_step: TensorBoard hides older points from it on.
    """

    def __init__(self, workdir: epath.Path, *, first_step: int) -> None:
        SummaryWriter = _summary_writer()
        self._folder = workdir / TENSORBOARD
        self._local = tempfile.TemporaryDirectory() if is_remote(workdir) else None
        where = self._local.name if self._local is not None else str(self._folder)
        self._writer = SummaryWriter(where, purge_step=first_step, flush_secs=30)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The points of a step."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._copy()

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()
        self._copy()
        if self._local is not None:
            self._local.cleanup()

    def _copy(self) -> None:
        if self._local is None:
            return
        self._writer.flush()
        for file in epath.Path(self._local.name).iterdir():
            write_bytes(self._folder / file.name, file.read_bytes())


def _summary_writer() -> Any:
    """tensorboardX's class; where torch is installed it would import that too, for its tensors."""
    kept_out = "torch" not in sys.modules
    if kept_out:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if kept_out:
            del sys.modules["torch"]
    return SummaryWriter
