"""Stages of a run: controller, difficulty of problems, length of responses (numpy only)."""

from polaris_jax.stages.controller import (
    initial_state,
    observe,
    stage_ended,
)
from polaris_jax.stages.difficulty import (
    AccuracyTable,
    curate,
    pass_rate_histogram,
    shape_name,
    too_easy,
)

__all__ = [
    "AccuracyTable",
    "curate",
    "initial_state",
    "observe",
    "pass_rate_histogram",
    "shape_name",
    "stage_ended",
    "too_easy",
]
