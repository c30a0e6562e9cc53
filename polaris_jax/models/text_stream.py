"""The text of a growing response, in complete characters, up to its first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"
MOST_BYTES = 4  # of a character in UTF-8
CONTEXT_TOKENS = 8  # tokens before the new ones that are decoded again
MOST_CONTEXT = 8 * CONTEXT_TOKENS  # of them, where no character begins in between


class TextStream:
    """Turns a growing list of tokens into text. What further tokens may change is held back.

    A push decodes the newest tokens and a few before them, not the complete response. So decoding
    must be local: the text of tokens from the beginning of a character on must be the same part of
    the complete text, except for a leading space. Vocabularies with byte fallback are such: they
    decode a run of bytes as a whole, and as broken characters until its last character is complete.

    Args:
        decode: the text of token ids.
        stop_strings: the text ends before the first of them.
        before: token ids before the first one; their text is not returned.

    Attributes:
        stopped: True if a stop string was found; nothing more is returned then.
        chars: number of characters returned so far.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stop_strings: Sequence[str] = (),
        *,
        before: Sequence[int] = (),
    ) -> None:
        self._decode, self._stops = decode, tuple(stop_strings)
        self._ids = list(before)  # tokens that are still decoded
        self._new_from = len(self._ids)  # the first of them that came after the last shift
        self._read = len(decode(self._ids)) if before else 0  # characters of them that are known
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False
        self.chars = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; "" while it may still change."""
        self._ids.extend(token_ids)
        text, waiting = self._complete()
        broken = len(text) - len(text.rstrip(BROKEN))
        end = max(self._read, len(text) - min(broken, MOST_BYTES))
        new = text[self._read : end]
        self._read = end
        if len(self._ids) - self._new_from >= CONTEXT_TOKENS:
            self._shift(text, waiting)
        return self._before_stop(new, last=False)

    def rest(self) -> str:
        """The text that is held back, after the last token."""
        text = self._decode(self._ids)
        new, self._read = text[self._read :], len(text)
        return self._before_stop(new, last=True)

    def _complete(self) -> tuple[str, int]:
        """The text without the tokens of an unfinished character at its end, and their number.

        If there is no such character, but bytes that can never be one, it is the complete text.
        """
        text = self._decode(self._ids)
        if text.endswith(BROKEN):
            for waiting in range(1, min(MOST_BYTES, len(self._ids) + 1)):
                shorter = self._decode(self._ids[:-waiting])
                if not shorter.endswith(BROKEN):
                    return shorter, waiting
        return text, 0

    def _shift(self, text: str, waiting: int) -> None:
        """Forgets the tokens before the newest ones, up to the beginning of a character.

        Args:
            text: text of all but the last tokens.
            waiting: number of these.
        """
        end = len(self._ids) - waiting
        cuts = range(self._new_from, max(-1, self._new_from - MOST_BYTES), -1)
        whole = (cut for cut in cuts if text.endswith(self._decode(self._ids[cut:end])))
        cut = next(whole, self._new_from if end >= MOST_CONTEXT else None)
        if cut is not None:
            kept = self._decode(self._ids[cut:end])
            self._read = max(0, len(kept) - (len(text) - self._read))
            del self._ids[:cut]
            self._new_from = len(self._ids)

    def _before_stop(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            text = text[: min(found)]
        else:
            held = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
            self._held = text[len(text) - held :]
            text = text[: len(text) - held]
        self.chars += len(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """The most characters at the end of `text` with which `stop` begins, less than all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
