"""Decode and update of Qwen3-4B's shape on one GPU, beside the card's own rates and the plan's.

    python benchmarks/gpu.py [--rows 16] [--context 12288] [--row_len 16384] [--out FILE]

Random weights, bfloat16 compute. Measured in one process, medians of `--repeat`: the copy bandwidth
and the matmul rate of the card; decode steps of `--rows` sequences at `--context` tokens; one
update with a row of `--row_len` tokens (float32 master weights, bfloat16 moments: so that one card
holds them); attention forward and backward under each back end that the card allows. Compilation is
apart. Each part is printed and written when it is done, so that one that runs out of memory loses
nothing of those before it. `--tiny` shrinks everything for a smoke test on any device; its figures
mean nothing.

Decode seconds a step are the difference of two `generate` calls with equal prompt lengths and other
response lengths, so prefill drops out. Its bytes are the sampler's weights once a step and the live
keys and values of every row. MFU is model FLOPs (6 x parameters of the products x tokens and causal
attention; neither recomputation nor padding) over seconds over the card's dense bfloat16 peak.

What is planned is the estimate of `polaris plan`'s own planner for h100:1 or h200:1 at these very
lengths, from the product's programs as compiled for the card that is here: one process cannot
compile for a card that is described and run on another.
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
from peers.report import Report

from polaris_jax.config import (
    MeshSection,
    ModelSection,
    OptimizerSection,
    RolloutSection,
    RunConfig,
    StageSection,
)
from polaris_jax.metrics.throughput import train_flops_per_token
from polaris_jax.models import Decoder, ModelConfig
from polaris_jax.models.attention import Attention, attend, resolve_attention
from polaris_jax.models.presets import preset
from polaris_jax.plan.job import Job, Setting
from polaris_jax.plan.planner import Planner
from polaris_jax.plan.roofline import ASSUMED, Estimate
from polaris_jax.plan.topologies import CHIPS, Chip, parse_topology
from polaris_jax.records import TrainBatch
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.sharding import make_mesh
from polaris_jax.train.state import random_train_state
from polaris_jax.train.update import Updater

SHORT_TOKENS, LONG_TOKENS = 32, 160
PROMPT_TOKENS = 64  # of the update's row; the rest is response
TINY = ModelConfig(512, 128, 256, 1, 4, 2, 64, 1e6, 1e-6, 32_768, True, False, True)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is run; `--tiny` makes another one."""

    model: ModelConfig
    rows: int
    context: int
    row_len: int
    copy_bytes: int
    matmul: int

    @property
    def max_len(self) -> int:
        """Tokens of a decoded sequence."""
        return self.context + LONG_TOKENS

    @property
    def config(self) -> RunConfig:
        """What sampler and update are made of."""
        return dataclasses.replace(
            RunConfig(),
            model=ModelSection(dtype="bfloat16", remat="layer"),
            optimizer=OptimizerSection(moment_dtype="bfloat16"),
            rollout=RolloutSection(
                prompts_per_step=self.rows,
                responses_per_prompt=1,
                slots=self.rows,
                page_size=64,
                num_pages=self.rows * -(-self.max_len // 64) + 1,
                decode_steps=16,
                prefill_chunk=min(1024, self.context),
            ),
        )


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
        sizes = Sizes(TINY, 2, 64, 256, 1 << 24, 256)
        args.repeat = 1
    chip, report = chip_of(device), Report(args.out)
    bandwidth, matmul = copy_bandwidth(sizes, args.repeat), matmul_rate(sizes, args.repeat)
    report.add(
        [
            "# One GPU, Qwen3-4B's shape"
            if not args.tiny
            else "# Smoke test, figures mean nothing",
            "",
            f"{device.device_kind}, jax {jax.__version__}, Python {platform.python_version()}, "
            f"commit `{commit()}`; made by `benchmarks/gpu.py`, medians of {args.repeat}.",
            "",
            "| what | value |",
            "|---|---|",
            f"| copy bandwidth (read + write) | {bandwidth / 1e9:,.0f} GB/s |",
            f"| bfloat16 matmul, {sizes.matmul}^3 | {matmul / 1e12:,.1f} TFLOP/s |",
        ]
    )
    decode_s, lines = decode(sizes, bandwidth, args.repeat)
    report.add(lines)
    plan_decode_s, plan_update_s = planned(sizes, chip, device)
    report.add([beside("decode step", decode_s, plan_decode_s)])
    update_s, lines = update(sizes, chip, matmul, args.repeat)
    report.add([*lines, beside("update", update_s, plan_update_s)])
    report.add(attention(sizes, args.repeat))


def beside(what: str, measured_s: float, plan_s: float) -> str:
    """A table row of a time and of the plan's."""
    return (
        f"| {what}: measured / planned | {measured_s:.4g} s / {plan_s:.4g} s = "
        f"{measured_s / plan_s:.3g} |"
    )


def planned(sizes: Sizes, chip: Chip, device: Any) -> tuple[float, float]:
    """(decode_s, update_s): the planner's estimates of a decode step and of the update."""
    setting, tokens = Setting(MeshSection(1, 1, 1, 1), rows=1), LONG_TOKENS - SHORT_TOKENS
    efficiency = dataclasses.replace(ASSUMED, padding=0.0)  # the row is full

    def job(prompt_tokens: int, response_tokens: int, *, responses: int) -> Job:
        rollout = dataclasses.replace(sizes.config.rollout, prompts_per_step=responses)
        stages = (StageSection(max_response_tokens=response_tokens),)
        config = dataclasses.replace(sizes.config, rollout=rollout, stages=stages)
        # All responses are as long as they may be: nothing is drawn.
        return Job(
            *(config, sizes.model, 0, sizes.row_len, sizes.max_len),
            mean_response_tokens=response_tokens,
            mean_prompt_tokens=prompt_tokens,
        )

    def estimate(planner: Planner) -> Estimate:
        found = planner.assess(setting)
        if found.estimate is None:
            sys.exit(f"error: no plan: {'; '.join(found.reasons)}")
        return found.estimate

    planner = Planner(
        job(sizes.context + SHORT_TOKENS, tokens, responses=sizes.rows),
        parse_topology(f"{chip.name}:1"),
        [device],
        chip,
        efficiency=efficiency,
    )
    rollout = estimate(planner)
    row = job(PROMPT_TOKENS, sizes.row_len - PROMPT_TOKENS, responses=1)
    step_s = (rollout.rollout_s - rollout.prefill_s) / rollout.decode_steps
    return step_s, estimate(planner.with_job(row, same_sampler=True)).update_s


def chip_of(device: Any) -> Chip:
    """The card's public figures; another card is judged by an H100's and named all the same."""
    if device.platform == "cpu":
        return CHIPS["cpu"]
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


def decode(sizes: Sizes, bandwidth: float, repeat: int) -> tuple[float, list[str]]:
    """Seconds of a decode step, and table rows."""
    model, rollout, rng = sizes.model, sizes.config.rollout, np.random.default_rng(0)
    weights = jax.jit(
        lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), Decoder.init(model, key))
    )(jax.random.key(0))
    sampler = Sampler(
        weights,
        SamplerConfig(
            slots=rollout.slots,
            page_size=rollout.page_size,
            num_pages=rollout.num_pages,
            max_len=sizes.max_len,
            decode_steps=rollout.decode_steps,
            prefill_chunk=rollout.prefill_chunk,
            dtype=sizes.config.model.arithmetic,
        ),
    )
    weights_bytes = sum(x.nbytes for x in jax.tree.leaves(weights))
    del weights

    def generate(tokens: int) -> float:
        prompts = rng.integers(1, model.vocab_size, (sizes.rows, sizes.context))
        began = time.perf_counter()
        params = SamplingParams(temperature=1.0, max_tokens=tokens, stop_token_ids=())
        sampler.generate(list(prompts), params)
        return time.perf_counter() - began

    start_s = generate(SHORT_TOKENS)
    shorts = statistics.median(generate(SHORT_TOKENS) for _ in range(repeat))
    longs = statistics.median(generate(LONG_TOKENS) for _ in range(repeat))
    sampler.release()
    step_s = (longs - shorts) / (LONG_TOKENS - SHORT_TOKENS)
    live = sizes.rows * (sizes.context + (SHORT_TOKENS + LONG_TOKENS) / 2)
    kv_token_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 2
    moved = weights_bytes + live * kv_token_bytes
    return step_s, [
        f"| decode, {sizes.rows} rows at {sizes.context:,} tokens | {1e3 * step_s:.2f} ms a step, "
        f"{sizes.rows / step_s:,.0f} tokens/s |",
        f"| its bytes over the copy bandwidth | {moved / step_s / bandwidth:.1%} |",
        f"| prefill and {SHORT_TOKENS} tokens; first call | {shorts:.1f} s; {start_s:.1f} s |",
    ]


def update(sizes: Sizes, chip: Chip, matmul: float, repeat: int) -> tuple[float, list[str]]:
    """Seconds of the update, and table rows."""
    gc.collect()
    model, config, mesh = sizes.model, sizes.config, make_mesh(MeshSection(), jax.devices()[:1])
    updater = Updater(
        *(config.objective, config.optimizer, config.model, mesh), rows=1, row_len=sizes.row_len
    )
    state = random_train_state(model, jax.random.key(0), optimizer=config.optimizer, mesh=mesh)
    batch = one_row(model, sizes.row_len)
    taken = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        state, _ = updater.update(state, batch)
        jax.block_until_ready(state)
        taken.append(time.perf_counter() - began)
    step_s = statistics.median(taken[1:])
    flops = sizes.row_len * train_flops_per_token(model, (sizes.row_len + 1) / 2, remat=False)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    memory = "unknown" if peak is None else f"{peak / 2**30:.1f} GiB"
    return step_s, [
        f"| update, one row of {sizes.row_len:,} tokens | {step_s:.2f} s, "
        f"{sizes.row_len / step_s:,.0f} tokens/s; first {taken[0]:.1f} s |",
        f"| its MFU (of the measured matmul rate) | {flops / step_s / chip.peak_flops:.1%} "
        f"({flops / step_s / matmul:.1%}) |",
        f"| peak memory of the process | {memory} |",
    ]


def one_row(model: ModelConfig, row_len: int) -> TrainBatch:
    """One sequence that fills a row; all but its first tokens are response."""
    rng = np.random.default_rng(1)
    shape = (1, row_len)
    place_T = np.arange(row_len)
    in_response = ((place_T >= PROMPT_TOKENS) & (place_T < row_len - 1))[None]
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
