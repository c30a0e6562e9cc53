"""Where a response first contains a string that ends it, to the token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]

# What decoding may change at the beginning of a piece: a stripped space, a character cut in two.
MARGIN_CHARS = 8


def completing_token(
    tokens: Sequence[int], first_new: int, strings: Sequence[str], decode: Decode
) -> int | None:
    """The index of the token with which the text first contains one of the strings.

    Text is decoded from a few tokens before the new ones, not from the first on: decoding must be
    local, so that a piece's text is the whole text's but for its first few characters.

    Args:
        tokens: of the response.
        first_new: tokens from here on are new; the text of those before contains no string.
        strings: non-empty.
        decode: text of token ids.

    Returns:
        Its index, or None where the text contains none of them.
    """
    start = _context_start(tokens, first_new, max(map(len, strings)) + MARGIN_CHARS, decode)

    def found(end: int) -> bool:
        text = decode(list(tokens[start:end]))
        return any(string in text for string in strings)

    if not found(len(tokens)):
        return None
    return next(end for end in range(first_new + 1, len(tokens) + 1) if found(end)) - 1


def _context_start(tokens: Sequence[int], first_new: int, chars: int, decode: Decode) -> int:
    """From where on the tokens before `first_new` have at least so many characters, if anywhere."""
    back = chars
    while back < first_new and len(decode(list(tokens[first_new - back : first_new]))) < chars:
        back *= 2
    return max(0, first_new - back)
