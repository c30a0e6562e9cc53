"""Drafts of the tokens that may follow a row, from other texts that answer the same prompt.

The texts are earlier responses, and the responses that are sampled now, as far as they are. What
followed the longest run of tokens that a text shares with the row's end is the draft. Drafts change
no token (`programs.drafted`); a bad one costs time alone.

An index knows for each pair of tokens where it was followed by what. The places of a pair form a
chain, the newest first, as in LZ77 compressors. So a token is added by a fixed amount of work, and
a search compares at most (`MOST_PLACES` + 1) x `LONGEST_MATCH` tokens. A frequent pair has more
places than that, so a search begins where the row's last draft would continue.

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
WHOLE_MATCH = 2 * LONGEST_MATCH  # of a short response that agrees from its first token on
BEFORE_TEXT = -1  # stands before a text's first token, so that its beginning is a pair too
NOWHERE = -1
_BITS = 32  # a place is its text's index, shifted, and a position; a pair is two tokens likewise


class Draft(NamedTuple):
    """Tokens that may follow.

    Attributes:
        tokens: the tokens; empty if nothing matches.
        match: number of tokens before them that agree with the row, up to `LONGEST_MATCH`. If all
            of a shorter response agrees, so does the prompt before it: `WHOLE_MATCH`.
        place: where they stand.
    """

    tokens: list[int]
    match: int
    place: int


class PromptTexts:
    """Texts that answer one prompt, and where each pair of their tokens occurred.

    Attributes:
        tokens: number of tokens of all texts.
    """

    def __init__(self) -> None:
        self._texts: list[list[int]] = []
        self._earlier: list[list[int]] = []  # by text and position: the pair's place before this
        self._newest: dict[int, int] = {}
        self.tokens = 0

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
        self.tokens += len(tokens)
        for at in range(first, len(known)):
            pair = (known[at - 2] << _BITS) + known[at - 1]
            earlier.append(newest.get(pair, NOWHERE))
            newest[pair] = text << _BITS | at

    def follow(self, tokens: Sequence[int], most: int, *, hint: int = NOWHERE) -> Draft:
        """What followed the longest run of tokens that a text shares with the end of `tokens`.

        Of equal runs the hint counts, then the newest place. A run shorter than a pair gives no
        draft.

        Args:
            tokens: a response so far, maybe empty.
            most: most tokens of the draft.
            hint: a place that is looked at first: the place of an earlier draft for the same
                response, plus the number of tokens since.
        """
        end = [*[BEFORE_TEXT] * PAIR, *tokens[-LONGEST_MATCH:]]
        if len(tokens) >= LONGEST_MATCH:
            end = end[PAIR:]
        best, match = hint, 0 if hint == NOWHERE else self._shared(end, hint)
        if match < PAIR:
            best, match = NOWHERE, 0
        place = self._newest.get((end[-2] << _BITS) + end[-1], NOWHERE)
        for _ in range(MOST_PLACES):
            if place == NOWHERE or match >= LONGEST_MATCH:
                break
            shared = self._shared(end, place)
            if shared > match:
                best, match = place, shared
            text, at = _split(place)
            place = self._earlier[text][at - PAIR]
        if best == NOWHERE:
            return Draft([], 0, NOWHERE)
        text, at = _split(best)
        if match == at:  # it reaches what stands before the text
            match = WHOLE_MATCH
        return Draft(self._texts[text][at : at + most], match, best)

    def _shared(self, end: list[int], place: int) -> int:
        """Number of tokens before a place that are also the last of `end`."""
        text, at = _split(place)
        known, shared = self._texts[text], 0
        if at >= len(known):  # nothing follows there yet
            return 0
        longest = min(len(end), at)
        while shared < longest and end[-1 - shared] == known[at - 1 - shared]:
            shared += 1
        return shared


def _split(place: int) -> tuple[int, int]:
    return place >> _BITS, place & (1 << _BITS) - 1
