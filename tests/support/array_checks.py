"""The run-time checker of array annotations: `jaxtyping` shapes and dtypes, nothing else.

beartype would check every annotation; here the other ones become `Any`, because many tests hand a
wrong type on purpose to see the product's own error, and because a `TYPE_CHECKING` import cannot be
resolved at run time.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beartype import beartype

ROOT = Path(__file__).resolve().parents[2]
_IMPORT = re.compile(r"^\s*(?:from|import) jaxtyping\b", re.MULTILINE)
_ARRAY = re.compile(
    r"jaxtyping\.|\b(?:Float|Int|UInt|Integer|Bool|Shaped|Num|Real|Inexact|Key)\d*\["
)


def annotated_modules() -> list[str]:
    """Names of the package's modules that import from jaxtyping, in their order."""
    files = sorted((ROOT / "polaris_jax").rglob("*.py"))
    named = (file for file in files if _IMPORT.search(file.read_text(encoding="utf-8")))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in named]


def names_an_array(annotation: Any) -> bool:
    """True for an annotation, resolved or still a string, that states an array's shape."""
    text = annotation if isinstance(annotation, str) else repr(annotation)
    return _ARRAY.search(text) is not None


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its array annotations checked at each call; itself where it has none."""
    annotations = inspect.get_annotations(function)
    arrays = {name: a for name, a in annotations.items() if names_an_array(a)}
    if not arrays:
        return function
    function.__annotations__ = {name: arrays.get(name, Any) for name in annotations}
    checked = beartype(function)
    function.__annotations__ = annotations
    return checked
