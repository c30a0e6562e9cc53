"""A sampler over thousands of `generate` calls: does memory, or anything else, grow with them?

    python benchmarks/soak.py [--calls 2000] [--warm 200] [--rows 10]

A micro model; temperatures, filters, prompts, lengths and seeds change with every call, weights
with every fifth, and the page pool is released now and then. Prints a table and exits 1 if, after
the first `--warm` calls, resident memory grew by 2% or more, anything was compiled, or there are
more threads, open files or device arrays than before. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from polaris_jax.models import Decoder, ModelConfig
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.live import CompileCounter

MODEL = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_position_embeddings=128,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=True,
)
# 24 usable pages hold two of the longest sequences: calls queue and preempt.
SIZES = SamplerConfig(slots=8, page_size=4, num_pages=25, max_len=48, decode_steps=4)
MAX_PROMPT, MAX_RESPONSE = 24, 24
WEIGHTS_EVERY, RELEASE_EVERY = 5, 50
MAX_RSS_GROWTH = 0.02


class Sample(NamedTuple):
    """What the process held after so many calls.

    Attributes:
        calls: `generate` calls so far.
        rss_bytes: resident memory, the median since the sample before.
        compiles: XLA compilations so far, of any kind.
        threads: number of threads of the process.
        files: open descriptors.
        arrays: live device arrays.
        response_tokens: since the sample before.
        seconds: since the sample before.
    """

    calls: int
    rss_bytes: float
    compiles: int
    threads: int
    files: int
    arrays: int
    response_tokens: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description="what grows over thousands of generate calls")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--warm", type=int, default=200, help="calls that may still compile")
    parser.add_argument("--rows", type=int, default=10, help="rows of the table")
    args = parser.parse_args()
    if not 0 < args.warm < args.calls:
        parser.error(f"--warm={args.warm}: must lie between 0 and --calls={args.calls}")
    if not Path("/proc/self/statm").exists():
        sys.exit("error: no /proc here; this needs Linux")
    samples = soak(args.calls, args.warm, args.rows)
    print("\n".join(table(samples)))
    broken = breaches(samples)
    print("\n".join(broken) if broken else f"nothing grew over {args.calls - args.warm} calls")
    sys.exit(1 if broken else 0)


def soak(calls: int, warm: int, rows: int) -> list[Sample]:
    """One sample after `warm` calls, then `rows` more, evenly over the rest."""
    models = [Decoder.init(MODEL, jax.random.key(seed)) for seed in range(2)]
    compiles, rng = CompileCounter(), np.random.default_rng(0)
    ends = {warm, *np.linspace(warm, calls, rows + 1)[1:].round().astype(int).tolist()}
    samples: list[Sample] = []
    resident: list[int] = []
    tokens, began = 0, time.perf_counter()
    with compiles:
        sampler = Sampler(models[0], SIZES)
        for call in range(1, calls + 1):
            if call % WEIGHTS_EVERY == 0:
                sampler.update_weights(models[call // WEIGHTS_EVERY % 2])
            if call % RELEASE_EVERY == 0:
                sampler.release_pool()
            prompts, params = _asked(rng)
            groups = sampler.generate(prompts, params)
            tokens += sum(len(response.token_ids) for group in groups for response in group)
            resident.append(_rss_bytes())
            if call in ends:
                del groups
                gc.collect()
                samples.append(
                    Sample(
                        calls=call,
                        rss_bytes=statistics.median(resident[-max(1, warm // 2) :]),
                        compiles=compiles.count,
                        threads=len(os.listdir("/proc/self/task")),
                        files=len(os.listdir("/proc/self/fd")),
                        arrays=len(jax.live_arrays()),
                        response_tokens=tokens,
                        seconds=time.perf_counter() - began,
                    )
                )
                resident.clear()
                tokens, began = 0, time.perf_counter()
    return samples


def _asked(rng: np.random.Generator) -> tuple[list[list[int]], SamplingParams]:
    """Some prompts and settings; every kind of them comes within a few calls."""
    count = int(rng.integers(1, 7))
    prompts = [rng.integers(1, 96, rng.integers(1, MAX_PROMPT + 1)).tolist() for _ in range(count)]
    return prompts, SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.0, 1.4], count).tolist(),
        top_k=rng.choice([0, 0, 8], count).tolist(),
        top_p=rng.choice([1.0, 1.0, 0.9], count).tolist(),
        n=int(rng.integers(1, 4)),
        max_tokens=rng.integers(1, MAX_RESPONSE + 1, count).tolist(),
        seed=rng.integers(0, 2**31, count).tolist(),
        stop_token_ids=(0,) if rng.random() < 0.5 else (),
    )


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def breaches(samples: Sequence[Sample]) -> list[str]:
    """One line for each thing that grew between the first and the last sample."""
    first, last = samples[0], samples[-1]
    found = []
    growth = last.rss_bytes / first.rss_bytes - 1
    if growth >= MAX_RSS_GROWTH:
        found.append(
            f"resident memory grew by {growth:.1%}, from {first.rss_bytes / 2**20:.1f} to "
            f"{last.rss_bytes / 2**20:.1f} MiB; less than {MAX_RSS_GROWTH:.0%} is allowed"
        )
    for name in ("compiles", "threads", "files", "arrays"):
        before, after = getattr(first, name), getattr(last, name)
        if after > before:
            found.append(f"{name} grew from {before} to {after}")
    return found


def table(samples: Sequence[Sample]) -> list[str]:
    """Markdown, one row a sample."""
    lines = [
        "| calls | RSS MiB | compiles | threads | files | arrays | response tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in samples:
        lines.append(
            f"| {s.calls:,} | {s.rss_bytes / 2**20:.1f} | {s.compiles} | {s.threads} | {s.files} | "
            f"{s.arrays} | {s.response_tokens / s.seconds:,.0f} |"
        )
    return lines


if __name__ == "__main__":
    main()
