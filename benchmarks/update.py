"""One GRPO step on this machine: seconds, memory, padding and model FLOPs, beside other systems.

    python benchmarks/update.py [--workloads U1,U2,U3] [--trl_python PATH] [--tunix_python PATH]
        [--repeat 3] [--share_prompts auto|on|off] [--out FILE] [--record FILE.json]

U1: 64 responses with long-tailed lengths up to 256, a Qwen3 of 15M parameters and a vocabulary of
8,192. U2: 32 of them, a vocabulary of 151,936. U3: 16 responses of up to 1,024 tokens. 2 threads:
the product's update, TRL's GRPOTrainer loss with torch's AdamW, tunix's grpo loss with optax's. We
and TRL run at the best of a grid for each dtype, each point tried once: ours of batch.rows (4, 2
and 1), TRL's of batches of all rows, 16 and 8, gradients accumulated, each with libc's allocator
and with tcmalloc (apt-get install libtcmalloc-minimal4). tunix runs one batch in float32. Each side
is a process of its own; the sides take turns, `--repeat` times; compile and load time is apart. A
side without an interpreter is left out and said so. A float32 side whose first loss is not ours
trains something else: it is noted.

Then what must not grow: seconds over four batch sizes against a fitted line, a step's time over
`--flat_steps` steps, compiles after the second step. At last a 100M-parameter shape against the
machine's own matmul rate, measured in the same run.

Model FLOPs of a step: 6 x (parameters without the embedding table) x real tokens, plus causal
attention 6 x L x N x H x sum of squared lengths. Neither recomputation nor padding is counted, and
a prompt that responses share is counted once.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers import dtypes, growth, matmul, record
from peers.report import Report
from peers.sampling import environments

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
OURS = record.OURS
TRL_BATCHES = (0, 16, 8)  # 0: all rows in one batch
TRL_PRELOADS = ((), ("libtcmalloc",))
OUR_ROWS = (4, 2, 1)
MAX_LOSS_ERROR = 0.02  # of our loss
SCALES = (1, 2, 4, 8)
WORKLOADS = {
    "U1": "64 responses of up to 256 tokens, Qwen3 of 15M parameters",
    "U2": "32 responses of up to 256 tokens, Qwen3 of 70M parameters, vocabulary 151,936",
    "U3": "16 responses of up to 1,024 tokens, Qwen3 of 15M parameters",
}


@dataclasses.dataclass(frozen=True)
class Side:
    """A line of a table: a system with its settings."""

    name: str
    system: str
    dtype: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """The name, and for a side of ours `batch.rows`."""
        rows = self.settings.get("rows")
        return f"{self.name}, rows {rows}" if rows else self.name


def main() -> None:
    args = _arguments()
    report = Report(args.out)
    report.add([_head(args)])
    rows: list[record.Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for workload in args.workloads.split(","):
            weights = write_weights(Path(folder), workload)
            sides, tried = _sides(args, workload, weights)
            runs: dict[Side, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(args.repeat):
                for side in sides:
                    runs[side].append(_run(args, side, workload, weights, args.steps))
            found = _rows(workload, runs), _rows(workload, tried, candidate=True)
            rows += [*found[0], *found[1]]
            notes += _other_losses(workload, runs)
            report.add([*_comparison(workload, runs, tried), *_other_losses(workload, runs), ""])
            _write_record(args, rows, notes)
    if why := dtypes.without_bfloat16():
        notes.append(f"bfloat16: left out, {why}")
        report.add([notes[-1], ""])
    if not args.skip_growth:
        grown = _growth(args)
        notes += [line for line in grown if line.startswith(("kept", "BROKEN"))]
        report.add(grown)
        _write_record(args, rows, notes)
    if not args.skip_large:
        report.add(_large(args))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="seconds and memory of one GRPO step")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="separated by commas")
    parser.add_argument("--trl_python", default="", help="an interpreter that imports trl")
    parser.add_argument("--tunix_python", default="", help="an interpreter that imports tunix")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share_prompts", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--flat_steps", type=int, default=100)
    parser.add_argument("--skip_growth", action="store_true", help="no sizes, no long run")
    parser.add_argument("--skip_large", action="store_true", help="no 100M shape")
    parser.add_argument("--record", type=Path, help="also write the rows as JSON")
    parser.add_argument("--out", default="", help="also write a Markdown file")
    args = parser.parse_args()
    for name in args.workloads.split(","):
        if name not in WORKLOADS:
            parser.error(f"--workloads: {name!r}; expected some of {', '.join(WORKLOADS)}")
    if args.trl_python:
        try:
            environments.preloading(TRL_PRELOADS[-1], Path(args.trl_python))
        except environments.PeerFailed as error:
            parser.error(f"--trl_python: {error}")
    return args


def trl_grid(dtype: str, responses: int) -> list[Side]:
    """TRL with one dtype: rows of a batch, whose gradients are accumulated, and the allocator."""
    batches = dict.fromkeys(batch or responses for batch in TRL_BATCHES)
    fitting = [batch for batch in batches if batch <= responses and responses % batch == 0]
    sides = []
    for batch, preload in itertools.product(fitting, TRL_PRELOADS):
        name = ", ".join([f"trl, {dtype}, batches of {batch}", *preload])
        settings = {"batch": batch, "dtype": dtype, **({"preload": preload} if preload else {})}
        sides.append(Side(name, "trl", dtype, settings))
    return sides


def our_grid(dtype: str) -> list[Side]:
    """Our update with one dtype: packed rows at once, gradients accumulated."""
    name = OURS if dtype == "float32" else f"ours, {dtype}"
    return [Side(name, OURS, dtype, {"rows": rows, "dtype": dtype}) for rows in OUR_ROWS]


def fastest(tried: dict[Side, list[dict[str, Any]]]) -> list[Side]:
    """The fastest side of each dtype."""
    best: dict[str, Side] = {}
    for side in sorted(tried, key=lambda side: _median(tried[side])):
        best.setdefault(side.dtype, side)
    return list(best.values())


def _sides(
    args: argparse.Namespace, workload: str, weights: Path
) -> tuple[list[Side], dict[Side, list[dict[str, Any]]]]:
    """The sides that take turns, ours first, and one run of each point of the grids."""
    tried: dict[Side, list[dict[str, Any]]] = {}
    responses = int(WORKLOADS[workload].split()[0])
    sides = _fastest_of(our_grid, args, workload, weights, tried)
    sides.sort(key=lambda side: side.dtype != "float32")
    for name in ("trl", "tunix"):
        if not getattr(args, f"{name}_python"):
            print(f"{name}: left out, no --{name}_python given", file=sys.stderr)
        elif name == "tunix":
            sides.append(Side("tunix, one batch", "tunix", "float32"))
        else:
            grid = functools.partial(trl_grid, responses=responses)
            sides += _fastest_of(grid, args, workload, weights, tried)
    return sides, tried


def _fastest_of(
    grid: Callable[[str], list[Side]],
    args: argparse.Namespace,
    workload: str,
    weights: Path,
    tried: dict[Side, list[dict[str, Any]]],
) -> list[Side]:
    """The fastest side of each dtype; what was tried is added to `tried`."""
    points = [side for dtype in dtypes.usable() for side in grid(dtype)]
    runs = {side: [_run(args, side, workload, weights, 1)] for side in points}
    tried |= runs
    return fastest(runs)


def _run(
    args: argparse.Namespace, side: Side, workload: str, weights: Path, steps: int
) -> dict[str, Any]:
    if side.system == OURS:
        more = ("--weights", str(weights), "--steps", str(steps), "--dtype", side.dtype)
        more += ("--share_prompts", args.share_prompts, "--rows", str(side.settings["rows"]))
        return run(ours(args.threads, workload, *more))
    script = PEERS / f"{side.system}_side.py"
    python = getattr(args, f"{side.system}_python")
    size = (str(weights), str(steps), str(args.threads), workload, json.dumps(side.settings))
    preload = environments.preloading(side.settings.get("preload", ()), Path(python))
    return run([python, str(script), *size], **preload)


def ours(threads: int, workload: str, *more: str) -> list[str]:
    """The command of our side."""
    script = PEERS / "polaris_side.py"
    return [
        *(sys.executable, str(script), "--threads", str(threads), "--workload", workload),
        *more,
    ]


def run(command: list[str], **variables: str) -> dict[str, Any]:
    """What a side says, run with these environment variables.

    Raises:
        SystemExit: it failed; with the end of its stderr.
    """
    ours = {"OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **ours, **variables}
    if command[0] == sys.executable:
        environment["PYTHONPATH"] = str(HERE.parent)
    else:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_weights(folder: Path, workload: str) -> Path:
    """Random weights and a word tokenizer that every side can load."""
    sys.path[:0] = [str(HERE.parent), str(PEERS)]
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from shapes import SHAPE_OF, SHAPES  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from polaris_jax.models import Decoder, save_pretrained

    target, shape = folder / SHAPE_OF[workload], SHAPES[SHAPE_OF[workload]]
    if target.exists():
        return target
    words = {f"w{i}": i for i in range(shape.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        pad_token="w0",
        eos_token=f"w{shape.vocab_size - 1}",
        unk_token="w0",
    )
    save_pretrained(Decoder.init(shape, jax.random.key(0)), str(target), tokenizer)
    return target


def _head(args: argparse.Namespace) -> str:
    return (
        f"# One GRPO step\n\nCommit `{record.commit()}`, {args.threads} threads, "
        f"{record.cpu_name()}, Python {platform.python_version()}. Made by "
        f"`benchmarks/update.py --workloads {args.workloads}`.\n"
    )


def _write_record(args: argparse.Namespace, rows: list[record.Row], notes: list[str]) -> None:
    if args.record:
        made = record.new_record("update", threads=args.threads, rows=rows, notes=notes)
        made.write(args.record)


def _median(runs: Sequence[dict[str, Any]]) -> float:
    return statistics.median(second for run in runs for second in run["seconds"])


def _ratio(runs: dict[Side, list[dict[str, Any]]], side: Side) -> float | None:
    """Our speed over a side's, turn by turn: what slows the machine slows both."""
    if (ours := record.ours_beside(list(runs), side)) is None:
        return None
    return statistics.median(
        statistics.median(b["seconds"]) / statistics.median(a["seconds"])
        for a, b in zip(runs[ours], runs[side], strict=True)
    )


def _rows(
    workload: str, runs: dict[Side, list[dict[str, Any]]], *, candidate: bool = False
) -> list[record.Row]:
    """The rows of a record; without `candidate` the first side is ours."""
    return [
        record.Row(
            workload=f"{workload}: {WORKLOADS[workload]}",
            side=side.name,
            system=side.system,
            version=found[0].get("version", "this commit"),
            dtype=side.dtype,
            allocator=found[0]["allocator"],
            settings={k: v for k, v in side.settings.items() if k != "dtype"},
            seconds=_median(found),
            tokens_per_s=found[0]["real_tokens"] / _median(found),
            ratio=None if candidate else _ratio(runs, side),
            peak_bytes=int(statistics.median(run["peak_bytes"] for run in found)),
            candidate=candidate,
        )
        for side, found in runs.items()
    ]


def _other_losses(workload: str, runs: dict[Side, list[dict[str, Any]]]) -> list[str]:
    """A line for each float32 side whose first loss is not ours."""
    loss = next(iter(runs.values()))[0]["loss"]
    return [
        f"{workload}, {side.name}: loss of step 1 {found[0]['loss']:.4g}, ours {loss:.4g}: it "
        "trains something else"
        for side, found in runs.items()
        if side.dtype == "float32" and abs(found[0]["loss"] - loss) > MAX_LOSS_ERROR * abs(loss)
    ]


def _comparison(
    workload: str,
    runs: dict[Side, list[dict[str, Any]]],
    tried: dict[Side, list[dict[str, Any]]],
) -> list[str]:
    found = next(iter(runs.values()))
    lines = [
        f"## {workload}: {WORKLOADS[workload]}",
        "",
        f"{found[0]['real_tokens']:,} real tokens, {found[0]['parameters'] / 1e6:.1f}M parameters. "
        f"Medians over {len(found)} processes a side, taking turns. Our packed rows: "
        f"{found[0]['packed_rows']}, padding share {found[0]['padding_share']:.1%}; shared prompts "
        f"leave out {found[0]['shared_prompt_tokens']:,} tokens.",
        "",
        "| side | dtype | allocator | seconds a step | spread | times as fast | peak GiB | load "
        "and compile s | loss of step 1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for side, runs_of_side in runs.items():
        seconds = [s for run in runs_of_side for s in run["seconds"]]
        peak = statistics.median(run["peak_bytes"] for run in runs_of_side) / 2**30
        start = statistics.median(run["start_s"] for run in runs_of_side)
        ratio = "" if (speed := _ratio(runs, side)) is None else f"{speed:.2f}"
        lines.append(
            f"| {side.label} | {side.dtype} | {runs_of_side[0]['allocator']} | "
            f"{statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} | "
            f"{ratio} | {peak:.2f} | {start:.1f} | {runs_of_side[0]['loss']:.4g} |"
        )
    lines += ["", *(f"Tried once: {s.label}, {_median(r):.2f} s." for s, r in tried.items())]
    return [*lines, ""]


def _large(args: argparse.Namespace) -> list[str]:
    rates, shares = [], []
    for _ in range(3):
        rates.append(matmul.rate(args.threads))
        found = run(ours(args.threads, "U1", "--shape", "100m", "--steps", "2"))
        shares.append(found["model_flops"] / statistics.median(found["seconds"]) / rates[-1])
    return [
        "## Model FLOPs utilisation, 100M-parameter shape",
        "",
        f"Matmul rate of this machine in the same run, 2048^3: "
        f"{', '.join(f'{r / 1e9:.0f}' for r in rates)} GFLOP/s. Model FLOPs over it: "
        f"{', '.join(f'{s:.1%}' for s in shares)} (median {statistics.median(shares):.1%}).",
        "",
    ]


def _growth(args: argparse.Namespace) -> list[str]:
    """Seconds over four sizes, a long run, and a verdict on each."""
    lines = [
        "## What must not grow, U1",
        "",
        "| responses | real tokens | seconds a step | microseconds a token |",
        "|---|---|---|---|",
    ]
    tokens, seconds = [], []
    for scale in SCALES:
        found = run(ours(args.threads, "U1", "--scale", str(scale), "--steps", str(args.steps)))
        tokens.append(found["real_tokens"])
        seconds.append(statistics.median(found["seconds"]))
        lines.append(
            f"| {64 * scale} | {tokens[-1]:,} | {seconds[-1]:.2f} | "
            f"{1e6 * seconds[-1] / tokens[-1]:.0f} |"
        )
    long = run(ours(args.threads, "U1", "--steps", str(args.flat_steps)))
    lines += ["", growth.linear(tokens, seconds), ""]
    lines += [growth.flat(long["seconds"]), "", growth.compiled_once(long["compiles"]), ""]
    return lines


if __name__ == "__main__":
    main()
