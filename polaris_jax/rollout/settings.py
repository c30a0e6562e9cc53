"""Settings of a sampler and of a request, and their checks."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from polaris_jax.config import RunConfig
from polaris_jax.rollout.pages import pages_for

Layout = Literal["auto", "pages", "staged"]
DTYPES = ("float32", "bfloat16", "float16")
KV_DTYPES = ("auto", "int8")
DRAFTS = ("off", "history")
MAX_STOP_TOKENS = 16
NO_TOKEN = -1
MAX_SEED = 2**32 - 1
MAX_TOP_K = 2**31 - 1
GREATEST = float(np.finfo(np.float32).max)
LEAST = 1e-30  # much smaller float32 divisors overflow, and still smaller ones are 0

Number = float | int
PerPrompt = Sequence[Any] | np.ndarray


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Sizes of the sampler.

    `slots` and `num_pages` count over all data shards; on a mesh each data shard has its part.
    Rotary scaling is not set here. YaRN's factor, original length and attention factor come from
    `model.config.rope_scaling`, for all requests of a sampler.

    Attributes:
        slots: number of sequences decoded at once.
        page_size: tokens of a page.
        num_pages: pages of the pool; the first page of each data shard is not usable. 0: as many
            pages as fit into device memory, at most enough for every slot at `max_len`. On a CPU
            the native kernels' pool has this maximum, since no page of it is resident before it is
            written; another has at most half of the host's memory.
        max_len: maximum number of prompt + response tokens of a sequence.
        decode_steps: decode steps of one device call.
        prefill_chunk: maximum number of tokens of a prompt in one row of a prefill call.
        prefill_budget: maximum number of prompt tokens prefilled between two decode calls. A longer
            prompt is prefilled in several turns while other rows decode. 0: no limit.
        prefix_cache: True: later sequences that begin alike share the full pages of earlier ones,
            until the weights change.
        layout: when decode writes to the pool. "pages": each step writes its keys and values.
            "staged": each call writes once (see `kv.staged`; fast on a CPU). "auto": "staged" on a
            CPU, else "pages".
        attention: attention back end, a name of `kv.backends`. "auto": the first back end of the
            platform that can serve.
        min_rows: on a CPU, the smallest number of rows with its own decode program. 0: chosen by
            the model's size, because a step of a small model costs little more than its dispatch.
        dtype: dtype of the weights ("float32", "bfloat16", "float16"); None: the model's own.
        kv_dtype: "auto": keys and values have the weights' dtype. "int8": they are rotated and
            rounded to 8 bits (see `kv.int8`), so log-probs differ from the trainer's.
        dispatch_ahead: True: the driver dispatches the next call before it has read the last call's
            tokens, if pages suffice and no sequence waits for a slot. None: True on accelerators
            only, because host and device share the cores of a CPU.
        draft: "history": while few rows are live, a call verifies tokens that are drafted from
            other responses to the same prompt (`drafting`). The same tokens are sampled in fewer
            steps. "off": each step draws one token a row.
        draft_tokens: most drafted tokens of a row in a call.
        reserve: share of device memory that stays free beside the pool if num_pages=0, in [0, 1).
            Prefill and decode need this memory for temporaries.
    """

    slots: int = 8
    page_size: int = 16
    num_pages: int = 512
    max_len: int = 1024
    decode_steps: int = 16
    prefill_chunk: int = 128
    prefill_budget: int = 8192
    prefix_cache: bool = True
    layout: Layout = "auto"
    attention: str = "auto"
    min_rows: int = 0
    dtype: str | None = None
    kv_dtype: str = "auto"
    dispatch_ahead: bool | None = None
    draft: str = "off"
    draft_tokens: int = 8
    reserve: float = 0.1

    def __post_init__(self) -> None:
        sizes = ("slots", "page_size", "max_len", "decode_steps", "prefill_chunk", "draft_tokens")
        for name in sizes:
            if whole_number(name, getattr(self, name)) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)}: must be at least 1; leave it out for "
                    "the default"
                )
        for name, meaning in (("prefill_budget", "no limit"), ("min_rows", "by the model's size")):
            if whole_number(name, getattr(self, name)) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0 (0: {meaning})")
        whole_number("num_pages", self.num_pages)
        if self.num_pages < 2 and self.num_pages != 0:
            raise ValueError(
                f"num_pages={self.num_pages}: page 0 is not usable; at least 2, or 0 to derive it"
            )
        if self.layout not in ("auto", "pages", "staged"):
            raise ValueError(f"layout={self.layout!r}: expected auto, pages or staged")
        if not 0 <= real_number("reserve", self.reserve) < 1:
            raise ValueError(
                f"reserve={self.reserve}: must be a share in [0, 1); 0.1 leaves a tenth free"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(
                f"dtype={self.dtype!r}: must be one of {', '.join(DTYPES)}; None is the model's own"
            )
        if self.kv_dtype not in KV_DTYPES:
            raise ValueError(
                f"kv_dtype={self.kv_dtype!r}: must be one of {', '.join(KV_DTYPES)}; auto is the "
                "dtype of the weights"
            )
        if self.draft not in DRAFTS:
            raise ValueError(
                f"draft={self.draft!r}: must be one of {', '.join(DRAFTS)}; off draws one token a "
                "step"
            )
        for name, others in (("prefix_cache", ()), ("dispatch_ahead", (None,))):
            value = getattr(self, name)
            if not isinstance(value, bool) and value not in others:
                raise ValueError(
                    f"{name}={value!r}: must be one of {[True, False, *others]}; give it as a bool"
                )

    @classmethod
    def of_run(cls, config: RunConfig, *, max_len: int) -> SamplerConfig:
        """The sizes of a run: every field that `config.rollout` has too is taken from there.

        Args:
            config: the run's config.
            max_len: maximum number of prompt + response tokens of a sequence.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        names &= {f.name for f in dataclasses.fields(config.rollout)}
        shared = {name: getattr(config.rollout, name) for name in names}
        return cls(**shared, max_len=max_len, dtype=config.model.arithmetic)

    @property
    def pages_of_a_row(self) -> int:
        """J, pages of the longest sequence."""
        return pages_for(self.max_len, self.page_size)


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Sampling settings; fields from `temperature` to `seed`, except `n`, allow a value a prompt.

    Filters act in the order top-k, min-p, top-p, on the distribution at `temperature`; ties go to
    the lower id.

    Attributes:
        temperature: at least 0. 0 is argmax, and its log-probs are reported at temperature 1.
        top_p: in (0, 1]; keeps the smallest set of most likely tokens that reaches this mass.
        top_k: at least 0; keeps this number of most likely tokens. 0 turns it off.
        min_p: in [0, 1]; drops tokens less likely than this share of the likeliest token's
            probability. 0 turns it off.
        n: samples a prompt, at least 1.
        max_tokens: maximum number of response tokens, the stop token included.
        seed: seed of the noise, in [0, 2^32).
        stop_token_ids: ids that end a response (at most 16). None: the model's own
            (`ModelConfig.end_ids`, which `load_pretrained` reads). (): no ids.
        stop_strings: texts that end a response, with the token that completes the first of them.
        decode: the text of token ids, in which `stop_strings` are searched. A part of a response
            must decode to its part of the text, except for the first few characters.
        prompt_logprobs: also return the log-probs of the prompt's own tokens, at `temperature`.
    """

    temperature: Number | PerPrompt = 1.0
    top_p: Number | PerPrompt = 1.0
    top_k: int | PerPrompt = 0
    min_p: Number | PerPrompt = 0.0
    n: int = 1
    max_tokens: int | PerPrompt = 256
    seed: int | PerPrompt = 0
    stop_token_ids: Sequence[int] | None = None
    stop_strings: Sequence[str] | None = None
    decode: Callable[[list[int]], str] | None = None
    prompt_logprobs: bool = False


@dataclasses.dataclass(frozen=True)
class PromptParams:
    """The sampling settings of one prompt; fields as in `SamplingParams`."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    max_tokens: int
    seed: int


def per_prompt(params: SamplingParams, num_prompts: int) -> list[PromptParams]:
    """The checked settings of each prompt; a single value is checked even if there is no prompt.

    Raises:
        ValueError: a value is out of range or has another type (the message names the prompt's
            index), or the length of a sequence differs from the number of prompts.
    """
    if whole_number("n", params.n) < 1:
        raise ValueError(f"n={params.n}: must be at least 1, samples a prompt; set it to 1 or more")
    columns = [
        _column(field.name, getattr(params, field.name), num_prompts)
        for field in dataclasses.fields(PromptParams)
    ]
    return [PromptParams(*row) for row in zip(*columns, strict=True)]


def _column(name: str, value: Any, num_prompts: int) -> list[Any]:
    """One setting, checked, for each prompt."""
    sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not sequence and not getattr(value, "ndim", 0):
        where = f"prompt 0: {name}" if num_prompts else name
        return [_checked(where, name, value)] * num_prompts
    if len(value) != num_prompts:
        raise ValueError(
            f"{name}: {len(value)} values for {num_prompts} prompts; give one a prompt, or a "
            "single one for all"
        )
    return [_checked(f"prompt {i}: {name}", name, v) for i, v in enumerate(value)]


def _checked(where: str, name: str, value: Any) -> Any:
    """One setting as a number of its type.

    Args:
        where: prompt and field, in the caller's terms.
        name: name of the field.
        value: the caller's value.
    """
    whole = name in ("top_k", "max_tokens", "seed")
    number: Any = whole_number(where, value) if whole else real_number(where, value)
    ok, rule, remedy = {
        "temperature": lambda t: (
            t == 0 or LEAST <= t <= GREATEST,
            f"at least 0, and {LEAST:g} or more where it is not 0, and at most {GREATEST:g}",
            "0 is greedy, 1 the model's own distribution",
        ),
        "top_p": lambda p: (LEAST <= p <= 1, f"in (0, 1], and {LEAST:g} or more", "1 turns it off"),
        "top_k": lambda k: (0 <= k <= MAX_TOP_K, "at least 0 and below 2^31", "0 turns it off"),
        "min_p": lambda p: (0 <= p <= 1, "in [0, 1]", "0 turns it off"),
        "max_tokens": lambda m: (m >= 1, "at least 1", "ask for one token or more"),
        "seed": lambda x: (0 <= x <= MAX_SEED, "in [0, 2^32)", "take it modulo 2**32"),
    }[name](number)
    if not ok:
        raise ValueError(f"{where}={number}: must be {rule}; {remedy}")
    return number


def pad_stop_ids(stop_token_ids: Sequence[int]) -> np.ndarray:
    """int32 [16] stop ids, padded with -1, so that another number of ids needs no compilation.

    Raises:
        ValueError: there are more than 16 ids.
    """
    if len(stop_token_ids) > MAX_STOP_TOKENS:
        raise ValueError(
            f"stop_token_ids: {len(stop_token_ids)} ids, at most {MAX_STOP_TOKENS} are supported; "
            "name fewer, or use stop_strings"
        )
    padded = np.full(MAX_STOP_TOKENS, NO_TOKEN, np.int32)
    padded[: len(stop_token_ids)] = list(stop_token_ids)
    return padded


def whole_number(name: str, value: Any) -> int:
    """A Python, numpy or jax integer as an int; floats, bools and texts are refused.

    Args:
        name: name of the field, with the prompt's index if there is one.
        value: the caller's value.

    Raises:
        ValueError: the value is not a whole number.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(
            f"{name}={value!r}: must be a whole number, not {type(value).__name__}; give an int"
        ) from None


def real_number(name: str, value: Any) -> float:
    """A Python, numpy or jax number as a float; bools and texts are refused.

    Args:
        name: name of the field, with the prompt's index if there is one.
        value: the caller's value.

    Raises:
        ValueError: the value is not a number.
    """
    try:
        if isinstance(value, bool | np.bool_ | str | bytes) or np.ndim(value):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}={value!r}: must be a number, not {type(value).__name__}; give a float"
        ) from None
