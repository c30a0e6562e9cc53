"""Ablations: arms x bases x seeds of whole runs, and what their differences are worth."""

from polaris_jax.ablate.table import Arm, Table, Tuning

__all__ = ["Arm", "Table", "Tuning"]
