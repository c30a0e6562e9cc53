"""Numbers that a caller gives, as Python's own: what is no number, or no whole one, is named."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def whole_number(name: str, value: Any) -> int:
    """The value as an int: of Python, numpy or jax, never of a float, bool or text.

    Args:
        name: of the field, with the prompt's index where there is one.
        value: what was given.

    Raises:
        ValueError: it is no whole number.
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
    """The value as a float: of Python, numpy or jax, never of a bool or text.

    Args:
        name: of the field, with the prompt's index where there is one.
        value: what was given.

    Raises:
        ValueError: it is no number.
    """
    try:
        if isinstance(value, bool | np.bool_ | str | bytes) or np.ndim(value):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}={value!r}: must be a number, not {type(value).__name__}; give a float"
        ) from None
