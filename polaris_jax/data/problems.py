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
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.data.filters import content_id, deduplicate
from polaris_jax.data.sources import DataError, read_rows, resolve_source
from polaris_jax.data.tables import EXTRA, JSON_ANSWERS, TURNS
from polaris_jax.records import Gold, Problem
from polaris_jax.system.files import AnyPath, write_bytes
from polaris_jax.system.foreign import printable

PROBLEM_FIELDS = ("problem", "question", "prompt")
ANSWER_FIELDS = ("answer", "gold", "final_answer", "ground_truth", "reward_model", "solution")
ID_FIELDS = ("id", "problem_id", "unique_id", "uid", "index")
FIELD = "data.problems"  # the field that errors of this module and of `sources` name
MADE_OF = b"polaris_made_of"  # in the metadata of a parquet file
NAMED_ROWS = 20  # malformed rows that a report lists; all are counted
MESSAGE_CHARS = 400
ROLES = ("system", "user", "assistant")
_SHORT_SOLUTION_CHARS = 60
_COLUMNS = frozenset(
    (
        *PROBLEM_FIELDS,
        *ANSWER_FIELDS,
        *ID_FIELDS,
        *("pass_rate", "response_tokens", "source", "data_source", TURNS),
    )
)


class RowError(ValueError):
    """The reason why a row is not a problem."""


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
            last user turn, or before it if one is no text, or `column NAME`, whose values are no
            JSON.
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
    for row in read_rows(files, _COLUMNS):
        rows += 1
        try:
            if row.error is not None:
                raise RowError(row.error)
            problems.append(parse_row(row.fields))
            places.append(row.place)
            lost.update(_lost_parts(row.fields))
        except RowError as error:
            counts["malformed"] += 1
            messages.append(_message(f"{row.place}: {error}"))
    named = messages[:NAMED_ROWS]
    if files.beside:
        some = ", ".join(files.names_beside[:3]) + (", ..." if len(files.beside) > 3 else "")
        chosen = "train split" if files.has_split else "tables"
        named.insert(0, _message(f"{len(files.beside)} files beside the {chosen} ({some})"))
    if unique:
        read = problems
        problems, found = deduplicate(read)
        counts["duplicate"] = len(found.same_answer) + len(found.other_answer)
        counts["duplicate_with_other_answer"] = len(found.other_answer)
        counts["renamed_id"] = len(found.renamed)
        named += [
            _message(
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


def _message(text: str) -> str:
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


def parse_row(fields: Mapping[str, Any]) -> Problem:
    """The problem in a row.

    Raises:
        RowError: the row has no problem text, no usable answer or a bad value. The text names the
            field.
    """
    text = _problem_text(fields)
    given = next((fields[f] for f in ID_FIELDS if _is_id(fields.get(f))), None)
    pass_rate = fields.get("pass_rate")
    if pass_rate is not None and not (_is_number(pass_rate) and 0 <= pass_rate <= 1):
        raise RowError(f"pass_rate={pass_rate!r}: must lie in [0, 1]")
    tokens = fields.get("response_tokens")
    if tokens is not None and not (_is_number(tokens) and tokens >= 0):
        raise RowError(f"response_tokens={tokens!r}: must be a number of at least 0")
    source = fields.get("source") or fields.get("data_source") or ""
    return Problem(
        id=content_id(text) if given is None else _text("id", str(given).strip()),
        problem=text,
        answer=_answer(fields),
        source=_text("source", source if isinstance(source, str) else str(source)),
        pass_rate=None if pass_rate is None else float(pass_rate),
        response_tokens=None if tokens is None else float(tokens),
        extra={
            name: value
            for name, value in fields.items()
            if name not in _COLUMNS and value is not None and _is_json(value)
        },
        turns=_earlier_turns(fields),
    )


def _lost_parts(fields: Mapping[str, Any]) -> list[str]:
    """The parts of a row that its problem does not keep: see `ReadReport.lost`."""
    chat = _chat(fields)
    kept = 1 + len(_earlier_turns(fields))
    turns = ["turns"] if chat is not None and len(chat) > kept else []
    return turns + [
        f"column {name}"
        for name, value in fields.items()
        if name not in _COLUMNS and value is not None and not _is_json(value)
    ]


def _chat(fields: Mapping[str, Any]) -> list[Any] | None:
    """The chat messages of a row; None if its problem is a text."""
    chat = next((fields[f] for f in PROBLEM_FIELDS if fields.get(f) is not None), None)
    return chat if isinstance(chat, list) else None


def _earlier_turns(fields: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The turns before the last user turn; () if one of them is no text of a known role."""
    if (own := fields.get(TURNS)) is not None:
        pairs = [turn for turn in own if isinstance(turn, list)] if isinstance(own, list) else []
    else:
        turns = [turn for turn in _chat(fields) or () if isinstance(turn, Mapping)]
        users = [number for number, turn in enumerate(turns) if turn.get("role") == "user"]
        before = turns[: users[-1]] if users else []
        pairs = [[turn.get("role"), turn.get("content")] for turn in before]
    found = []
    for pair in pairs:
        if len(pair) != 2 or pair[0] not in ROLES or not isinstance(pair[1], str):
            return ()
        found.append((pair[0], _text("turns", pair[1])))
    return tuple(found)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _is_id(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or (
        isinstance(value, int) and not isinstance(value, bool)
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)  # an integer of any size


def _text(name: str, value: str) -> str:
    """The value, checked to be encodable in every output file.

    Raises:
        RowError: the value holds half of a character.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise RowError(f"{name}: holds {half}, half of a character; mend the escape") from None
    return value


def _problem_text(fields: Mapping[str, Any]) -> str:
    for name in PROBLEM_FIELDS:
        value = fields.get(name)
        if isinstance(value, list):
            turns = [turn for turn in value if isinstance(turn, Mapping)]
            users = [turn.get("content") for turn in turns if turn.get("role") == "user"]
            value = users[-1] if users else None
            if value is None:
                raise RowError(f"{name}: a list without a user turn")
        if value is None:
            continue
        if not isinstance(value, str):
            raise RowError(f"{name}: expected a text, got {type(value).__name__}")
        if value.strip():
            return _text(name, value.strip())
    present = [name for name in PROBLEM_FIELDS if name in fields]
    if present:
        raise RowError(f"{present[0]}: is empty")
    raise RowError(f"no {', '.join(PROBLEM_FIELDS)} among its fields ({', '.join(fields)})")


def _answer(fields: Mapping[str, Any]) -> Gold:
    for name in ANSWER_FIELDS:
        value = fields.get(name)
        if name == "reward_model" and value is not None:
            if not isinstance(value, Mapping):
                raise RowError(f"{name}: expected an object, got {type(value).__name__}")
            value = value.get("ground_truth")
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            continue
        if name == "solution" and isinstance(value, str):
            value = _from_solution(value)
        if isinstance(value, list):
            return [_one_answer(name, item) for item in value]
        return _one_answer(name, value)
    present = [name for name in ANSWER_FIELDS if name in fields]
    if present:
        raise RowError(f"{present[0]}: is empty")
    raise RowError(f"no {', '.join(ANSWER_FIELDS)} among its fields ({', '.join(fields)})")


def _one_answer(name: str, value: Any) -> str | int | float:
    if isinstance(value, str):
        text = value.rpartition("#### ")[2].strip()
        if not text:
            raise RowError(f"{name}: is empty")
        return _text(name, text)
    if _is_number(value):
        return value
    raise RowError(f"{name}={value!r}: expected a text, a finite number or a list of them")


def _from_solution(text: str) -> str:
    """The answer in a worked solution."""
    from polaris_jax.reward.extract import boxed_list

    boxed = boxed_list(text)
    if boxed is not None:
        return boxed
    if "#### " in text or (len(text) <= _SHORT_SOLUTION_CHARS and "\n" not in text.strip()):
        return text
    raise RowError(
        "solution: a worked text without \\boxed{}; give the final answer in a field of its own"
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
    lines = []
    for p in problems:
        more = [p.extra] if extras and p.extra else []
        more += [p.turns] if p.turns else []
        lines.append(json.dumps([p.id, p.problem, repr(p.answer), *more]))
    lines.sort()
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": pa.array([p.id for p in problems], pa.string()),
        "problem": pa.array([p.problem for p in problems], pa.string()),
        "answer": pa.array([json.dumps(p.answer) for p in problems], pa.string()),
        "source": pa.array([p.source for p in problems], pa.string()),
        "pass_rate": pa.array([p.pass_rate for p in problems], pa.float64()),
        "response_tokens": pa.array([p.response_tokens for p in problems], pa.float64()),
    }
    extras = [{**p.extra, **({TURNS: p.turns} if p.turns else {})} for p in problems]
    if any(extras):
        texts = [json.dumps(extra) if extra else None for extra in extras]
        columns[EXTRA] = pa.array(texts, pa.string())
    record = {} if made_of is None else {MADE_OF: json.dumps(made_of, sort_keys=True).encode()}
    table = pa.table(columns).replace_schema_metadata(JSON_ANSWERS | record)
    out = io.BytesIO()
    pq.write_table(table, out, write_page_checksum=True)
    write_bytes(path, out.getvalue())
