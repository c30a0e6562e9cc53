"""The settings as text: docs/config.md (`python -m polaris_jax.config.listing`) and --help.

With the argument `names` the text of docs/other_names.md.

Both are made from the declarations in `polaris_jax.config.sections`.
"""

from __future__ import annotations

import difflib
import sys
import textwrap
import typing
from collections.abc import Sequence
from typing import Any, Literal

from polaris_jax.config.sections import RunConfig
from polaris_jax.config.settings import ConfigError, Section, Setting, declared_sections

HEAD = """# Settings

Every field of the config, by section. A config file sets fields of a ConfigDict
(`config.rollout.slots = 32`); the command line overrides them (`--config.rollout.slots=32`,
`--config.stages[0].steps=300`). `polaris COMMAND --help=SECTION` prints one section.

*Resume* says whether a run that is resumed may have another value than before. This page is made by
`make docs` from `polaris_jax/config/sections.py` and `training.py`, where each field is declared.
"""
NAMES_HEAD = """# Names in other trainers

What other trainers call our settings. A config or a command line that gives such a name gets an
error that names ours. [Coming from verl or TRL](howto/coming_from.md) goes through their settings
one by one. This page is made by `make docs` from the declarations of the settings (`usual=`).
"""
TOP = "run"  # name of the section of the fields that stand in none
WIDTH = 100


def markdown() -> str:
    """The text of docs/config.md: one table a section."""
    parts = [HEAD]
    for section in _listed():
        heading = f"## {_name(section)}\n\n{section.help}\n"
        rows = [["field", "type", "default", "allowed", "meaning", "resume"], ["---"] * 6]
        rows += [
            [
                f"`{field.name}`",
                _type(field),
                f"`{_value(field.default)}`",
                field.allowed(),
                field.help,
                field.resume,
            ]
            for field in section.settings
        ]
        table = "\n".join(f"| {' | '.join(row)} |" for row in _escaped(rows))
        parts.append(f"{heading}\n{table}\n")
    return "\n".join(parts)


def names_markdown() -> str:
    """The text of docs/other_names.md: what other trainers call our fields."""
    ours: dict[str, list[str]] = {}
    for section in _listed():
        for field in section.settings:
            for name in field.usual.split():
                ours.setdefault(name, []).append(f"`{field.name}`")
    rows = [["their name", "our field"], ["---"] * 2]
    rows += [[f"`{name}`", ", ".join(fields)] for name, fields in sorted(ours.items())]
    table = "\n".join(f"| {' | '.join(row)} |" for row in _escaped(rows))
    return f"{NAMES_HEAD}\n{table}\n"


def sections_text() -> str:
    """One line for each section: its name and what it is about."""
    listed = _listed()
    width = max(len(_name(section)) for section in listed)
    return "\n".join(f"  {_name(s):<{width}}  {s.help.splitlines()[0]}" for s in listed)


def fields_text(name: str) -> str:
    """The fields of a section and of those in it: name, default, help and range, in columns.

    Args:
        name: a section, such as `data` or `data.arithmetic`; `all` for every section.

    Raises:
        ConfigError: there is no such section.
    """
    names = [_name(section) for section in _listed()]
    chosen = [
        section
        for section in _listed()
        if name == "all" or f"{_name(section)}.".startswith((f"{name}.", f"{name}[i]."))
    ]
    if not chosen:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}, all"
        raise ConfigError(f"--help={name}: the config has no such section; {remedy}")
    return "\n\n".join(_fields_text(section) for section in chosen)


def _fields_text(section: Section) -> str:
    names = [field.name for field in section.settings]
    values = [textwrap.shorten(_value(field.default), 24) for field in section.settings]
    wide, middle = max(map(len, names)), max(map(len, values))
    lines = textwrap.wrap(f"{_name(section)}: {section.help}", WIDTH)
    for field, value in zip(section.settings, values, strict=True):
        allowed = f" Allowed: {field.allowed()}." if field.allowed() else ""
        head = f"  {field.name:<{wide}}  {value:<{middle}}  "
        lines += textwrap.wrap(
            field.help + allowed,
            WIDTH,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _listed() -> list[Section]:
    return [section for section in declared_sections(RunConfig) if section.settings]


def _name(section: Section) -> str:
    return section.name or TOP


def _type(field: Setting) -> str:
    origin = typing.get_origin(field.kind)
    if origin is Literal:
        return "choice"
    return f"list of {typing.get_args(field.kind)[0].__name__}" if origin else field.kind.__name__


def _value(value: Any) -> str:
    """A default as it is written on the command line; quoted if a text is empty or has spaces."""
    if isinstance(value, str):
        return value if value and " " not in value else repr(value)
    return f"{value:.6g}" if isinstance(value, float) and len(str(value)) > 8 else str(value)


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[cell.replace("|", "\\|") for cell in row] for row in rows]


if __name__ == "__main__":
    sys.stdout.write(names_markdown() if sys.argv[1:] == ["names"] else markdown())
