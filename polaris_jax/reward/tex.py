r"""How TeX reads a text: braces, escaped backslashes, comments, verbatim text.

Everything is one pass, linear in the length of any text.
"""

from __future__ import annotations

import bisect
import re

_BRACE = re.compile(
    r"\\.|[{}]", re.DOTALL
)  # an escaped character, so `\{` never counts, or a brace


def closing_brace(text: str, start: int) -> int | None:
    """The position where the brace opened before `start` closes; None if it never closes."""
    depth = 1
    for mark in _BRACE.finditer(text, start):
        if mark.group() == "{":
            depth += 1
        elif mark.group() == "}":
            depth -= 1
            if depth == 0:
                return mark.start()
    return None


# Commands by which a text shows that each of its backslashes was doubled, as in a JSON string.
_USUAL = re.compile(
    r"(?<!\\)(\\{1,2})(?:[dt]?frac|sqrt|left|right|cdot|times|text|mathrm|mathbb|pi|theta|angle|begin"
    r"|sin|cos|log|ln|leq?|geq?|(boxed|fbox))(?![A-Za-z])"
)


def is_doubled(text: str) -> bool:
    """Whether every usual command has two backslashes, and one of them is no box."""
    others = False
    for command in _USUAL.finditer(text):
        if len(command.group(1)) == 1:
            return False
        others = others or command.group(2) is None
    return others


def is_escaped(text: str, place: int, *, doubled: bool = False) -> bool:
    r"""Whether the backslash at a place ends a line break: `\\boxed` is a break and a word.

    doubled: two backslashes in the text stand for one.
    """
    first = place
    while first and text[first - 1] == "\\":
        first -= 1
    count = place - first + 1
    return count % 4 != 2 if doubled else count % 2 == 0


# ---- what TeX shows as it is written, or not at all: comments and verbatim text

_MAY_HIDE = re.compile(
    r"%|<!--|\\(?:verb|Verb|lstinline|mintinline|iffalse|begin\s{0,8}\{(?:[BL]?[Vv]erb|lst|mint|comm))"
)
_HIDING = re.compile(
    r"\\begin\s{0,8}\{(?P<environment>(?:[BL]?[Vv]erbatim|lstlisting|minted|comment)\*?)\}"
    r"|\\(?P<inline>[Vv]erb|lstinline|mintinline)(?![A-Za-z])\*?"
    r"|\\(?P<false>iffalse)(?![A-Za-z])|(?P<percent>%)|(?P<html><!--)|\\.",
    re.DOTALL,
)
_INLINE_OPTIONS = re.compile(r"(?:\[[^\]\n]{0,200}\])?")
_LANGUAGE = re.compile(r"\{\w{1,20}\}")
_BOX_FOLLOWS = re.compile(r"%{1,8}[ \t]{0,8}\\(?:boxed|fbox)(?![A-Za-z])")
# `% increase = 25`, `(in %)`: what makes a percent sign of a % that no number precedes.
_PERCENT_FOLLOWS = re.compile(
    r"%[ \t]{0,8}(?:[)=,.:;?]|(?:of|off|is|are|was|were|in|by|more|less|greater|higher|lower|"
    r"larger|smaller|increase|decrease|change|difference|error|discount|profit|loss|gain|yield|growth|"
    r"interest|markup|points?|rate|value|share|chance|probability|does|do|did|will|would|should|"
    r"can|has|have|had)\b)"
)
# `n % 7`, `a % b`, `**Profit %** =`, `Profit % → 20`: a modulo, or a percent sign before markup,
# where a line has begun before. Comments of TeX begin with a word or a command.
_TERM_FOLLOWS = re.compile(
    r"%[ \t]{0,8}(?:\d+(?![A-Za-z\d])|[b-zB-HJ-Z](?![A-Za-z])"
    r"|[aAI](?![A-Za-z])(?![ \t]+[A-Za-z]{2})|[*$}`&≈→⇒]|\\[(\[])"
)
_LOOK_BACK_CHARS = 80
MAX_INLINE_CHARS = 400  # of `\\verb|...|` and of a comment of HTML


class HiddenParts:
    """The places of a text that stand in a comment or in verbatim text; found in one pass."""

    def __init__(self, text: str) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        first = _MAY_HIDE.search(text)
        if first is None:
            return
        position = first.start()
        while position and text[position - 1] == "\\":  # a run of backslashes from its start
            position -= 1
        while (mark := _HIDING.search(text, position)) is not None:
            position = mark.end()
            end = _hidden_end(text, mark)
            if end is not None:
                self._starts.append(mark.start())
                self._ends.append(end)
                position = max(position, end)

    def __contains__(self, place: int) -> bool:
        before = bisect.bisect(self._starts, place) - 1
        return before >= 0 and place < self._ends[before]


def _hidden_end(text: str, mark: re.Match[str]) -> int | None:
    """The end of what a mark hides; None if the mark hides nothing."""
    kind = mark.lastgroup
    if kind == "percent":
        return _after(text, "\n", mark.end()) if _is_comment(text, mark.start()) else None
    if kind == "environment":
        return _after(text, f"\\end{{{mark[kind]}}}", mark.end())
    if kind == "false":
        return _after(text, "\\fi", mark.end())
    if kind == "html":
        end = text.find("-->", mark.end(), mark.end() + MAX_INLINE_CHARS)
        return None if end < 0 else end
    return _inline_end(text, mark) if kind == "inline" else None


def _after(text: str, closer: str, start: int) -> int:
    """The end of the next `closer`, or of the text."""
    found = text.find(closer, start)
    return len(text) if found < 0 else found + len(closer)


def _inline_end(text: str, mark: re.Match[str]) -> int | None:
    """The end of `\\verb|...|` and its like; None if the line ends before."""
    start = mark.end()
    if not mark["inline"].lower().startswith("verb"):
        options = _INLINE_OPTIONS.match(text, start)
        start = options.end() if options else start
        language = _LANGUAGE.match(text, start) if mark["inline"] == "mintinline" else None
        start = language.end() if language else start
        if text[start : start + 1] == "{":
            closed = closing_brace(text[start + 1 : start + MAX_INLINE_CHARS // 2], 0)
            return None if closed is None else start + closed + 2
    line = text[start : start + MAX_INLINE_CHARS].partition("\n")[0]
    if not line or line[0].isspace() or line[0].isalnum():
        return None
    end = line.find(line[0], 1)
    return None if end < 0 else start + end + 1


def _is_comment(text: str, place: int) -> bool:
    """Whether a % without a backslash begins a comment, as TeX reads it; in prose it may not.

    Behind a number, a formula or a bracket it is a percent sign, and so it is before words like
    `of` and `increase`. Within a line it is a modulo or a percent sign before a number, a single
    letter or markup. A % with nothing but spaces up to a box hides that box.
    """
    before = text[max(0, place - _LOOK_BACK_CHARS) : place]
    seen = before.rstrip(" \t")
    begins_line = not seen or seen[-1] in "\r\n"
    spaced = begins_line or seen != before
    if _BOX_FOLLOWS.match(text, place) and (spaced or seen[-2:].isalpha()):
        return True
    if _PERCENT_FOLLOWS.match(text, place):
        return False
    if begins_line:
        return True
    if _TERM_FOLLOWS.match(text, place):
        return False
    number = seen[-1].isdigit() or seen[-1] in ")]}$|" or (not spaced and seen[-1].isalpha())
    return not number
