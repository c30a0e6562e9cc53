"""The text of a growing response, in complete characters, up to its first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"
MOST_HELD = 4  # characters at the end that further bytes may change: UTF-8 has 4 bytes at most
CONTEXT_TOKENS = 8  # tokens before the new ones that are decoded again


class TextStream:
    """Turns a growing list of tokens into text. What further tokens may change is held back.

    A push decodes the newest tokens and a few before them, not the complete response. So decoding
    must be local: the text of a part of the tokens must be the same part of the complete text,
    except for its first few characters.

    Args:
        decode: the text of token ids.
        stop_strings: the text ends before the first of them.

    Attributes:
        stopped: True if a stop string was found; nothing more is returned then.
        chars: number of characters returned so far.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stop_strings: Sequence[str] = ()
    ) -> None:
        self._decode, self._stops = decode, tuple(stop_strings)
        self._ids: list[int] = []  # tokens that are still decoded
        self._new_from = 0  # index of the first of them that came after the last shift
        self._read = 0  # characters of their text that are known already
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False
        self.chars = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; "" while it may still change."""
        self._ids.extend(token_ids)
        text = self._decode(self._ids)
        broken = len(text) - len(text.rstrip(BROKEN))
        end = max(self._read, len(text) - min(broken, MOST_HELD))
        new = text[self._read : end]
        self._read = end
        if len(self._ids) - self._new_from >= CONTEXT_TOKENS:
            self._shift(len(text) - end)
        return self._before_stop(new, last=False)

    def rest(self) -> str:
        """The text that is held back, after the last token."""
        text = self._decode(self._ids)
        new, self._read = text[self._read :], len(text)
        return self._before_stop(new, last=True)

    def _shift(self, unread: int) -> None:
        """Forgets the tokens before the newest ones.

        Args:
            unread: characters at the end that are not known yet.
        """
        del self._ids[: self._new_from]
        self._new_from = len(self._ids)
        self._read = len(self._decode(self._ids)) - unread

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
