"""Runs the drills of a seed, keeps what they found, and leaves no process behind."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.drills.drill import GONE_WITHIN_S, MARK, ROOT, Case, Drill, Place, marked, sweep

KINDS = ("answers", "files", "load", "damages", "pairs", "kills")
AT_ONCE = 2
DRILL_TIMEOUT_S = 3600
ROWS = (  # of the table, in order
    *("kills of one process", "kills of two or four processes", "damages", "two commands at once"),
    *("sampler requests", "sampler requests with drafts", "hostile answers", "hostile files"),
    "drills that broke",
)


class Stopped(Exception):
    """A signal asks the drill run to end."""


@dataclasses.dataclass
class Running:
    """A drill at work."""

    drill: Drill
    mark: str
    process: subprocess.Popen[bytes]
    began_s: float


def main() -> None:
    """The command line: runs drills, runs one drill (for the runner itself), or prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--short", action="store_true", help="some of each kind, ten minutes")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of these kinds alone")
    parser.add_argument("--names", default="", help="drills whose names begin so alone")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, nargs="+", help="results of several seeds as a table")
    args = parser.parse_args()
    if args.table:
        print(table([line for out in args.table for line in finished(out)]))
        return
    out = (args.out or ROOT / "workdirs" / "drills" / f"seed_{args.seed}").absolute()
    if args.one:
        run_one(Drill(**json.loads(args.one)), out)
        return
    wanted = [
        drill
        for kind in args.kinds.split(",")
        for drill in importlib.import_module(f"tests.drills.{kind}").drills(args.seed, args.short)
        if drill.name.startswith(args.names)
    ]
    sys.exit(run_all(wanted, out))


def run_one(drill: Drill, out: Path) -> None:
    """Runs one drill in this process; its cases go to the file that the runner reads."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    own = out / "own" / f"{drill.kind}.{drill.name}"
    shutil.rmtree(own, ignore_errors=True)  # of one that was killed
    place = Place(out / "stock", own)
    run = importlib.import_module(f"tests.drills.{drill.kind}").run
    cases = [dataclasses.asdict(case) for case in run(drill, place)]
    shutil.rmtree(own, ignore_errors=True)
    _cases_file(out, drill).write_text(json.dumps(cases))


def run_all(wanted: list[Drill], out: Path) -> int:
    """Runs what is not finished yet; 0 if everything passed, 1 if not, 130 or 143 by a signal."""
    out.mkdir(parents=True, exist_ok=True)
    token_file = out / "token"
    if not token_file.exists():
        token_file.write_text(secrets.token_hex(8))
    token = token_file.read_text()
    sweep(token, prefix=True)  # what a killed drill run has left
    done = {(line["kind"], line["name"]) for line in finished(out) if not _broke(line)}
    waiting = collections.deque(d for d in wanted if (d.kind, d.name) not in done)
    print(f"{len(done)} drills are finished, {len(waiting)} wait: {out}", flush=True)

    def stop(number: int, _: Any) -> None:
        raise Stopped(number)

    heard = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    heard = [number for number in heard if signal.getsignal(number) != signal.SIG_IGN]  # nohup
    former = {number: signal.signal(number, stop) for number in heard}
    running: list[Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                running.append(_start(waiting.popleft(), out, token))
            for one in list(running):
                late = time.monotonic() - one.began_s > DRILL_TIMEOUT_S
                if one.process.poll() is not None or late:
                    _note(one, out, late=late)
                    running.remove(one)
            time.sleep(0.1)
    except Stopped as stopped:
        number = signal.Signals(stopped.args[0])
        text = f"stopped by {number.name}; rerun the same command to continue"
        print(text, file=sys.stderr, flush=True)
        return 128 + number
    finally:
        for number in former:
            signal.signal(number, signal.SIG_IGN)
        sweep(token, prefix=True)
        for one in running:
            one.process.wait()
        for number, handler in former.items():
            signal.signal(number, handler)
    lines = [line for line in finished(out) if (line["kind"], line["name"]) in _keys(wanted)]
    (out / "results.json").write_text(json.dumps(lines, indent=1) + "\n")
    (out / "results.md").write_text(table(lines) + "\n")
    print(table(lines))
    return int(any(case["fell_short"] for line in lines for case in line["cases"]))


def _broke(line: dict[str, Any]) -> bool:
    """Whether a drill itself failed; a rerun does it again."""
    return any(case["row"] == ROWS[-1] for case in line["cases"])


def _keys(drills: list[Drill]) -> set[tuple[str, str]]:
    return {(drill.kind, drill.name) for drill in drills}


def _cases_file(out: Path, drill: Drill) -> Path:
    return out / "own" / f"{drill.kind}.{drill.name}.json"


def _start(drill: Drill, out: Path, token: str) -> Running:
    """Starts a drill in a session of its own, with what its commands need around them."""
    mark = f"{token}/{drill.kind}.{drill.name}"
    _cases_file(out, drill).parent.mkdir(exist_ok=True)
    _cases_file(out, drill).unlink(missing_ok=True)
    temporary = out / "own" / f"{drill.kind}.{drill.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    environment = {
        MARK: mark,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(temporary),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "Agg",
    }
    line = json.dumps(dataclasses.asdict(drill))
    with (out / "own" / f"{drill.kind}.{drill.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.drills", "--out", str(out), "--one", line],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(drill, mark, process, time.monotonic())


def _note(one: Running, out: Path, *, late: bool) -> None:
    """Keeps what a drill found; whatever it left behind falls short, and is killed."""
    drill, file = one.drill, _cases_file(out, one.drill)
    if late:
        sweep(one.mark)
    status = one.process.wait()
    cases = [Case(**case) for case in json.loads(file.read_text())] if file.exists() else []
    if not file.exists():
        log = file.with_suffix(".log").read_text(errors="replace").strip().splitlines()
        why = "it took too long" if late else f"status {status}: {' / '.join(log[-2:])[-300:]}"
        cases.append(Case(ROWS[-1], drill.name, why))
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := marked(one.mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        cases.append(Case(ROWS[-1], drill.name, f"left processes: {left}"))
        sweep(one.mark)
    shutil.rmtree(out / "own" / f"{drill.kind}.{drill.name}.tmp", ignore_errors=True)
    line = dataclasses.asdict(drill) | {
        "seconds": round(time.monotonic() - one.began_s, 1),
        "commit": _commit(),
        "cases": [dataclasses.asdict(case) for case in cases],
    }
    with (out / "drills.jsonl").open("a") as kept:
        kept.write(json.dumps(line) + "\n")
    short = [case for case in cases if case.fell_short]
    counted = sum(case.count for case in cases)
    print(f"{drill.kind} {drill.name}: {counted} in {line['seconds']:.0f} s", flush=True)
    for case in short:
        print(f"  fell short: {case.name}: {case.fell_short}", flush=True)


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def finished(out: Path) -> list[dict[str, Any]]:
    """What each finished drill found last; a torn last line counts as not finished."""
    path = out / "drills.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        path.write_bytes(b"".join(lines[:-1]))
    found = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return list({(line["kind"], line["name"]): line for line in found}.values())


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: done, passed and fell short by row, then a line for each case that fell short."""
    done: collections.Counter[str] = collections.Counter()
    failed: collections.Counter[str] = collections.Counter()
    notes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    said = []
    for line in lines:
        for case in line["cases"]:
            row = case["row"]
            done[row] += case["count"]
            if case["fell_short"]:
                failed[row] += case["count"]
                where = f"seed {line['seed']}, {line['kind']} {line['name']}"
                said.append(
                    f"- {row} ({case['count']}), {where}, {case['name']}: {case['fell_short']}"
                )
            elif case["note"]:
                notes[row][case["note"]] += case["count"]
    rows = [row for row in ROWS if row in done]
    text = ["| | done | passed | fell short | how they passed |", "|---|---|---|---|---|"]
    for row in rows:
        how = ", ".join(f"{count} {note}" for note, count in notes[row].most_common())
        text.append(f"| {row} | {done[row]} | {done[row] - failed[row]} | {failed[row]} | {how} |")
    commits = ", ".join(sorted({line["commit"] for line in lines}))
    hours = sum(line["seconds"] for line in lines) / 3600
    text.append(f"\n{len(lines)} drills, {hours:.1f} hours of drills two at a time, at {commits}.")
    return "\n".join([*text, *(["", "What fell short:", "", *said] if said else [])])
