"""Rows that a long command has finished, so that a rerun continues where it stopped.

`X.jsonl` holds the rows, as plain JSON lines. `X.identity.json` beside it records what they depend
on: settings, and the inputs of `identity`. New rows never mix with rows of other settings or other
inputs, or with damaged lines.

- Other settings: the rows are set aside, complete, as `X.settings-DIGEST.jsonl`. If a command
  returns to those settings, they count again.
- Other inputs under the same settings: refused, because the path is the same and the content is
  not, so one of the two is a mistake.
- A damaged line: the file is cut off before it. A row that is there twice counts once.
- Rows that are not those that were written, by a checksum in `X.identity.json`: refused.

Versions up to 0.2 wrote the settings as the first line of `X.jsonl`. Such a file still counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polaris_jax.config import ConfigError
from polaris_jax.run.identity import refuse_other_inputs
from polaris_jax.system.files import AnyPath, append_bytes, as_place, write_bytes
from polaris_jax.system.foreign import ForeignFileError, require_regular
from polaris_jax.system.progress import say

if TYPE_CHECKING:
    from etils import epath

IDENTITY = ".identity.json"
_REMEDY = "restore the file, or move both away to begin anew"
PARTS = {"settings", "inputs", "rows"}
ANEW = "made_anew"  # True in a row that was made anew
WRITTEN = ("count", "crc32")  # of the rows that were written
CONTENT = ("weights", "architecture", "problems", "extra")  # settings that inputs change


def identity_path(path: epath.Path) -> epath.Path:
    """The path of `X.identity.json` beside `X.jsonl`."""
    return path.with_name(path.stem + IDENTITY)


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A progress file as it lies on the disk.

    Attributes:
        settings: the settings of its rows; None if there is no such file.
        inputs: the inputs of its rows; {} if they are not recorded.
        lines: its complete lines, without the settings of versions up to 0.2.
        written: number and checksum of the rows that were written, as far as it is known.
    """

    settings: dict[str, Any] | None = None
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    lines: tuple[bytes, ...] = ()
    written: tuple[int, int] = (0, 0)


class ProgressFile:
    """Finished rows on a disk. Not to be opened by two processes that write.

    Args:
        path: path of the progress file.
        settings: what its rows depend on, by name.
        key: names of the fields that tell rows apart; no row is kept twice.
        inputs: digests of what its rows depend on by content, by name.
        places: config field and value of each input, for errors.
        writes: False in processes that only read.
        unit: number of rows with an equal first key field that are useful only together. A kill may
            tear the last unit, which is then cut off like a torn line.
        valid: False for a row that this command cannot have written, which is damage.
        again: True for a row that is to be made anew: the file is left without it, and without the
            other rows of its unit. No row is made anew twice: the new one is marked.
        may_write: called before each write; raises if the file belongs to another command.

    Attributes:
        rows: the rows that were there when the file was opened.

    Raises:
        ConfigError: the rows have other inputs, or what they depend on is not known.
    """

    def __init__(
        self,
        path: AnyPath,
        settings: Mapping[str, Any],
        *,
        key: Sequence[str],
        inputs: Mapping[str, Any] | None = None,
        places: Mapping[str, str] | None = None,
        writes: bool = True,
        unit: int = 1,
        valid: Callable[[Mapping[str, Any]], bool] = lambda row: True,
        again: Callable[[Mapping[str, Any]], bool] = lambda row: False,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self._key, self._unit = as_place(path), tuple(key), unit
        self._writes, self._may_write = writes, may_write
        self._valid, self._again = valid, again
        self._anew: set[tuple[Any, ...]] = set()
        settings = json.loads(json.dumps(dict(settings)))
        now: dict[str, Any] = json.loads(json.dumps(dict(inputs or {})))
        found = present = _read(self.path)
        if found.settings != settings or not found.lines:
            aside = _read_aside(self.path, settings)
            found = aside if aside.lines or found.settings != settings else found
        former = found.inputs if found.lines else {}
        for stored in (present, found):
            if stored.lines and _of_config(stored.settings) == _of_config(settings):
                refuse_other_inputs(
                    stored.inputs,
                    now,
                    places=places or {},
                    of=f"the rows of {self.path} were made with",
                    remedy=f"delete that file and {identity_path(self.path).name} to begin anew",
                )
        rows = self._distinct(found.lines, found.written)
        self.rows = list(rows.values())
        self._seen = set(rows)
        content = b"".join(map(row_line, self.rows))
        self._settings, self._inputs = settings, now | former
        self._written = 0, 0
        if writes:
            self._may_write()
            if present.settings != settings and present.lines:
                self._set_aside(present)
                write_bytes(self.path, b"")  # rows never lie beside the settings of others
            if not _holds(self.path, content):
                self._write_identity()  # without a checksum: rows may leave from the middle
                write_bytes(self.path, content)
            self._written = len(self.rows), zlib.crc32(content)
            self._write_identity()
            if self._anew:
                say(f"{len(self._anew)} rows of {self.path.name} are made anew", sys.stdout)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds finished rows that are not there yet. They are on the disk when the call returns."""
        new = {self._name(row): row for row in rows if self._name(row) not in self._seen}
        new |= {name: new[name] | {ANEW: True} for name in self._anew & new.keys()}
        self._seen |= set(new)
        if self._writes:
            self._may_write()
            content = b"".join(map(row_line, new.values()))
            append_bytes(self.path, content)
            count, crc32 = self._written
            self._written = count + len(new), zlib.crc32(content, crc32)
            self._write_identity()  # rows behind those that it counts are not checked: a kill

    def _write_identity(self) -> None:
        content = _identity(self._settings, self._inputs, self._written)
        if not _holds(identity_path(self.path), content):
            write_bytes(identity_path(self.path), content)

    def _name(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in self._key)

    def _distinct(
        self, lines: Sequence[bytes], written: tuple[int, int]
    ) -> dict[tuple[Any, ...], dict[str, Any]]:
        """The rows before the first damaged line, each once, without incomplete units.

        Raises:
            ConfigError: all of the rows that were written can be read, and one is another.
        """
        first: dict[tuple[Any, ...], dict[str, Any]] = {}
        whole = 0
        for line in lines:
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not self._valid(row):
                    break
                first.setdefault(self._name(row), row)
                whole += 1
            except (ValueError, RecursionError, TypeError, LookupError):
                break  # not JSON, not UTF-8, no object, a field missing or of another type
        count, crc32 = written
        if whole >= count and zlib.crc32(b"".join(line + b"\n" for line in lines[:count])) != crc32:
            raise ConfigError(
                f"{self.path}: its first {count} rows are not those that were written; restore "
                f"the file, or delete it and {identity_path(self.path).name} to begin anew"
            )
        sizes = Counter(name[0] for name in first)
        whole_units = {name: row for name, row in first.items() if sizes[name[0]] == self._unit}
        again = {
            name[0]
            for name, row in whole_units.items()
            if self._again(row) and row.get(ANEW) is not True
        }
        self._anew = {name for name in whole_units if name[0] in again}
        return {name: row for name, row in whole_units.items() if name[0] not in again}

    def _set_aside(self, stored: _Stored) -> None:
        """Copies the rows of other settings beside the file, and reports the new name."""
        settings = stored.settings or {}
        aside = _aside(self.path, settings)
        write_bytes(identity_path(aside), _identity(settings, stored.inputs, stored.written))
        write_bytes(aside, b"".join(line + b"\n" for line in stored.lines))
        say(f"{len(stored.lines)} rows of other settings set aside as {aside}", sys.stdout)


def _holds(path: epath.Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content


def _of_config(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The settings that the config gives, without those that depend on the content of inputs."""
    if settings is None:
        return None
    return {name: value for name, value in settings.items() if name not in CONTENT}


def row_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of a JSON-lines file."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:  # half of a character, from a user's own column
        return f"{json.dumps(row)}\n".encode()


def _identity(
    settings: Mapping[str, Any], inputs: Mapping[str, Any], written: tuple[int, int]
) -> bytes:
    rows = dict(zip(WRITTEN, written, strict=True))
    value = {"settings": settings, "inputs": inputs, "rows": rows}
    return f"{json.dumps(value, sort_keys=True, indent=1)}\n".encode()


def _aside(path: epath.Path, settings: Mapping[str, Any]) -> epath.Path:
    """The name under which rows of these settings are set aside."""
    return path.with_name(f"{path.stem}.settings-{_digest(_head(settings))}{path.suffix}")


def _read_aside(path: epath.Path, settings: Mapping[str, Any]) -> _Stored:
    """The rows of these settings that were set aside, by this version or by one up to 0.2."""
    aside = _read(_aside(path, settings))
    if aside.settings == settings:
        return aside
    former = path.with_name(f"{path.name}.settings-{_digest(_head(settings))}")
    lines = _lines(former)
    if lines and lines[0] == _head(settings):
        return _Stored(dict(settings), {}, tuple(lines[1:]))
    return _Stored()


def _read(path: epath.Path) -> _Stored:
    """The file at `path`.

    Raises:
        ConfigError: it has rows, and what they depend on is not known.
    """
    lines, identity = _lines(path), _read_identity(path)
    if lines and lines[0].startswith(b'{"identity"'):
        try:
            settings = json.loads(lines[0])["identity"]
        except (ValueError, RecursionError):
            settings = None
        if isinstance(settings, dict):
            same = identity is not None and identity["settings"] == settings
            inputs = identity["inputs"] if identity is not None and same else {}
            return _Stored(settings, inputs, tuple(lines[1:]))
        identity = None
    if identity is not None:
        count, crc32 = (identity["rows"].get(name, 0) for name in WRITTEN)
        return _Stored(identity["settings"], identity["inputs"], tuple(lines), (count, crc32))
    if lines:
        raise ConfigError(
            f"{path}: {identity_path(path).name} beside it, which records what its rows were made "
            "with, is missing or damaged; restore that file, or move both away to begin anew"
        )
    return _Stored()


def recorded_settings(path: epath.Path) -> dict[str, Any]:
    """What the rows of `X.jsonl` depend on, by the file beside it; {} if that is not known.

    Args:
        path: the path of `X.jsonl`; only `X.identity.json` is read.
    """
    try:
        identity = _read_identity(path)
    except (OSError, ForeignFileError):
        return {}
    return {} if identity is None else dict(identity["settings"])


def _read_identity(path: epath.Path) -> dict[str, Any] | None:
    """The content of the identity file of `path`; None if it is missing or damaged."""
    beside = identity_path(path)
    if not beside.exists():
        return None
    require_regular(beside, remedy=_REMEDY)
    try:
        identity = json.loads(beside.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(identity, dict) or not all(isinstance(p, dict) for p in identity.values()):
        return None
    identity.setdefault("rows", {})
    numbers = [identity["rows"].get(name, 0) for name in WRITTEN]
    fits = identity.keys() == PARTS and all(type(n) is int and n >= 0 for n in numbers)
    return identity if fits else None


def _lines(path: epath.Path) -> list[bytes]:
    if not path.exists():
        return []
    require_regular(path, remedy=_REMEDY)
    return path.read_bytes().split(b"\n")[:-1]


def _head(settings: Mapping[str, Any]) -> bytes:
    """The first line by which versions up to 0.2 recorded settings."""
    return json.dumps({"identity": settings}, sort_keys=True).encode()


def _digest(head: bytes) -> str:
    return hashlib.sha256(head).hexdigest()[:8]
