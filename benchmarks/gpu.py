"""Decode and update of Qwen3-4B's shape on one GPU, beside what the card itself reaches.

    python benchmarks/gpu.py [--rows 16] [--context 12288] [--row_len 16384] [--out FILE]

Random weights, bfloat16 compute. Measured in one process, medians of `--repeat`: the copy bandwidth
and the matmul rate of the card; decode steps of `--rows` sequences at `--context` tokens; one
update with a row of `--row_len` tokens (float32 master weights, bfloat16 moments: so that one card
holds them); attention forward and backward under each back end that the card allows. Compilation is
apart. `--tiny` shrinks everything for a smoke test on any device; its figures mean nothing.

Decode seconds a step are the difference of two `generate` calls with equal prompt lengths and other
response lengths, so prefill drops out. Its bytes are the sampler's weights once a step and the live
keys and values of every row. MFU is model FLOPs (6 x parameters of the products x tokens and causal
attention; neither recomputation nor padding) over seconds over the card's dense bfloat16 peak. The
plan's figures are those of `polaris plan`: 40% MFU, 60% of the public bandwidth.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polaris_jax.config import MeshSection, ModelSection, ObjectiveSection, OptimizerSection
from polaris_jax.metrics.throughput import train_flops_per_token
from polaris_jax.models import ModelConfig, Qwen
from polaris_jax.models.attention import Attention, attend, resolve_attention
from polaris_jax.models.presets import preset
from polaris_jax.plan.chips import CHIPS, Chip
from polaris_jax.plan.roofline import ASSUMED
from polaris_jax.records import TrainBatch
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.sharding import make_mesh
from polaris_jax.train.state import random_train_state
from polaris_jax.train.update import Updater

SHORT_TOKENS, LONG_TOKENS = 32, 160
TINY = ModelConfig(512, 128, 256, 2, 4, 2, 64, 1e6, 1e-6, 32_768, True, False, True)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is run; `--tiny` makes another one."""

    model: ModelConfig
    rows: int
    context: int
    row_len: int
    copy_bytes: int
    matmul: int


def main() -> None:
    parser = argparse.ArgumentParser(description="decode and update of Qwen3-4B on one GPU")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--context", type=int, default=12_288)
    parser.add_argument("--row_len", type=int, default=16_384)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a smoke test on any device")
    parser.add_argument("--out", default="", help="also write a Markdown file")
    args = parser.parse_args()
    device = jax.devices()[0]
    if device.platform != "gpu" and not args.tiny:
        sys.exit(f"error: the first device is a {device.platform}, not a GPU; use --tiny to smoke")
    if args.repeat < 1:
        sys.exit(f"error: --repeat={args.repeat}: must be at least 1")
    sizes = Sizes(preset("qwen3-4b"), args.rows, args.context, args.row_len, 4 << 30, 8192)
    if args.tiny:
        sizes = Sizes(TINY, 2, 256, 512, 1 << 24, 256)
    chip = chip_of(device)
    bandwidth, matmul = copy_bandwidth(sizes, args.repeat), matmul_rate(sizes, args.repeat)
    lines = [
        "# One GPU, Qwen3-4B's shape" if not args.tiny else "# Smoke test, figures mean nothing",
        "",
        f"{device.device_kind}, jax {jax.__version__}, Python {platform.python_version()}, commit "
        f"`{commit()}`; made by `benchmarks/gpu.py`, medians of {args.repeat}.",
        "",
        "| what | value |",
        "|---|---|",
        f"| copy bandwidth (read + write) | {bandwidth / 1e9:,.0f} GB/s |",
        f"| bfloat16 matmul, {sizes.matmul}^3 | {matmul / 1e12:,.1f} TFLOP/s |",
        *decode(sizes, chip, bandwidth, args.repeat),
        *update(sizes, chip, matmul, args.repeat),
        *attention(sizes, args.repeat),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        Path(args.out).write_text(text)


def chip_of(device: Any) -> Chip:
    """The card's public figures; another card is judged by an H100's and named all the same."""
    kind = device.device_kind.lower()
    return CHIPS[next((name for name in ("h200", "h100") if name in kind), "h100")]


def seconds(run: Callable[[], Any], repeat: int) -> float:
    """Median wall clock of `run`, after one call that compiles."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(repeat):
        began = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def copy_bandwidth(sizes: Sizes, repeat: int) -> float:
    """Bytes/s, read and written."""
    x = jnp.ones(sizes.copy_bytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / seconds(lambda: copy(x), repeat)


def matmul_rate(sizes: Sizes, repeat: int) -> float:
    """FLOP/s of a square bfloat16 product."""
    a = jnp.ones((sizes.matmul, sizes.matmul), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    return 2 * sizes.matmul**3 / seconds(lambda: product(a, a), repeat)


def decode(sizes: Sizes, chip: Chip, bandwidth: float, repeat: int) -> list[str]:
    """Table rows of decode."""
    model, rng = sizes.model, np.random.default_rng(0)
    max_len = sizes.context + LONG_TOKENS
    weights = jax.jit(
        lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), Qwen.init(model, key))
    )(jax.random.key(0))
    sampler = Sampler(
        weights,
        SamplerConfig(
            slots=sizes.rows,
            page_size=64,
            num_pages=sizes.rows * -(-max_len // 64) + 1,
            max_len=max_len,
            decode_steps=16,
            prefill_chunk=min(1024, sizes.context),
            dtype="bfloat16",
        ),
    )
    weights_bytes = sum(x.nbytes for x in jax.tree.leaves(weights))
    del weights

    def generate(tokens: int) -> float:
        prompts = rng.integers(1, model.vocab_size, (sizes.rows, sizes.context))
        began = time.perf_counter()
        sampler.generate(list(prompts), SamplingParams(temperature=1.0, max_tokens=tokens))
        return time.perf_counter() - began

    start_s = generate(SHORT_TOKENS)
    shorts = statistics.median(generate(SHORT_TOKENS) for _ in range(repeat))
    longs = statistics.median(generate(LONG_TOKENS) for _ in range(repeat))
    sampler.release()
    step_s = (longs - shorts) / (LONG_TOKENS - SHORT_TOKENS)
    live = sizes.rows * (sizes.context + (SHORT_TOKENS + LONG_TOKENS) / 2)
    kv_token_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 2
    moved = weights_bytes + live * kv_token_bytes
    planned_s = moved / (ASSUMED.bandwidth * chip.hbm_bytes_per_s)
    return [
        f"| decode, {sizes.rows} rows at {sizes.context:,} tokens | {1e3 * step_s:.2f} ms a step, "
        f"{sizes.rows / step_s:,.0f} tokens/s |",
        f"| its bytes over the copy bandwidth | {moved / step_s / bandwidth:.1%} |",
        f"| measured / planned | {step_s / planned_s:.2f} |",
        f"| prefill and {SHORT_TOKENS} tokens; first call | {shorts:.1f} s; {start_s:.1f} s |",
    ]


def update(sizes: Sizes, chip: Chip, matmul: float, repeat: int) -> list[str]:
    """Table rows of the update."""
    gc.collect()
    model, mesh = sizes.model, make_mesh(MeshSection(), jax.devices()[:1])
    optimizer = OptimizerSection(moment_dtype="bfloat16")
    settings = ModelSection(dtype="bfloat16", remat="layer")
    updater = Updater(ObjectiveSection(), optimizer, settings, mesh, rows=1, row_len=sizes.row_len)
    state = random_train_state(model, jax.random.key(0), optimizer=optimizer, mesh=mesh)
    batch = one_row(model, sizes.row_len)
    taken = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        state, _ = updater.update(state, batch)
        jax.block_until_ready(state)
        taken.append(time.perf_counter() - began)
    step_s = statistics.median(taken[1:])
    flops = sizes.row_len * train_flops_per_token(model, (sizes.row_len + 1) / 2, remat=False)
    planned_s = flops / (ASSUMED.mfu * chip.peak_flops)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    memory = "unknown" if peak is None else f"{peak / 2**30:.1f} GiB"
    return [
        f"| update, one row of {sizes.row_len:,} tokens | {step_s:.2f} s, "
        f"{sizes.row_len / step_s:,.0f} tokens/s; first {taken[0]:.1f} s |",
        f"| its MFU (of the measured matmul rate) | {flops / step_s / chip.peak_flops:.1%} "
        f"({flops / step_s / matmul:.1%}) |",
        f"| measured / planned | {step_s / planned_s:.2f} |",
        f"| peak memory of the process | {memory} |",
    ]


def one_row(model: ModelConfig, row_len: int) -> TrainBatch:
    """One sequence that fills a row; all but its first tokens are response."""
    rng = np.random.default_rng(1)
    shape = (1, row_len)
    in_response = (np.arange(row_len) >= 64)[None] & (np.arange(row_len) < row_len - 1)[None]
    weight_BT = in_response.astype(np.float32) / in_response.sum()
    return TrainBatch(
        token_BT=rng.integers(1, model.vocab_size, shape).astype(np.int32),
        position_BT=np.arange(row_len, dtype=np.int32)[None],
        segment_BT=np.ones(shape, np.int32),
        weight_BT=weight_BT,
        advantage_BT=rng.standard_normal(shape).astype(np.float32),
        old_logp_BT=np.full(shape, -1.0, np.float32),
        temperature_BT=np.ones(shape, np.float32),
        fresh_BT=in_response.astype(np.float32),
        sequences=1,
        tokens=int(in_response.sum()),
        padding_share=0.0,
    )


def attention(sizes: Sizes, repeat: int) -> list[str]:
    """Forward and backward of one layer's attention under each back end, against `chunked`."""
    model, length = sizes.model, sizes.row_len
    keys = jax.random.split(jax.random.key(2), 3)
    heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads)
    q, k, v = (
        jax.random.normal(key, (1, length, n, model.head_dim), jnp.bfloat16)
        for key, n in zip(keys, heads, strict=True)
    )
    segment_BT = jnp.ones((1, length), jnp.int32)
    times: dict[str, float] = {}
    refused: dict[str, str] = {}
    backends: tuple[Attention, ...] = ("chunked", "triton", "cudnn")
    for backend in backends:
        try:
            chosen = resolve_attention(
                backend,
                platform=jax.devices()[0].platform,
                length=length,
                head_dim=model.head_dim,
                num_heads=model.num_heads,
                num_kv_heads=model.num_kv_heads,
                context_shards=1,
                dtype=jnp.bfloat16,
                one_segment_a_row=True,
            )
        except ValueError as error:
            refused[backend] = str(error)
            continue

        def loss(q: Any, k: Any, v: Any, chosen: Any = chosen) -> Any:
            return attend(q, k, v, segment_BT, backend=chosen).astype(jnp.float32).sum()

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        times[backend] = seconds(lambda gradient=gradient: gradient(q, k, v), repeat)
    lines = [
        f"| attention {name}, forward + backward, {length:,} tokens | {1e3 * t:.2f} ms, chunked "
        f"takes {times['chunked'] / t:.2f} x |"
        for name, t in times.items()
    ]
    return lines + [f"| attention {name} | refused: {why} |" for name, why in refused.items()]


def commit() -> str:
    """Of the source tree."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
