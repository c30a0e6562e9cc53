"""Extracts the answer of a response: the content of its last box.

This takes one pass, linear in the length of any text, because responses may have hundreds of
kilobytes and the code runs in the trainer's own process.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from polaris_jax.reward.tex import HiddenParts, closing_brace, is_doubled, is_escaped

Mode = Literal["train", "eval", "free"]

THINK_END = "</think>"

# The fallback gives up after this number of boxes that never close: the scan stays linear.
MAX_LOOKED_AT = 32

WINDOW_CHARS = 1 << 16
LONGEST_COMMAND = 8  # `\\boxed`, the character after it that must not be a letter, and one more
_COMMAND = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")  # not `\boxedx`
_OPEN = re.compile(r"\s{0,8}\{")
# `\boxed 5`, `\boxed5`: TeX would box one digit, the writer means the number.
_BARE = re.compile(r"\s{0,8}([-+]?\d(?:[\d.,/]{0,63}\d)?|[A-Za-z](?![A-Za-z]))")
# `\boxed\frac{1}{2}`, `\boxed\frac12`, `\boxed\pi`: a command and what it takes.
_BARE_COMMAND = re.compile(
    r"\s{0,8}-?(?:\\[dtc]?(?P<two>frac|binom)(?:\s?\d\s?\d)?"
    r"|\\(?P<one>sqrt|text|textbf|mathrm|mathbf)(?:\[\w{1,8}\])?(?:\s?\d)?"
    r"|\\(?:pi|infty|emptyset|varnothing)(?![A-Za-z]))"
)


def check_mode(mode: str) -> None:
    """Raises ValueError unless `mode` is "train", "eval" or "free"."""
    if mode not in get_args(Mode):
        raise ValueError(
            f"mode={mode!r}: a response is graded as 'train' (the answer after "
            "</think>), 'eval' (the response alone) or 'free' (another system's answer); pass one "
            "of them."
        )


def last_box(text: str, *, fall_back: bool = False) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}`, or None.

    Args:
        text: any text; escaped braces do not count, nested ones balance.
        fall_back: True: if the last box never closes, take the last complete box before it.

    Returns:
        The content, stripped. None if there is no box, or the box is empty or does not close.
    """
    for box in boxes_backwards(text):
        if box.content is not None or not fall_back:
            return box.content or None
    return None


class Box(NamedTuple):
    """A box in a text: start of its command, end of the box, content (None: it never closes)."""

    start: int
    end: int
    content: str | None


def boxes_backwards(text: str) -> Iterator[Box]:
    """The boxes of a text, last first, at most MAX_LOOKED_AT of them."""
    boxes = _box_commands_backwards(text)
    for start, position in itertools.islice(boxes, MAX_LOOKED_AT):
        if opened := _OPEN.match(text, position):
            end = closing_brace(text, opened.end())
            if end is None:
                yield Box(start, len(text), None)
            else:
                yield Box(start, end + 1, text[opened.end() : end].strip())
        elif bare := _BARE.match(text, position):
            yield Box(start, bare.end(), bare.group(1))
        elif command := _BARE_COMMAND.match(text, position):
            yield _command_box(text, start, command)


def _command_box(text: str, start: int, command: re.Match[str]) -> Box:
    """The box around a command and the groups that it takes."""
    end = command.end()
    if not command.group()[-1].isdigit():
        for _ in range(2 if command["two"] else 1 if command["one"] else 0):
            opened = _OPEN.match(text, end)
            closed = closing_brace(text, opened.end()) if opened else None
            if closed is None:
                return Box(start, len(text), None)
            end = closed + 1
    return Box(start, end, text[command.start() : end].strip())


def _box_commands_backwards(text: str) -> Iterator[tuple[int, int]]:
    """Starts and ends of the box commands that TeX would execute, last first."""
    hidden: HiddenParts | None = None
    doubled: bool | None = None
    # From window to window: a text may hold thousands of commands that only begin like these.
    for last in range(len(text), 0, -WINDOW_CHARS):
        first = max(0, last - WINDOW_CHARS)
        found = list(_COMMAND.finditer(text, first, last + LONGEST_COMMAND))
        for command in reversed(found):
            start = command.start()
            if start >= last:
                continue
            if is_escaped(text, start):
                doubled = is_doubled(text) if doubled is None else doubled
                if not doubled or is_escaped(text, start, doubled=True):
                    continue
            hidden = hidden or HiddenParts(text)
            if start not in hidden:
                yield start, command.end()


def graded_text(text: str, prompt_text: str, opening: str | None, mode: Mode) -> str:
    """The text that is graded: the response, in train mode after the beginning of its own turn.

    The tags of a system prompt, a question or an earlier turn say nothing of this response's
    thinking. A chat template without thinking or `data.response_prefill` may have ended it.

    Args:
        text: the response.
        prompt_text: its prompt.
        opening: how the prompt begins the response's turn; None: not known. A `</think>` then
            counts if the prompt ends with it.
        mode: see `response_answer`.
    """
    if mode != "train":
        return text
    if opening is None:
        opening = THINK_END if prompt_text.rstrip().endswith(THINK_END) else ""
    return opening + text


def response_answer(text: str, mode: Mode = "train") -> str | None:
    """The answer in a response; None if there is no answer to grade.

    Args:
        text: a response, in train mode with what the prompt has of its turn: see `graded_text`.
        mode: "train" needs `</think>` and reads the text between the first and the second
            `</think>` (or the end); a last box that never closes is no answer. "eval" reads the
            last complete box anywhere. "free" reads boxes as a list, else "the answer is", else the
            last formula or number; it is for other systems' answers, never for training.

    Raises:
        ValueError: the mode is unknown.
    """
    check_mode(mode)
    if mode == "eval":
        return last_box(text, fall_back=True)
    if mode == "free":
        return free_answer(text)
    _, mark, after = text.partition(THINK_END)
    if not mark:
        return None
    return last_box(after.partition(THINK_END)[0])


# ---- a text of any form: boxes, "the answer is ...", else the last formula or number. For grading
# other systems' answers, never for training: it accepts answers that the writer did not mark.
# Every step is one pass over the text.

MAX_WHOLE_CHARS = 200  # a text this short without prose is its own answer
MAX_GAP_CHARS = 60  # between two parts of one list
MAX_GAP_WORDS = 6
MAX_PARTS = 32

_ANNOUNCED = re.compile(r"answers?(?:\s{1,4}(?:is|are|was|to|for)\b|\s{0,4}[:=])", re.IGNORECASE)
_MARK = re.compile(r"\\\\|\\\$|\$\$|\$|\\\(|\\\)|\\\[|\\\]")
_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:/\d+)?"
    r"(?:\s?\\?%|\s(?:percent|pct)\b)?"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z<]|\s*$)|\n\s*\n|<\|", re.MULTILINE)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_JOINS = re.compile(r"[,;]|\b(?:and|or)\b", re.IGNORECASE)
# A gap with one of these leads from one result to the next; it lists nothing.
_LEADS_ON = re.compile(
    r"\b(?:so|then|thus|hence|therefore|is|are|gives?|get|becomes|where|since|because|which|if|not)"
    r"\b|=|[.!?]\s",
    re.IGNORECASE,
)
# `I think`, `So we get that it is`, `Maybe`, `Result:`: words before an answer that say nothing.
_LEAD_IN = re.compile(
    r"\s{0,8}(?:(?:so|thus|hence|therefore|then|well|ok|okay|maybe|perhaps|probably|presumably|likely|"
    r"surely|clearly|certainly|finally|yes|sure|hmm?|um)\b,?\s{1,8})?"
    r"(?:(?:i['’]m|i\sam|we\sare)\s{1,4}(?:sure|certain|confident)\s{1,4}(?:that\s{1,4})?)?"
    r"(?:(?:i|we)(?:['’](?:d|ve|ll))?\s{1,4}(?:(?:would|can|will|have|also|now)\s{1,4})?"
    r"(?:think|thought|believe|guess|say|said|get|got|find|found|obtain|obtained|have|had|conclude|"
    r"suppose|reckon|compute|computed|calculate|calculated|see|answer)\b[,:]?\s{1,8}"
    r"(?:that\s{1,4})?)?"
    r"(?:(?:it|this|that)(?:['’]s|\s{1,4}(?:is|equals|must\sbe))\s{1,8})?"
    r"(?:(?:(?:the|my)\s{1,4})?(?:final\s{1,4})?(?:(?:ans|answer|guess|result|solution|value)\s{0,4}"
    r"(?:is\b|[:=])|ans(?:wer)?\s)\s{0,8})?",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"\bI(?:['’][a-z]{1,2})?\s{1,4}[a-z]{2}")  # `42, I think`
_CLOSERS = {r"\(": r"\)", r"\[": r"\]", "$": "$", "$$": "$$"}


class Span(NamedTuple):
    """A piece of text that may be an answer, or a part of one."""

    start: int
    end: int
    content: str


def boxed_list(text: str) -> str | None:
    r"""The content of the last complete box, with earlier boxes that a comma or `and` joins to it.

    None if there is no box, or the last one is empty.
    """
    boxes = _whole_boxes(text)
    return _last_list(text, boxes) if boxes and boxes[-1].content else None


def free_answer(text: str) -> str | None:
    """The answer of a text that marks it by a box, by words, by a formula, or not at all.

    Several boxes, or formulas, joined by commas or `and` make one list.
    """
    if _whole_boxes(text):
        return boxed_list(text)
    if len(text) <= MAX_WHOLE_CHARS:
        said = _LEAD_IN.sub("", text, count=1)
        if _is_bare(said):
            return said.strip() or None
    if (announced := _last(_ANNOUNCED, text)) is not None:
        end = _SENTENCE_END.search(text, announced.end())
        said = text[announced.end() : end.start() if end else len(text)]
        if found := _last_formula_or_number(said):
            return found
        if said.strip() and len(said) <= MAX_WHOLE_CHARS:
            return said.strip()
    if found := _last_formula_or_number(text):
        return found
    return text.strip() or None if len(text) <= MAX_WHOLE_CHARS else None


def _whole_boxes(text: str) -> list[Span]:
    """The boxes that close, in order; of nested ones the inner."""
    boxes: list[Span] = []
    for box in boxes_backwards(text):
        if box.content is not None and not (boxes and box.end > boxes[-1].start):
            boxes.append(Span(box.start, box.end, box.content))
    return boxes[::-1]


def _last(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    """The last match from a place on."""
    found = deque(pattern.finditer(text, start), maxlen=1)
    return found[0] if found else None


def _is_bare(text: str) -> bool:
    """Whether a text without formula marks is an expression, or one word, rather than prose."""
    if any(mark.group() not in ("\\\\", "\\$") for mark in _MARK.finditer(text)):
        return False
    words = [word for word in _WORD.findall(text) if word.lower() not in ("and", "or")]
    if _PRONOUN.search(text):
        return False
    return len(words) <= 1 or "\\" in text[:1]


def _formulas(text: str) -> list[Span]:
    """The contents of `$...$`, `$$...$$`, `\\(...\\)` and `\\[...\\]`, in order."""
    found: list[Span] = []
    opened: tuple[str, int, int] | None = None
    for mark in _MARK.finditer(text):
        sign = mark.group()
        if sign in ("\\\\", "\\$"):
            continue
        if opened is not None and sign == _CLOSERS[opened[0]]:
            content = text[opened[2] : mark.start()].strip()
            if content:
                found.append(Span(opened[1], mark.end(), content))
            opened = None
        elif opened is None and sign in _CLOSERS:
            opened = (sign, mark.start(), mark.end())
    return found


def _last_formula_or_number(text: str) -> str | None:
    formulas = _formulas(text)
    number = _last(_NUMBER, text, formulas[-1].end if formulas else 0)
    if number is not None:
        return number.group().strip()
    return _last_list(text, formulas) if formulas else None


def _last_list(text: str, spans: list[Span]) -> str | None:
    """The last span, with those before it that a comma or `and` joins to it."""
    parts = [spans[-1]]
    for span in reversed(spans[:-1]):
        if len(parts) == MAX_PARTS or not _joined(text[span.end : parts[0].start]):
            break
        parts.insert(0, span)
    return ", ".join(part.content for part in parts if part.content) or None


def _joined(gap: str) -> bool:
    if len(gap) > MAX_GAP_CHARS or len(_WORD.findall(gap)) > MAX_GAP_WORDS:
        return False
    return _JOINS.search(gap) is not None and _LEADS_ON.search(gap) is None
