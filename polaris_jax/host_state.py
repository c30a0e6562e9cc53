"""The host state of a checkpoint as JSON that comes back as it was."""

from __future__ import annotations

import json
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """As it comes back from JSON, so that a saved dict equals a present one."""
    return json.loads(json.dumps(value, default=_number, sort_keys=True))


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")


def canonical_json(host: dict[str, Any], name: str) -> bytes:
    """Host state as JSON; equal states give equal bytes.

    Args:
        host: dicts with string keys, lists, plain values, numpy scalars.
        name: of what it belongs to, for errors.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        _check_keys(host, "host")
        # NaN is let through: Python reads it back, and a state that has one must still be saved.
        text = json.dumps(host, sort_keys=True, separators=(",", ":"), default=_number)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: host state cannot be saved: {error}") from error
    return text.encode()


def _check_keys(value: Any, path: str) -> None:
    # json turns the key 1 into "1" without a word: the state would come back changed.
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}; JSON keys are strings")
            _check_keys(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if isinstance(item, dict | list | tuple):
                _check_keys(item, f"{path}[{i}]")
