"""Hostile answers through the grader's workers: reward 0, in time, and nothing is executed.

The table is `tests.support.hostile_answers.HOSTILE`. Each seed also changes its answers at random:
two are spliced, repeated, wrapped, or get characters that show nothing.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from tests.drills.drill import Case, Drill, Place
from tests.support.hostile_answers import GOLDS, HOSTILE

ROW = "hostile answers"
CHANGED, CHANGED_SHORT = 200, 40
TIMEOUT_S = 4.0
# An answer that is stopped takes its deadline, once more if its worker died, and a worker's start.
LONGEST_S = 3 * TIMEOUT_S + 20
CHANGED_GOLD = r"\sqrt{7919}+104729\pi"  # what no splice of the table equals
ODD = ("\u200b", "\u202e", "\x00", "\ud800", "\u0301", "\ufeff", "{", "}", "\\", "$", "%", "\n")
WRAPS = (
    r"\boxed{{{0}}}", r"\text{{{0}}}", r"\frac{{{0}}}{{{0}}}", r"\sqrt{{{0}}}", "({0})", "{{{0}}}",
    r"\left({0}\right)", "{0}, {0}", "[{0})", r"\{{{0}\}}", "x={0}", "{0} cm", "-{0}", "{0}!",
    r"\begin{{pmatrix}}{0}\\{0}\end{{pmatrix}}", "|{0}|", "{0}^{{{0}}}", r"\sum_{{k=1}}^{{9}} {0}",
)  # fmt: skip


def drills(seed: int, short: bool) -> list[Drill]:
    """The table, and what the seed makes of it."""
    size = CHANGED_SHORT if short else CHANGED
    return [Drill("answers", "table", seed, len(HOSTILE)), Drill("answers", "changed", seed, size)]


def run(drill: Drill, place: Place) -> Iterator[Case]:
    """Grades one answer after the other; the workers are the same for all."""
    from polaris_jax.reward import Grader

    pick = random.Random(f"{drill.name} {drill.seed}")
    if drill.name == "table":
        cases = [
            (name, text, GOLDS[i % len(GOLDS)]) for i, (name, text) in enumerate(HOSTILE.items())
        ]
    else:
        cases = [
            (f"{pick.randrange(10**6)}", changed(pick), CHANGED_GOLD) for _ in range(drill.size)
        ]
    former = os.getcwd()
    with place.fresh("canary") as folder, Grader(workers=2, timeout_s=TIMEOUT_S) as grader:
        (folder / "canary").write_text("alive")
        os.chdir(folder)
        try:
            for name, text, gold in cases:
                began_s = time.monotonic()
                (grade,) = grader.grade([rf"</think> \boxed{{{text}}}"], [gold])
                took_s = time.monotonic() - began_s
                fault = ""
                if grade.reward != 0:
                    fault = f"reward {grade.reward} for {gold!r}: {text[:200]!r}"
                elif took_s > LONGEST_S:
                    fault = f"{took_s:.0f} s: {text[:200]!r}"
                elif grade.layer in ("crash", "error"):
                    fault = f"{grade.layer}: {grade.reason}: {text[:200]!r}"
                elif executed := _executed(folder):
                    fault = f"executed: {executed}"
                stopped = grade.layer in ("timeout", "memory")
                yield Case(ROW, name, fault, note="stopped" if stopped else "wrong")
            (grade,) = grader.grade([r"</think> \boxed{\frac{10}{2}}"], ["5"])
            if grade.reward != 1:
                yield Case(ROW, "after all of them", "a right answer is not graded 1", 0)
        finally:
            os.chdir(former)


def _executed(folder: Path) -> list[str]:
    """What lies beside the canary, or happened to it."""
    found = [path.name for path in folder.iterdir() if path.name != "canary"]
    if (folder / "canary").read_text() != "alive" or "POLARIS_CANARY" in os.environ:
        found.append("the canary")
    return found


def changed(pick: random.Random) -> str:
    """An answer of the table, changed at random; at most some hundred thousand characters."""
    texts = [text for text in HOSTILE.values() if len(text) < 100_000]
    text = pick.choice(texts)
    for _ in range(pick.randrange(1, 4)):
        way = pick.randrange(4)
        if way == 0:
            other = pick.choice(texts)
            text = text[: pick.randrange(len(text) + 1)] + other[pick.randrange(len(other) + 1) :]
        elif way == 1:
            text = (text * pick.randrange(2, 20))[:200_000]
        elif way == 2 and len(text) < 50_000:
            text = pick.choice(WRAPS).format(text)
        else:
            for _ in range(pick.randrange(1, 6)):
                at = pick.randrange(len(text) + 1)
                text = text[:at] + pick.choice(ODD) + text[at:]
    return text
