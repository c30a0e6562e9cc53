"""Reads files that others made: bounded, regular files only, one line for every defect.

Weights, tokenizers, problems, checkpoints and records of runs come from other machines and other
people. Whatever such a file holds, reading it here ends: with a value of the expected kind, or with
a `ForeignFileError` whose text names the file, the defect and the remedy. Sizes, nesting and
numbers of values are checked before anything of their size is built.

`printable` is what every foreign text goes through before a person sees it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar, cast

import numpy as np

from polaris_jax.config.settings import ConfigError
from polaris_jax.system.files import AnyPath, epath, is_remote
from polaris_jax.system.text import one_line, printable

T = TypeVar("T")

# The largest files that are read completely. Each is several times the largest one in use.
CONFIG_BYTES = 4 << 20  # config.json, generation_config.json, tokenizer_config.json, templates
INDEX_BYTES = 32 << 20  # the header or the index of safetensors: 300,000 tensors
TOKENIZER_BYTES = 256 << 20  # tokenizer.json; the largest have 40 MB
MANIFEST_BYTES = 64 << 20  # a checkpoint's manifest
RECORD_BYTES = 64 << 20  # run.json, probe.json and others that a run leaves
HOST_BYTES = 4 << 30  # a checkpoint's host state: the tables of a long run
ROWS_BYTES = 1 << 29  # a .json file of problems, which is parsed in one piece
LINE_BYTES = 16 << 20  # one line of JSON lines
MAX_DEPTH = 100  # of objects and lists within one another
MAX_VALUES = 10_000_000  # in one JSON text; as Python objects each takes up to 100 bytes
_BLOCK_BYTES = 1 << 20

# Attribute of a tokenizer that was loaded from files: their path. A child process renders its
# prompts (`data.prompts`).
TOKENIZER_PATH = "polaris_foreign_path"

DOWNLOAD = "download it again"
_KINDS = {
    stat.S_ISDIR: "a directory",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
# A string, also one without its end, so that every quote is looked at once.
_STRING = re.compile(rb'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)')
_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b"[]{},")
_OPENING, _CLOSING = np.frombuffer(b"[{", np.uint8), np.frombuffer(b"]}", np.uint8)
_TYPES = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


class ForeignFileError(ConfigError):
    """A file of others that cannot be used. The text is one line: file, defect, remedy."""


def require_regular(path: AnyPath, *, remedy: str = "put the file itself there") -> None:
    """Checks that a path is a regular file or a link to one; a pipe would be waited for for ever.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignFileError: it is a directory, a pipe, a socket or a device.
    """
    if is_remote(path):
        return
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = next((text for is_kind, text in _KINDS.items() if is_kind(mode)), "no file")
        raise ForeignFileError(f"{shown(path)}: is {kind}, expected a regular file; {remedy}")


def shown(path: AnyPath) -> str:
    """A path as messages name it."""
    return printable(os.fspath(path))


def open_regular(path: AnyPath) -> IO[bytes]:
    """An open file; see `require_regular`."""
    require_regular(path)
    return cast(IO[bytes], epath.Path(path).open("rb"))


def read_bytes(path: AnyPath, *, most_bytes: int, remedy: str = DOWNLOAD) -> bytes:
    """The content of a regular file of at most `most_bytes`.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignFileError: it is larger, or not a regular file.
    """
    with open_regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ForeignFileError(
            f"{shown(path)}: has more than {most_bytes:,} bytes, the most that such a file may "
            f"have; {remedy}"
        )
    return data


def read_text(path: AnyPath, *, most_bytes: int = CONFIG_BYTES, remedy: str = DOWNLOAD) -> str:
    """The text of a UTF-8 file; see `read_bytes`."""
    data = read_bytes(path, most_bytes=most_bytes, remedy=remedy)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ForeignFileError(f"{shown(path)}: byte {error.start} is no UTF-8; {remedy}") from None


def read_json(
    path: AnyPath,
    *,
    most_bytes: int = CONFIG_BYTES,
    kind: type[T] = dict,
    remedy: str = DOWNLOAD,
    strict: bool = True,
    most_values: int = MAX_VALUES,
) -> T:
    """The JSON value of a file; see `parse_json` and `read_bytes`."""
    data = read_bytes(path, most_bytes=most_bytes, remedy=remedy)
    return parse_json(
        data,
        where=shown(path),
        kind=kind,
        remedy=remedy,
        strict=strict,
        most_values=most_values,
    )


def parse_json(
    data: bytes,
    *,
    where: str,
    kind: type[T] = dict,
    remedy: str = DOWNLOAD,
    strict: bool = True,
    most_values: int = MAX_VALUES,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> T:
    """The value of a JSON text.

    Args:
        data: UTF-8, with or without a byte order mark.
        where: name of the file, and of the line if it has several, for errors.
        kind: type that the value must have.
        remedy: end of the error's text; "" leaves it out.
        strict: True refuses a name that occurs twice in an object, NaN and infinite numbers.
        most_values: largest number of values in the text.
        object_hook: returns what stands for an object; not with `strict`.

    Raises:
        ForeignFileError: the text is not JSON, is nested deeper than `MAX_DEPTH`, has too many
            values, or its value has another type.
    """
    hooks: dict[str, Any] = {"object_hook": object_hook}
    if strict:
        hooks = {
            "object_pairs_hook": _unique,
            "parse_constant": _finite,
            "parse_float": _finite,
        }
    try:
        _require_small(data, most_values)
        value = json.loads(data.decode("utf-8-sig"), **hooks)
        if not isinstance(value, kind):
            expected = _TYPES.get(kind, kind.__name__)
            found = "null" if value is None else _TYPES.get(type(value), type(value).__name__)
            raise ValueError(f"expected {expected}, got {found}")
    except (ValueError, RecursionError) as error:
        text = f"{where}: {_json_defect(error)}" + (f"; {remedy}" if remedy else "")
        raise ForeignFileError(text) from None
    return value


def _require_small(data: bytes, most_values: int) -> None:
    """Raises ValueError for a text that might exhaust a parser's stack or the memory."""
    opening = data.count(b"[") + data.count(b"{")
    if opening <= MAX_DEPTH and data.count(b",") <= most_values:
        return
    structure = _STRING.sub(b"", data).translate(None, _NO_STRUCTURE)
    count = sum(structure.count(char) for char in (b",", b"[", b"{"))
    if count > most_values:
        raise ValueError(f"holds about {count:,} values, more than {most_values:,}")
    depth = 0
    for start in range(0, len(structure), _BLOCK_BYTES):
        chars = np.frombuffer(structure[start : start + _BLOCK_BYTES], np.uint8)
        steps = np.isin(chars, _OPENING).astype(np.int32) - np.isin(chars, _CLOSING)
        depths = depth + np.cumsum(steps)
        if int(depths.max()) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        depth = int(depths[-1])


def _json_defect(error: ValueError | RecursionError) -> str:
    """What is wrong with a JSON text, by the exception that its parser raised."""
    if isinstance(error, RecursionError):
        return "not valid JSON (nested too deeply)"
    if isinstance(error, UnicodeDecodeError):
        return f"not valid JSON (byte {error.start} is no UTF-8)"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error})"
    if "digits" in str(error):  # Python's own limit, since the time is quadratic in them
        return "holds a whole number of thousands of digits"
    return str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise ValueError(f"has {printable(twice)!r} twice in one object")
    return fields


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds {text[:40]}, which is no finite number")
    return value


def require_plain_name(name: Any, *, where: str, remedy: str = DOWNLOAD) -> str:
    """A name of a file that lies in the directory of the file which names it.

    Args:
        name: the value that was read.
        where: the file and the field that hold it, for errors.
        remedy: end of the error's text.

    Raises:
        ForeignFileError: it is no text, or leads to another directory, or has hidden characters.
    """
    if not isinstance(name, str) or not name:
        raise ForeignFileError(f"{where}={name!r}: expected the name of a file; {remedy}")
    if "/" in name or "\\" in name or name in (".", ".."):
        raise ForeignFileError(
            f"{where}={printable(name)!r}: leads out of the directory; put the files beside the "
            "one that names them, and name them so"
        )
    if printable(name) != name or len(name) > 255:
        raise ForeignFileError(f"{where}={printable(name[:300])!r}: no name of a file; {remedy}")
    return name


@contextlib.contextmanager
def naming(where: str, *, remedy: str = DOWNLOAD) -> Iterator[None]:
    """Turns what a library raises on a damaged file into one line that names the file.

    For code that reads a foreign value and may meet any type in it. A `ConfigError`, and a
    ValueError that names the file already, are raised unchanged.
    """
    try:
        yield
    except (ConfigError, FileNotFoundError):
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        raise ForeignFileError(f"{where}: damaged ({one_line(error)}); {remedy}") from error
    except (RecursionError, MemoryError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else "needs too much memory"
        raise ForeignFileError(f"{where}: {what}; {remedy}") from error


def bounded_lines(
    file: IO[bytes], *, most_bytes: int = LINE_BYTES
) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file with their numbers from 1; None for a line of more than `most_bytes`.

    The rest of such a line is skipped without being held. Lines of white space are left out.
    """
    # A file of an object store has a `readline` without a limit.
    reader = file if isinstance(file, io.BufferedIOBase) else io.BufferedReader(cast(Any, file))
    number = 0
    try:
        while line := reader.readline(most_bytes + 1):
            number += 1
            if len(line) > most_bytes and not line.endswith(b"\n"):
                while (rest := reader.readline(_BLOCK_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield number, None
            elif line.strip():
                yield number, line
    finally:
        if reader is not file:
            reader.detach()  # or it would close the file
