"""Rollout speed beside other systems: useful response tokens a second over long-tailed lengths.

    python benchmarks/sampler.py [--workloads S1,S2,...,S6] [--sides polaris_jax,vllm,...]
        [--rounds 3] [--out FILE] [--record FILE.json]

S1: a random Qwen3 of 15.7M parameters, 16 prompts x 8. S2: SmolLM2-135M, 8 prompts x 4. S3: a long
prefix that all prompts share, with and without our prefix cache. S4: 256 requests over a page pool
for all of them and for a quarter. S5: a random Qwen3 of 102M parameters with a vocabulary of
151,936, 8 prompts x 4. S6: S1's model, 8 prompts x 4 with responses of up to 1,792 tokens.

2 threads, temperature 1, stop ids ignored; the chosen tokens' log-probs are returned unless a
side's name says otherwise. A side's dtype, allocator and settings stand in its row. vLLM runs at
the best of a grid for each dtype (block size, tcmalloc and libiomp5 preloaded, prefix cache): each
point is tried once (with --vllm_grid, only those whose names contain its words), the best one takes
part in the rounds, with log-probs and without. Every sample has a length of its own and is a
request of its own; equal prompts come 8 (4) times, and what a side makes of that is its business. A
side that cannot end a request alone runs a batch to its longest one, and only the tokens asked for
count. Weights are the same files. New prompts every round; sides take turns and start at another
one every round; a waiting side is stopped. Loading and the first call, which compiles, are apart.

Waste is 1 - useful tokens / rows computed, summed over decode steps. The log-prob error is the
largest and the mean difference to our trainer's log-probs in float32 over a few responses: it shows
that a side ran the same model, and what its dtype costs. A ratio is ours over a side of its dtype.
Each system gets an environment of its own under --environments (gigabytes: PyPI's torch), unless
--NAME_python names an interpreter; one that cannot be installed or fails is printed with its last
line of error.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from peers import dtypes, record
from peers.matmul import rate as matmul_rate
from peers.report import Report
from peers.sampling import environments, tables
from peers.sampling.driver import OURS, Process, Side, job_of
from peers.sampling.environments import PeerFailed
from peers.sampling.sides import PEERS, VLLM, sides_of, vllm_grid, without_logprobs
from peers.sampling.tables import Result
from peers.sampling.workloads import WORKLOADS, Request, Workload, requests, shrunk

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the sides are ended too
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path.insert(0, str(ROOT))
    from peers.sampling import ours

    report = Report(args.out)
    report.add(_head(args))
    pythons = _interpreters(args)
    broken = False
    rows: list[record.Row] = []
    notes: list[str] = []
    without_bfloat16 = dtypes.without_bfloat16()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.workloads.split(","):
            workload = shrunk(WORKLOADS[name]) if args.tiny else WORKLOADS[name]
            report.add(tables.title(workload, ours.MODELS[workload.model]))
            weights = ours.write_weights(workload.model, Path(folder))
            vocab = ours.vocab_size(weights)
            rounds = [requests(workload, number, vocab) for number in range(args.rounds + 1)]
            if without_bfloat16 and not workload.only_ours:
                report.add([f"bfloat16 is left out, vLLM's too: {without_bfloat16}.", ""])
            try:
                sides = sides_of(
                    workload, rounds[0], ours.config_fields(), bfloat16=not without_bfloat16
                )
            except LookupError as error:
                report.add([f"Left out: {error.args[0]}.", ""])
                continue
            sides = [side for side in sides if side.system in args.sides.split(",")]
            tried: list[Result] = []
            if VLLM in args.sides.split(",") and not workload.only_ours:
                tried = _tried(args, workload, weights, rounds, pythons)
                sides += _best(tried)
                report.add(tables.tried(tried))
            if not sides:
                report.add([f"Left out: none of its sides is among --sides={args.sides}.", ""])
                continue
            results, matmul = _measure(args, workload, weights, rounds, sides, pythons)
            for result in results:
                examples = result.rounds[-1].get("examples") if result.rounds else None
                if examples:
                    result.logprob_error = ours.logprob_error(weights, examples, workload.max_len)
            report.add(_part(workload, results, matmul))
            what = f"{workload.name}: {ours.MODELS[workload.model]}"
            what += f", {workload.prompts} prompts x {workload.samples}"
            rows += tables.rows(what, results) + tables.rows(what, tried, candidate=True)
            notes += tables.failures(what, [*results, *tried])
            if args.record:
                made = record.new_record("sampler", threads=args.threads, rows=rows, notes=notes)
                made.write(args.record)
            broken |= any(r.failure for r in results if r.side.system == OURS)
    sys.exit(1 if broken else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="useful response tokens a second")
    systems = (OURS, VLLM, *dict.fromkeys(side.system for side in PEERS))
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="separated by commas")
    parser.add_argument("--sides", default=",".join(systems), help="systems, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    for system in systems[1:]:
        parser.add_argument(f"--{system}_python", default="", help="an interpreter that has it")
    parser.add_argument(
        "--environments", type=Path, default=ROOT / "workdirs" / "bench_environments"
    )
    parser.add_argument("--vllm_grid", default="", help="try only settings with these words")
    parser.add_argument("--timeout_s", type=float, default=1800, help="of one answer of a side")
    parser.add_argument("--tiny", action="store_true", help="a smoke test; figures mean nothing")
    parser.add_argument("--record", type=Path, help="also write the rows as JSON")
    parser.add_argument("--out", default="", help="also write a Markdown file, part by part")
    args = parser.parse_args()
    for flag, given, known in (
        ("workloads", args.workloads, tuple(WORKLOADS)),
        ("sides", args.sides, systems),
    ):
        for name in given.split(","):
            if name not in known:
                parser.error(f"--{flag}: {name!r}; expected some of {', '.join(known)}")
    if args.rounds < 1:
        parser.error(f"--rounds={args.rounds}: at least 1")
    if not _grid(args.vllm_grid):
        names = "; ".join(side.name for side in _grid(""))
        parser.error(f"--vllm_grid={args.vllm_grid!r}: expected words of one of: {names}")
    return args


def _interpreters(args: argparse.Namespace) -> dict[str, str | PeerFailed]:
    """An interpreter for each system asked for, or why there is none."""
    found: dict[str, str | PeerFailed] = {}
    for system in args.sides.split(","):
        if system == OURS:
            found[system] = sys.executable
            continue
        try:
            given = getattr(args, f"{system}_python")
            found[system] = given or environments.interpreter(system, args.environments)
        except PeerFailed as error:
            found[system] = error
    return found


def _measure(
    args: argparse.Namespace,
    workload: Workload,
    weights: Path,
    rounds: Sequence[Sequence[Request]],
    sides: Sequence[Side],
    pythons: dict[str, str | PeerFailed],
) -> tuple[list[Result], list[float]]:
    """Every side on every round but the first, which compiles; the matmul rate of each round."""
    job = job_of(workload, weights, threads=args.threads)
    lines = [[dataclasses.asdict(request) for request in part] for part in rounds]
    results = [Result(side) for side in sides]
    running: dict[str, Process] = {}
    matmul: list[float] = []
    try:
        for result in results:
            with _noting_failure(result, running):
                _start(result, running, pythons, job, lines[0], timeout_s=args.timeout_s)
        for number, asked in enumerate(lines[1:]):
            matmul.append(matmul_rate(args.threads))
            first = number % len(results)
            for result in (*results[first:], *results[:first]):
                if result.name in running:
                    with _noting_failure(result, running):
                        result.rounds.append(running[result.name].ask(asked))
                        print(
                            f"{result.name}, round {number}: {result.rates[-1]:,.0f} tokens/s",
                            file=sys.stderr,
                            flush=True,
                        )
    finally:
        for process in running.values():
            process.end()
    return results, matmul


def _start(
    result: Result,
    running: dict[str, Process],
    pythons: dict[str, str | PeerFailed],
    job: dict[str, Any],
    asked: list[dict[str, Any]],
    *,
    timeout_s: float,
) -> None:
    """Loads a side and makes the call that compiles."""
    python = pythons[result.side.system]
    if isinstance(python, PeerFailed):
        raise python
    result.version = environments.version(python, result.side.system)
    process = Process(result.side, python, job, timeout_s=timeout_s)
    running[result.name] = process
    result.load_s, result.libraries = process.load_s, process.libraries
    result.first_s = process.ask(asked)["seconds"]


def _grid(words: str) -> list[Side]:
    """vLLM's settings whose names contain the words."""
    grid = [side for dtype in dtypes.usable() for side in vllm_grid(dtype)]
    return [side for side in grid if words in side.name]


def _tried(
    args: argparse.Namespace,
    workload: Workload,
    weights: Path,
    rounds: Sequence[Sequence[Request]],
    pythons: dict[str, str | PeerFailed],
) -> list[Result]:
    """Each setting of vLLM on one round, one process after the other."""
    lines = [[dataclasses.asdict(request) for request in part] for part in rounds[:2]]
    results = [Result(side) for side in _grid(args.vllm_grid)]
    for result in results:
        running: dict[str, Process] = {}
        try:
            with _noting_failure(result, running):
                job = job_of(workload, weights, threads=args.threads)
                _start(result, running, pythons, job, lines[0], timeout_s=args.timeout_s)
                result.rounds.append(running[result.name].ask(lines[1]))
        finally:
            for process in running.values():
                process.end()
    return results


def _best(tried: Sequence[Result]) -> list[Side]:
    """The fastest side of each dtype, and the same without log-probs."""
    sides = []
    for dtype in dtypes.DTYPES:
        ran = [result for result in tried if result.dtype == dtype and result.rounds]
        if ran:
            best = max(ran, key=lambda result: result.rates[0]).side
            sides += [best, without_logprobs(best)]
    return sides


@contextlib.contextmanager
def _noting_failure(result: Result, running: dict[str, Process]) -> Iterator[None]:
    try:
        yield
    except PeerFailed as error:
        result.failure = str(error)
        if result.name in running:
            running.pop(result.name).end()


def _part(workload: Workload, results: list[Result], matmul: list[float]) -> list[str]:
    rates = ", ".join(f"{rate / 1e9:.0f}" for rate in matmul)
    lines = [
        *tables.table(results),
        *tables.ratios(results),
        *tables.own_counts(results),
        f"Matmul rate of this machine before each round, 2048^3: {rates} GFLOP/s.",
        "",
    ]
    if workload.name in ("S3", "S4"):
        lines += tables.same_tokens(results)
    return lines


def _head(args: argparse.Namespace) -> list[str]:
    return [
        "# Rollout speed",
        "",
        f"{date.today()}, commit `{record.commit()}`, {args.threads} threads of "
        f"{os.cpu_count()} ({platform.machine()}), Python {platform.python_version()}, medians of "
        f"{args.rounds} rounds{', TINY: figures mean nothing' if args.tiny else ''}. Made by "
        "`benchmarks/sampler.py`.",
        "",
    ]


if __name__ == "__main__":
    main()
