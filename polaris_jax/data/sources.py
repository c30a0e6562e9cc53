"""Reads rows: from jsonl, json, csv, parquet, arrow, a directory of them, the Hub, or a function.

A row that cannot be parsed becomes a `Row` with an error, so that one bad line never ends a run.
`problems` checks what a row must hold.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from polaris_jax.data.csv_rows import csv_rows
from polaris_jax.data.hub import dataset_files, download_dataset
from polaris_jax.data.source_text import (
    HUB_OPTIONS,
    NEEDED,
    DataError,
    SourceText,
    parse_source,
)
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

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
_TABLES = (".parquet", ".arrow")
# At the start of a word (math_train, trainset, MathTrain): "constraints" is no split.
_TRAIN = re.compile(r"(?<![A-Za-z])[Tt]rain|(?<=[a-z])Train|TRAIN")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
UNREAD: Any = object()  # the value of a column that is not read, since it holds no JSON
_ROW_KEYS = ("data", "problems", "rows", "examples", "train")


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
        columns: (our field, the source's column) pairs; see `SourceText`.
        text: the source, as the user gave it.
    """

    root: epath.Path
    read: tuple[epath.Path, ...]
    beside: tuple[epath.Path, ...] = ()
    function: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    text: str = ""

    @property
    def has_split(self) -> bool:
        """True if the names of the files that are read mark a training split."""
        return any(_TRAIN.search(path.relative_to(self.root).as_posix()) for path in self.read)

    @property
    def names_beside(self) -> tuple[str, ...]:
        """`beside`, as messages name them."""
        return tuple(path.relative_to(self.root).as_posix() for path in self.beside)

    @property
    def said_beside(self) -> str:
        """A line about `beside` for a person; "" if there are none."""
        if not self.beside:
            return ""
        some = ", ".join(self.names_beside[:3]) + (", ..." if len(self.beside) > 3 else "")
        chosen = "train split" if self.has_split else "tables"
        return f"{len(self.beside)} files beside the {chosen} ({some})"


def resolve_source(source: str | SourceText) -> Files:
    """The files of a source.

    If names of files or folders in a directory mark a training split, only that split is read, in
    any format; otherwise all files are. If some of these files are parquet or arrow, only those are
    read. A Hub name is downloaded first.

    Args:
        source: a file or directory (also gs://, s3://), a data set `owner/name` on the Hugging
            Face Hub, or a function (see `function_source`), with options (see `source_text`).

    Raises:
        DataError: the name is empty, nothing exists under it, it has no readable file, or the Hub
            cannot be reached.
    """
    text = source if isinstance(source, str) else source.text
    if not text.strip():  # as a path it would be the present directory, and all below it
        raise DataError(
            f"data.problems={text!r}: no source given; name a file, a directory ('.' for the "
            "present one) or a Hub name as owner/name"
        )
    parsed = parse_source(source) if isinstance(source, str) else source
    return dataclasses.replace(_find(parsed), columns=parsed.columns, text=text)


def _find(source: SourceText) -> Files:
    from polaris_jax.data.function_source import is_function  # which needs this module

    text, where = source.text, source.where
    asks = " and ".join(name for name in HUB_OPTIONS if getattr(source, name))
    if is_function(where):
        file = where.rpartition(":")[0]
        if file.endswith(".py") and not os.path.isfile(file):
            raise DataError(f"data.problems={text!r}: there is no file {file}; check the path")
        _refuse_hub_options(text, asks, "a function")
        return Files(as_place("."), (), function=where)
    path = as_place(where)
    if path.exists() and not path.is_dir():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"data.problems={text!r}: cannot read {path.suffix or 'a file without suffix'}; "
                f"give one of {', '.join(SUFFIXES)}, a directory or a Hub name"
            )
        _refuse_hub_options(text, asks, "a file")
        return Files(path.parent, (path,))
    if not path.exists():
        looks_like_hub = _HUB_NAME.fullmatch(where) and path.suffix not in SUFFIXES
        if not looks_like_hub:
            raise DataError(
                f"data.problems={text!r}: there is no such file or directory; "
                "check the path, or give a Hub name as owner/name, or a function as file.py:name"
            )
    elif source.revision:
        _refuse_hub_options(text, "revision", "a directory")
    if source.config or source.split:
        files = dataset_files(source)
        return Files(files[0].parent, tuple(files))
    if not path.exists():
        path = download_dataset(where, SUFFIXES, revision=source.revision, text=text)
    files = _pick_split(path)
    if not files.read:
        raise DataError(
            f"data.problems={text!r}: the directory holds no {', '.join(SUFFIXES)} file; "
            "point to the folder that does"
        )
    return files


def _refuse_hub_options(text: str, asks: str, what: str) -> None:
    if asks:
        raise DataError(
            f"data.problems={text!r}: {asks} belongs to a data set of the Hub, and this is {what}; "
            "leave it out"
        )


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
    # A directory's csv files are read if there are no others: they are often notes beside the rows.
    files = [path for path in files if path.suffix != ".csv"] or files
    train = [path for path in files if _TRAIN.search(path.relative_to(root).as_posix())]
    # Of what is kept as tables and as text, the tables: one set in two formats is read once.
    tables = [path for path in train or files if path.suffix in _TABLES]
    read = tables or train or files
    beside = tuple(path for path in files if path not in set(read))
    return Files(root, tuple(read), beside)


def read_rows(files: Files, columns: Collection[str] | None = None) -> Iterator[Row]:
    """Every row of a source, in order; unreadable ones carry an error.

    Args:
        files: files of the source.
        columns: columns of a table to read beside those that hold JSON's types; other columns are
            UNREAD. None: every column.

    Raises:
        DataError: a complete file is unreadable, or the function fails.
    """
    rows = _read_rows(files, columns)
    return _renamed_rows(rows, files) if files.columns else rows


def _read_rows(files: Files, columns: Collection[str] | None) -> Iterator[Row]:
    if files.function:
        from polaris_jax.data.function_source import function_rows

        yield from function_rows(files.function)
    if tables := [path for path in files.read if path.suffix in _TABLES]:
        from polaris_jax.data.tables import check_tables, table_rows

        wanted = None if columns is None else {*columns, *(theirs for _, theirs in files.columns)}
        check_tables(tables, wanted)
    for path in files.read:
        place = path.relative_to(files.root).as_posix()
        if path in tables:
            yield from table_rows(path, place, wanted)
        else:
            yield from {".jsonl": _jsonl, ".json": _json, ".csv": _csv}[path.suffix](path, place)


def _renamed_rows(rows: Iterator[Row], files: Files) -> Iterator[Row]:
    """The rows under our names; a named column that no row has is mistyped."""
    unseen = {ours: theirs for ours, theirs in files.columns if ours not in NEEDED}
    known: tuple[str, ...] = ()
    for row in rows:
        if unseen and row.error is None:
            unseen = {o: theirs for o, theirs in unseen.items() if row.fields.get(theirs) is None}
            known = known or tuple(row.fields)
        yield _renamed(row, files.columns)
    if unseen and known:
        ours, theirs = next(iter(unseen.items()))
        raise DataError(
            f"data.problems={files.text!r}: {ours}={theirs}: no row has something in "
            f"column {theirs!r} (the first one has {', '.join(known)}); correct the name, or leave "
            "the option out"
        )


def _renamed(row: Row, columns: tuple[tuple[str, str], ...]) -> Row:
    """The row with the source's columns under our names; one that it may do without may be absent.

    A column that has such a name already, and is not the one that is meant, becomes `other_NAME`.
    """
    if row.error is not None:
        return row
    fields, renamed, named = dict(row.fields), {}, {ours for ours, _ in columns}
    for ours, theirs in columns:
        if theirs in row.fields:
            renamed[ours] = fields.pop(theirs, row.fields[theirs])
        elif ours in NEEDED:
            known = ", ".join(row.fields)
            return Row(row.place, {}, f"has nothing in column {theirs!r} for {ours} ({known})")
    others = {f"other_{name}" if name in named else name: v for name, v in fields.items()}
    return Row(row.place, others | renamed)


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


def _csv(path: epath.Path, place: str) -> Iterator[Row]:
    for number, fields, error in csv_rows(path):
        yield Row(f"{place}:{number}", fields, error)
