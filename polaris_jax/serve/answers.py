"""What clients read: completions, chat completions, their chunks, and log-probs."""

from __future__ import annotations

import functools
import json
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from polaris_jax.models.text_stream import BROKEN, CONTEXT_TOKENS, TextStream
from polaris_jax.rollout.scores import Scores
from polaris_jax.serve.jobs import Scored, Tokens
from polaris_jax.serve.wishes import Wish

_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}
LEAST_LOGPROB = -9999.0  # JSON has no infinity


_SPACE = "\u2581"  # how SentencePiece spells a space
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # how vocabularies with byte fallback spell a byte


class Vocabulary:
    """The texts of tokens, as answers show them.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.token = functools.lru_cache(maxsize=1 << 16)(self._token)
        self._bytes = {char: byte for byte, char in _byte_chars().items()}

    def text(self, ids: Sequence[int]) -> str:
        """The text of a response's tokens, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def prompt_text(self, ids: Sequence[int]) -> str:
        """The text of a prompt's tokens, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _token(self, token_id: int) -> str:
        text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        if text.startswith(" "):
            return text
        # Decoders of such vocabularies take the first space of a text away.
        spelt = self._tokenizer.convert_ids_to_tokens(token_id)
        return f" {text}" if (spelt or "").startswith(_SPACE) else text

    def bytes_of(self, token_id: int) -> list[int] | None:
        """A token's UTF-8 bytes; None if the token is a part of a character of unknown bytes."""
        text = self.token(token_id)
        if BROKEN not in text:
            return list(text.encode())
        spelt = self._tokenizer.convert_ids_to_tokens(token_id)
        if byte := _BYTE_TOKEN.fullmatch(spelt):
            return [int(byte[1], 16)]
        found = [self._bytes.get(char) for char in spelt]
        return None if None in found else [byte for byte in found if byte is not None]


def _byte_chars() -> dict[int, str]:
    """The character by which byte-level vocabularies spell each byte (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def finite(logprob: float) -> float:
    """A log-prob as JSON can hold it."""
    return max(LEAST_LOGPROB, logprob)


class Choice:
    """One response, as it grows.

    Args:
        wish: what the client asked for.
        vocabulary: texts of tokens.
        index: index of the choice.
        prompt: token ids of its prompt.
        prompt_text: text of the prompt, which `echo` sends.
        stop_ids: ids that end a response; their text is not sent.

    Attributes:
        index: index of the choice.
        tokens: number of tokens sampled.
        finish_reason: "stop", "length", or None while it grows.
    """

    def __init__(
        self,
        wish: Wish,
        vocabulary: Vocabulary,
        *,
        index: int,
        prompt: Sequence[int],
        prompt_text: str,
        stop_ids: Sequence[int],
    ) -> None:
        self._wish, self._vocabulary = wish, vocabulary
        self._prompt, self._prompt_text = prompt, prompt_text
        self._stop_ids = frozenset(stop_ids)
        # A completion continues the prompt's text, so that its first space is part of it.
        before = () if wish.chat else prompt[-CONTEXT_TOKENS:]
        self._stream = TextStream(vocabulary.text, wish.stops, before=before)
        self._texts: list[str] = [prompt_text] if wish.echo else []
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._scores: Scores | None = None
        self._offset = 0  # characters before the next token, for a stream
        # Scores come when a response has ended, and its log-probs with them.
        self._in_pieces = wish.stream and not wish.scored
        self.index = index
        self.tokens = 0
        self.finish_reason: str | None = None

    def score(self, scored: Scored) -> None:
        """Takes the scores of the prompt, where nothing is sampled."""
        self._scores, self.finish_reason = scored.scores, "length"

    def add(self, event: Tokens) -> str:
        """Takes new tokens; returns the text that they complete."""
        ids = list(event.token_ids)
        self.tokens += len(ids)
        stopped_by_id = event.finish_reason == "stop" and ids[-1] in self._stop_ids
        text = self._stream.push(ids[:-1] if stopped_by_id else ids)
        if event.finish_reason is not None:
            text += self._stream.rest()
            self.finish_reason = "stop" if self._stream.stopped else event.finish_reason
            self._scores = event.scores
        if not self._in_pieces:  # a stream keeps nothing of what it has sent
            self._texts.append(text)
            if self._wish.logprobs:
                self._ids += ids
                self._logprobs += event.logprobs
        return text

    def body(self) -> dict[str, Any]:
        """The complete choice."""
        text = "".join(self._texts)
        logprobs = None
        if self._wish.logprobs:
            logprobs = self._chat_logprobs() if self._wish.chat else self._plain_logprobs()
        found: dict[str, Any] = {
            "index": self.index,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }
        if self._wish.chat:
            return {"message": {"role": "assistant", "content": text, "refusal": None}} | found
        return {"text": text} | found

    def first_chunk(self) -> dict[str, Any] | None:
        """What a stream sends before the response: the prompt, or the role in a chat."""
        nothing = {"index": self.index, "logprobs": None, "finish_reason": None}
        if self._wish.chat:
            return {"delta": {"role": "assistant", "content": "", "refusal": None}} | nothing
        if self._in_pieces and self._wish.echo:
            return {"text": self._prompt_text} | nothing
        return None

    def chunk(self, text: str, event: Tokens | None) -> dict[str, Any] | None:
        """The choice of a chunk of a stream; None if there is nothing to send.

        A choice with scores is sent as one chunk.

        Args:
            text: what `add` returned.
            event: the new tokens; None where nothing is sampled.
        """
        if not self._in_pieces:
            if self.finish_reason is None:
                return None
            body = self.body()
            self._texts, self._ids, self._logprobs, self._scores = [], [], [], None
            if (message := body.pop("message", None)) is not None:
                body["delta"] = {"content": message["content"]}
            return body
        logprobs: dict[str, Any] | None = None
        if self._wish.logprobs and event is not None:
            ids, values = event.token_ids, event.logprobs
            if self._wish.chat:
                logprobs = {"content": self._content(ids, values), "refusal": None}
            else:
                logprobs = self._columns(ids, values, None, self._offset)
                self._offset += sum(len(self._vocabulary.token(i)) for i in ids)
        elif not text and self.finish_reason is None:
            return None
        found: dict[str, Any] = {
            "index": self.index,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }
        if self._wish.chat:
            return {"delta": {"content": text} if text else {}} | found
        return {"text": text} | found

    def _tops(self, first: int, logprobs: Sequence[float | None]) -> list[dict[int, float]] | None:
        """The likeliest tokens of each position, for tokens from number `first` of the sequence.

        A sampled token's own log-prob is the sampler's, in the list and beside it. Completions
        always list it, chats only among the likeliest, as in OpenAI's API.
        """
        scores = self._scores
        if scores is None or not self._wish.top:
            return None
        sequence, tops = [*self._prompt, *self._ids], []
        for at, own in enumerate(logprobs, first):
            if at == 0:
                tops.append({})
                continue
            top = dict(zip(scores.top_ids[at - 1], scores.top_logprobs[at - 1], strict=True))
            if own is not None and (sequence[at] in top or not self._wish.chat):
                top[sequence[at]] = own
            tops.append(top)
        return tops

    def _plain_logprobs(self) -> dict[str, Any]:
        logprobs: list[float | None] = list(self._logprobs)
        ids, first, offset = list(self._ids), len(self._prompt), 0
        if self._wish.echo:
            assert self._scores is not None
            known = self._scores.logprobs[: len(self._prompt) - 1]
            logprobs, ids, first = [None, *known, *logprobs], [*self._prompt, *ids], 0
            beginning = self._vocabulary.token(ids[0])
            if not self._prompt_text.startswith(beginning):  # the tokenizer's own, not the client's
                offset = -len(beginning)
        return self._columns(ids, logprobs, self._tops(first, logprobs), offset)

    def _columns(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float | None],
        tops: list[dict[int, float]] | None,
        offset: int,
    ) -> dict[str, Any]:
        token, offsets = self._vocabulary.token, []
        for i in ids:
            offsets.append(max(0, offset))
            offset += len(token(i))
        return {
            "tokens": [token(i) for i in ids],
            "token_logprobs": [None if x is None else finite(x) for x in logprobs],
            "top_logprobs": None if tops is None else [self._by_text(top) for top in tops],
            "text_offset": offsets,
        }

    def _by_text(self, top: dict[int, float]) -> dict[str, float] | None:
        """Log-probs by the tokens' texts; of two tokens with one text the likelier."""
        found: dict[str, float] = {}
        for i, logprob in sorted(top.items(), key=lambda item: -item[1]):
            found.setdefault(self._vocabulary.token(i), finite(logprob))
        return found or None

    def _chat_logprobs(self) -> dict[str, Any]:
        tops = self._tops(len(self._prompt), self._logprobs)
        content = self._content(self._ids, self._logprobs)
        for entry, top in zip(content, tops or [], strict=False):
            ranked = sorted(top.items(), key=lambda item: -item[1])
            entry["top_logprobs"] = [self._entry(i, logprob) for i, logprob in ranked]
        return {"content": content, "refusal": None}

    def _content(self, ids: Sequence[int], logprobs: Sequence[float]) -> list[dict[str, Any]]:
        pairs = zip(ids, logprobs, strict=True)
        return [self._entry(i, logprob) | {"top_logprobs": []} for i, logprob in pairs]

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._vocabulary.token(token_id),
            "logprob": finite(logprob),
            "bytes": self._vocabulary.bytes_of(token_id),
        }


class Answer:
    """The frame around choices.

    Args:
        wish: what the client asked for.
        model: the model's name.
        prompt_tokens: tokens of the prompts.
        version: version of the weights when the request was accepted.
    """

    def __init__(self, wish: Wish, *, model: str, prompt_tokens: int, version: int) -> None:
        prefix, self._kind = ("chatcmpl", "chat.completion") if wish.chat else ("cmpl", "")
        self._wish, self._prompt_tokens = wish, prompt_tokens
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self._head = {
            "id": self.id,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"weights-{version}",
        }

    def body(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The complete answer."""
        kind = self._kind or "text_completion"
        choice_bodies = [choice.body() for choice in choices]
        return (
            self._head | {"object": kind} | {"choices": choice_bodies, "usage": self.usage(choices)}
        )

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        """Counts of tokens: each prompt once, all responses, stop tokens included."""
        sampled = sum(choice.tokens for choice in choices)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": sampled,
            "total_tokens": self._prompt_tokens + sampled,
        }

    def first_chunks(self, choices: Sequence[Choice]) -> list[bytes]:
        """What begins a stream."""
        bodies = [choice.first_chunk() for choice in choices]
        return [self.chunk(body) for body in bodies if body is not None]

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """A chunk of a stream, as an event."""
        return self._event([choice], None)

    def last_chunks(self, choices: Sequence[Choice]) -> list[bytes]:
        """What ends a stream."""
        usage = [self._event([], self.usage(choices))] if self._wish.usage else []
        return [*usage, b"data: [DONE]\n\n"]

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        kind = f"{self._kind}.chunk" if self._kind else "text_completion"
        body: dict[str, Any] = self._head | {"object": kind, "choices": choices}
        if self._wish.usage:
            body["usage"] = usage
        return event(body)


def event(body: dict[str, Any]) -> bytes:
    """A JSON object as a server-sent event."""
    return b"data: " + to_json(body) + b"\n\n"


def to_json(body: Any) -> bytes:
    """A JSON text; what some clients take for the end of a line is escaped."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_LINE_ENDS).encode(errors="backslashreplace")
