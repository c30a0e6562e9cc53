"""Finds the token at which a response first contains a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]

# What decoding may change at the beginning of a piece: a stripped space, a character cut in two.
MARGIN_CHARS = 8


def completing_token(
    tokens: Sequence[int], first_new: int, strings: Sequence[str], decode: Decode
) -> int | None:
    """The index of the token with which the text first contains one of the strings.

    Text is decoded from a few tokens before the new tokens, not from the first token on. So
    decoding must be local: the text of a part must be the same part of the complete text, except
    for the first few characters.

    Args:
        tokens: token ids of the response.
        first_new: index of the first new token; the text before it contains none of the strings.
        strings: non-empty strings.
        decode: the text of token ids.

    Returns:
        The index, or None if the text contains none of the strings.
    """
    start = _context_start(tokens, first_new, max(map(len, strings)) + MARGIN_CHARS, decode)

    def found(end: int) -> bool:
        text = decode(list(tokens[start:end]))
        return any(string in text for string in strings)

    if not found(len(tokens)):
        return None
    return next(end for end in range(first_new + 1, len(tokens) + 1) if found(end)) - 1


def _context_start(tokens: Sequence[int], first_new: int, chars: int, decode: Decode) -> int:
    """An index from which the tokens before `first_new` have `chars` characters or more, else 0."""
    back = chars
    while back < first_new and len(decode(list(tokens[first_new - back : first_new]))) < chars:
        back *= 2
    return max(0, first_new - back)
