"""TensorBoard's event files of a run; in an object store as copies of local ones."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from etils import epath

from polaris_jax.system.files import is_remote, write_bytes

TENSORBOARD = "tensorboard"


class EventFiles:
    """Writes `tensorboard/` in a workdir, in the caller's thread.

    tensorboardX's own thread dies of a full disk with a traceback, and its queue, which nobody
    empties any more, then holds up the run for good.

    Event files grow by appending, which a store cannot: there they are kept in a temporary folder
    of this machine and are uploaded in full after every step.

    Args:
        workdir: gets the folder.
        first_step: TensorBoard hides older points from it on.

    Raises:
        OSError: the disk refused; its place is named.
    """

    def __init__(self, workdir: epath.Path, *, first_step: int) -> None:
        self._x = _tensorboard_x()
        self._folder = workdir / TENSORBOARD
        self._local = tempfile.TemporaryDirectory() if is_remote(workdir) else None
        where = self._folder if self._local is None else epath.Path(self._local.name)
        where.mkdir(parents=True, exist_ok=True)
        with self._named_errors():
            self._writer = self._x.EventsWriter(f"{where}/events")
            started = self._x.SessionLog(status=self._x.SessionLog.START)
            self._write(first_step, file_version="brain.Event:2")
            self._write(first_step, session_log=started)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The points of a step."""
        with self._named_errors():
            for name, number in numbers.items():
                self._write(step, summary=self._x.scalar(name, number))
            self._writer.flush()
        self._copy()

    def close(self) -> None:
        """Closes; what the disk has refused before is not asked for again."""
        with contextlib.suppress(OSError):
            self._writer.close()
            self._copy()
        if self._local is not None:
            self._local.cleanup()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._x.Event(wall_time=time.time(), step=step, **content))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error

    def _copy(self) -> None:
        if self._local is None:
            return
        for file in epath.Path(self._local.name).iterdir():
            write_bytes(self._folder / file.name, file.read_bytes())


def _tensorboard_x() -> Any:
    """What we use of tensorboardX; where torch is installed it would import that too."""
    kept_out = "torch" not in sys.modules
    if kept_out:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar
    finally:
        if kept_out:
            del sys.modules["torch"]
    events: Any = event_pb2  # generated: a type checker finds nothing in it
    return SimpleNamespace(
        EventsWriter=EventsWriter, Event=events.Event, SessionLog=events.SessionLog, scalar=scalar
    )
