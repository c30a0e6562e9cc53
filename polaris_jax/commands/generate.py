"""One prompt to a completion, streamed to the terminal, or to n, each printed as it ends.

Example:
  polaris generate --model runs/4b/export --prompt "What is 7 times 8?" --n 2 --temperature 0.7
"""

from __future__ import annotations

import sys

from absl import flags

from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.config import PROMPT_SUFFIX, ConfigError
from polaris_jax.system.interrupts import begin_work


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "HF directory, Hub id or GGUF file", flag_values=values)
    flags.DEFINE_string("prompt", "", "the user's text; - reads stdin", flag_values=values)
    flags.DEFINE_integer("n", 1, "completions", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", 0.6, "0 is greedy", lower_bound=0.0, flag_values=values)
    flags.DEFINE_float(
        "top_p", 1.0, "1 is off", lower_bound=0.0, upper_bound=1.0, flag_values=values
    )
    flags.DEFINE_integer("top_k", 0, "0 is off", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("max_tokens", 512, "budget", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the sampling noise", flag_values=values)
    flags.DEFINE_string("suffix", PROMPT_SUFFIX, "added to the prompt", flag_values=values)
    flags.DEFINE_bool("raw", False, "leave out chat template and suffix", flag_values=values)
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "compute type", flag_values=values
    )
    flags.DEFINE_float("yarn", 1.0, "YaRN factor, 1 is off", lower_bound=1.0, flag_values=values)
    flags.DEFINE_integer(
        "yarn_original",
        0,
        "length YaRN stretches; 0: the checkpoint's",
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
    from polaris_jax.measure.generate import generate

    begin_work()
    n = own["n"]

    def on_text(_: int, text: str) -> None:
        print(text, end="", flush=True)

    def on_end(sample: int, text: str) -> None:
        print(f"--- {sample + 1} of {n}\n{text}", flush=True)

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
