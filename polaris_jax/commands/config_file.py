"""A config on the command line: the file, loaded once, and the overrides of its fields.

Every mistake is one line with its place. Overrides are checked against the declared types.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import math
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any

from polaris_jax.config import (
    SETTINGS,
    ConfigError,
    RunConfig,
    lock,
    unknown_field,
    usual_fields,
)
from polaris_jax.config.shipped import shipped_configs

if TYPE_CHECKING:
    from ml_collections import ConfigDict

EXAMPLE = "configs/tiny_cpu.py"
_MISSPELT = (
    re.compile(r'Key "(\w+)" does not exist'),
    re.compile(r'Did you mean "\w+" instead of "(\w+)"'),
    re.compile(r"unexpected keyword argument '(\w+)'"),
)
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(=(.*))?", re.DOTALL)
_PART = re.compile(r"(\w+)(?:\[(.*)\])?")
_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d*)")  # `016` is octal elsewhere
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_TRUTHS = ("true", "t", "1", "false", "f", "0")


def load_config(value: str) -> ConfigDict:
    """What the `get_config` of `FILE` or `FILE:TARGET` returns, locked.

    FILE may also be the name of a config that comes with the package, such as tiny_cpu.

    Raises:
        ConfigError: no such file, a mistake in it, or a target that it does not take.
    """
    from ml_collections import ConfigDict

    named, colon, target = value.partition(":")
    path = find_config(named)
    if path is None:
        raise ConfigError(
            f"--config={value}: there is no such file; name one like {EXAMPLE}, or one that comes "
            f"with the package: {', '.join(shipped_configs())}"
        )
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


def find_config(name: str) -> str | None:
    """The path of a config by its path, or by its name; None if there is none."""
    if os.path.isfile(name):
        return name
    return shipped_configs().get(name)


def _module(path: str) -> ModuleType:
    name = f"polaris_config:{os.path.abspath(path)}"
    loader = SourceFileLoader(name, path)
    spec = importlib.util.spec_from_loader(name, loader, origin=path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    sys.modules[name] = module  # dataclasses look it up, in get_config too
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
    for field in SETTINGS:
        parts = field.split(".")
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


def overrides(argv: list[str]) -> Iterator[tuple[int, str, str | None]]:
    """(index of the word, field, value) of every `--config.FIELD=VALUE`; None: it has no value."""
    for place, word in enumerate(argv):
        if word == "--":
            return
        if found := _OVERRIDE.fullmatch(word):
            value = found[4]
            if value is None and not found[1]:
                after = argv[place + 1 : place + 2]
                value = after[0] if after and not after[0].startswith("--") else None
            yield place, found[2], value


def check_overrides(config: ConfigDict, argv: list[str]) -> list[str]:
    """The words of a command line, with every list as a Python tuple.

    ml_collections reads a tuple as a Python literal, and `trade,ride` as one text.

    Args:
        config: the overridden config; gives the number of stages, and the value of an example.
        argv: words after the command's name.

    Raises:
        ConfigError: an override names no declared field, or its value is not a legal one.
    """
    words = list(argv)
    for place, field, value in overrides(argv):
        hint = check_override(config, field, value)
        if value is not None and hint in _LISTS:
            literal = repr(_LISTS[hint](value))
            if "=" in argv[place]:
                words[place] = f"--config.{field}={literal}"
            else:
                words[place + 1] = literal
    return words


def _texts(value: str) -> tuple[str, ...]:
    """The texts of `a,b`, `(a,b)`, `("a", "b")` or `a`."""
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        literal = None
    if isinstance(literal, tuple | list) and all(isinstance(text, str) for text in literal):
        return tuple(literal)
    if isinstance(literal, str):
        return (literal,)
    return _entries(value)


def _entries(value: str) -> tuple[str, ...]:
    """What commas part in `a,b`, `(a, b)`, `[a,b,]`; nothing in an empty value."""
    value = value.strip()
    if value[:1] + value[-1:] in ("()", "[]"):
        value = value[1:-1]
    texts = [text.strip() for text in value.split(",")]
    return tuple(texts[:-1] if texts[-1] == "" else texts)


def _whole_numbers(value: str) -> tuple[int, ...] | None:
    """The numbers of `16,32` or `(16, 32)`; None if an entry is no whole number."""
    texts = _entries(value)
    return tuple(map(int, texts)) if all(map(_WHOLE.fullmatch, texts)) else None


def _decimals(value: str) -> tuple[float, ...] | None:
    """The numbers of `1e-1,0.5` or `(0.1, 0.5)`; None if an entry is no finite number."""
    texts = _entries(value)
    numbers = tuple(map(float, texts)) if all(map(_DECIMAL.fullmatch, texts)) else (math.nan,)
    return numbers if all(map(math.isfinite, numbers)) else None


_LISTS: Mapping[Any, Callable[[str], tuple[Any, ...] | None]] = types.MappingProxyType(
    {tuple[str, ...]: _texts, tuple[int, ...]: _whole_numbers, tuple[float, ...]: _decimals}
)


def check_override(config: ConfigDict, field: str, value: str | None) -> Any:
    """The declared type of the field that `--config.field=value` sets to a legal value.

    Args:
        config: the overridden config; gives the number of stages, and the value of an example.
        field: e.g. `stages[0].steps`.
        value: the text after `=`; None if there is none, which a bool allows.

    Raises:
        ConfigError: names field, value, rule and an example.
    """
    given = f"--config.{field}" + ("" if value is None else f"={value}")
    hint: Any = RunConfig
    here: Any = config
    parts = field.split(".")
    for depth, part in enumerate(parts):
        found = _PART.fullmatch(part)
        hints = typing.get_type_hints(hint) if _is_section(hint) else {}
        if found is None or found[1] not in hints:
            raise ConfigError(_unknown(field))
        name, index = found.groups()
        if name not in here:
            left_out = ".".join([*parts[:depth], name])
            raise ConfigError(
                f"{given}: the config file leaves {left_out} out; begin it with config = "
                "default_config() and stage(...) of polaris_jax.config, or set the field there"
            )
        hint, here = hints[name], here[name]
        path = ".".join([*parts[:depth], name])
        entries = _is_section(typing.get_args(hint)[0]) if typing.get_args(hint) else False
        if entries:
            after = parts[depth + 1 :]
            if index is None and after and re.fullmatch(r"-?\d+", after[0]):
                rest = ".".join([f"{path}[{after[0]}]", *after[1:]])
                raise ConfigError(f"{given}: the number stands in brackets, --config.{rest}")
            if index is None:
                raise ConfigError(
                    f"{given}: {path} is a list; set a field of one entry, like "
                    f"--config.{path}[0].{_first_field(hint)}; their number is the config file's"
                )
            if not re.fullmatch(r"-?\d+", index):
                raise ConfigError(
                    f"{given}: no such entry; the number in brackets counts from 0, like "
                    f"--config.{path}[0]"
                )
            if not -len(here) <= int(index) < len(here):
                raise ConfigError(
                    f"--config.{'.'.join(parts)}: no such entry; the config has {path}[0] to "
                    f"{path}[{len(here) - 1}]"
                )
            hint, here = typing.get_args(hint)[0], here[int(index)]
        elif index is not None:
            raise ConfigError(
                f"{given}: {path} has no entries; set it whole{_like(path, here, hint)}"
            )
    if _is_section(hint):
        raise ConfigError(
            f"{given}: {field} is a section; set a field of it, like "
            f"--config.{field}.{next(iter(typing.get_type_hints(hint)))}"
        )
    _check_value(given, hint, value, _like(field, here, hint))
    return hint


def _check_value(given: str, hint: Any, value: str | None, like: str) -> None:
    if hint is bool:
        if value is not None and value.lower() not in _TRUTHS and not value.startswith("-"):
            raise ConfigError(f"{given}: expected true or false{like}")
        return
    if value is None:
        raise ConfigError(f"{given}: needs a value{like}")
    if hint is int and not _converts(lambda: int(value, 0), lambda: int(value)):
        raise ConfigError(f"{given}: expected a whole number{like}")
    if hint is float and not _converts(lambda: float(value)):
        raise ConfigError(f"{given}: expected a number{like}")
    if hint in _LISTS and _LISTS[hint](value) is None:
        rule = "whole numbers" if hint == tuple[int, ...] else "numbers"
        raise ConfigError(f"{given}: expected {rule}, with commas between them{like}")


def _converts(*attempts: Any) -> bool:
    for attempt in attempts:
        try:
            attempt()
        except ValueError:
            continue
        return True
    return False


def _like(field: str, value: Any, hint: Any) -> str:
    """`, like --config.field=value`, with what the config holds."""
    if isinstance(value, tuple | list):
        examples = {tuple[str, ...]: ("one", "two"), tuple[float, ...]: (0.6, 1.0, 1.4)}
        value = f"({','.join(map(str, value or examples.get(hint, (16384, 32768))))})"
    return f", like --config.{field}={value}"


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "__dataclass_fields__")


def _first_field(hint: types.GenericAlias) -> str:
    return next(iter(typing.get_type_hints(typing.get_args(hint)[0])))


def _unknown(field: str) -> str:
    """Which field is meant: the nearest one that there is."""
    known = [name.replace("[i]", "[0]") for name in SETTINGS]
    parent = field.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    return unknown_field(field, siblings or known)
