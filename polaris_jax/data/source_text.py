"""A source as people write it: a place, and behind commas what else is to be known about it.

    problems.jsonl
    openai/gsm8k,config=main,split=train
    my.csv,problem=frage,answer=loesung,cap=5000,name=mine

`data.problems`, `evaluate.problems` and the flags of `prepare` that name sources take this form.
Everything that decides which rows are read is in the text, so two commands with the same text read
the same problems.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import NoReturn

from polaris_jax.config.settings import ConfigError
from polaris_jax.system.files import as_place, is_remote

NEEDED = ("problem", "answer")
FIELDS = (*NEEDED, "id", "source", "pass_rate", "response_tokens")
HUB_OPTIONS = ("config", "split", "revision")
OPTIONS = ("name", "cap", *HUB_OPTIONS, *FIELDS)
_OPTION = re.compile(r"\s*([A-Za-z_]+)\s*=(.*)", re.DOTALL)
_NAME = re.compile(r"[\w.+-]+")


class DataError(ConfigError):
    """A data source cannot be read at all. The text is one line for the user."""


@dataclasses.dataclass(frozen=True)
class SourceText:
    """A parsed source.

    Attributes:
        text: the text as given.
        where: file, directory, Hub name or function.
        name: short name for tables and records.
        cap: most problems that `prepare` keeps of this source; None: all.
        config, split, revision: which part of a data set; "" if not given.
        columns: (our field, the source's column) pairs.
    """

    text: str
    where: str
    name: str
    cap: int | None = None
    config: str = ""
    split: str = ""
    revision: str = ""
    columns: tuple[tuple[str, str], ...] = ()


def parse_source(text: str) -> SourceText:
    """The parts of a source's text.

    Raises:
        DataError: an option is unknown, has no value, occurs twice, or its value is no use.
    """
    where, *pieces = text.split(",")
    if not pieces or (
        not is_remote(text) and as_place(text).exists()
    ):  # a file with a comma in its name
        return SourceText(text, text, _short_name(text))
    given: dict[str, str] = {}
    for piece in pieces:
        found = _OPTION.fullmatch(piece)
        if found is None:
            _refuse(text, f"{piece!r} is no option; write them as name=value")
        name, value = found[1], found[2].strip()
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            known = f"did you mean {near[0]}?" if near else f"there are {', '.join(OPTIONS)}"
            _refuse(text, f"no option {name!r}; {known}")
        if name in given or not value:
            _refuse(text, f"{name}= is given twice" if name in given else f"{name}= has no value")
        given[name] = value
    for name in ("name", *HUB_OPTIONS):
        value = given.get(name, "")
        if value and (not _NAME.fullmatch(value) and name != "revision"):
            _refuse(text, f"{name}={value}: use letters, digits and ._+- alone")
    cap = given.get("cap")
    if cap is not None and not (cap.isascii() and cap.isdigit() and int(cap[:18]) > 0):
        _refuse(text, f"cap={cap}: must be a whole number above 0")
    return SourceText(
        text,
        where,
        given.get("name") or _short_name(where),
        None if cap is None else int(cap[:18]),
        **{name: given.get(name, "") for name in HUB_OPTIONS},
        columns=tuple((name, given[name]) for name in FIELDS if name in given),
    )


def _short_name(where: str) -> str:
    """The last part of a path, without its suffix, of a Hub name, or of a function."""
    last = where.rstrip("/").rpartition("/")[2] or where
    if ":" in last:
        return last.rpartition(":")[2] or last
    stem = last.rpartition(".")[0]
    return stem or last


def _refuse(text: str, reason: str) -> NoReturn:
    raise DataError(f"data.problems={text!r}: {reason}")
