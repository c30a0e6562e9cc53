"""A user's function, named `file.py:name` or `package.module:name`, and its errors in one line.

Call it in a process of its own: what is imported may do anything.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from polaris_jax.system.text import one_line


class RefusedFunction(ValueError):
    """The reason why a function cannot be used, in one line."""


def load_function(path: str) -> Callable[..., Any]:
    """The function that an import path names.

    A file's folder, or for a module the present directory, is put at the end of `sys.path`, so that
    the function can import what lies beside it and nothing is shadowed.

    Raises:
        RefusedFunction: the file is missing, importing fails, or the name is missing or not
            callable.
    """
    place, _, name = path.rpartition(":")
    try:
        if place.endswith(".py"):
            file = os.path.abspath(place)
            if not os.path.isfile(file):
                raise RefusedFunction(f"there is no file {file}; check the path")
            module = _module_of(file)
        else:
            sys.path.append(os.getcwd())
            module = importlib.import_module(place)
    except RefusedFunction:
        raise
    except BaseException as error:
        text = f"importing {place} fails: {one_line(error)}{place_in(error, place)}; mend it"
        raise RefusedFunction(text) from error
    function = getattr(module, name, None)
    if function is None:
        raise RefusedFunction(f"{place} has no {name!r}; name a function that it defines")
    if not callable(function):
        kind = type(function).__name__
        raise RefusedFunction(
            f"{name!r} of {place} has the type {kind} and is not callable; name a function"
        )
    return function


def file_digest(path: str) -> str:
    """A digest of the file of `file.py:name`; "" for a module, and if there is no such file."""
    place = path.rpartition(":")[0]
    if not place.endswith(".py"):
        return ""
    try:
        with open(place, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return ""


def _module_of(file: str) -> ModuleType:
    """The module of a file, under a name that no module and no other file has."""
    name = f"user_code:{file}"
    if name not in sys.modules:
        sys.path.append(os.path.dirname(file))
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]  # else the next call would find a part of it
            raise
    return sys.modules[name]


def place_in(error: BaseException, file: str) -> str:
    """` (my.py, line 4)`, the last line of a file that led to the error; empty if there is none."""
    name = os.path.basename(file)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.basename(frame.filename) == name]
    return f" ({name}, line {lines[-1]})" if lines else ""
