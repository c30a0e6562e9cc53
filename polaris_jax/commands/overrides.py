"""Overrides of config fields, checked against the types that `config.sections` declares."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from polaris_jax.config import ConfigError, RunConfig, default_config, unknown_field

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(=(.*))?", re.DOTALL)
_PART = re.compile(r"(\w+)(?:\[(.*)\])?")
_NUMBERS = re.compile(r"[(\[]?\s*(\d+(\s*,\s*\d+)*\s*,?)?\s*[)\]]?")
_TRUTHS = ("true", "t", "1", "false", "f", "0")


def overrides(argv: list[str]) -> Iterator[tuple[str, str | None]]:
    """(field, value) of every `--config.FIELD=VALUE`; None for a flag without a value."""
    for place, word in enumerate(argv):
        if word == "--":
            return
        if found := _OVERRIDE.fullmatch(word):
            value = found[4]
            if value is None and not found[1]:
                after = argv[place + 1 : place + 2]
                value = after[0] if after and not after[0].startswith("--") else None
            yield found[2], value


def check_override(config: ConfigDict, field: str, value: str | None) -> None:
    """Raises ConfigError unless `--config.field=value` sets a declared field to a legal value.

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
            raise ConfigError(f"{given}: {path} has no entries; set it whole{_like(path, here)}")
    if _is_section(hint):
        raise ConfigError(
            f"{given}: {field} is a section; set a field of it, like "
            f"--config.{field}.{next(iter(typing.get_type_hints(hint)))}"
        )
    _check_value(given, hint, value, _like(field, here))


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
    if typing.get_origin(hint) is tuple and not _NUMBERS.fullmatch(value.strip()):
        raise ConfigError(f"{given}: expected whole numbers{like}")


def _converts(*attempts: Any) -> bool:
    for attempt in attempts:
        try:
            attempt()
        except ValueError:
            continue
        return True
    return False


def _like(field: str, value: Any) -> str:
    """`, like --config.field=value`, with what the config holds."""
    if isinstance(value, tuple | list):
        value = f"({','.join(map(str, value or (16384, 32768)))})"
    return f", like --config.{field}={value}"


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "__dataclass_fields__")


def _first_field(hint: types.GenericAlias) -> str:
    return next(iter(typing.get_type_hints(typing.get_args(hint)[0])))


def _unknown(field: str) -> str:
    """Which field is meant: the nearest one that there is."""
    known = _field_names(default_config(), "")
    parent = field.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    return unknown_field(field, siblings or known)


def _field_names(config: Any, prefix: str) -> list[str]:
    names: list[str] = []
    for key in config:
        value = config[key]
        path = f"{prefix}{key}"
        if hasattr(value, "items"):
            names += _field_names(value, f"{path}.")
        elif isinstance(value, list | tuple) and value and hasattr(value[0], "items"):
            names += _field_names(value[0], f"{path}[0].")
        else:
            names.append(path)
    return names
