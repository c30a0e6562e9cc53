"""Rollout speed: response tokens a second of the demo's model and group sizes, on this machine.

    python benchmarks/sampler.py [--slots 128] [--prompts 32] [--n 8] [--top_k 0]

Lengths are drawn between 40 and 100 response tokens as in the demo. Prints one JSON line a
repetition: wall clock and CPU seconds, because a shared machine makes the former meaningless.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import numpy as np

from polaris_jax.models import ModelConfig, Qwen
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams

MODEL = ModelConfig(
    vocab_size=200,
    hidden_size=128,
    intermediate_size=384,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_position_embeddings=512,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=True,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="rollout speed of the demo's model")
    for name, default in (
        ("slots", 128),
        ("prompts", 32),
        ("n", 8),
        ("top_k", 0),
        ("page_size", 16),
        ("decode_steps", 16),
        ("max_len", 176),
        ("repeat", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    pages = -(-args.max_len // args.page_size)
    sampler = Sampler(
        Qwen.init(MODEL, jax.random.key(0)),
        SamplerConfig(
            slots=args.slots,
            page_size=args.page_size,
            num_pages=args.slots * pages + 1,
            max_len=args.max_len,
            decode_steps=args.decode_steps,
        ),
    )
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 200, size).tolist() for size in rng.integers(30, 70, args.prompts)]
    params = SamplingParams(
        n=args.n,
        top_k=args.top_k,
        max_tokens=rng.integers(40, 101, args.prompts).tolist(),
        seed=list(range(args.prompts)),
    )
    for repetition in range(args.repeat + 1):
        sampler.reset_stats()
        cpu_s, began = time.process_time(), time.perf_counter()
        sampler.generate(prompts, params)
        stats = sampler.stats()
        report = {
            "repetition": "with compilation" if repetition == 0 else repetition,
            "wall_s": round(time.perf_counter() - began, 3),
            "cpu_s": round(time.process_time() - cpu_s, 3),
            "response_tokens": stats["response_tokens"],
            "tokens_per_s": round(stats["tokens_per_s"]),
            "tokens_per_cpu_s": round(stats["response_tokens"] / (time.process_time() - cpu_s)),
            "slot_occupancy": round(stats["slot_occupancy"], 3),
            "compiles": stats["compiles"],
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
