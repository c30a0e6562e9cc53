"""Texts of others as a person may see them. Light to import: grading workers do it."""

from __future__ import annotations

import re

# Control characters (ESC begins a terminal's commands), line separators, marks that reverse the
# direction of writing, and halves of characters, which no output can hold.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, *, lines: bool = False) -> str:
    """The text with every character escaped that could steer a terminal or forge a line.

    Args:
        text: text of unknown origin.
        lines: True keeps line feeds and tabs, for texts of several lines.
    """

    def escaped(match: re.Match[str]) -> str:
        char = match[0]
        if lines and char in "\n\t":
            return char
        return char.encode("unicode_escape").decode()

    return _HIDDEN.sub(escaped, text)


def one_line(error: BaseException, *, most_chars: int = 300) -> str:
    """An exception's type and text in one printable line."""
    text = printable(" ".join(str(error).split()))[:most_chars]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
