"""Answers graded a second, and how many of the labelled ones rightly, beside math-verify and sympy.

    python benchmarks/grader.py [--data DIR] [--peer_python PATH] [--workers 2] [--out FILE]

DIR holds original_verdicts.jsonl (pairs for the rate) and math_verify_cases.jsonl (pairs with a
label); by default $POLARIS_SHARED/data/grader, else ../shared/data/grader. math-verify runs in an
environment of its own, made under workdirs/ unless --peer_python names one, in its own process pool
with as many workers; of its settings the most accurate on the labelled cases counts as its best,
the fastest on a tie. Plain sympy sees a sample. Neither side's start and imports are timed; our
cache is off and every pair comes once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import subprocess
import sys
import time
import venv
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDE = ROOT / "benchmarks" / "peers" / "math_verify_side.py"
PEER_PACKAGES = ("math-verify==0.9.0", "antlr4-python3-runtime==4.13.2", "lark==1.2.2")
SETTINGS = ("plain", "formula", "plain-no-timeouts", "formula-no-timeouts")
SYMPY_PAIRS = 200

Pairs = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A pair with the verdict that math-verify's own tests expect."""

    answer: str
    gold: str
    expected: bool
    bare: bool  # a plain expression; else prose or several boxes


@dataclasses.dataclass(frozen=True)
class Result:
    """One grader's figures."""

    name: str
    pairs: int
    rate: float  # pairs a second, all workers together
    p99_s: float  # of one pair
    right: int  # of the labelled cases
    false_positives: int


def main() -> None:
    parser = argparse.ArgumentParser(description="answers graded a second, and how many rightly")
    shared = Path(os.environ.get("POLARIS_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data" / "grader")
    parser.add_argument("--peer_python", default="", help="with math-verify and lark")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="", help="also write a Markdown file")
    args = parser.parse_args()
    if not (args.data / "original_verdicts.jsonl").is_file():
        sys.exit(f"error: --data={args.data}: no original_verdicts.jsonl there")
    rows = _rows(args.data / "original_verdicts.jsonl")
    pairs = list(dict.fromkeys((row["answer"], row["gold"]) for row in rows))
    cases = [Case(**row) for row in _rows(args.data / "math_verify_cases.jsonl")]
    results = [_ours(pairs, cases, args.workers)]
    python = args.peer_python or _peer_python()
    for setting in SETTINGS:
        results.append(_theirs(python, setting, pairs, cases, args.workers))
    sample = random.Random(0).sample(pairs, min(SYMPY_PAIRS, len(pairs)))
    results.append(_theirs(python, "sympy", sample, cases, args.workers))
    text = _report(results, len(cases), args.workers)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _peer_python() -> str:
    """The interpreter of an environment with the other graders, made at the first call."""
    folder = ROOT / "workdirs" / "math_verify_venv"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"making {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
        (folder / "ready").touch()
    return str(python)


def _ours(pairs: Pairs, cases: list[Case], workers: int) -> Result:
    from polaris_jax.reward import Grader

    with Grader(workers=workers, cache=False) as grader:
        warm = [rf"\boxed{{\sqrt{{{n}}}+{n}}}" for n in range(20 * workers)]
        grader.score(warm, ["x"] * len(warm), mode="eval")  # starts are not timed
        texts, golds = [_boxed(answer) for answer, _ in pairs], [gold for _, gold in pairs]
        began_s = time.perf_counter()
        grader.score(texts, golds, mode="eval")
        took_s = time.perf_counter() - began_s
        seconds: list[float] = []
        for text, gold in zip(texts, golds, strict=True):  # one at a time, the way there and back
            began_s = time.perf_counter()
            grader.score([text], [gold], mode="eval")
            seconds.append(time.perf_counter() - began_s)
        verdicts = [_our_verdict(grader, case) for case in cases]
    return _result("polaris_jax", took_s, seconds, verdicts, cases)


def _boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def _our_verdict(grader: object, case: Case) -> bool:
    text = _boxed(case.answer) if case.bare else case.answer
    score = grader.score([text], [case.gold], mode="eval" if case.bare else "free")  # type: ignore[attr-defined]
    return bool(score[0])


def _theirs(python: str, setting: str, pairs: Pairs, cases: list[Case], workers: int) -> Result:
    found = _side(python, setting, pairs, workers)
    labelled = _side(python, setting, [(case.answer, case.gold) for case in cases], workers)
    name = "sympy" if setting == "sympy" else f"math-verify, {setting}"
    return _result(name, found["took_s"], found["seconds"], labelled["verdicts"], cases)


def _side(python: str, setting: str, pairs: Pairs, workers: int) -> dict:
    command = [python, str(SIDE), setting, str(workers)]
    ran = subprocess.run(command, input=json.dumps(pairs), capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"error: {' '.join(command)}: {ran.stderr.strip()[-500:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def _result(
    name: str, took_s: float, seconds: list[float], verdicts: list[bool], cases: list[Case]
) -> Result:
    right = sum(v == case.expected for v, case in zip(verdicts, cases, strict=True))
    wrong = sum(v and not case.expected for v, case in zip(verdicts, cases, strict=True))
    p99_s = sorted(seconds)[int(0.99 * len(seconds))]
    return Result(name, len(seconds), len(seconds) / took_s, p99_s, right, wrong)


def _report(results: list[Result], cases: int, workers: int) -> str:
    best = max(
        (result for result in results if result.name.startswith("math-verify")),
        key=lambda result: (result.right, result.rate),
    )
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    lines = [
        f"Answers graded a second, {date.today()}, commit {commit}, {os.cpu_count()} CPU cores "
        f"({platform.machine()}), Python {platform.python_version()}, {workers} workers.",
        "",
        f"| grader | pairs | pairs/s | p99 of a pair, ms | right of {cases} labelled | false +|",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        mark = " (its best)" if r is best else ""
        lines.append(
            f"| {r.name}{mark} | {r.pairs} | {r.rate:,.0f} | {1000 * r.p99_s:.1f} | {r.right} | "
            f"{r.false_positives} |"
        )
    ours = results[0]
    lines += ["", f"{ours.rate / best.rate:.1f} times math-verify's rate at its best setting."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
