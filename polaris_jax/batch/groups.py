"""Selects, joins and replaces groups or rows of a `Graded` record, which is never modified."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polaris_jax.records import Graded

# Fields that are indexed [P] or [P][R]. numpy indexes the arrays.
SEQUENCE_FIELDS = (
    "problem_ids",
    "prompts",
    "golds",
    "token_ids",
    "logprobs",
    "texts",
    "finish_reasons",
    "versions",
    "parts",
    "answers",
    "reasons",
    "failed",
)
ARRAY_FIELDS = ("reward_PR", "rescued_PR")


def select_groups(graded: Graded, indices: Iterable[int]) -> Graded:
    """The groups at `indices`, in that order, each with all of its fields.

    Args:
        graded: P groups.
        indices: positions in [0, P); a position may occur more than once.

    Raises:
        IndexError: an index is outside [0, P).
    """
    index_P = np.asarray(list(indices), np.int64)
    if index_P.size and (index_P.min() < 0 or index_P.max() >= len(graded)):
        raise IndexError(f"indices={index_P.tolist()}: must lie in [0, {len(graded)})")
    fields: dict[str, Any] = {
        name: None if values is None else _like(values, (values[i] for i in index_P.tolist()))
        for name in SEQUENCE_FIELDS
        for values in (getattr(graded, name),)
    }
    for name in ARRAY_FIELDS:
        values_PR = getattr(graded, name)
        fields[name] = None if values_PR is None else np.asarray(values_PR)[index_P]
    return dataclasses.replace(graded, **fields)


def concat_graded(parts: Sequence[Graded]) -> Graded:
    """The groups of all parts, one after the other (a scarce batch and its resampled groups).

    Raises:
        ValueError: there is no part, parts have unequal numbers of responses a prompt, or only some
            parts have versions.
    """
    if not parts:
        raise ValueError("parts=[]: at least one record is needed")
    sizes = sorted({part.reward_PR.shape[1] for part in parts})
    if len(sizes) > 1:
        raise ValueError(f"parts hold {sizes} responses a prompt: groups must be of one size")
    given = [part.versions is not None for part in parts]
    if any(given) and not all(given):
        raise ValueError("versions is given in some parts only: give it in all or in none")
    if any(part.parts is not None for part in parts):  # a reward's entries: some batches have none
        parts = [
            part
            if part.parts is not None
            else dataclasses.replace(part, parts=[[{}] * sizes[0]] * len(part))
            for part in parts
        ]
    fields: dict[str, Any] = {
        name: _like(
            getattr(parts[0], name), (value for part in parts for value in getattr(part, name))
        )
        for name in SEQUENCE_FIELDS
        if getattr(parts[0], name) is not None
    }
    for name in ARRAY_FIELDS:
        values = [getattr(part, name) for part in parts]
        fields[name] = None if values[0] is None else np.concatenate(values)
    return dataclasses.replace(parts[0], **fields)


def replace_rows(graded: Graded, rows: Mapping[tuple[int, int], Mapping[str, Any]]) -> Graded:
    """`graded` with new values in single rows.

    Args:
        graded: P groups of R rows.
        rows: (group, row) -> {field: value}, for fields that are indexed [P][R]. A field that is
            None in `graded` (versions, answers) stays None.
    """
    if not rows:
        return graded
    names = {name for values in rows.values() for name in values}
    fields: dict[str, Any] = {}
    for name in names:
        old = getattr(graded, name)
        if old is None:
            continue
        new: Any = np.array(old) if name in ARRAY_FIELDS else [list(group) for group in old]
        for (p, r), values in rows.items():
            if name in values:
                new[p][r] = values[name]
        if name in SEQUENCE_FIELDS:
            new = _like(old, (_like(old[p], group) for p, group in enumerate(new)))
        fields[name] = new
    return dataclasses.replace(graded, **fields)


def _like(template: Any, items: Iterable[Any]) -> list[Any] | tuple[Any, ...]:
    return list(items) if isinstance(template, list) else tuple(items)
