"""What a person may choose about `polaris prepare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# The rules of --drop: near duplicates, and those of `rules` about one row.
RULES = ("near", "proof", "choice", "image", "answer")


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """The command's flags.

    Attributes:
        sources: sources with their options; (): `data.problems`.
        columns: columns by our field, for sources that name none.
        against: benchmarks whose problems must not stay.
        drop: which of `RULES` apply.
        near_similarity: share of common grams from which two problems are near duplicates.
        pass_rates: lowest and highest pass rate of a problem whose row has one.
    """

    sources: tuple[str, ...] = ()
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    against: tuple[str, ...] = ()
    drop: frozenset[str] = frozenset(RULES)
    near_similarity: float = 0.8
    pass_rates: tuple[float, float] = (0.0, 1.0)

    def as_dict(self) -> dict[str, Any]:
        """The options in JSON-able types."""
        return {
            "sources": sorted(self.sources),
            "columns": dict(self.columns),
            "against": sorted(self.against),
            "drop": [rule for rule in RULES if rule in self.drop],
            "near_similarity": self.near_similarity,
            "pass_rates": list(self.pass_rates),
        }
