"""SIGKILL to every command at watched moments; rerun to its end, it leaves what it would have left.

A moment is a change of a file: a line is appended, a `.partial` appears, a folder of a checkpoint
or of the warm start. A random while after it the process is killed, with its helpers or without.
One run is killed several times; a run that ends before its kill begins anew.
"""

from __future__ import annotations

import random
import re
import shutil
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
)
from tests.support import fake_bucket

KILLS_A_DRILL = 6  # so that a drill takes minutes
SHORT = {"calibrate": 2, "train": 3, "carry": 1, "grade": 2, "evaluate": 1, "train2": 1}


def drills(seed: int, short: bool) -> list[Drill]:
    """Every run of `runs.RUNS`, in parts; the longest first, since they run side by side."""
    found = []
    ordered = sorted(runs.RUNS.items(), key=lambda item: (-item[1].ranks, item[0]))
    for name, run in ordered:
        kills = SHORT.get(name, 0) if short else run.kills
        for part, first in enumerate(range(0, kills, KILLS_A_DRILL)):
            size = min(KILLS_A_DRILL, kills - first)
            found.append(Drill("kills", f"{name}.{part}", 1000 * seed + part, size))
    return found


def run(drill: Drill, place: Place) -> Iterator[Case]:
    """Kills one run several times, and compares its final files with those of a whole run."""
    name = drill.name.partition(".")[0]
    kind = runs.RUNS[name]
    row = "kills of two or four processes" if kind.ranks > 1 else "kills of one process"
    wanted = runs.expected(name, place)
    pick = random.Random(f"{drill.name} {drill.seed}")
    left, tries = drill.size, 0
    while left and tries < 4 * drill.size:
        tries += 1
        with place.fresh(f"{tries}") as folder:
            life = Life(name, place, folder, pick)
            try:
                killed, fault = life.lead(left)
                fault = fault or life.compare(wanted)
            finally:
                life.close()
            if fault:
                place.keep(folder)
        left -= killed
        if killed or fault:
            yield Case(row, f"{name}: {', '.join(life.moments)}", fault, max(killed, 1), name)
    if left:
        yield Case(row, name, f"{left} kills came too late in {tries} runs", left)


class Life:
    """One run, from its start over its kills to its end."""

    def __init__(self, name: str, place: Place, folder: Path, pick: random.Random) -> None:
        self.name, self.kind, self.place, self.folder = name, runs.RUNS[name], place, folder
        self.pick = pick
        self.moments: list[str] = []
        self.workdir, self.logs = folder / "run", folder / "logs"
        self.bucket = fake_bucket.Bucket() if self.kind.bucket else None
        runs.prepare_workdir(name, place, self.workdir)

    def close(self) -> None:
        """Ends the store, if there is one."""
        if self.bucket is not None:
            self.bucket.close()

    def lead(self, most: int) -> tuple[int, str]:
        """Kills the run at most so often, then lets it end; (kills, why it fell short)."""
        killed, queue = 0, list(self.kind.commands)
        while queue:
            commands = self.start(queue[0])
            # Later commands of a chain get their share of the kills.
            share = killed < most and (len(queue) == 1 or self.pick.random() < 0.6)
            if share and self.wait(commands):
                killed += 1
                if fault := self.kill(commands):
                    return killed, fault
                continue
            for command in commands:
                status, said = command.end(), command.said
                if self.name == "convert" and killed and not refusal_fault(status, said, ["--to="]):
                    shutil.rmtree(self.workdir / "out")  # what a kill leaves is for the user
                    break
                if status != 0 or "Traceback" in said:
                    return killed, f"after {killed} kills, status {status}: {last_words(said)}"
            else:
                queue.pop(0)
        return killed, ""

    def start(self, command: str) -> list[Command]:
        """The processes of a command."""
        workdir = "gs://bucket/runs/one" if self.bucket else self.workdir
        line = runs.words(command, self.kind, self.place, workdir)
        return runs.start(line, self.logs, ranks=self.kind.ranks, bucket=self.bucket)

    def wait(self, commands: list[Command]) -> bool:
        """Waits for a random moment; False if the command ends before it."""
        if not self.kind.moments or self.pick.random() < 0.08:  # some time of the start
            until = time.monotonic() + self.pick.uniform(0.5, 6.0)
            while time.monotonic() < until and all(c.alive for c in commands):
                time.sleep(0.01)
            self.moments.append("a start")
            return all(c.alive for c in commands)
        pattern = self.pick.choice(self.kind.moments)
        nth = self.pick.choice([1, 1, 2, 3])
        look = runs.looks(self.kind, self.workdir, self.bucket, pattern)
        if not runs.watch_moment(commands, look, self.pick, nth=nth):
            return False
        self.moments.append(f"{pattern} {nth}")
        return True

    def kill(self, commands: list[Command]) -> str:
        """SIGKILL to the processes; why what follows fell short."""
        order = self.pick.sample(commands, len(commands))
        order[0].kill(helpers=self.pick.random() < 0.5)
        others = order[1:]
        if others and self.pick.random() < 0.2:
            return self.left_alone(others)
        for other in others:
            if self.pick.random() < 0.5:
                time.sleep(self.pick.uniform(0, 0.5))
            other.kill(helpers=True)
        return ""

    def left_alone(self, others: list[Command]) -> str:
        """Why processes whose peer was killed did not end by themselves, with one line."""
        self.moments[-1] += ", one alone"
        fault = ""
        for other in others:
            status = other.end(runs.PEER_END_WITHIN_S)
            lines = re.findall("^error: .*$", other.said, re.MULTILINE)
            if status != 1 or len(lines) != 1 or "Traceback" in other.said:
                fault = f"a peer of the killed: status {status}: {last_words(other.said)}"
        for other in others:
            other.kill(helpers=True)
        return fault

    def compare(self, wanted: dict[str, str]) -> str:
        """Why the end is not that of the undisturbed run."""
        if self.bucket is not None:
            shutil.rmtree(self.workdir)
            for name in self.bucket.names("bucket/runs/one/"):
                path = self.workdir / name.removeprefix("bucket/runs/one/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.bucket.read(name))
        runs.note_said(self.name, self.folder)
        different = differing(digests(self.workdir, self.kind.equal), wanted)
        partial = [str(p.relative_to(self.workdir)) for p in self.workdir.rglob("*.partial")]
        if different:
            return f"differs from the undisturbed run: {', '.join(different[:5])}"
        return f"left over: {', '.join(partial)}" if partial else ""
