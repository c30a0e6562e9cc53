"""Is this package as fast as recorded? Our sampler and update over the machine's bare products.

    make bench-check                                        fails below 95% of a recorded ratio
    python benchmarks/check.py --write                      records this machine's ratios
    python benchmarks/check.py --new A.json --record B.json compares two records, measures nothing

The ratio is our tokens/s over an anchor's: the model's matrix products alone in plain jax, in
float32 (`peers/anchor.py`). 32 rows stand for the sampler: on S1, in bfloat16 too where the CPU
multiplies it, on S5 (a vocabulary of 151,936) and S6 (longer responses). 2,048 rows stand for the
update on U1, a third of their rate for forward and backward. Anchor and side take turns, and the
median of the pairs counts. A ratio that fell is measured once more, which then counts: on an idle
machine two measurements of one commit may differ by a tenth. Peers are not run: `--new` with a
record of `benchmarks/sampler.py` or `update.py` checks their ratios. A ratio depends on the
processor (caches, vector units): each kind that was recorded has a file in
docs/results/bench_check, and another one's is refused.
Exit 0: kept; 1: a ratio fell; 2: nothing to compare with.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

import update
from peers import dtypes, record

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "results" / "bench_check"
SAMPLER_ROWS, UPDATE_ROWS = 32, 2048
SAMPLED = (("S1", "float32"), ("S1", "bfloat16"), ("S5", "float32"), ("S6", "float32"))
UPDATED = "U1"


def main() -> None:
    args = _arguments()
    if args.tiny and (args.write or args.new):
        _refuse("--tiny: its figures mean nothing, so it neither writes nor compares; leave it out")
    new = record.read(args.new) if args.new else None
    here = new or record.new_record("check", threads=args.threads, rows=())
    recorded = None if args.write or args.tiny else _recorded(args, here)
    found = new or measured(args)
    if args.write:
        found.write(args.record or RECORDS / f"{_file_name(found)}.json")
    print("\n".join(record.table(found)))
    if recorded is None:
        return
    for row in record.unrecorded(recorded, found):
        print(f"not in the record of {recorded.date}: {row.workload}, {row.dtype}")
    lines = record.worse(recorded, found)
    if lines and new is None:
        print("\n".join([*lines, "measured once more:"]))
        fallen = {measured_by(row) for row in record.fallen(recorded, found)}
        again = measured(args, fallen)
        print("\n".join(record.table(again)))
        kept = tuple(row for row in found.rows if measured_by(row) not in fallen)
        lines = record.worse(recorded, dataclasses.replace(found, rows=kept + again.rows))
    print("\n".join(lines) if lines else f"kept: every ratio is at least {record.LEAST_SHARE:.0%}")
    sys.exit(1 if lines else 0)


def _recorded(args: argparse.Namespace, here: record.Record) -> record.Record:
    """The record of `--record`, or the one of this kind of machine."""
    remedy = "record this machine with --write first, at a commit that is known to be fast"
    if args.record is None:
        known = [record.read(path) for path in sorted(RECORDS.glob("*.json"))]
        alike = [one for one in known if one.is_of(here)]
        if alike:  # an earlier record that does not name its vector units comes last
            return max(alike, key=lambda one: one.vectors == here.vectors)
        _refuse(
            f"{RECORDS}: no record of {here.machine}, only of "
            f"{'; '.join(one.machine for one in known) or 'no machine'}; {remedy}"
        )
    if not args.record.exists():
        _refuse(f"{args.record}: no such record; make one with --write on an idle machine")
    recorded = record.read(args.record)
    if not recorded.is_of(here):
        _refuse(
            f"{args.record}: measured on {recorded.machine}, {args.new or 'this'} is "
            f"{here.machine}; {remedy}"
        )
    return recorded


def _file_name(found: record.Record) -> str:
    return re.sub(r"[^a-z0-9]+", "_", found.machine.lower()).strip("_")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="our speed over the machine's, as recorded?")
    parser.add_argument("--record", type=Path, help="default: this machine's in docs/results")
    parser.add_argument("--new", type=Path, help="compare this record; measure nothing")
    parser.add_argument("--write", action="store_true", help="write the record, compare nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a smoke test; figures mean nothing")
    return parser.parse_args()


def _refuse(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def measured_by(row: record.Row) -> tuple[str, str]:
    """The workload's short name and the dtype: what is measured together."""
    return row.workload.split(":")[0], row.dtype


def measured(
    args: argparse.Namespace, chosen: Collection[tuple[str, str]] | None = None
) -> record.Record:
    """Our sampler and update, each in turns with its anchor; only the chosen ones, if given."""
    rows: list[record.Row] = []
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype in SAMPLED[: 1 if args.tiny else None]:
            if chosen is not None and (name, dtype) not in chosen:
                continue
            if dtype == "float32" or not dtypes.without_bfloat16():
                rows += _sampler(args, name, dtype, Path(folder))
        if chosen is None or (UPDATED, "float32") in chosen:
            rows += _update(args, Path(folder))
    return record.new_record("check", threads=args.threads, rows=rows)


def _sampler(args: argparse.Namespace, name: str, dtype: str, folder: Path) -> list[record.Row]:
    from peers.sampling import ours
    from peers.sampling.driver import OURS, Process, Side, job_of
    from peers.sampling.workloads import WORKLOADS, requests, shrunk

    workload = shrunk(WORKLOADS[name]) if args.tiny else WORKLOADS[name]
    weights = ours.write_weights(workload.model, folder)
    vocab = ours.vocab_size(weights)
    job = job_of(workload, weights, threads=args.threads)
    side = Side(OURS, OURS, {"dtype": dtype})
    process = Process(side, sys.executable, job, timeout_s=1800)
    try:
        answers, anchors = [], []
        for number in range(args.rounds + 1):
            asked = [dataclasses.asdict(r) for r in requests(workload, number, vocab)]
            answer = process.ask(asked)
            if number:  # the first call compiles
                answers.append(answer)
                anchors.append(_anchor(args, workload.model, SAMPLER_ROWS))
    finally:
        process.end()
    rates = [answer["useful_tokens"] / answer["seconds"] for answer in answers]
    return rows_of(
        f"{name}: {ours.MODELS[workload.model]}",
        rates,
        anchors,
        seconds=statistics.median(answer["seconds"] for answer in answers),
        dtype=dtype,
        allocator=process.libraries["allocator"],
        peak_bytes=max(answer["peak_bytes"] for answer in answers),
    )


def _update(args: argparse.Namespace, folder: Path) -> list[record.Row]:
    steps = "1" if args.tiny else "3"
    weights = update.write_weights(folder, UPDATED)
    command = update.ours(args.threads, UPDATED, "--weights", str(weights), "--steps", steps)
    runs, anchors = [], []
    for _ in range(args.rounds):
        runs.append(update.run(command))
        anchors.append(_anchor(args, "micro", UPDATE_ROWS) / 3)
    seconds = [statistics.median(run["seconds"]) for run in runs]
    return rows_of(
        f"{UPDATED}: {update.WORKLOADS[UPDATED]}",
        [run["real_tokens"] / s for run, s in zip(runs, seconds, strict=True)],
        anchors,
        seconds=statistics.median(seconds),
        dtype="float32",
        allocator=runs[0]["allocator"],
        peak_bytes=max(run["peak_bytes"] for run in runs),
    )


def _anchor(args: argparse.Namespace, model: str, rows: int) -> float:
    """Tokens/s of the products alone."""
    script = Path(update.PEERS) / "anchor.py"
    passes = ["1", "0"] if args.tiny else []
    command = [sys.executable, str(script), model, str(rows), str(args.threads), *passes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])["tokens_per_s"]


def rows_of(
    workload: str,
    rates: list[float],
    anchors: list[float],
    *,
    seconds: float,
    dtype: str,
    allocator: str,
    peak_bytes: int,
) -> list[record.Row]:
    """Our row and the anchor's, whose ratio is the median over the turns.

    The anchor's row has our dtype, by which rows are compared; its products are in float32.
    """
    mine = record.Row(
        workload=workload,
        side=record.OURS,
        system=record.OURS,
        version="this commit",
        dtype=dtype,
        allocator=allocator,
        settings={},
        seconds=seconds,
        tokens_per_s=statistics.median(rates),
        ratio=None,
        peak_bytes=peak_bytes,
    )
    anchor = dataclasses.replace(
        mine,
        side=record.ANCHOR,
        system=record.ANCHOR,
        seconds=seconds * mine.tokens_per_s / statistics.median(anchors),
        tokens_per_s=statistics.median(anchors),
        ratio=statistics.median(a / b for a, b in zip(rates, anchors, strict=True)),
        peak_bytes=0,
    )
    return [mine, anchor]


if __name__ == "__main__":
    main()
