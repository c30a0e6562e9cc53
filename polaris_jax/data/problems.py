"""Reads problems from rows (field names, checks, stable ids) and writes them to a parquet file.

Field names; the first name that has a value in the row is used:

    problem   problem, question, prompt (a text, or chat messages)
    answer    answer, gold, final_answer, ground_truth, reward_model.ground_truth, solution
    id        id, problem_id, unique_id, uid, index; none: a hash of the normalised text

`answer` is ambiguous in public sets. A text that ends in `#### 42` is a worked solution in GSM8K's
format: the text after the mark is the answer. `solution` comes last because most sets keep the
worked text there. Its last `\\boxed{}` is the answer, together with the boxes that a comma or `and`
joins to this box. A text without a box is used only if it is short (one line of at most 60
characters); otherwise the row counts as malformed.

All other columns are `Problem.extra`, for reward functions: values of JSON's types that are not
null. Columns of other types (times, bytes) are left out.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polaris_jax.data.filters import deduplicate
from polaris_jax.data.rows import (
    COLUMNS,
    EARLIER,
    PROBLEM_FIELDS,
    ROLES,
    RowError,
    lost_parts,
    parse_row,
)
from polaris_jax.data.sorted_digest import sorted_digest
from polaris_jax.data.sources import DataError, read_rows, resolve_source
from polaris_jax.data.tables import EXTRA, JSON_ANSWERS, TURNS
from polaris_jax.records import Problem
from polaris_jax.system.files import AnyPath, write_bytes
from polaris_jax.system.foreign import printable

if TYPE_CHECKING:
    from etils import epath

FIELD = "data.problems"  # the field that errors of this module and of `sources` name
MADE_OF = b"polaris_made_of"  # in the metadata of a parquet file
NAMED_ROWS = 20  # malformed rows that a report lists; all are counted
MESSAGE_CHARS = 400


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """Which rows of a source were kept and which were left out.

    Attributes:
        source: the name of the source, as given.
        rows: number of rows read, without blank lines.
        kept: number of problems returned.
        counts: number of rows or problems by reason: `malformed`, `duplicate`,
            `duplicate_with_other_answer` (left out), `renamed_id` (kept).
        lost: number of rows that were read without a part of theirs: `turns` of a chat after the
            last user turn, or before it if one is no text of a known role; `earlier turns`, which
            counts the latter alone; or `column NAME`, whose values are no JSON.
        messages: one `place: reason` for each file that was not read, then for the first malformed
            rows and contradictions.
    """

    source: str
    rows: int
    kept: int
    counts: dict[str, int]
    messages: tuple[str, ...]
    lost: dict[str, int] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON-able types."""
        return {**dataclasses.asdict(self), "messages": list(self.messages)}

    @property
    def warnings(self) -> list[str]:
        """What a person must know of the rows that were kept."""
        if not (lost := self.lost.get(EARLIER)):
            return []
        return [
            f"warning: {self.source}: {lost} of {self.rows} rows are asked without the turns "
            f"before their question, since one of these is no text of {', '.join(ROLES)} or "
            "developer; leave such rows out, or write their turns as texts of these roles"
        ]


def read_problems(
    source: AnyPath, *, unique: bool = True, field: str = FIELD
) -> tuple[list[Problem], ReadReport]:
    """The checked problems of a source without repeats, and a report of what was left out.

    Args:
        source: jsonl, json, parquet or arrow file, a directory of them, or a Hub name.
        unique: True leaves out repeats of a normalised text. False keeps every row (benchmarks);
            then an id that occurs twice is an error.
        field: name of the config field that gave the source, for errors.

    Raises:
        DataError: the source is missing or unreadable, no problem is left, or (unless `unique`) an
            id occurs twice.
    """
    try:
        return _read_problems(os.fspath(source), unique)
    except DataError as error:
        raise DataError(str(error).replace(f"{FIELD}=", f"{field}=", 1)) from error


def _read_problems(source: str, unique: bool) -> tuple[list[Problem], ReadReport]:
    """`read_problems`, with errors that name `FIELD`."""
    problems: list[Problem] = []
    places: list[str] = []
    messages: list[str] = []
    counts: collections.Counter[str] = collections.Counter()
    lost: collections.Counter[str] = collections.Counter()
    rows = 0
    files = resolve_source(source)
    for row in read_rows(files, COLUMNS):
        rows += 1
        try:
            if row.error is not None:
                raise RowError(row.error)
            problems.append(parse_row(row.fields))
            places.append(row.place)
            lost.update(lost_parts(row.fields))
        except RowError as error:
            counts["malformed"] += 1
            messages.append(short_line(f"{row.place}: {error}"))
    named = messages[:NAMED_ROWS]
    if beside := files.said_beside:
        named.insert(0, short_line(beside))
    if unique:
        read = problems
        problems, found = deduplicate(read)
        counts["duplicate"] = len(found.same_answer) + len(found.other_answer)
        counts["duplicate_with_other_answer"] = len(found.other_answer)
        counts["renamed_id"] = len(found.renamed)
        named += [
            short_line(
                f"{places[drop]}: the problem of {places[keep]} with another answer, "
                f"{read[drop].answer!r}, there {read[keep].answer!r}"
            )
            for keep, drop in found.other_rows[:NAMED_ROWS]
        ]
    else:
        _require_unique_ids(source, problems)
    if not problems:
        reason = f" (first: {messages[0]})" if messages else ""
        raise DataError(
            f"data.problems={source!r}: no problem in it: {rows} rows, {counts['malformed']} "
            f"malformed{reason}; each row needs a {'/'.join(PROBLEM_FIELDS)} and an answer"
        )
    return problems, ReadReport(
        source=source,
        rows=rows,
        kept=len(problems),
        counts={reason: count for reason, count in sorted(counts.items()) if count},
        messages=tuple(named),
        lost=dict(sorted(lost.items())),
    )


def short_line(text: str) -> str:
    """A message in one printable line, cut if a row's value is long."""
    text = printable(text)
    return text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 3] + "..."


def _require_unique_ids(source: str, problems: Sequence[Problem]) -> None:
    twice = [
        id for id, n in collections.Counter(problem.id for problem in problems).items() if n > 1
    ]
    if twice:
        raise DataError(
            f"data.problems={source!r}: id {twice[0]!r} occurs twice; make the ids unique"
        )


def problem_set_hash(problems: Iterable[Problem]) -> str:
    """16 hex digits of the problems' ids, texts and answers, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for problem in problems:
        turns = [problem.turns] if problem.turns else []
        digest.update(json.dumps([problem.id, problem.problem, problem.answer, *turns]).encode())
    return digest.hexdigest()


def problems_digest(problems: Iterable[Problem], *, extras: bool = False) -> str:
    """A text that depends on each id, problem and answer, but not on their order.

    Args:
        problems: the problems.
        extras: True if the other columns count, too.
    """
    return sorted_digest(digest_line(problem, extras=extras) for problem in problems)


def digest_line(p: Problem, *, extras: bool) -> str:
    """What `problems_digest` hashes of a problem."""
    more = [p.extra] if extras and p.extra else []
    more += [p.turns] if p.turns else []
    return json.dumps([p.id, p.problem, repr(p.answer), *more])


def read_made_of(path: epath.Path) -> dict[str, Any] | None:
    """What `write_problems` was told that a file was made of; None if it was told nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            metadata = pq.read_schema(file).metadata or {}
        made_of = json.loads(metadata.get(MADE_OF, b"null"))
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a parquet file ({error}); write it anew") from None
    return made_of if isinstance(made_of, dict) else None


def row_count(path: epath.Path) -> int:
    """The number of rows of a parquet file that `write_problems` made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            return pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a parquet file ({error}); write it anew") from None


def write_problems(
    problems: Sequence[Problem], path: AnyPath, *, made_of: Mapping[str, Any] | None = None
) -> None:
    """Writes a parquet file of id, problem, answer, source, pass_rate and response_tokens.

    Answers are written as JSON to keep their types, and so are the extra columns, in one column
    that is there only if a problem has any. So `read_problems` returns its own problems unchanged.
    In records from elsewhere, `read_problems` strips the texts, as in any row, and takes the answer
    after the last `#### `. The file appears complete or not at all.

    Args:
        problems: the problems.
        path: path of the file.
        made_of: what `read_made_of` returns for the file.
    """
    import pyarrow.parquet as pq

    table = problem_table(problems, extras=any(p.extra or p.turns for p in problems))
    out = io.BytesIO()
    pq.write_table(with_made_of(table, made_of), out, write_page_checksum=True)
    write_bytes(path, out.getvalue())


def problem_table(problems: Sequence[Problem], *, extras: bool) -> Any:
    """The pyarrow table of problems that `write_problems` describes.

    Args:
        problems: the problems.
        extras: True if it has the column of the other columns.
    """
    import pyarrow as pa

    columns = {
        "id": pa.array([p.id for p in problems], pa.string()),
        "problem": pa.array([p.problem for p in problems], pa.string()),
        "answer": pa.array([json.dumps(p.answer) for p in problems], pa.string()),
        "source": pa.array([p.source for p in problems], pa.string()),
        "pass_rate": pa.array([p.pass_rate for p in problems], pa.float64()),
        "response_tokens": pa.array([p.response_tokens for p in problems], pa.float64()),
    }
    if extras:
        found = [{**p.extra, **({TURNS: p.turns} if p.turns else {})} for p in problems]
        columns[EXTRA] = pa.array([json.dumps(e) if e else None for e in found], pa.string())
    return pa.table(columns)


def with_made_of(table: Any, made_of: Mapping[str, Any] | None) -> Any:
    """The table with the marks of a file of ours; see `write_problems`."""
    record = {} if made_of is None else {MADE_OF: json.dumps(made_of, sort_keys=True).encode()}
    return table.replace_schema_metadata(JSON_ANSWERS | record)
