"""One prompt to a completion, streamed to the terminal, or to n, each printed as it ends.

With --input a file of prompts or chats to JSON lines: a row is {"prompt": "..."} or {"messages":
[...]}, with a seed of its own if it has one. --out gets n lines a row, in the order of the rows.
Rerun it to continue where it stopped.

Example:
  polaris generate --model runs/4b/export --prompt "What is 7 times 8?" --n 2 --temperature 0.7
  polaris generate --model runs/4b/export --input prompts.jsonl --out responses.jsonl --n 4
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from polaris_jax.commands.flags import Command, define_dtype, parse
from polaris_jax.commands.run import compute_dtype, start_jax
from polaris_jax.config import PROMPT_SUFFIX, ConfigError
from polaris_jax.system.files import as_place, file_to_write
from polaris_jax.system.foreign import printable
from polaris_jax.system.signals import begin_work

if TYPE_CHECKING:
    from polaris_jax.models import Decoder, ModelConfig
    from polaris_jax.records import Response


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "HF directory, Hub id or GGUF file", flag_values=values)
    flags.DEFINE_string("prompt", "", "the user's text; - reads stdin", flag_values=values)
    flags.DEFINE_string("input", "", "JSON lines of prompts or chats", flag_values=values)
    flags.DEFINE_string("out", "", "where the lines for --input go", flag_values=values)
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
    flags.DEFINE_float(
        "min_p",
        0.0,
        "drops tokens less likely than this share of the likeliest; 0: off",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_integer("max_tokens", 512, "longest completion", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of the sampling noise", flag_values=values)
    flags.DEFINE_string("suffix", PROMPT_SUFFIX, "added to the prompt", flag_values=values)
    flags.DEFINE_bool("raw", False, "leave out chat template and suffix", flag_values=values)
    define_dtype(values)
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
    if own["input"] or own["out"]:
        return _complete_file(command)
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
        min_p=own["min_p"],
        max_tokens=own["max_tokens"],
        seed=own["seed"],
        suffix=own["suffix"],
        raw=own["raw"],
        dtype=compute_dtype(own["dtype"]),
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
    min_p: float,
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
        min_p: 0 is off.
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
    from polaris_jax.models.positions import warn_beyond
    from polaris_jax.models.text_stream import TextStream
    from polaris_jax.models.tokenizer import sampled_stop_ids
    from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams

    model, tokenizer = _load(path, dtype, yarn_factor, yarn_original_tokens)
    if raw:
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    else:
        _, prompt_ids = render_prompt(tokenizer, prompt, suffix=suffix, special_tokens=True)
    max_len = len(prompt_ids) + max_tokens
    warn_beyond(model.config, max_len, lambda line: print(line, file=sys.stderr))
    sampler = Sampler(
        model,
        SamplerConfig(
            slots=min(n, 32),
            page_size=16,
            num_pages=0,  # what the device has room for
            max_len=max_len,
            decode_steps=4,  # small blocks: text appears as it is sampled
            prefill_chunk=min(128, max(16, len(prompt_ids))),
        ),
    )
    stream = TextStream(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))

    def on_tokens(_: int, sample: int, token_ids: Sequence[int]) -> None:
        text = stream.push(token_ids)
        if text:
            on_text(sample, text)

    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        n=n,
        max_tokens=max_tokens,
        seed=seed,
        stop_token_ids=sampled_stop_ids(tokenizer, model.config),
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


def _complete_file(command: Command) -> int:
    """Runs the command with --input; its exit code."""
    own = command.flags
    for name, remedy in (
        ("model", "name a Hugging Face directory, Hub id or GGUF file"),
        ("input", "name a JSON-lines file of prompts"),
        ("out", "name a JSON-lines file for the responses"),
    ):
        if not own[name].strip():
            raise ConfigError(f"--{name}: needed; {remedy}")
    if own["prompt"]:
        raise ConfigError("--prompt: does not go with --input; put it into that file")
    source, out = as_place(own["input"]), file_to_write(own["out"], flag="--out")
    if not source.is_file():
        raise ConfigError(f"--input={own['input']}: there is no such file")
    if out.exists() and out.resolve() == source.resolve():
        raise ConfigError(f"--out={own['out']}: it is the input; name another file")
    start_jax(command)
    from polaris_jax.measure.completions import Settings, complete_file
    from polaris_jax.models.tokenizer import sampled_stop_ids
    from polaris_jax.system.console import open_console

    begin_work()
    dtype = compute_dtype(own["dtype"])
    model, tokenizer = _load(own["model"], dtype, own["yarn"], own["yarn_original"])
    names = {field.name for field in dataclasses.fields(Settings)} - {"dtype", "yarn"}
    yarn = own["yarn"], own["yarn_original"]
    progress = open_console()
    rows, before = complete_file(
        source,
        out,
        Settings(**{name: own[name] for name in names}, dtype=dtype, yarn=yarn),
        path=own["model"],
        model=model,
        tokenizer=tokenizer,
        stop_ids=sampled_stop_ids(tokenizer, model.config),
        progress=progress,
    )
    there = f", {before} of them before" if before else ""
    progress.line(f"{rows} rows{there}: {own['out']}")
    return 0


def _load(
    path: str, dtype: str, yarn_factor: float, yarn_original_tokens: int
) -> tuple[Decoder, Any]:
    """Model and tokenizer; see `generate`."""
    from polaris_jax.models import RopeScaling, load_with_tokenizer

    model, tokenizer = load_with_tokenizer(path, dtype=dtype)
    if yarn_factor > 1:
        original = yarn_original_tokens or _trained_tokens(model.config)
        model = model.with_rope_scaling(
            RopeScaling("yarn", yarn_factor, original, attention_factor=1.0)
        )
    return model, tokenizer


def _trained_tokens(config: ModelConfig) -> int:
    """The length that the checkpoint was trained for; under YaRN it claims a stretched one."""
    scaling = config.rope_scaling
    own = None if scaling is None else scaling.original_max_position_embeddings
    return own or config.max_position_embeddings
