"""Diversity of rollouts, temperature zones, and the choice of a temperature (numpy only)."""

from polaris_jax.explore.diversity import distinct_ngrams, diversity_stderr
from polaris_jax.explore.temperature import (
    Candidate,
    Decision,
    candidate_temperatures,
    measure_candidate,
    next_temperature,
)
from polaris_jax.explore.zones import Zones, find_zones

__all__ = [
    "Candidate",
    "Decision",
    "Zones",
    "candidate_temperatures",
    "distinct_ngrams",
    "diversity_stderr",
    "find_zones",
    "measure_candidate",
    "next_temperature",
]
