r"""The answer in a text of any form: boxes, "the answer is ...", else the last formula or number.

This is for grading other systems' answers, never for training, because it accepts answers that the
writer did not mark. Every step is one pass over the text.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

from polaris_jax.reward.extract import boxes_backwards

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
    if len(text) <= MAX_WHOLE_CHARS and _is_bare(text):
        return text.strip() or None
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
