"""Reads the rows of a csv file: a header line, then one row of texts each."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from polaris_jax.data.source_text import DataError
from polaris_jax.system.foreign import LINE_BYTES, one_line, open_regular

if TYPE_CHECKING:
    from etils import epath

DELIMITERS = ",;\t"  # a spreadsheet of a country with decimal commas writes semicolons
_SKIP_BYTES = 1 << 20


def csv_rows(path: epath.Path) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """(number of its first line, cells by column, error or None) of each row.

    Empty cells are left out. A cell may hold line breaks in quotes, and at most 131,072 characters,
    the limit of Python's csv module; so a quote without its end spoils a few rows and not the rest.

    Raises:
        DataError: the header is missing, or names a column twice.
    """
    with open_regular(path) as file:
        lines = _lines(file)
        header = next(lines, "")
        if "\r" in header.rstrip("\r\n"):
            raise DataError(
                f"data.problems={str(path)!r}: its lines end in a carriage return alone, as an old "
                "Macintosh writes them; save it as CSV UTF-8, with \\n line ends"
            )
        delimiter = max(
            DELIMITERS, key=lambda char: len(next(csv.reader([header], delimiter=char)))
        )
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
        named = [name for name in names if name]
        if not named or len(set(named)) < len(named):
            twice = next((name for name in named if named.count(name) > 1), None)
            reason = f"has two columns {twice!r}" if named else "has no names of columns"
            raise DataError(
                f"data.problems={str(path)!r}: its first line {reason}; begin the file with one "
                "line of column names, like problem,answer"
            )
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            number = reader.line_num + 2  # the header is line 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, {}, f"not valid csv ({one_line(error)})"
                continue
            if cells:  # else a blank line
                yield number, *_fields(names, cells)


def _fields(names: list[str], cells: list[str]) -> tuple[dict[str, Any], str | None]:
    if len(cells) != len(names):
        return {}, f"has {len(cells)} cells, and the header {len(names)}"
    fields = {name: cell for name, cell in zip(names, cells, strict=True) if name and cell.strip()}
    try:
        "".join(fields.values()).encode()
    except UnicodeEncodeError:
        return {}, "is no UTF-8; save the file as UTF-8"
    return fields, None


def _lines(file: IO[bytes]) -> Iterator[str]:
    """Every line, blank ones included; one that is longer than `LINE_BYTES` is cut there."""
    encoding = "utf-8-sig"
    while line := file.readline(LINE_BYTES):
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(_SKIP_BYTES)) and not rest.endswith(b"\n"):
                pass
        yield line.decode(encoding, errors="surrogateescape")
        encoding = "utf-8"
