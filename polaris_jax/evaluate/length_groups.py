"""Accuracy by response length: how well the long ones do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

BLOG_EDGES = (16 * 1024, 32 * 1024)


@dataclasses.dataclass(frozen=True)
class LengthGroup:
    """Responses whose lengths lie between two edges.

    Attributes:
        name: e.g. `<16K`, `16K-32K`, `>32K`.
        responses: number of responses in the group.
        share: fraction of all responses that are in the group, in [0, 1].
        accuracy: mean reward of the group; None if the group is empty.
    """

    name: str
    responses: int
    share: float
    accuracy: float | None


def length_groups(
    length_PR: np.ndarray, reward_PR: np.ndarray, *, edges: Sequence[int] = BLOG_EDGES
) -> list[LengthGroup]:
    """Accuracy for each group of response lengths, shortest first.

    Args:
        length_PR: response lengths in tokens.
        reward_PR: rewards in [0, 1], of the same shape.
        edges: ascending lengths in tokens between the groups. With 16K and 32K the groups are
            `<16K`, `16K-32K` (both edges included) and `>32K`; with one edge E they are `<=E` and
            `>E`; with more, an inner edge belongs to the group above it.

    Raises:
        ValueError: shapes differ, no edge, or edges do not ascend.

    Source: POLARIS blog, length groups of the evaluation with and without YaRN.
    """
    length_PR, reward_PR = np.asarray(length_PR), np.asarray(reward_PR, np.float64)
    if length_PR.shape != reward_PR.shape or not length_PR.size:
        raise ValueError(
            f"length_PR {length_PR.shape} and reward_PR {reward_PR.shape} must be of one shape and "
            "not empty"
        )
    if not edges or any(low >= high for low, high in itertools.pairwise(edges)):
        raise ValueError(f"evaluate.length_edges={tuple(edges)}: must ascend, at least one")
    group_PR = np.searchsorted(np.asarray(edges[:-1]), length_PR, side="right")
    group_PR = group_PR + (length_PR > edges[-1])
    groups = []
    for index, name in enumerate(_names(edges)):
        inside_PR = group_PR == index
        count = int(inside_PR.sum())
        groups.append(
            LengthGroup(
                name=name,
                responses=count,
                share=count / length_PR.size,
                accuracy=float(reward_PR[inside_PR].mean()) if count else None,
            )
        )
    return groups


def _names(edges: Sequence[int]) -> list[str]:
    short = [f"{edge // 1024}K" if edge % 1024 == 0 else str(edge) for edge in edges]
    first = f"<{short[0]}" if len(edges) > 1 else f"<={short[0]}"
    middle = [f"{low}-{high}" for low, high in itertools.pairwise(short)]
    return [first, *middle, f">{short[-1]}"]
