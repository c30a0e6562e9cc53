"""Rows from a function: `data.problems=file.py:function` or `package.module:function`.

The function takes no argument and yields (or returns) rows: dicts with the fields of any other
source, or `Problem` records. It runs in a process of its own, which sends one JSON line a row, so a
function that hangs or crashes ends in one line of error, and none of its imports reach this
process. The other process ends with this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from polaris_jax.data.sources import DataError, Row
from polaris_jax.data.tables import TURNS
from polaris_jax.records import Problem
from polaris_jax.system.child import Child, ChildFailure, answers
from polaris_jax.system.signals import raise_interrupt
from polaris_jax.system.user_code import RefusedFunction, load_function, one_line, place_in

SILENCE_S = 300.0  # a function that gives no row for so long is ended
MAX_ROW_BYTES = 1 << 24  # of a row's JSON
MAX_ROWS = 2_000_000  # a function that never ends must not fill the memory
_START = "from polaris_jax.data.function_source import send_rows; send_rows()"
_NAME = re.compile(r"(?P<place>[^:]+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")


def is_function(source: str) -> bool:
    """True if a source is written as `file.py:function` or `package.module:function`."""
    return _NAME.fullmatch(source) is not None


def function_rows(source: str) -> Iterator[Row]:
    """The rows that a function yields, in order.

    Args:
        source: `file.py:function` or `package.module:function`.

    Raises:
        DataError: the function cannot be imported, raises an exception, gives no row for
            `SILENCE_S`, or yields something that is no row or over a limit. The text names the
            function, the row and the remedy.
    """
    with Child(_START, [source]) as child, _interruptible():
        for number, fields in enumerate(_messages(child, source), 1):
            if number > MAX_ROWS:
                _refuse(source, f"yields more than {MAX_ROWS:,} rows; let it end earlier")
            yield Row(f"{source}:row {number}", fields)


def _messages(child: Child, source: str) -> Iterator[dict[str, Any]]:
    """The fields of each row, until the process says that the function has ended."""
    count = 0
    try:
        while True:
            message = json.loads(child.line(silence_s=SILENCE_S, most_bytes=MAX_ROW_BYTES))
            if message is None:
                return
            if isinstance(message, str):
                _refuse(source, message)
            count += 1
            yield message
    except ChildFailure as failure:
        reasons = {
            "silent": f"gave no row {count + 1} within {SILENCE_S:g} s; mend it where it hangs, or "
            "write its rows to a jsonl file and name that",
            "ended": f"its process ended with status {failure.status} after row {count}; mend what "
            "ends it (memory, a crash, os._exit)",
            "long": f"row {count + 1} has over {MAX_ROW_BYTES:,} bytes; yield shorter texts",
        }
        _refuse(source, reasons[failure.kind])


def _refuse(source: str, reason: str) -> NoReturn:
    raise DataError(f"data.problems={source!r}: {reason}")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets Ctrl-C raise KeyboardInterrupt: nothing is to be saved while rows are read."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield
        return
    former = signal.signal(signal.SIGINT, lambda _, frame: raise_interrupt(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


# ---- inside the process


class _Refused(Exception):
    """Why there are no rows, or no more; its text goes behind the name of the function."""


def send_rows() -> NoReturn:
    """Calls the function that the command line names, and writes its rows to stdout.

    One JSON line each: an object is a row, a text the reason of a failure, null the end.
    """
    with answers() as out:
        last: str | None = None
        try:
            for row in _rows(sys.argv[1]):
                out.write(row + b"\n")
                out.flush()
        except _Refused as error:
            last = str(error)
        out.write(json.dumps(last).encode() + b"\n")
    os._exit(0)  # its threads need not end


def _rows(source: str) -> Iterator[bytes]:
    """Each row of the function as a JSON object."""
    number = 1
    try:
        returned = load_function(source)()
        if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
            raise _Refused(
                f"returned a {type(returned).__name__}; yield rows one by one, or return a list"
            )
        for number, row in enumerate(returned, 1):
            yield _as_json(number, row)
            number += 1  # an exception belongs to the next row
    except _Refused:
        raise
    except RefusedFunction as error:
        raise _Refused(str(error)) from error
    except BaseException as error:
        place = place_in(error, source.rpartition(":")[0])
        raise _Refused(f"row {number}: {one_line(error)}{place}; mend the function") from error


def _as_json(number: int, row: Any) -> bytes:
    if isinstance(row, Problem):
        fields = dataclasses.asdict(row)
        turns = {TURNS: row.turns} if row.turns else {}
        fields = {n: v for n, v in fields.items() if v is not None and n not in ("extra", "turns")}
        row = {**row.extra, **fields, **turns}
    if not isinstance(row, Mapping):
        raise _Refused(
            f"row {number} is a {type(row).__name__}; yield a dict with a problem and an answer, "
            "or a Problem"
        )
    try:
        return json.dumps(dict(row)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _Refused(
            f"row {number}: {one_line(error)}; yield texts, numbers, lists and dicts of them"
        ) from error
