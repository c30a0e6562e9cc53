"""Reads rows: from jsonl, json, parquet, arrow, a directory of them, the Hub, or a function.

A row that cannot be parsed becomes a `Row` with an error, so that one bad line never ends a run.
`problems` checks what a row must hold.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from polaris_jax.config.settings import ConfigError
from polaris_jax.system.files import as_place, files_below, is_remote

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
# At the start of a word (math_train, trainset, MathTrain): "constraints" is no split.
_TRAIN = re.compile(r"(?<![A-Za-z])[Tt]rain|(?<=[a-z])Train|TRAIN")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Schema metadata of our own parquet files, whose answers are JSON so that types survive.
JSON_ANSWERS = {b"polaris_answers": b"json"}
UNREAD: Any = object()  # the value of a column that is not read, since it holds no JSON
EXTRA = "extra"  # the column of such a file that holds a row's other columns, as one JSON object
# What pyarrow raises on damaged files: its own errors, those of text that is no UTF-8 and of times
# past the calendar (ValueErrors), of numbers past their type.
_DAMAGES = (OSError, ValueError, OverflowError, TypeError, KeyError, MemoryError)
_ARROW_FILE = b"ARROW1"
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
    if path.is_file():
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
    for path in files.read:
        place = path.relative_to(files.root).as_posix()
        if path.suffix in (".jsonl", ".json"):
            yield from (_jsonl if path.suffix == ".jsonl" else _json)(path, place)
        else:
            yield from (_parquet if path.suffix == ".parquet" else _arrow)(path, place, columns)


def _row(place: str, value: Any) -> Row:
    if isinstance(value, Mapping):
        return Row(place, value)
    return Row(place, {}, f"expected an object with fields, got {type(value).__name__}")


def _jsonl(path: epath.Path, place: str) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{place}:{number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:  # also bytes that are no UTF-8, and numbers without end
                yield Row(where, {}, f"not valid JSON ({error})")
            except RecursionError:
                yield Row(where, {}, "not valid JSON (nested too deeply)")
            else:
                yield _row(where, value)


def _json(path: epath.Path, place: str) -> Iterator[Row]:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"data.problems={str(path)!r}: not valid JSON ({error}); a file with one object a line "
            "must end in .jsonl"
        ) from error
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


def _parquet(path: epath.Path, place: str, columns: Collection[str] | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    damages = (pa.ArrowException, *_DAMAGES)
    try:
        with path.open("rb") as file, pq.ParquetFile(file) as table:
            ours = (table.schema_arrow.metadata or {}).items() >= JSON_ANSWERS.items()
            names = table.schema_arrow.names
            read = _read_columns(table.schema_arrow, columns)
            others = dict.fromkeys((name for name in names if name not in read), UNREAD)
            number = 0
            for batch in table.iter_batches(batch_size=4096, columns=read):
                for fields in _parquet_rows(batch, damages):
                    number += 1
                    where = f"{place}:row {number}"
                    if isinstance(fields, str):
                        yield Row(where, {}, fields)
                    elif ours:
                        yield _own_row(where, fields | others)
                    else:
                        yield Row(where, fields | others)
    except damages as error:
        raise DataError(f"data.problems={str(path)!r}: not a parquet file ({error})") from error


def _read_columns(schema: Any, columns: Collection[str] | None) -> list[str]:
    """The names of a table's columns that are read; see `read_rows`."""
    return [
        field.name
        for field in schema
        if columns is None or field.name in columns or _holds_json(field.type)
    ]


def _holds_json(kind: Any) -> bool:
    """True for texts, numbers, truth values, and lists and structures of these."""
    import pyarrow.types as t

    if t.is_dictionary(kind):
        return _holds_json(kind.value_type)
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return _holds_json(kind.value_type)
    if t.is_struct(kind):
        return all(_holds_json(field.type) for field in kind)
    simple = (t.is_string, t.is_large_string, t.is_boolean, t.is_integer, t.is_floating, t.is_null)
    return any(is_kind(kind) for is_kind in simple)


def _parquet_rows(batch: Any, damages: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; for a row that cannot be read, the reason."""
    try:
        batch.validate(full=True)
        rows: list[dict[str, Any] | str] = batch.to_pylist()
    except damages:
        rows = []
        for number in range(batch.num_rows):
            row = batch.slice(number, 1)
            try:
                row.validate(full=True)
                rows += row.to_pylist()
            except damages as error:
                rows.append(f"not readable ({error})")
    yield from rows


def _own_row(where: str, fields: dict[str, Any]) -> Row:
    """A row of a file that we wrote, with its answer and its extra columns decoded from JSON."""
    try:
        extra = json.loads(fields.pop(EXTRA, None) or "{}")
        return Row(where, {**extra, **fields, "answer": json.loads(fields["answer"])})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        return Row(where, {}, f"answer: not valid JSON ({error})")


def _arrow(path: epath.Path, place: str, columns: Collection[str] | None) -> Iterator[Row]:
    import pyarrow as pa

    try:
        file = path.open("rb") if is_remote(path) else pa.memory_map(str(path))
        with file:
            is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
            file.seek(0)
            number = 0
            for batch in _arrow_batches(file, is_file):
                names = batch.schema.names
                read = _read_columns(batch.schema, columns)
                others = dict.fromkeys((name for name in names if name not in read), UNREAD)
                chosen = batch.select(read)
                chosen.validate(full=True)  # reading a damaged batch as it is ends the process
                for fields in chosen.to_pylist():
                    number += 1
                    yield Row(f"{place}:row {number}", fields | others)
    except (pa.ArrowException, *_DAMAGES) as error:
        raise DataError(f"data.problems={str(path)!r}: not an arrow stream ({error})") from error


def _arrow_batches(file: Any, is_file: bool) -> Iterator[Any]:
    """The record batches of an arrow file or, without its magic, of a stream."""
    import pyarrow as pa

    if not is_file:
        with pa.ipc.open_stream(file) as stream:
            yield from stream
        return
    with pa.ipc.open_file(file) as table:
        for number in range(table.num_record_batches):
            yield table.get_batch(number)
