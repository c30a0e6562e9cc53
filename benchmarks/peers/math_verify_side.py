"""The other side of `benchmarks/grader.py`: math-verify, or plain sympy, in a pool of processes.

    python benchmarks/peers/math_verify_side.py SETTING WORKERS < pairs.json

Run by the interpreter of an environment with math-verify and lark. pairs.json is [[answer, gold],
...]. Prints one JSON line: seconds of the whole, seconds of each pair, verdicts.

Settings: `plain` hands both texts over as they are, `formula` puts them in `$...$` where they bring
no formula of their own; `-no-timeouts` switches its alarms off. `sympy` is simplify(a - b) == 0 of
what sympy's own LaTeX parser reads, under an alarm of SYMPY_TIMEOUT_S.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import sys
import time

SYMPY_TIMEOUT_S = 5


def formula(text: str) -> str:
    return text if "$" in text or "\\boxed" in text or "\\[" in text else f"${text}$"


def with_math_verify(setting: str, answer: str, gold: str) -> bool:
    from math_verify import parse, verify

    if setting.startswith("formula"):
        answer, gold = formula(answer), formula(gold)
    limits = {"parsing_timeout": None} if setting.endswith("no-timeouts") else {}
    ours, theirs = parse(answer, **limits), parse(gold, **limits)
    limits = {"timeout_seconds": None} if setting.endswith("no-timeouts") else {}
    return bool(verify(theirs, ours, **limits))


def with_sympy(answer: str, gold: str) -> bool:
    from sympy import simplify
    from sympy.parsing.latex import parse_latex

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SYMPY_TIMEOUT_S)
    try:
        ours, theirs = parse_latex(answer, backend="lark"), parse_latex(gold, backend="lark")
        return bool(simplify(ours - theirs) == 0)
    finally:
        signal.alarm(0)


def timed(task: tuple[str, str, str]) -> tuple[bool, float]:
    setting, answer, gold = task
    began_s = time.perf_counter()
    try:
        equal = (
            with_sympy(answer, gold)
            if setting == "sympy"
            else with_math_verify(setting, answer, gold)
        )
    except Exception:  # noqa: BLE001 - whatever it raises, its verdict is no
        equal = False
    return equal, time.perf_counter() - began_s


def main() -> None:
    logging.disable(logging.CRITICAL)
    setting, workers = sys.argv[1], int(sys.argv[2])
    tasks = [(setting, answer, gold) for answer, gold in json.load(sys.stdin)]
    with multiprocessing.Pool(workers) as pool:
        pool.map(timed, [(setting, "$1$", "$1$")] * 4 * workers)  # imports are not timed
        began_s = time.perf_counter()
        found = pool.map(timed, tasks, chunksize=8)
        took_s = time.perf_counter() - began_s
    verdicts, seconds = zip(*found, strict=True)
    print(json.dumps({"took_s": took_s, "seconds": seconds, "verdicts": verdicts}))


if __name__ == "__main__":
    main()
