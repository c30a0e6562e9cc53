"""Two commands at once in one workdir: one is refused in one line, or both end with right files."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

from tests.drills import runs
from tests.drills.drill import (
    Case,
    Command,
    Drill,
    Place,
    differing,
    digests,
    last_words,
    refusal_fault,
)  # fmt: skip

ROW = "two commands at once"
# (the first command, the second, flags of the second). Names as in `runs.RUNS`.
PAIRS = (
    ("train", "train", ()),
    ("evaluate", "evaluate", ()),
    ("evaluate", "evaluate", ("--tag=other",)),
    ("calibrate", "calibrate", ()),
    ("calibrate", "asked", ()),
    ("probe", "probe", ()),
    ("probe", "train", ()),
    ("prepare", "prepare", ()),
    ("train", "report", ()),
    ("report", "report", ()),
    ("evaluate", "train", ()),
    ("grade", "grade", ()),
    ("convert", "convert", ()),
)
SHORT = 2  # the first ones: train and train, evaluate and evaluate


def drills(seed: int, short: bool) -> list[Drill]:
    """A drill for every pair."""
    return [
        Drill("pairs", f"{first}_{second}_{number}", 1000 * seed + number, 1)
        for number, (first, second, _) in enumerate(PAIRS[: SHORT if short else None])
    ]


def run(drill: Drill, place: Place) -> Iterator[Case]:
    """Starts both, the second a random while or a moment after the first."""
    number = int(drill.name.rpartition("_")[2])
    first, second, more = PAIRS[number]
    pick = random.Random(f"{drill.name} {drill.seed}")
    for name in (first, second):
        runs.expected(name, place)
    with place.fresh("pair") as folder:
        workdir = folder / "run"
        runs.prepare_workdir(first, place, workdir)  # what `report` finds, a training leaves
        lines = [
            runs.words(runs.RUNS[name].commands[0], runs.RUNS[name], place, workdir)
            for name in (first, second)
        ]
        lines[1] += more
        (one,) = runs.start(lines[0], folder / "logs")
        if pick.random() < 0.5:
            pattern = pick.choice(runs.RUNS[first].moments)
            look = runs.looks(runs.RUNS[first], workdir, None, pattern)
            when = f"at {pattern}" if runs.watch_moment([one], look, pick, nth=1) else "after it"
        else:
            delay_s = pick.uniform(0, 2.0)
            time.sleep(delay_s)
            when = f"{delay_s:.1f} s later"
        (two,) = runs.start(lines[1], folder / "logs")
        fault, note = _outcome(first, second, (one, two), place, workdir, more)
        if fault:
            place.keep(folder)
    yield Case(ROW, f"{first}, {second} {' '.join(more)} {when}", fault, note=note)


def _outcome(
    first: str,
    second: str,
    commands: tuple[Command, Command],
    place: Place,
    workdir: Path,
    more: tuple[str, ...],
) -> tuple[str, str]:
    """(why it fell short, or ""; how it ended)."""
    ends = [command.end() for command in commands]
    refused = [c for c, end in zip(commands, ends, strict=True) if end != 0]
    if len(refused) == 2:
        return f"both failed: {' and '.join(last_words(c.said) for c in commands)}", ""
    names = [str(workdir), "--out", "--to", "workdir="]
    for command in refused:
        if fault := refusal_fault(command.process.returncode, command.said, names):
            return fault, ""
    for command in commands:
        if "Traceback" in command.said:
            return f"a traceback: {last_words(command.said)}", ""
    ended = [n for n, end in zip((first, second), ends, strict=True) if end == 0]
    for name in dict.fromkeys(ended):
        if name == "report":  # it shows what there was when it ran
            continue
        wanted = runs.expected(name, place)
        here = digests(workdir, runs.RUNS[name].equal)
        if different := differing(here, wanted):
            return f"{name} left other files: {', '.join(different[:5])}", ""
        if more and end_ok(ends[1]):
            tag = more[0].partition("=")[2]
            tagged = {n: digests(workdir, [f"{tag}_{n}"])[f"{tag}_{n}"] for n in wanted}
            if different := differing(tagged, wanted):
                return f"{tag}_ files differ: {', '.join(different)}", ""
    left = [p.name for p in workdir.rglob("*.partial")]
    note = "both right" if not refused else "one refused"
    return (f"left over: {left}" if left else ""), note


def end_ok(status: int | None) -> bool:
    """Whether a command ended well."""
    return status == 0
