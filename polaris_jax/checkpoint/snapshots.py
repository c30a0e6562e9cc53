"""Saves a run's snapshots as checkpoints, none of them twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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
    """

    step: int
    stage: int
    pending: bool
    arrays: Any
    host: dict[str, Any]

    @property
    def key(self) -> tuple[int, int, bool]:
        """Identifies a snapshot within its run."""
        return self.step, self.stage, self.pending


class Checkpoints:
    """The checkpoints of a training run.

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
        self.checkpointer.save(snapshot.step, snapshot.arrays, snapshot.host)
        self._newest = snapshot.key
