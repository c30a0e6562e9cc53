"""Opens the sources of a call."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence, Set

from etils import epath

from polaris_jax.data.prepare.terms import SourceRows
from polaris_jax.data.rows import COLUMNS
from polaris_jax.data.source_text import DataError, SourceText, parse_source
from polaris_jax.data.sources import Files, read_rows, resolve_source
from polaris_jax.system.files import is_remote
from polaris_jax.system.foreign import ForeignFileError, require_regular

_BLOCK_BYTES = 1 << 22


def open_sources(
    texts: Sequence[str],
    *,
    rules: Set[str],
    columns: Mapping[str, str] | None = None,
    field: str = "data.problems",
) -> list[SourceRows]:
    """The sources, found and ready to be read.

    Args:
        texts: how they were given; see `source_text`.
        rules: which rules apply to their rows.
        columns: columns by our field, for sources that do not name one themselves.
        field: the field or flag that gave them, for errors.

    Raises:
        DataError: one does not exist, or two have one name.
    """
    try:
        sources = [_with_columns(parse_source(text), columns or {}) for text in texts]
        names = collections.Counter(source.name for source in sources)
        if twice := next((name for name, count in names.items() if count > 1), None):
            text = next(source.text for source in sources if source.name == twice)
            raise DataError(
                f"data.problems={text!r}: two sources are called {twice!r}; add ,name=... to one"
            )
        several = len(sources) > 1
        return [_open(source, rules, marks=several or "name=" in source.text) for source in sources]
    except DataError as error:
        raise DataError(str(error).replace("data.problems=", f"{field}=", 1)) from error


def _with_columns(source: SourceText, columns: Mapping[str, str]) -> SourceText:
    given = dict(source.columns)
    more = tuple((ours, theirs) for ours, theirs in columns.items() if ours not in given)
    return dataclasses.replace(source, columns=(*source.columns, *more))


def _open(source: SourceText, rules: Set[str], *, marks: bool) -> SourceRows:
    files = resolve_source(source)
    return SourceRows(
        name=source.name,
        text=source.text,
        rows=functools.partial(read_rows, files, COLUMNS),
        count=count_rows(files),
        cap=source.cap,
        beside=files.said_beside,
        rules=rules,
        marks=marks,
    )


def count_rows(files: Files) -> int:
    """About how many rows the files have, at no great cost: a bar needs no more. 0 if unknown."""
    return sum(map(_rows_of, files.read))


def _rows_of(path: epath.Path) -> int:
    if is_remote(path):
        return 0
    try:
        require_regular(path)
    except (OSError, ForeignFileError):
        return 0  # reading it says what is wrong
    if path.suffix in (".jsonl", ".csv"):
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK_BYTES), b""))
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_metadata(str(path)).num_rows
        except (pa.ArrowException, OSError):
            return 0  # reading it says what is wrong
    return 0
