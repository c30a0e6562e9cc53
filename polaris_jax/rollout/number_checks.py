"""Converts a caller's numbers to Python numbers; raises ValueError with the field's name."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def whole_number(name: str, value: Any) -> int:
    """A Python, numpy or jax integer as an int; floats, bools and texts are refused.

    Args:
        name: name of the field, with the prompt's index if there is one.
        value: the caller's value.

    Raises:
        ValueError: the value is not a whole number.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(
            f"{name}={value!r}: must be a whole number, not {type(value).__name__}; give an int"
        ) from None


def real_number(name: str, value: Any) -> float:
    """A Python, numpy or jax number as a float; bools and texts are refused.

    Args:
        name: name of the field, with the prompt's index if there is one.
        value: the caller's value.

    Raises:
        ValueError: the value is not a number.
    """
    try:
        if isinstance(value, bool | np.bool_ | str | bytes) or np.ndim(value):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}={value!r}: must be a number, not {type(value).__name__}; give a float"
        ) from None
