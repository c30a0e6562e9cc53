"""What a client asks for, checked: the body of a request as prompts and sampling settings."""

from __future__ import annotations

import dataclasses
import difflib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polaris_jax.data.chats import read_chat
from polaris_jax.data.prompt_renderer import Turns
from polaris_jax.rollout import SamplingParams
from polaris_jax.rollout.settings import LEAST, MAX_STOP_TOKENS
from polaris_jax.serve.fields import MOST_NAME_CHARS, ApiError, Fields

Decode = Callable[[list[int]], str]

MOST_RESPONSES = 128  # of a prompt
MOST_PROMPTS = 2048  # of a request
MOST_TOP = 20
MOST_STOPS = 16
MOST_STOP_CHARS = 1024
MOST_LOGPROBS = 8_000_000  # of an answer: about a gigabyte of memory
SEEDS = 2**32
# Fields that change nothing here: names and marks for a service's own accounts and caches.
IGNORED = {
    "metadata",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
# Fields that would change the answer, and the values under which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
COMMON = {
    "ignore_eos",
    "logprobs",
    "max_tokens",
    "min_p",
    "model",
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
    "top_p",
}
FIELDS = {
    "completion": COMMON | {"best_of", "echo", "prompt"},
    "chat": COMMON | {"chat_template_kwargs", "max_completion_tokens", "messages", "top_logprobs"},
}


@dataclasses.dataclass(frozen=True)
class Wish:
    """A checked request.

    Attributes:
        chat: True for chat completions.
        model: name of the model that is asked for; None: any.
        prompts: texts or token ids of each prompt; () for a chat.
        messages: (role, text) of a chat; () otherwise.
        template_args: (name, JSON text) of further variables of the chat template.
        n: responses a prompt.
        max_tokens: budget of a response; None: what the context leaves. 0: score the prompt alone.
        settings: temperature, top_p, top_k and min_p.
        seed: seed of the noise; None: another one for each prompt.
        stops: texts that end a response.
        stop_ids: token ids that end a response beside the model's own.
        ignore_eos: True: the model's own end ids do not end a response.
        stream: True sends tokens as they are sampled.
        usage: True sends the counts of tokens behind a stream.
        echo: True sends the prompt before each response.
        logprobs: True sends the log-prob of each token.
        top: number of likeliest tokens to name at each position.
    """

    chat: bool
    model: str | None
    prompts: tuple[str | tuple[int, ...], ...]
    messages: Turns
    template_args: tuple[tuple[str, str], ...]
    n: int
    max_tokens: int | None
    settings: Mapping[str, Any]
    seed: int | None
    stops: tuple[str, ...]
    stop_ids: tuple[int, ...]
    ignore_eos: bool
    stream: bool
    usage: bool
    echo: bool
    logprobs: bool
    top: int

    @property
    def responses(self) -> int:
        """Number of responses that the request asks for; a prompt to be scored counts as one."""
        return (1 if self.chat else len(self.prompts)) * (1 if self.max_tokens == 0 else self.n)

    @property
    def scored(self) -> bool:
        """True if the answer names likeliest tokens, or log-probs of a prompt."""
        return self.top > 0 or (self.echo and self.logprobs)

    def require_small_answer(self, prompts: Sequence[Sequence[int]], *, max_len: int) -> None:
        """Raises ApiError if the answer may hold more log-probs than `MOST_LOGPROBS`."""
        if not self.logprobs:
            return
        tokens = 0
        for prompt in prompts:
            budget = max_len - len(prompt) if self.max_tokens is None else self.max_tokens
            tokens += self.n * budget + (len(prompt) if self.echo else 0)
        if tokens * (1 + self.top) > MOST_LOGPROBS:
            raise ApiError(
                400,
                f"logprobs: {tokens:,} tokens with {1 + self.top} log-probs each may be asked for, "
                f"and an answer has at most {MOST_LOGPROBS:,} log-probs; lower max_tokens, n or "
                "the number of likeliest tokens, or send several requests",
                param="logprobs",
            )

    def params(
        self,
        prompts: tuple[tuple[int, ...], ...],
        *,
        max_len: int,
        end_ids: tuple[int, ...],
        decode: Decode,
    ) -> SamplingParams | None:
        """The sampling settings of encoded prompts; None if nothing is to be sampled.

        Args:
            prompts: token ids of each prompt.
            max_len: most tokens of prompt and response.
            end_ids: ids that end a response of this model.
            decode: the text of token ids, in which stop strings are looked for.

        Raises:
            ApiError: a prompt is empty, or a prompt and its budget are longer than `max_len`.
        """
        field = "messages" if self.chat else "prompt"
        for index, prompt in enumerate(prompts):
            budget = 1 if self.max_tokens is None else self.max_tokens
            if not prompt:
                raise ApiError(400, f"{field}: prompt {index} has no token", param=field)
            if len(prompt) + budget > max_len:
                raise ApiError(
                    400,
                    f"{field}: prompt {index} has {len(prompt)} tokens, and {budget} are to be "
                    f"sampled; this model's context has {max_len}: shorten the prompt or lower "
                    "max_tokens",
                    param=field,
                    code="context_length_exceeded",
                )
        if self.max_tokens == 0:
            return None
        stop_ids = dict.fromkeys([*self.stop_ids, *(() if self.ignore_eos else end_ids)])
        seeds = [secrets.randbelow(SEEDS) if self.seed is None else self.seed for _ in prompts]
        return SamplingParams(
            **self.settings,
            n=self.n,
            max_tokens=[self.max_tokens or max_len - len(prompt) for prompt in prompts],
            seed=seeds,
            stop_token_ids=tuple(stop_ids),
            stop_strings=self.stops or None,
            decode=decode if self.stops else None,
        )


def read_wish(body: Mapping[str, Any], *, chat: bool) -> Wish:
    """The wish in a body.

    Args:
        body: the JSON object.
        chat: True for chat completions.

    Raises:
        ApiError: a field is unknown, out of range, of another type, or not supported.
    """
    _require_known(body, FIELDS["chat" if chat else "completion"])
    fields = Fields(body)
    n = fields.whole("n", 1, least=1, most=MOST_RESPONSES)
    stream = fields.flag("stream")
    options = fields.get("stream_options", dict, {})
    if options and not stream:
        raise fields.error("stream_options", "it goes with stream=true; leave it out")
    for name, value in options.items():
        if name not in ("include_usage", "include_obfuscation"):
            text = f"there is no {name[:MOST_NAME_CHARS]}; include_usage is all it knows"
            raise fields.error("stream_options", text)
        if value is not None and not isinstance(value, bool):
            raise fields.error("stream_options", f"{name} must be true or false")
    if chat:
        logprobs = fields.flag("logprobs")
        top = fields.whole("top_logprobs", 0, least=0, most=MOST_TOP)
        if top and not logprobs:
            raise fields.error("top_logprobs", "it goes with logprobs=true; set that too")
        names = ("max_completion_tokens", "max_tokens")
        budgets = [fields.whole(name, None, least=1) for name in names]
        max_tokens = next((budget for budget in budgets if budget is not None), None)
    else:
        top = fields.whole("logprobs", None, least=0, most=MOST_TOP)
        logprobs, top = top is not None, top or 0
        max_tokens = fields.whole("max_tokens", 16, least=0)
        if fields.whole("best_of", n, least=1) != n:
            raise fields.error("best_of", f"it must be n={n} here; leave it out")
    echo = fields.flag("echo")
    if max_tokens == 0 and not echo:
        raise fields.error("max_tokens", "it must be at least 1, or 0 with echo=true")
    if max_tokens == 0 and n > 1:
        raise fields.error("n", "it must be 1 where max_tokens=0 samples nothing")
    seed = fields.whole("seed", None)
    temperature = fields.real("temperature", 1.0, least=0.0, most=100.0)
    if 0 < temperature < LEAST:
        raise fields.error("temperature", f"must be 0, or at least {LEAST:g}")
    return Wish(
        chat=chat,
        model=fields.get("model", str, None),
        prompts=() if chat else _prompts(fields),
        messages=_messages(fields) if chat else (),
        template_args=_template_args(fields),
        n=n,
        max_tokens=max_tokens,
        settings={
            "temperature": temperature,
            "top_p": fields.real("top_p", 1.0, least=1e-6, most=1.0),
            "top_k": max(0, fields.whole("top_k", 0, least=-1, most=2**31 - 1)),
            "min_p": fields.real("min_p", 0.0, least=0.0, most=1.0),
        },
        seed=None if seed is None else seed % SEEDS,
        stops=_stops(fields),
        stop_ids=_stop_ids(fields),
        ignore_eos=fields.flag("ignore_eos"),
        stream=stream,
        usage=options.get("include_usage") is True,
        echo=echo,
        logprobs=logprobs,
        top=top,
    )


def _require_known(body: Mapping[str, Any], known: set[str]) -> None:
    for name, value in body.items():
        if name in known or name in IGNORED:
            continue
        if name in NEUTRAL:
            if value is None or value in NEUTRAL[name]:
                continue
            raise ApiError(400, f"{name}: not supported here; leave it out", param=name)
        near = difflib.get_close_matches(name[:MOST_NAME_CHARS], known, n=1)
        remedy = f"did you mean {near[0]}?" if near else "leave it out"
        shown = name[:MOST_NAME_CHARS]
        raise ApiError(400, f"{shown!r}: there is no such field; {remedy}", param=shown)


def _prompts(fields: Fields) -> tuple[str | tuple[int, ...], ...]:
    value = fields.value("prompt")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise fields.error("prompt", "needed: a text, token ids, or a list of either")
    if len(value) > MOST_PROMPTS and isinstance(value[0], str | list):
        raise fields.error("prompt", f"{len(value)} prompts, at most {MOST_PROMPTS} in a request")
    if not all(isinstance(one, str | list) for one in value):
        return (_token_ids(fields, "prompt", value),)
    return tuple(p if isinstance(p, str) else _token_ids(fields, "prompt", p) for p in value)


def _token_ids(fields: Fields, name: str, value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(one) is int and 0 <= one < 2**31 for one in value)
    if not whole:
        raise fields.error(name, "token ids are whole numbers of at least 0, in one list")
    return tuple(value)


def _stop_ids(fields: Fields) -> tuple[int, ...]:
    ids = fields.get("stop_token_ids", list, [])
    found = tuple(dict.fromkeys(_token_ids(fields, "stop_token_ids", ids)))
    if len(found) > MAX_STOP_TOKENS:
        raise fields.error("stop_token_ids", f"{len(found)} ids, at most {MAX_STOP_TOKENS}")
    return found


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.value("stop")
    stops = [value] if isinstance(value, str) else [] if value is None else value
    fine = isinstance(stops, list) and all(isinstance(one, str) and one for one in stops)
    if not fine or len(stops) > MOST_STOPS or sum(map(len, stops)) > MOST_STOP_CHARS:
        raise fields.error(
            "stop",
            f"a text or a list of at most {MOST_STOPS} texts, none empty, of {MOST_STOP_CHARS} "
            "characters in all",
        )
    return tuple(stops)


def _messages(fields: Fields) -> Turns:
    try:
        return read_chat(fields.value("messages"))
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from None


def _template_args(fields: Fields) -> tuple[tuple[str, str], ...]:
    args = fields.get("chat_template_kwargs", dict, {})
    for name, value in args.items():
        plain = isinstance(value, str | int | float | bool) or value is None
        if not name.isidentifier() or name in ("messages", "tools") or not plain:
            raise fields.error(
                "chat_template_kwargs", "names and plain values, like enable_thinking=false"
            )
    return tuple(sorted((name, json.dumps(value)) for name, value in args.items()))
