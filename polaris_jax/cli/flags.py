"""Flags of every command: absl and ml_collections, with one clear line for each mistake."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from polaris_jax.config import ConfigError, RunConfig, build_config, default_config, unknown_field
from polaris_jax.files import as_place, is_remote

Define = Callable[[flags.FlagValues], None]


class HelpRequested(Exception):
    """--help was given; carries the text."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line.

    Attributes:
        config: checked; defaults where the command takes no --config.
        workdir: where the command's files lie; the present directory where it takes none.
        flags: the command's own flags, by name.
    """

    config: RunConfig
    workdir: epath.Path
    flags: dict[str, Any]


def parse(
    name: str,
    argv: list[str],
    *,
    doc: str,
    define: Define | None = None,
    takes_config: bool = True,
    takes_workdir: bool = True,
) -> Command:
    """The parsed, checked command line.

    Args:
        name: of the command.
        argv: arguments after the command's name.
        doc: what --help prints, with an example.
        define: declares the command's own flags.
        takes_config: whether --config and --workdir belong to it.
        takes_workdir: False: --config alone belongs to it.

    Raises:
        ConfigError: any mistake in the arguments or in the config.
        HelpRequested: for --help.
    """
    values = flags.FlagValues()
    argv = [f"polaris {name}", *argv]
    if takes_config:
        config_flags.DEFINE_config_file(
            "config", help_string="config file (configs/*.py)", flag_values=values, sys_argv=argv
        )
        if takes_workdir:
            flags.DEFINE_string("workdir", "", "where the run's files lie", flag_values=values)
    if define is not None:
        define(values)
    if any(a in ("--help", "-h", "-help", "--helpfull") for a in argv):
        raise HelpRequested(f"{doc.strip()}\n\nFlags:\n{_flag_lines(values)}")
    if takes_config:
        _require_file(_config_value(argv))
    try:
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        known = [f"--{n}" for n in values]
        raise ConfigError(unknown_field(f"--{error.flagname}", known)) from None
    except (AttributeError, KeyError) as error:
        raise ConfigError(_unknown_config_field(argv, str(error))) from None
    except IndexError as error:
        raise ConfigError(f"{_override_of(argv, str(error))}: no such entry ({error})") from None
    except (OSError, ImportError, SyntaxError) as error:
        path = _config_value(argv)
        raise ConfigError(
            f"--config={path}: cannot load it ({_one_line(error)}); name a file like "
            "configs/tiny_cpu.py"
        ) from None
    except (flags.Error, ValueError, TypeError) as error:
        raise ConfigError(_one_line(error)) from None
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r}: unexpected argument; flags look like --name=value")
    own = {flag: values[flag].value for flag in values}
    if not takes_config:
        return Command(RunConfig(), as_place("."), own)
    if own["config"] is None:
        raise ConfigError("--config: needed; name a file like configs/tiny_cpu.py")
    config = build_config(own["config"])
    for path in (config.model.path, config.data.problems, config.evaluate.problems):
        if is_remote(path):
            as_place(path)  # what it needs is installed: said before any device is touched
    if not takes_workdir:
        return Command(config, as_place("."), own)
    if not own["workdir"]:
        raise ConfigError("--workdir: needed; name a directory for the run's files")
    return Command(config, as_place(own["workdir"]), own)


def _flag_lines(values: flags.FlagValues) -> str:
    """One line a flag, in the order of declaration."""
    lines = []
    for name in values:
        flag = values[name]
        if name != flag.name or name.startswith("config."):
            continue
        default = "" if flag.default in (None, "", False) else f" (default {flag.default})"
        lines.append(f"  --{name:<14} {' '.join(flag.help.split())}{default}")
    if "config" in values:
        lines.insert(
            1, "  --config.A.B=V   overrides a field, --config.stages[0].A=V one of a stage"
        )
    return "\n".join(lines)


def _require_file(path: str) -> None:
    """Raises ConfigError where --config names no file; without --config it does nothing."""
    if path and not os.path.isfile(path.split(":")[0]):
        raise ConfigError(
            f"--config={path}: there is no such file; name one like configs/tiny_cpu.py"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _config_value(argv: list[str]) -> str:
    for i, arg in enumerate(argv):
        if arg.startswith("--config="):
            return arg.partition("=")[2]
        if arg == "--config" and i + 1 < len(argv):
            return argv[i + 1]
    return ""


def _override_of(argv: list[str], message: str) -> str:
    """The override that an error is about: the one that the message names, else the first."""
    overrides = [a.partition("=")[0] for a in argv if a.startswith("--config.")]
    for override in overrides:
        if override.split(".")[-1].split("[")[0] in message:
            return override
    return overrides[0] if overrides else "--config"


def _unknown_config_field(argv: list[str], message: str) -> str:
    """Which override is misspelt, with the nearest field there is."""
    known = _field_names(default_config(), "")
    for override in (a.partition("=")[0] for a in argv if a.startswith("--config.")):
        name = override.removeprefix("--config.")
        generic = "".join(c for c in name if not c.isdigit())
        if generic not in {"".join(c for c in k if not c.isdigit()) for k in known}:
            parent = name.rpartition(".")[0]
            siblings = [k for k in known if k.rpartition(".")[0] == parent]
            return unknown_field(name, siblings or known)
    return " ".join(message.split())


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


def print_error(text: str) -> None:
    """One line on stderr."""
    print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
