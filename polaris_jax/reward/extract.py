"""The answer that a response commits to: the content of its last box.

One pass over the text, linear in its length whatever it holds: responses run to hundreds of
kilobytes, and this runs in the trainer's own process.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

Mode = Literal["train", "eval"]

THINK_END = "</think>"

# A box command (not `\boxedx`), any other escaped character (so `\{` never counts), or a brace.
_MARK = re.compile(r"\\{1,3}(?:boxed|fbox)(?![A-Za-z])|\\.|[{}]", re.DOTALL)
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
    open_starts: list[int] = []  # content start of each open brace; -1 for a plain brace
    best_start, best = -1, None
    unclosed_start = -1
    position, end = 0, len(text)
    while position < end:
        mark = _MARK.search(text, position)
        if mark is None:
            break
        position = mark.end()
        token = mark.group()
        if token == "{":
            open_starts.append(-1)
        elif token == "}":
            if open_starts:
                start = open_starts.pop()
                if start > best_start:
                    best_start, best = start, text[start : mark.start()]
        elif token.endswith("boxed") or token.endswith("fbox"):
            if opened := _OPEN.match(text, position):
                position = opened.end()
                open_starts.append(position)
            elif bare := _BARE.match(text, position):
                best_start, best = bare.start(1), bare.group(1)
    unclosed_start = max(open_starts, default=-1)
    if best is None or (unclosed_start > best_start and not fall_back):
        return None
    return best.strip() or None


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
    before, mark, after = text.partition(THINK_END)
    if not mark:
        return None
    return last_box(after.partition(THINK_END)[0])
