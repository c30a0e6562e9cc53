"""One GRPO step on this machine: seconds, memory, padding and model FLOPs, beside other systems.

    python benchmarks/update.py [--trl_python PATH] [--tunix_python PATH] [--repeat 3] [--out FILE]
        [--share_prompts auto|on|off]

64 responses with long-tailed lengths, a Qwen3 of 15M parameters and a vocabulary of 8,192, float32,
2 threads: the product's update, TRL's GRPOTrainer loss with torch's AdamW, tunix's grpo loss with
optax's. Each side is a process of its own; the sides take turns, `--repeat` times; compile and load
time is apart. Then a 100M-parameter shape against the machine's own matmul rate, measured in the
same run, and a table of seconds over four batch sizes at a fixed row length. A side without an
interpreter is left out and said so.

Model FLOPs of a step: 6 x (parameters without the embedding table) x real tokens, plus causal
attention 6 x L x N x H x sum of squared lengths. Neither recomputation nor padding is counted, and
a prompt that responses share is counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.report import Report

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
MATMUL = """
import os, sys, time
os.environ["JAX_PLATFORMS"] = "cpu"
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
import jax, jax.numpy as jnp
a = jnp.ones((2048, 2048)); f = jax.jit(jnp.matmul); f(a, a).block_until_ready()
best = []
for _ in range(9):
    t = time.perf_counter(); f(a, a).block_until_ready(); best.append(time.perf_counter() - t)
best.sort()
print(2 * 2048**3 / best[4])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds and memory of one GRPO step")
    parser.add_argument("--trl_python", default="", help="an interpreter that imports trl")
    parser.add_argument("--tunix_python", default="", help="an interpreter that imports tunix")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row_len", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--share_prompts", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--skip_large", action="store_true", help="only the comparison")
    parser.add_argument("--out", default="", help="also write a Markdown file")
    args = parser.parse_args()
    report = Report(args.out)
    report.add([_head(args)])
    with tempfile.TemporaryDirectory() as folder:
        weights = _write_weights(Path(folder) / "weights")
        sides = _sides(args, weights)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(args.repeat):
            for name, command in sides.items():
                runs[name].append(_run(command))
        report.add(_comparison(runs))
    if not args.skip_large:
        report.add(_large(args))
        report.add(_sizes(args))


def _ours(args: argparse.Namespace, *more: str) -> list[str]:
    return [
        *(sys.executable, str(PEERS / "polaris_side.py"), "--threads", str(args.threads)),
        *("--row_len", str(args.row_len), "--rows", str(args.rows)),
        *("--share_prompts", args.share_prompts),
        *more,
    ]


def _sides(args: argparse.Namespace, weights: Path) -> dict[str, list[str]]:
    sides = {"polaris_jax": _ours(args, "--weights", str(weights), "--steps", str(args.steps))}
    for name in ("trl", "tunix"):
        python = getattr(args, f"{name}_python")
        if not python:
            print(f"{name}: left out, no --{name}_python given", file=sys.stderr)
            continue
        script = PEERS / f"{name}_side.py"
        sides[name] = [python, str(script), str(weights), str(args.steps), str(args.threads)]
    return sides


def _run(command: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
    if command[0] == sys.executable:
        environment["PYTHONPATH"] = str(HERE.parent)
    else:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _write_weights(target: Path) -> Path:
    """Random weights and a word tokenizer that every side can load."""
    sys.path[:0] = [str(HERE.parent), str(PEERS)]
    os.environ["JAX_PLATFORMS"] = "cpu"
    import case as step_case  # pyright: ignore[reportMissingImports]
    import jax
    from shapes import SHAPES  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from polaris_jax.models import Decoder, save_pretrained

    words = {f"w{i}": i for i in range(step_case.VOCAB)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        pad_token="w0",
        eos_token=f"w{step_case.VOCAB - 1}",
        unk_token="w0",
    )
    save_pretrained(Decoder.init(SHAPES["peers"], jax.random.key(0)), str(target), tokenizer)
    return target


def _head(args: argparse.Namespace) -> str:
    commit = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return (
        f"# One GRPO step\n\nCommit `{commit or 'unknown'}`, {args.threads} threads, "
        f"{platform.machine()}, Python {platform.python_version()}. Made by "
        f"`benchmarks/update.py --row_len {args.row_len} --rows {args.rows} --share_prompts "
        f"{args.share_prompts}`.\n"
    )


def _median(runs: list[dict[str, Any]]) -> float:
    return statistics.median(second for run in runs for second in run["seconds"])


def _comparison(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    ours = runs["polaris_jax"]
    lines = [
        f"64 responses, {ours[0]['real_tokens']:,} real tokens, Qwen3 of "
        f"{ours[0]['parameters'] / 1e6:.1f}M parameters, vocabulary 8,192, float32. "
        f"Medians over {len(ours)} processes a side, taking turns.",
        "",
        "| side | seconds a step | spread | peak GiB | load and compile s | loss of step 1 |",
        "|---|---|---|---|---|---|",
    ]
    for name, side in runs.items():
        seconds = [s for run in side for s in run["seconds"]]
        peak = statistics.median(run["peak_bytes"] for run in side) / 2**30
        start = statistics.median(run["start_s"] for run in side)
        lines.append(
            f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to "
            f"{max(seconds):.2f} | {peak:.2f} | {start:.1f} | {side[0]['loss']:.4g} |"
        )
    for name, side in runs.items():
        if name != "polaris_jax":
            # Pair by pair: what slows the machine slows both sides of a turn.
            ratios = [
                statistics.median(a["seconds"]) / statistics.median(b["seconds"])
                for a, b in zip(ours, side, strict=True)
            ]
            memory = statistics.median(r["peak_bytes"] for r in ours) / statistics.median(
                r["peak_bytes"] for r in side
            )
            lines.append("")
            lines.append(
                f"polaris_jax / {name}: {statistics.median(ratios):.3f} of the time "
                f"({', '.join(f'{r:.3f}' for r in ratios)}), {memory:.3f} of the peak memory."
            )
    lines += [
        "",
        f"Packed rows: {ours[0]['packed_rows']}, padding share {ours[0]['padding_share']:.1%}; "
        f"shared prompts leave out {ours[0]['shared_prompt_tokens']:,} tokens.",
        "",
    ]
    return lines


def _large(args: argparse.Namespace) -> list[str]:
    rates, shares = [], []
    for _ in range(3):
        rate = float(
            subprocess.run(
                [sys.executable, "-c", MATMUL, str(args.threads)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        run = _run(_ours(args, "--shape", "100m", "--steps", "2"))
        rates.append(rate)
        shares.append(run["model_flops"] / statistics.median(run["seconds"]) / rate)
    return [
        "## Model FLOPs utilisation, 100M-parameter shape",
        "",
        f"Matmul rate of this machine in the same run, 2048^3: "
        f"{', '.join(f'{r / 1e9:.0f}' for r in rates)} GFLOP/s. Model FLOPs over it: "
        f"{', '.join(f'{s:.1%}' for s in shares)} (median {statistics.median(shares):.1%}).",
        "",
    ]


def _sizes(args: argparse.Namespace) -> list[str]:
    lines = [
        f"## Seconds over batch sizes, row length {args.row_len}",
        "",
        "| responses | real tokens | seconds a step | microseconds a token |",
        "|---|---|---|---|",
    ]
    for scale in (1, 2, 4, 8):
        run = _run(_ours(args, "--scale", str(scale), "--steps", "3"))
        seconds = statistics.median(run["seconds"])
        lines.append(
            f"| {64 * scale} | {run['real_tokens']:,} | {seconds:.2f} | "
            f"{1e6 * seconds / run['real_tokens']:.0f} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    main()
