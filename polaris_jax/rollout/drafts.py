"""Drafts of the tokens that may follow a row, from other texts that answer the same prompt.

The texts are earlier responses, and the responses that are sampled now, as far as they are. What
followed the longest run of tokens that a text shares with the row's end is the draft. Drafts change
no token (`programs.drafted`); a bad one costs time alone.

An index knows for each pair of tokens where it was followed by what. The places of a pair form a
chain, the newest first, as in LZ77 compressors. So a token is added by a fixed amount of work, and
a search compares at most `MOST_PLACES` x `LONGEST_MATCH` tokens.

Source: history as a source of drafts, DAS (arXiv:2511.13841); drafts from suffixes, SuffixDecoding,
Oliaro et al. 2024 (arXiv:2411.04975), section 3; hash chains, Deutsch 1996 (RFC 1951), section 4.
Differs: chains in place of a suffix tree, and one draft in place of a tree of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PAIR = 2
MOST_PLACES = 32
LONGEST_MATCH = 32
BEFORE_TEXT = -1  # stands before a text's first token, so that its beginning is a pair too
_TEXT = 32  # a place is its text's index, shifted, and its position


class Draft(NamedTuple):
    """Tokens that may follow, and the number of tokens before them that agree with the row."""

    tokens: list[int]
    match: int


class PromptTexts:
    """Texts that answer one prompt, and where each pair of their tokens occurred."""

    def __init__(self) -> None:
        self._texts: list[list[int]] = []
        self._earlier: list[list[int]] = []  # by text and position: the pair's place before this
        self._newest: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def new_text(self) -> int:
        """Begins an empty text; returns its index."""
        self._texts.append([BEFORE_TEXT] * PAIR)
        self._earlier.append([])
        return len(self._texts) - 1

    def length(self, text: int) -> int:
        """Number of tokens of a text."""
        return len(self._texts[text]) - PAIR

    def extend(self, text: int, tokens: Sequence[int]) -> None:
        """Appends tokens to a text.

        Args:
            text: index of the text.
            tokens: the tokens that follow what the text has.
        """
        known, earlier, newest = self._texts[text], self._earlier[text], self._newest
        first = len(known)
        known += tokens
        for at in range(first, len(known)):
            pair = known[at - 2], known[at - 1]
            earlier.append(newest.get(pair, -1))
            newest[pair] = text << _TEXT | at

    def follow(self, tokens: Sequence[int], most: int) -> Draft:
        """What followed the longest run of tokens that a text shares with the end of `tokens`.

        Of equal runs the newest place counts. A run shorter than a pair gives no draft.

        Args:
            tokens: a response so far, maybe empty.
            most: most tokens of the draft.
        """
        end = [*[BEFORE_TEXT] * PAIR, *tokens[-LONGEST_MATCH:]]
        if len(tokens) >= LONGEST_MATCH:
            end = end[PAIR:]
        place = self._newest.get((end[-2], end[-1]), -1)
        best, match = -1, 0
        for _ in range(MOST_PLACES):
            if place < 0 or match >= LONGEST_MATCH:
                break
            text, at = place >> _TEXT, place & (1 << _TEXT) - 1
            known = self._texts[text]
            shared, longest = PAIR, min(len(end), at)
            while shared < longest and end[-1 - shared] == known[at - 1 - shared]:
                shared += 1
            if shared > match:
                best, match = place, shared
            place = self._earlier[text][at - PAIR]
        if best < 0:
            return Draft([], 0)
        text, at = best >> _TEXT, best & (1 << _TEXT) - 1
        return Draft(self._texts[text][at : at + most], match)
