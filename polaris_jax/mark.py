"""The host side of a checkpoint: what a resume needs besides the device state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from polaris_jax.batch import RescueBuffer
from polaris_jax.metrics.writer import reduce_metrics
from polaris_jax.records import StageState
from polaris_jax.rollout.groups import Group, array_state
from polaris_jax.stages.difficulty import AccuracyTable
from polaris_jax.stages.lengths import LengthTable


@dataclasses.dataclass(frozen=True)
class Mark:
    """Host state between two steps; cheap to take, since tables are copied shallowly.

    `owed` are the metrics of the step before, where it is trained and its line not written yet:
    the held-out score of its weights is missing.
    """

    step: int
    stage: StageState
    loader: dict[str, Any]
    stage_records: tuple[dict[str, Any], ...]
    accuracy: AccuracyTable
    lengths: LengthTable
    sink: RescueBuffer
    counts: dict[str, int]
    carried: Sequence[Group] = ()
    owed: dict[str, Any] | None = None

    def host_state(self) -> dict[str, Any]:
        """The same as JSON-able values and arrays, for `Checkpointer.save`."""
        return {
            "step": self.step,
            "stage": dataclasses.asdict(self.stage),
            "stage_records": list(self.stage_records),
            "accuracy": self.accuracy.state_dict(),
            "sink": self.sink.array_state(),
            "loader": self.loader,
            "counts": self.counts,
            "lengths": self.lengths.state_dict(),
            "carried": array_state(self.carried),
            "owed": None if self.owed is None else reduce_metrics(self.owed),
        }


def stage_from(fields: Mapping[str, Any]) -> StageState:
    """A `StageState` from what `Mark.host_state` made of it."""
    restored = dict(fields)
    for name in ("dropped_ids", "decisions"):
        restored[name] = tuple(restored[name])
    return StageState(**restored)
