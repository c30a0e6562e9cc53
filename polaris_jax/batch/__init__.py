"""From graded groups to packed rows: rescue, substitution, advantages, packing (numpy only)."""

from polaris_jax.batch.advantages import group_advantages
from polaris_jax.batch.groups import concat_graded, select_groups
from polaris_jax.batch.packing import pack
from polaris_jax.batch.rescue import RescueBuffer, StoredResponse
from polaris_jax.batch.substitution import (
    Substitution,
    fresh_rows,
    is_scarce,
    no_substitution,
    substitute_uninformative,
)

__all__ = [
    "RescueBuffer",
    "StoredResponse",
    "Substitution",
    "concat_graded",
    "fresh_rows",
    "group_advantages",
    "is_scarce",
    "no_substitution",
    "pack",
    "select_groups",
    "substitute_uninformative",
]
