"""Stages of a run: controller, difficulty of problems, length of responses (numpy only)."""

from polaris_jax.stages.accuracy_log import AccuracyLog, SkippedLine, read_accuracy_log
from polaris_jax.stages.controller import (
    StepStats,
    initial_state,
    observe,
    observe_score,
    stage_ended,
)
from polaris_jax.stages.difficulty import (
    AccuracyTable,
    curate,
    pass_rate_histogram,
    shape_name,
)

__all__ = [
    "AccuracyLog",
    "AccuracyTable",
    "SkippedLine",
    "StepStats",
    "curate",
    "initial_state",
    "observe",
    "observe_score",
    "pass_rate_histogram",
    "read_accuracy_log",
    "shape_name",
    "stage_ended",
]
