"""A config file on the command line: loaded once, every mistake in it one line with its place."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import re
import traceback
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from types import ModuleType

from ml_collections import ConfigDict

from polaris_jax.config import ConfigError, RunConfig, config_fields, lock, usual_fields

EXAMPLE = "configs/tiny_cpu.py"
_MISSPELT = (
    re.compile(r'Key "(\w+)" does not exist'),
    re.compile(r'Did you mean "\w+" instead of "(\w+)"'),
    re.compile(r"unexpected keyword argument '(\w+)'"),
)


def load_config(value: str) -> ConfigDict:
    """What the `get_config` of `FILE` or `FILE:TARGET` returns, locked.

    Raises:
        ConfigError: no such file, a mistake in it, or a target that it does not take.
    """
    path, colon, target = value.partition(":")
    if not os.path.isfile(path):
        raise ConfigError(f"--config={value}: there is no such file; name one like {EXAMPLE}")
    try:
        get_config = getattr(_module(path), "get_config", None)
        if not callable(get_config):
            raise ConfigError(
                f"--config={value}: it has no get_config(); add one, as in configs/base.py"
            )
        arguments = [target] if colon else []
        _require_taken(value, get_config, arguments)
        config = get_config(*arguments)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a file of Python may do
        if isinstance(error, ValueError) and str(error).startswith("--config="):
            raise ConfigError(str(error).replace("--config=...", f"--config={path}", 1)) from None
        raise ConfigError(
            f"--config={value}: cannot load it ({_place(error, path)}{_reason(error)}); mend the "
            f"file, or name one like {EXAMPLE}"
        ) from None
    if not isinstance(config, Mapping | ConfigDict):
        raise ConfigError(
            f"--config={value}: its get_config() returns {type(config).__name__}; it needs to "
            "return a ConfigDict, as in configs/base.py"
        )
    return lock(config if isinstance(config, ConfigDict) else ConfigDict(dict(config)))


def _module(path: str) -> ModuleType:
    loader = SourceFileLoader("polaris_config", path)
    spec = importlib.util.spec_from_loader("polaris_config", loader, origin=path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    loader.exec_module(module)
    return module


def _require_taken(value: str, get_config: object, arguments: list[str]) -> None:
    assert callable(get_config)
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        path = value.partition(":")[0]
        remedy = (
            f"the file takes no target; leave out ':{arguments[0]}'"
            if arguments
            else f"its get_config() needs an argument; give one as --config={path}:ARGUMENT"
        )
        raise ConfigError(f"--config={value}: {remedy}") from None
    except ValueError:  # a built-in without a signature
        return


def _place(error: BaseException, path: str) -> str:
    """`line 4: `, the last one of the file that led to the error; empty if there is none."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: " if error.filename == path else ""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    return f"line {lines[-1]}: " if lines else ""


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    for pattern in _MISSPELT:
        if isinstance(error, AttributeError | KeyError | TypeError) and (
            found := pattern.search(text)
        ):
            return f"there is no field {found[1]!r}{_nearest(found[1], text)}"
    if isinstance(error, SyntaxError):
        text = error.msg
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _nearest(leaf: str, message: str) -> str:
    """The field or section whose last name is near `leaf`, as a question.

    Args:
        leaf: the name that does not exist.
        message: error text of ml_collections. If the text lists the section's other fields, these
            come first.
    """
    if usual := usual_fields(leaf):
        return f"; did you mean {' or '.join(usual)}?"
    sections: dict[str, list[str]] = {}
    for field in config_fields(RunConfig()):
        parts = re.sub(r"\[\d+\]", "[i]", field).split(".")
        for depth, part in enumerate(parts):
            sections.setdefault(".".join(parts[:depth]), []).append(part)
    listed = set(re.findall(r"'(\w+)\\?':", message))
    meant = [name for name, fields in sections.items() if set(fields) <= listed]
    meant.sort(key=lambda name: -len(sections[name]))
    for name in [*meant[:1], *sections]:
        fields = {part.removesuffix("[i]"): part for part in sections[name]}
        if near := difflib.get_close_matches(leaf, fields, n=1, cutoff=0.6):
            return f"; did you mean {'.'.join(filter(None, [name, near[0]]))}?"
    return ""
