"""Compares a checkpoint's weights with a model, and describes the differences in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_SHOWN = 6
NOT_COMPARED = ("end_ids",)  # fields of `ModelConfig` that do not describe the weights


def shape_and_dtype(leaf: Any) -> list[Any]:
    """The JSON-able description of an array for the manifest."""
    return [str(leaf.dtype), list(leaf.shape)]


def differing_fields(saved: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """The fields in which two architectures differ; empty if they are equal."""
    names = sorted((saved.keys() | present.keys()) - set(NOT_COMPARED))
    return _shortened(
        f"{name}={saved.get(name)!r} there, {present.get(name)!r} here"
        for name in names
        if saved.get(name) != present.get(name)
    )


def differing_arrays(
    saved: Mapping[str, list[Any]], leaves: Mapping[str, Any], *, partial: bool
) -> str:
    """Arrays that differ in shape or dtype, or are on one side only; empty if all are equal.

    Args:
        saved: `shape_and_dtype` by name, from the manifest.
        leaves: arrays or ShapeDtypeStructs by name.
        partial: True: saved arrays that `leaves` lacks are not a difference.
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
