"""Reads rows of parquet and arrow files, which a child process has read to the end before.

A table of a few KB may decode to more than the memory: its columns are dictionaries and runs, and
its pages are compressed. No size that it claims can be relied on. So a child reads each table
first, in the way in which this process will, under a memory limit and a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from polaris_jax.data.sources import UNREAD, DataError, Row
from polaris_jax.system.child import Child, ChildFailure, answers
from polaris_jax.system.files import epath, is_remote
from polaris_jax.system.foreign import (
    LINE_BYTES,
    one_line,
    open_regular,
    parse_json,
    require_regular,
)

# Schema metadata of our own parquet files, whose answers are JSON so that types survive.
JSON_ANSWERS = {b"polaris_answers": b"json"}
TURNS = "polaris_turns"  # `Problem.turns` among the other columns of such a file
EXTRA = "extra"  # the column of such a file that holds a row's other columns, as one JSON object
# What a table may decode to: text files of problems compress to a twentieth.
DECODED_BYTES, DECODED_TIMES = 256 << 20, 200
# The memory that reading it may take, beside what the process has already.
MEMORY_BYTES, MEMORY_TIMES = 1 << 30, 8
SILENCE_S = 120.0  # for a batch of rows
_BATCH_ROWS = 256
_SLICE_ROWS = 16  # that are Python objects at a time
_TOO_LONG = f"has over {LINE_BYTES:,} bytes; shorten it"
_START = "from polaris_jax.data.tables import send_checks; send_checks()"
# What pyarrow raises on damaged files: its own errors, those of text that is no UTF-8 and of times
# past the calendar (ValueErrors), of numbers past their type.
_DAMAGES = (OSError, ValueError, OverflowError, TypeError, KeyError, MemoryError)
_ARROW_FILE = b"ARROW1"


def check_tables(paths: Sequence[epath.Path], columns: Collection[str] | None) -> None:
    """Reads tables to their ends in a child process. Those in an object store are not read.

    Args:
        paths: parquet and arrow files.
        columns: see `read_rows`.

    Raises:
        DataError: a table needs too much memory or time, or ends the process that reads it. A table
            that is damaged is refused when this process reads it.
    """
    local = [os.fspath(path) for path in paths if not is_remote(path)]
    for path in local:
        require_regular(path)
    if not local:
        return
    argument = json.dumps([local, None if columns is None else sorted(columns)])
    with Child(_START, [argument], stderr=subprocess.DEVNULL) as child:
        done = 0
        try:
            while done < len(local):
                answer = json.loads(child.line(silence_s=SILENCE_S, most_bytes=1 << 20))
                if isinstance(answer, str):
                    _refuse(local[done], answer)
                done += answer
        except ChildFailure as failure:
            _refuse(
                local[done],
                f"reading it takes more than {SILENCE_S:g} s for {_BATCH_ROWS} rows"
                if failure.kind == "silent"
                else f"reading it ended a process with status {failure.status}: it is damaged, or "
                "needs too much memory",
            )


def _refuse(path: str, reason: str) -> NoReturn:
    raise DataError(f"data.problems={path!r}: {reason}; write its rows to a .jsonl file")


def send_checks() -> NoReturn:
    """Reads the tables that the command line names. Runs inside the child.

    Sends 0 for some rows read, 1 for each table at its end, or a text: why it cannot be used.
    """
    paths, columns = json.loads(sys.argv[1])
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others reserve a gigabyte of addresses
    import pyarrow.parquet  # noqa: F401  # before the limit

    with answers() as out:

        def send(answer: int | str) -> None:
            out.write(json.dumps(answer).encode() + b"\n")
            out.flush()

        for path in paths:
            _limit_memory(MEMORY_BYTES + MEMORY_TIMES * os.path.getsize(path))
            try:
                for number, _ in enumerate(table_rows(epath.Path(path), path, columns)):
                    if number % _BATCH_ROWS == 0:
                        send(0)
            except MemoryError:
                send("needs too much memory")
            except DataError as error:
                if "memory" in str(error) or "decodes" in str(error):
                    send(str(error).partition(": ")[2].partition(";")[0])
            except Exception:  # noqa: BLE001 - the parent meets the same
                pass
            send(1)
    os._exit(0)


def _limit_memory(more_bytes: int) -> None:
    """Limits how far the address space may grow from its present size, on Linux."""
    import resource

    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def table_rows(path: epath.Path, place: str, columns: Collection[str] | None) -> Iterator[Row]:
    """The rows of a parquet or arrow file.

    Args:
        path: the file.
        place: its name in messages.
        columns: see `read_rows`.

    Raises:
        DataError: it is damaged, or decodes to too much.
    """
    import pyarrow as pa

    kind, batches = (
        ("a parquet file", _parquet) if path.suffix == ".parquet" else ("an arrow stream", _arrow)
    )
    damages = (pa.ArrowException, *_DAMAGES)
    most = DECODED_BYTES + DECODED_TIMES * epath.Path(path).stat().length
    number = decoded = 0
    try:
        for batch, others, ours in batches(path, columns):
            for fields in _rows_of(batch, damages):
                number += 1
                where = f"{place}:row {number}"
                if isinstance(fields, str):
                    yield Row(where, {}, fields)
                    continue
                size = _size(fields)
                decoded += size
                if decoded > most:
                    raise DataError(
                        f"data.problems={str(path)!r}: decodes to more than {most:,} bytes, "
                        f"{DECODED_TIMES} times its size; write its rows to a .jsonl file"
                    )
                if size > LINE_BYTES:
                    yield Row(where, {}, _TOO_LONG)
                elif ours:
                    yield _own_row(where, fields | others)
                else:
                    absent = {n: None for n in others if n in fields and not fields[n]}
                    yield Row(where, fields | others | absent)
    except DataError:
        raise
    except damages as error:
        reason = "needs too much memory" if isinstance(error, MemoryError) else one_line(error)
        raise DataError(
            f"data.problems={str(path)!r}: not {kind} ({reason}); fetch or make it again"
        ) from error


# A batch, the columns that are not read, and whether the file is one of ours. Of nested columns
# that are not read the batch has whether there is a value (`_with_presence`).
_Batch = tuple[Any, dict[str, Any], bool]


def _parquet(path: epath.Path, columns: Collection[str] | None) -> Iterator[_Batch]:
    import pyarrow.parquet as pq

    with (
        open_regular(path) as file,
        pq.ParquetFile(file, page_checksum_verification=True) as table,  # of pages that have one
    ):
        ours = (table.schema_arrow.metadata or {}).items() >= JSON_ANSWERS.items()
        read = _read_columns(table.schema_arrow, columns)
        others = dict.fromkeys((n for n in table.schema_arrow.names if n not in read), UNREAD)
        leaves = _small_leaves(table.schema, others)
        named = [*read, *leaves.values()]
        for batch in table.iter_batches(_BATCH_ROWS, columns=named, use_threads=False):
            yield _with_presence(batch, leaves), others, ours


def _arrow(path: epath.Path, columns: Collection[str] | None) -> Iterator[_Batch]:
    import pyarrow as pa

    require_regular(path)
    with path.open("rb") if is_remote(path) else pa.memory_map(str(path)) as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        file.seek(0)
        for batch in _arrow_batches(file, is_file):
            read = _read_columns(batch.schema, columns)
            others = dict.fromkeys((n for n in batch.schema.names if n not in read), UNREAD)
            nested = [n for n in others if _is_nested(batch.schema.field(n).type)]
            yield _with_presence(batch.select([*read, *nested]), nested), others, False


def _small_leaves(schema: Any, names: Collection[str]) -> dict[str, str]:
    """Of nested columns, the path of a leaf that is small, such as the `path` of an image."""
    found: dict[str, str] = {}
    for number in range(len(schema)):
        leaf = schema.column(number)
        name, nested, _ = leaf.path.partition(".")
        is_small = leaf.physical_type != "BYTE_ARRAY" or leaf.logical_type.type == "STRING"
        if name in names and nested and is_small:
            found.setdefault(name, leaf.path)
    return found


def _is_nested(kind: Any) -> bool:
    import pyarrow.types as t

    return t.is_struct(kind) or t.is_list(kind) or t.is_large_list(kind)


def _with_presence(batch: Any, names: Collection[str]) -> Any:
    """The batch with True in the place of each value of these columns that is not null or empty."""
    import pyarrow.compute as pc

    for name in names:
        column = batch.column(name)
        there = pc.is_valid(column)  # pyright: ignore[reportAttributeAccessIssue]
        if not str(column.type).startswith("struct"):
            length = pc.list_value_length(column)  # pyright: ignore[reportAttributeAccessIssue]
            there = pc.greater(length, 0)  # pyright: ignore[reportAttributeAccessIssue]
        batch = batch.set_column(batch.schema.get_field_index(name), name, there)
    return batch


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


def _rows_of(batch: Any, damages: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; for a row that cannot be read, the reason."""
    for start in range(0, batch.num_rows, _SLICE_ROWS):
        part = batch.slice(start, _SLICE_ROWS)
        if part.nbytes > LINE_BYTES and part.num_rows > 1:
            for number in range(part.num_rows):
                yield from _rows_of(part.slice(number, 1), damages)
            continue
        if part.nbytes > LINE_BYTES:
            yield _TOO_LONG
            continue
        try:
            part.validate(full=True)  # reading a damaged batch as it is ends the process
            rows: list[dict[str, Any] | str] = part.to_pylist()
        except MemoryError:
            raise
        except damages:
            rows = []
            for number in range(part.num_rows):
                row = part.slice(number, 1)
                try:
                    row.validate(full=True)
                    rows += row.to_pylist()
                except damages as error:
                    rows.append(f"not readable ({one_line(error)})")
        yield from rows


def _size(value: Any) -> int:
    """About the bytes of a value's texts and numbers."""
    if isinstance(value, str | bytes):
        return len(value) + 8
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return 8 + sum(map(_size, value))
    return 8


def _own_row(where: str, fields: dict[str, Any]) -> Row:
    """A row of a file that we wrote, with its answer and its extra columns decoded from JSON."""
    try:
        extra = _decoded(fields.pop(EXTRA, None) or "{}", dict)
        return Row(where, {**extra, **fields, "answer": _decoded(fields["answer"], object)})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return Row(where, {}, f"answer: not valid JSON ({error})")


def _decoded(text: str, kind: type[Any]) -> Any:
    return parse_json(text.encode(), where="row", kind=kind, strict=False, remedy="")
