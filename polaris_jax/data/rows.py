"""The problem in a row of a data set, whatever its fields are called."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from polaris_jax.data.filters import content_id
from polaris_jax.data.tables import TURNS
from polaris_jax.records import Gold, Problem

PROBLEM_FIELDS = ("problem", "question", "prompt", "messages", "conversations")
ANSWER_FIELDS = (
    *("answer", "gold", "final_answer", "ground_truth", "reward_model", "solution"),
    *("solutions", "completion"),
)
ID_FIELDS = ("id", "problem_id", "unique_id", "uid", "index")
ROLES = ("system", "user", "assistant")
EARLIER = "earlier turns"  # see `lost_parts`
_WORKED = ("solution", "solutions", "completion")  # their last box is the answer
_SHORT_SOLUTION_CHARS = 60
# Columns that are no `Problem.extra`, and those that are none if the problem or its answer is read
# from them.
_OURS = frozenset(
    (
        *("problem", "question", "prompt"),
        *("answer", "gold", "final_answer", "ground_truth", "reward_model", "solution"),
        *ID_FIELDS,
        *("pass_rate", "response_tokens", "source", "data_source", TURNS),
    )
)
_OURS_IF_USED = ("messages", "conversations", "solutions", "completion")
COLUMNS = _OURS.union(_OURS_IF_USED)
# ShareGPT's names of a turn's fields and of its roles.
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_OTHER_ROLES = {"developer": "system"}
_RATE = re.compile(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*")
# GSM8K's mark of the answer, on the last line; MetaMathQA repeats the answer behind it.
_MARKED = re.compile(r"#### ((?:(?!#### )[^\n])*)(?:\nThe answer is:[^\n]*)?\s*\Z")
_CHAT_TEXT = re.compile(r"\s*\[\s*\{\s*\"(?:role|from|content|value)\"\s*:")
_MOST_CHARS_OF_A_LISTED_ANSWER = 200


class RowError(ValueError):
    """The reason why a row is not a problem."""


class NeedsImage(RowError):
    """A row whose question holds an image."""


def parse_row(fields: Mapping[str, Any]) -> Problem:
    """The problem in a row.

    Raises:
        RowError: the row has no problem text, no usable answer or a bad value. The text names the
            field.
    """
    fields = _with_chat(fields)
    text = _problem_text(fields)
    given = next((fields[f] for f in ID_FIELDS if _is_id(fields.get(f))), None)
    pass_rate = _as_rate(fields.get("pass_rate"))
    if pass_rate is not None and not (_is_number(pass_rate) and 0 <= pass_rate <= 1):
        raise RowError(f"pass_rate={pass_rate!r}: must lie in [0, 1]")
    tokens = _as_number(fields.get("response_tokens"))
    if tokens is not None and not (_is_number(tokens) and tokens >= 0):
        raise RowError(f"response_tokens={tokens!r}: must be a number of at least 0")
    source = fields.get("source") or fields.get("data_source") or ""
    ours = _own_columns(fields)
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
            if name not in ours and value is not None and _is_json(value)
        },
        turns=_earlier_turns(fields),
    )


def lost_parts(fields: Mapping[str, Any]) -> list[str]:
    """The parts of a row that its problem does not keep: see `ReadReport.lost`."""
    fields = _with_chat(fields)
    chat = _chat(fields)
    earlier = len(_earlier_turns(fields))
    turns = ["turns"] if chat is not None and len(chat) > 1 + earlier else []
    if turns and not earlier and any(_turn(turn)[0] == "user" for turn in (chat or ())[1:]):
        turns.append(EARLIER)
    ours = _own_columns(fields)
    return turns + [
        f"column {name}"
        for name, value in fields.items()
        if name not in ours and value is not None and not _is_json(value)
    ]


def _with_chat(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its chat as a list, where it is the JSON text of one, as in a csv file.

    Raises:
        RowError: the text begins like a chat and is no JSON.
    """
    name = _problem_field(fields)
    value = None if name is None else fields[name]
    if name is None or not isinstance(value, str) or not _CHAT_TEXT.match(value):
        return fields
    try:
        return {**fields, name: json.loads(value)}
    except (ValueError, RecursionError):
        raise RowError(f"{name}: begins like a list of turns and is not valid JSON") from None


def _chat(fields: Mapping[str, Any]) -> list[Any] | None:
    """The chat messages of a row; None if its problem is a text."""
    name = _problem_field(fields)
    return fields[name] if name is not None and isinstance(fields[name], list) else None


def _problem_field(fields: Mapping[str, Any]) -> str | None:
    """The column that the problem is read from: the first one with something in it."""
    for name in PROBLEM_FIELDS:
        value = fields.get(name)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return name
    return None


def _own_columns(fields: Mapping[str, Any]) -> frozenset[str]:
    """The columns of a row that are not `Problem.extra`."""
    used = (_problem_field(fields), _answer_field(fields))
    return _OURS.union(name for name in _OURS_IF_USED if name in used)


def _turn(turn: Any) -> tuple[Any, Any]:
    """Role and text of a chat message, in OpenAI's form or in ShareGPT's.

    Content in parts is their texts, or the list itself if a part is no text.
    """
    if not isinstance(turn, Mapping):
        return None, None
    role, content = turn.get("role"), turn.get("content")
    if role is None and "value" in turn:
        role, content = turn.get("from"), turn["value"]
        role = _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else None
    if isinstance(role, str):
        role = _OTHER_ROLES.get(role, role)
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        texts = [text for text in parts if isinstance(text, str)]
        if len(texts) == len(parts):
            content = "\n".join(texts)
    return role, content


def _earlier_turns(fields: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The turns before the last user turn; () if one of them is no text of a known role."""
    if (own := fields.get(TURNS)) is not None:
        pairs = [turn for turn in own if isinstance(turn, list)] if isinstance(own, list) else []
    else:
        turns = [_turn(turn) for turn in _chat(fields) or () if isinstance(turn, Mapping)]
        users = [number for number, (role, _) in enumerate(turns) if role == "user"]
        pairs = [[role, text] for role, text in (turns[: users[-1]] if users else [])]
    found = []
    for pair in pairs:
        if len(pair) != 2 or pair[0] not in ROLES or not isinstance(pair[1], str):
            return ()
        found.append((pair[0], _text("turns", pair[1])))
    return tuple(found)


def _is_image(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and kind.startswith(("image", "input_image", "video"))


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
            users = [text for role, text in map(_turn, value) if role == "user"]
            value = users[-1] if users else None
            if value is None:
                raise RowError(f"{name}: a list without a user turn")
        if value is None:
            continue
        if isinstance(value, list) and any(map(_is_image, value)):
            raise NeedsImage(f"{name}: a part of it is an image")
        if not isinstance(value, str):
            raise RowError(f"{name}: expected a text, got {type(value).__name__}")
        if value.strip():
            return _text(name, value.strip())
    present = [name for name in PROBLEM_FIELDS if name in fields]
    if present:
        raise RowError(f"{present[0]}: is empty")
    raise RowError(f"no {', '.join(PROBLEM_FIELDS)} among its fields ({', '.join(fields)})")


def _answer_field(fields: Mapping[str, Any]) -> str | None:
    """The first column with an answer; None if there is none."""
    for name in ANSWER_FIELDS:
        value = fields.get(name)
        if name == "reward_model" and isinstance(value, Mapping):
            value = value.get("ground_truth")
        if not (value is None or value == [] or (isinstance(value, str) and not value.strip())):
            return name
    return None


def _answer(fields: Mapping[str, Any]) -> Gold:
    name = _answer_field(fields)
    if name is None:
        chat = _chat(fields)
        if chat is not None and (text := _last_reply(chat)):
            return _one_answer("answer", _from_solution(text, "the chat's last turn"))
        present = [name for name in ANSWER_FIELDS if name in fields]
        if present:
            raise RowError(f"{present[0]}: is empty")
        raise RowError(f"no {', '.join(ANSWER_FIELDS)} among its fields ({', '.join(fields)})")
    value = fields[name]
    if name == "reward_model":
        if not isinstance(value, Mapping):
            raise RowError(f"{name}: expected an object, got {type(value).__name__}")
        value = value.get("ground_truth")
    if name == "completion" and isinstance(value, list):
        value = _last_reply(value)
    if name in _WORKED and isinstance(value, list):
        value = [_from_solution(v, name) if isinstance(v, str) else v for v in value]
    elif name in _WORKED and isinstance(value, str):
        value = _from_solution(value, name)
    if name in ("ground_truth", "reward_model") and isinstance(value, str):
        value = _listed(value)
    if isinstance(value, list):
        return [_one_answer(name, item) for item in value]
    return _one_answer(name, value)


def _listed(text: str) -> str | list[str]:
    """The answers of a JSON list of short texts, as some sets for verl have them; else the text."""
    if text.lstrip().startswith('["'):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(found, list) and all(
            isinstance(item, str)
            and item.strip()
            and "\n" not in item
            and len(item) <= _MOST_CHARS_OF_A_LISTED_ANSWER
            for item in found
        ):
            return found
    return text


def _last_reply(chat: list[Any]) -> str:
    """The assistant's text after the last user turn; "" if there is none."""
    role, text = _turn(chat[-1]) if chat else (None, None)
    return text.strip() if role == "assistant" and isinstance(text, str) else ""


def _one_answer(name: str, value: Any) -> str | int | float:
    if isinstance(value, str):
        marked = _MARKED.search(value)
        text = (value if marked is None else marked[1]).strip()
        if not text:
            raise RowError(f"{name}: is empty")
        return _text(name, text)
    if _is_number(value):
        return value
    raise RowError(f"{name}={value!r}: expected a text, a finite number or a list of them")


def _from_solution(text: str, name: str) -> str:
    """The answer in a worked solution, in the field `name`."""
    from polaris_jax.reward.extract import boxed_list

    boxed = boxed_list(text)
    if boxed is not None:
        return boxed
    if _MARKED.search(text) or (len(text) <= _SHORT_SOLUTION_CHARS and "\n" not in text.strip()):
        return text
    raise RowError(
        f"{name}: a worked text without \\boxed{{}}; give the final answer in a field of its own"
    )


def _as_rate(value: Any) -> Any:
    """The value, or for a text such as "5/8" (Polaris-53K's form) or "0.5" the share."""
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None or not int(found[2]):
        return _as_number(value)
    return int(found[1]) / int(found[2])


def _as_number(value: Any) -> Any:
    """The value, or the number that a text of at most 40 characters spells, as in a csv file."""
    if isinstance(value, str) and len(value) <= 40:
        try:
            return float(value)
        except ValueError:
            return value
    return value
