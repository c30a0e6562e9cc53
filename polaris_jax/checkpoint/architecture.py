"""Whether a checkpoint's weights fit a model: what differs, said in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_SHOWN = 6
NOT_COMPARED = ("end_ids",)  # of `ModelConfig`: they say nothing about the weights


def shape_and_dtype(leaf: Any) -> list[Any]:
    """What the manifest records of an array, JSON-able."""
    return [str(leaf.dtype), list(leaf.shape)]


def differing_fields(saved: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """Fields of two architectures that differ; empty when none does."""
    names = sorted((saved.keys() | present.keys()) - set(NOT_COMPARED))
    return _shortened(
        f"{name}={saved.get(name)!r} there, {present.get(name)!r} here"
        for name in names
        if saved.get(name) != present.get(name)
    )


def differing_arrays(
    saved: Mapping[str, list[Any]], leaves: Mapping[str, Any], *, partial: bool
) -> str:
    """Arrays that differ in shape or dtype, or stand on one side only; empty when none does.

    Args:
        saved: `shape_and_dtype` by name, as the manifest holds it.
        leaves: arrays or ShapeDtypeStructs by name.
        partial: saved arrays that `leaves` lacks are no difference.
    """
    differing = []
    for path in sorted(saved.keys() | leaves.keys()):
        there = saved.get(path)
        here = shape_and_dtype(leaves[path]) if path in leaves else None
        if there != here and not (partial and here is None):
            differing.append(f"{path} is {_spelt(there)} there, {_spelt(here)} here")
    return _shortened(differing)


def _spelt(entry: list[Any] | None) -> str:
    if entry is None:
        return "absent"
    dtype, shape = entry
    return f"{dtype}[{','.join(map(str, shape))}]"


def _shortened(items: Any) -> str:
    items = list(items)
    more = len(items) - MAX_SHOWN
    return ", ".join(items[:MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
