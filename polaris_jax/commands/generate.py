"""One prompt to a completion, streamed to the terminal, or to n, each printed as it ends.

Example:
  polaris generate --model runs/4b/export --prompt "What is 7 times 8?" --n 2 --temperature 0.7
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.config import PROMPT_SUFFIX, ConfigError
from polaris_jax.system.foreign import printable
from polaris_jax.system.signals import begin_work

if TYPE_CHECKING:
    from polaris_jax.models import ModelConfig
    from polaris_jax.records import Response


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "HF directory, Hub id or GGUF file", flag_values=values)
    flags.DEFINE_string("prompt", "", "the user's text; - reads stdin", flag_values=values)
    flags.DEFINE_integer("n", 1, "number of completions", lower_bound=1, flag_values=values)
    flags.DEFINE_float(
        "temperature", 0.6, "sampling temperature; 0: greedy", lower_bound=0.0, flag_values=values
    )
    flags.DEFINE_float(
        "top_p",
        1.0,
        "samples from the likeliest tokens of this total; 1: off",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "top_k", 0, "samples from the k likeliest tokens; 0: off", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer("max_tokens", 512, "longest completion", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of the sampling noise", flag_values=values)
    flags.DEFINE_string("suffix", PROMPT_SUFFIX, "added to the prompt", flag_values=values)
    flags.DEFINE_bool("raw", False, "leave out chat template and suffix", flag_values=values)
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "compute type", flag_values=values
    )
    flags.DEFINE_float("yarn", 1.0, "YaRN factor; 1: off", lower_bound=1.0, flag_values=values)
    flags.DEFINE_integer(
        "yarn_original",
        0,
        "length that YaRN stretches; 0: the checkpoint's",
        lower_bound=0,
        flag_values=values,
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("generate", argv, doc=__doc__ or "", define=_define, takes_config=False)
    own = command.flags
    prompt = sys.stdin.read() if own["prompt"] == "-" else own["prompt"]
    for name, value, remedy in (
        ("model", own["model"], "name a Hugging Face directory, Hub id or GGUF file"),
        ("prompt", prompt, "give the user's text, like --prompt='What is 7 times 8?'; - is stdin"),
    ):
        if not value.strip():
            raise ConfigError(f"--{name}: needed; {remedy}")
    start_jax(command)
    begin_work()
    n = own["n"]

    def on_text(_: int, text: str) -> None:
        print(printable(text, lines=True), end="", flush=True)

    def on_end(sample: int, text: str) -> None:
        print(f"--- {sample + 1} of {n}\n{printable(text, lines=True)}", flush=True)

    completions = generate(
        own["model"],
        prompt,
        n=n,
        temperature=own["temperature"],
        top_p=own["top_p"],
        top_k=own["top_k"],
        max_tokens=own["max_tokens"],
        seed=own["seed"],
        suffix=own["suffix"],
        raw=own["raw"],
        dtype=own["dtype"],
        yarn_factor=own["yarn"],
        yarn_original_tokens=own["yarn_original"],
        on_text=on_text,
        on_end=on_end,
    )
    if n == 1:
        print()
    tokens = sum(len(r.token_ids) for r, _ in completions)
    reasons = ", ".join(r.finish_reason for r, _ in completions)
    print(f"[{tokens} tokens; {reasons}]", file=sys.stderr)
    return 0


def generate(
    path: str,
    prompt: str,
    *,
    n: int,
    temperature: float,
    top_p: float,
    top_k: int,
    max_tokens: int,
    seed: int,
    suffix: str,
    raw: bool,
    dtype: str,
    yarn_factor: float,
    yarn_original_tokens: int,
    on_text: Callable[[int, str], None],
    on_end: Callable[[int, str], None],
) -> list[tuple[Response, str]]:
    """n completions of `prompt` with their texts; a single one is streamed as it grows.

    Args:
        path: HF directory, Hub id or GGUF file.
        prompt: the user's text.
        n: number of completions.
        temperature: 0 is greedy.
        top_p: 1 is off.
        top_k: 0 is off.
        max_tokens: budget of a completion.
        seed: seed of the sampling noise.
        suffix: appended to the prompt unless it ends so already.
        raw: True leaves out the chat template.
        dtype: compute type.
        yarn_factor: above 1 stretches positions by YaRN, attention factor 1.
        yarn_original_tokens: the length that YaRN stretches; 0: the checkpoint's own.
        on_text: gets (sample, new text) of a single completion as it is sampled.
        on_end: gets (sample, text) of each of several completions as it ends.
    """
    from polaris_jax.data.prompts import render_prompt
    from polaris_jax.models import RopeScaling, load_with_tokenizer
    from polaris_jax.models.tokenizer import stop_token_ids
    from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams

    model, tokenizer = load_with_tokenizer(path, dtype=dtype)
    if yarn_factor > 1:
        original = yarn_original_tokens or _trained_tokens(model.config)
        model = model.with_rope_scaling(
            RopeScaling("yarn", yarn_factor, original, attention_factor=1.0)
        )
    if raw:
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    else:
        _, prompt_ids = render_prompt(tokenizer, prompt, suffix=suffix, special_tokens=True)
    max_len = len(prompt_ids) + max_tokens
    page_size = 16
    sampler = Sampler(
        model,
        SamplerConfig(
            slots=min(n, 32),
            page_size=page_size,
            num_pages=min(n, 32) * -(-max_len // page_size) + 1,
            max_len=max_len,
            decode_steps=4,  # small blocks: text appears as it is sampled
            prefill_chunk=min(128, max(16, len(prompt_ids))),
        ),
    )
    stream = _TextStream(tokenizer)

    def on_tokens(_: int, sample: int, token_ids: Sequence[int]) -> None:
        text = stream.push(token_ids)
        if text:
            on_text(sample, text)

    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        n=n,
        max_tokens=max_tokens,
        seed=seed,
        stop_token_ids=stop_token_ids(tokenizer, model.config.end_ids),
    )
    if n > 1:
        found = {}
        for _, sample, response in sampler.stream([prompt_ids], params):
            text = tokenizer.decode(response.token_ids, skip_special_tokens=True)
            found[sample] = response, text
            on_end(sample, text)
        return [found[sample] for sample in range(n)]
    (response,) = sampler.generate([prompt_ids], params, on_tokens=on_tokens)[0]
    if rest := stream.rest():
        on_text(0, rest)
    return [(response, tokenizer.decode(response.token_ids, skip_special_tokens=True))]


def _trained_tokens(config: ModelConfig) -> int:
    """The length that the checkpoint was trained for; under YaRN it claims a stretched one."""
    scaling = config.rope_scaling
    own = None if scaling is None else scaling.original_max_position_embeddings
    return own or config.max_position_embeddings


class _TextStream:
    """The text of a growing token list, in complete characters. Text that may change is held back.

    Each push decodes only the tokens since the push before the last, not the complete response.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ids = tokenizer, []
        self._context = self._read = 0  # begin and end of the tokens returned last

    def push(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(token_ids)
        new = self._new()
        if new.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return new

    def rest(self) -> str:
        """The text that is held back, after the last token."""
        return self._new()

    def _new(self) -> str:
        """The text after the returned text. Earlier tokens affect how its first token decodes."""
        told = self._text(self._context, self._read)
        return self._text(self._context, len(self._ids))[len(told) :]

    def _text(self, first: int, last: int) -> str:
        return self._tokenizer.decode(self._ids[first:last], skip_special_tokens=True)
