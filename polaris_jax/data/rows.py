"""The problem in a row of a data set, whatever its fields are called."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from polaris_jax.data.filters import content_id
from polaris_jax.data.tables import TURNS
from polaris_jax.records import Gold, Problem

PROBLEM_FIELDS = ("problem", "question", "prompt")
ANSWER_FIELDS = ("answer", "gold", "final_answer", "ground_truth", "reward_model", "solution")
ID_FIELDS = ("id", "problem_id", "unique_id", "uid", "index")
ROLES = ("system", "user", "assistant")
_SHORT_SOLUTION_CHARS = 60
COLUMNS = frozenset(
    (
        *PROBLEM_FIELDS,
        *ANSWER_FIELDS,
        *ID_FIELDS,
        *("pass_rate", "response_tokens", "source", "data_source", TURNS),
    )
)


class RowError(ValueError):
    """The reason why a row is not a problem."""


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
            if name not in COLUMNS and value is not None and _is_json(value)
        },
        turns=_earlier_turns(fields),
    )


def lost_parts(fields: Mapping[str, Any]) -> list[str]:
    """The parts of a row that its problem does not keep: see `ReadReport.lost`."""
    chat = _chat(fields)
    kept = 1 + len(_earlier_turns(fields))
    turns = ["turns"] if chat is not None and len(chat) > kept else []
    return turns + [
        f"column {name}"
        for name, value in fields.items()
        if name not in COLUMNS and value is not None and not _is_json(value)
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
