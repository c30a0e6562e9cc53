"""Reads rows: from jsonl, json, parquet, arrow, a directory of them, the Hub, or a function.

A row that cannot be parsed becomes a `Row` with an error, so that one bad line never ends a run.
`problems` checks what a row must hold.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from polaris_jax.config.settings import ConfigError
from polaris_jax.system.files import as_place, files_below
from polaris_jax.system.foreign import (
    LINE_BYTES,
    ROWS_BYTES,
    ForeignFileError,
    bounded_lines,
    open_regular,
    parse_json,
    read_json,
    shown,
)

if TYPE_CHECKING:
    from etils import epath

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
# At the start of a word (math_train, trainset, MathTrain): "constraints" is no split.
_TRAIN = re.compile(r"(?<![A-Za-z])[Tt]rain|(?<=[a-z])Train|TRAIN")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
UNREAD: Any = object()  # the value of a column that is not read, since it holds no JSON
_ROW_KEYS = ("data", "problems", "rows", "examples", "train")


class DataError(ConfigError):
    """A data source cannot be read at all. The text is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        place: `file:line` (from 1) or `file:row N`, for messages.
        fields: the row's fields; empty if `error` is set.
        error: the reason why the row could not be parsed, or None.
    """

    place: str
    fields: Mapping[str, Any]
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a source, or its function.

    Attributes:
        root: directory that names in messages are relative to.
        read: the files, in reading order.
        beside: files of a directory that are left out, because others are its training split or
            its tables.
        function: `file.py:function` or `package.module:function`; empty for files.
    """

    root: epath.Path
    read: tuple[epath.Path, ...]
    beside: tuple[epath.Path, ...] = ()
    function: str = ""

    @property
    def has_split(self) -> bool:
        """True if the names of the files that are read mark a training split."""
        return any(_TRAIN.search(path.relative_to(self.root).as_posix()) for path in self.read)

    @property
    def names_beside(self) -> tuple[str, ...]:
        """`beside`, as messages name them."""
        return tuple(path.relative_to(self.root).as_posix() for path in self.beside)


def resolve_source(source: str) -> Files:
    """The files of a source.

    If names of files or folders in a directory mark a training split, only that split is read, in
    any format; otherwise all files are. If some of these files are parquet or arrow, only those are
    read. A Hub name is downloaded first.

    Args:
        source: a file or directory (also gs://, s3://), a data set `owner/name` on the Hugging
            Face Hub, or a function (see `function_source`).

    Raises:
        DataError: the name is empty, nothing exists under it, it has no readable file, or the Hub
            cannot be reached.
    """
    if not source.strip():  # as a path it would be the present directory, and all below it
        raise DataError(
            f"data.problems={source!r}: no source given; name a file, a directory ('.' for the "
            "present one) or a Hub name as owner/name"
        )
    from polaris_jax.data.function_source import is_function  # which needs this module

    if is_function(source):
        file = source.rpartition(":")[0]
        if file.endswith(".py") and not os.path.isfile(file):
            raise DataError(f"data.problems={source!r}: there is no file {file}; check the path")
        return Files(as_place("."), (), function=source)
    path = as_place(source)
    if path.exists() and not path.is_dir():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"data.problems={source!r}: cannot read {path.suffix or 'a file without suffix'}; "
                f"give one of {', '.join(SUFFIXES)}, a directory or a Hub name"
            )
        return Files(path.parent, (path,))
    if not path.exists():
        looks_like_hub = _HUB_NAME.fullmatch(source) and path.suffix not in SUFFIXES
        if not looks_like_hub:
            raise DataError(
                f"data.problems={source!r}: there is no such file or directory; "
                "check the path, or give a Hub name as owner/name, or a function as file.py:name"
            )
        path = download_dataset(source)
    files = _pick_split(path)
    if not files.read:
        raise DataError(
            f"data.problems={source!r}: the directory holds no {', '.join(SUFFIXES)} file; "
            "point to the folder that does"
        )
    return files


def _pick_split(root: epath.Path) -> Files:
    files = sorted(
        path
        for path in files_below(root)
        if path.suffix in SUFFIXES
        # What `datasets` writes beside the rows.
        and path.name not in ("dataset_info.json", "dataset_infos.json", "state.json")
        and path.name != "dataset_dict.json"
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    train = [path for path in files if _TRAIN.search(path.relative_to(root).as_posix())]
    # Of what is kept as tables and as text, the tables: one set in two formats is read once.
    tables = [path for path in train or files if path.suffix in (".parquet", ".arrow")]
    read = tables or train or files
    beside = tuple(path for path in files if path not in set(read))
    return Files(root, tuple(read), beside)


def download_dataset(name: str) -> epath.Path:
    """The local copy of a data set on the Hub, downloaded unless it is cached.

    Raises:
        DataError: the data set does not exist or is not accessible, or there is no network.
    """
    from etils import epath
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return epath.Path(
            snapshot_download(
                name, repo_type="dataset", allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]
            )
        )
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"data.problems={name!r}: there is no such directory here, it is not in the Hub cache "
            "and the Hugging Face Hub cannot be reached; check the path or the network, or "
            "download the data set elsewhere and give its directory"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"data.problems={name!r}: there is no such directory here, and as a data set of the "
            f"Hugging Face Hub it cannot be downloaded ({reason}); check the name"
        ) from error


def read_rows(files: Files, columns: Collection[str] | None = None) -> Iterator[Row]:
    """Every row of a source, in order; unreadable ones carry an error.

    Args:
        files: files of the source.
        columns: columns of a table to read beside those that hold JSON's types; other columns are
            UNREAD. None: every column.

    Raises:
        DataError: a complete file is unreadable, or the function fails.
    """
    if files.function:
        from polaris_jax.data.function_source import function_rows

        yield from function_rows(files.function)
    if tables := [path for path in files.read if path.suffix in (".parquet", ".arrow")]:
        from polaris_jax.data.tables import check_tables, table_rows

        check_tables(tables, columns)
    for path in files.read:
        place = path.relative_to(files.root).as_posix()
        if path in tables:
            yield from table_rows(path, place, columns)
        else:
            yield from (_jsonl if path.suffix == ".jsonl" else _json)(path, place)


def _row(place: str, value: Any) -> Row:
    if isinstance(value, Mapping):
        return Row(place, value)
    return Row(place, {}, f"expected an object with fields, got {type(value).__name__}")


def _jsonl(path: epath.Path, place: str) -> Iterator[Row]:
    with open_regular(path) as file:
        for number, line in bounded_lines(file):
            where = f"{place}:{number}"
            if line is None:
                yield Row(where, {}, f"has over {LINE_BYTES:,} bytes; shorten it")
                continue
            try:
                value = parse_json(line, where="row", kind=object, strict=False, remedy="")
            except ForeignFileError as error:
                yield Row(where, {}, str(error).removeprefix("row: "))
            else:
                yield _row(where, value)


def _json(path: epath.Path, place: str) -> Iterator[Row]:
    try:
        value: Any = read_json(
            path,
            most_bytes=ROWS_BYTES,
            kind=object,
            strict=False,
            remedy="a file with one object a line must end in .jsonl, and may be of any size",
        )
    except ForeignFileError as error:
        reason = str(error).removeprefix(f"{shown(path)}: ")
        raise DataError(f"data.problems={str(path)!r}: {reason}") from error
    if isinstance(value, Mapping):
        lists = [value[key] for key in _ROW_KEYS if isinstance(value.get(key), list)]
        if not lists:
            raise DataError(
                f"data.problems={str(path)!r}: expected a list of objects, or an object with one "
                f"under {', '.join(_ROW_KEYS)}"
            )
        value = lists[0]
    if not isinstance(value, list):
        raise DataError(f"data.problems={str(path)!r}: expected a list of objects")
    for number, item in enumerate(value, 1):
        yield _row(f"{place}:row {number}", item)
