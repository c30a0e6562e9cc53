"""The answer that a response commits to: the content of its last box.

One pass over the text, linear in its length whatever it holds: responses run to hundreds of
kilobytes, and this runs in the trainer's own process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, get_args

Mode = Literal["train", "eval"]

THINK_END = "</think>"

# A fallback past so many boxes that never close is given up: it keeps the scan linear.
MAX_LOOKED_AT = 32

_COMMAND = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")  # not `\boxedx`
_BRACE = re.compile(
    r"\\.|[{}]", re.DOTALL
)  # an escaped character, so `\{` never counts, or a brace
_OPEN = re.compile(r"\s{0,8}\{")
# `\boxed 5`, `\boxed5`: TeX would box one digit, the writer means the number.
_BARE = re.compile(r"\s{0,8}([-+]?\d[\d.,/]{0,64}|[A-Za-z](?![A-Za-z]))")


def check_mode(mode: str) -> None:
    """Raises ValueError unless `mode` is "train" or "eval"."""
    if mode not in get_args(Mode):
        raise ValueError(
            f"mode={mode!r}: a response is graded as 'train' (prompt + response, answer after "
            "</think>) or 'eval' (the response alone); pass one of them."
        )


def last_box(text: str, *, fall_back: bool = False) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}`, or None.

    Args:
        text: any text; escaped braces do not count, nested ones balance.
        fall_back: when the last box never closes, take the last whole one before it.

    Returns:
        The content, stripped. None when there is no box, it is empty, or it does not close.
    """
    for looked_at, position in enumerate(_box_ends_backwards(text), start=1):
        if opened := _OPEN.match(text, position):
            content = _to_closing_brace(text, opened.end())
            if content is not None:
                return content.strip() or None
            if not fall_back:
                return None
        elif bare := _BARE.match(text, position):
            return bare.group(1)
        if looked_at == MAX_LOOKED_AT:  # each unclosed box costs a scan to the end
            return None
    return None


def _box_ends_backwards(text: str) -> Iterator[int]:
    """Ends of the box commands of a text, last first."""
    end = len(text)
    while (start := max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))) >= 0:
        command = _COMMAND.match(text, start)
        if command is not None:
            yield command.end()
        end = start


def _to_closing_brace(text: str, start: int) -> str | None:
    depth = 1
    for mark in _BRACE.finditer(text, start):
        if mark.group() == "{":
            depth += 1
        elif mark.group() == "}":
            depth -= 1
            if depth == 0:
                return text[start : mark.start()]
    return None


def response_answer(text: str, mode: Mode = "train") -> str | None:
    """The answer in a response, or None where there is none to grade.

    Args:
        text: prompt + response in train mode, the response alone in eval mode.
        mode: "train" needs `</think>` and reads between the first and the second one (or the
            end); a last box that never closes is no answer. "eval" reads the last whole box
            anywhere.

    Raises:
        ValueError: another mode.
    """
    check_mode(mode)
    if mode == "eval":
        return last_box(text, fall_back=True)
    _, mark, after = text.partition(THINK_END)
    if not mark:
        return None
    return last_box(after.partition(THINK_END)[0])
