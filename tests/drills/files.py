"""Hostile files through the command line: one line that names the file or field, and no harm.

The table is `tests.support.hostile_files.CASES`. Each seed also changes good specimens at random: a
value of a JSON file becomes another one, or a file is damaged as in `damages`. What was changed so
may still be read.

A process of this module runs many commands, one after the other, with bounded memory. A case that
takes longer than its deadline costs that process.
"""

from __future__ import annotations

import json
import os
import random
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.drills.damages import damage
from tests.drills.drill import ROOT, Case, Drill, Place, differing, digest, refusal_fault

ROW = "hostile files"
A_DRILL, CHANGED = 75, 100
SHORT, CHANGED_SHORT = 16, 8
DEADLINE_S = 60.0
MOST_MEMORY_BYTES = 3 << 30  # of the process, jax included
MORE_ADDRESSES_BYTES = 20 << 30  # above those when it is ready; most of jax's are never touched
CONTROL = "\x1b]0;executed\x07"
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 2.5, 10**6, 10**12, 2**63, 10**400, 1e308, -1e-308, "", "x", CONTROL,
    "\u202e", "../../x", "x" * 100_000, [], [[]], [0] * 1000, {}, {"a": {"b": [1]}},
    [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]],
)  # fmt: skip


def drills(seed: int, short: bool) -> list[Drill]:
    """The table in parts, and what the seed makes of good specimens."""
    from tests.support.hostile_files import CASES

    size = CHANGED_SHORT if short else CHANGED
    found = [Drill("files", "changed", seed, size)]
    if short:
        return [*found, Drill("files", "some", seed, SHORT)]
    parts = range(0, len(CASES), A_DRILL)
    return found + [
        Drill("files", f"table.{first}", seed, min(A_DRILL, len(CASES) - first)) for first in parts
    ]


def run(drill: Drill, place: Place) -> Iterator[Case]:
    """One command a case."""
    from tests.support.hostile_files import CASES, SPECIMENS, specimen

    pick = random.Random(f"{drill.name} {drill.seed}")
    specimens = place.own / "specimens"
    for kind in SPECIMENS:
        (specimens / kind).mkdir(parents=True)
    good = {kind: specimen(kind, specimens / kind) for kind in SPECIMENS}
    if drill.name == "changed":
        cases = [None] * drill.size
    elif drill.name == "some":
        cases = pick.sample(CASES, drill.size)
    else:
        first = int(drill.name.partition(".")[2])
        cases = CASES[first : first + drill.size]
    worker = Worker(place.own)
    try:
        for number, case in enumerate(cases):
            with place.fresh(f"{number}") as folder:
                kind = case.kind if case else pick.choice(sorted(good))
                spoilt = folder / good[kind].name
                (shutil.copytree if good[kind].is_dir() else shutil.copy)(good[kind], spoilt)
                if case:
                    case.spoil(spoilt)
                    name, says = case.name, [case.names]
                else:
                    file, name = change(spoilt, pick)
                    says = [str(spoilt), spoilt.name, file, "tokenizer", "checkpoint", kind]
                before = contents(spoilt)
                ended = worker.ask(command(kind, spoilt, folder / "out"))
                fault, note = judge(ended, says, case)
                if not fault and differing(before, contents(spoilt)):
                    fault = "the file was changed"
                if not fault and ended["status"] and kind == "checkpoint" and _kept(folder / "out"):
                    fault = "a part of what was refused is left at --to"
                if not fault and (found := worker.executed()):
                    fault = f"executed: {found}"
                if fault:
                    worker.close()  # its memory is another one's no longer
                    place.keep(folder)
            yield Case(ROW, f"{kind}: {_printable(name)}", _printable(fault)[:400], note=note)
    finally:
        worker.close()


def judge(ended: dict[str, Any], says: list[str], case: Any) -> tuple[str, str]:
    """(why it fell short, or ""; how it ended) of one command."""
    status, out, error = ended["status"], ended["out"], ended["error"]
    if ended.get("rss_bytes", 0) > MOST_MEMORY_BYTES:
        return f"takes {ended['rss_bytes'] / 2**30:.1f} GiB of memory", ""
    if status is None:
        return f"not done after {DEADLINE_S:.0f} s", ""
    if case is not None and case.skipped:
        fine = status == 0 and case.names in out
        return ("" if fine else f"status {status}, row not named: {(out + error)[-200:]}"), "a row"
    if status == 0:
        return ("it is read" if case is not None else ""), "read"
    fault = refusal_fault(status, error, says if case is None else ["error: "])
    if not fault and case is not None and case.names not in error:
        fault = f"{case.names!r} is not named: {error[-200:]}"
    return fault, "refused"


def command(kind: str, place: Path, out: Path) -> list[str]:
    """The command line that reads a specimen of a kind."""
    if kind in ("problems", "table", "document"):
        config = ROOT / "configs" / "tiny_cpu.py"
        return [
            "prepare", f"--config={config}", f"--config.data.problems={place}", f"--workdir={out}",
        ]  # fmt: skip
    if kind == "checkpoint":
        return ["convert", "--from", str(place), "--to", str(out)]
    return ["generate", "--model", str(place), "--prompt", "What is 1+1?", "--max_tokens", "1"]


def change(place: Path, pick: random.Random) -> tuple[str, str]:
    """Changes a random file at random; (its name, what was done)."""
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    file = pick.choice(files)
    if file.suffix == ".json" and pick.random() < 0.7:
        value, steps = json.loads(file.read_text()), []
        node: Any = value
        while isinstance(node, dict | list) and node:
            key = pick.choice(sorted(node)) if isinstance(node, dict) else pick.randrange(len(node))
            steps.append((node, key))
            node = node[key]
            if pick.random() < 0.5:
                break
        if steps:
            new = pick.choice(VALUES)
            steps[-1][0][steps[-1][1]] = new
            file.write_text(json.dumps(value))
            where = ".".join(str(key) for _, key in steps)
            return file.name, f"{file.name}: {where}={str(new)[:40]}"
    return file.name, f"{file.name}: {damage(file, pick)}"


def contents(place: Path) -> dict[str, str]:
    """Digests of the regular files of a specimen."""
    found = [p for p in (place.rglob("*") if place.is_dir() else [place]) if p.is_file()]
    return {str(path): digest(path) for path in found if not path.is_symlink()}


def _kept(out: Path) -> bool:
    return out.exists() and any(out.iterdir())


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Worker:
    """A process that runs commands, in a folder with a canary."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "canary"
        self.folder.mkdir(exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, words: list[str]) -> dict[str, Any]:
        """How a command ended: status (None if it did not), output, errors."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.drills.files"],
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._answer(300)  # it is ready
        process = self._process
        process.stdin.write(json.dumps(words).encode() + b"\n")
        process.stdin.flush()
        return self._answer(DEADLINE_S) or {"status": None, "out": "", "error": ""}

    def _answer(self, timeout_s: float) -> dict[str, Any] | None:
        process = self._process
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if ready.select(timeout_s) else b""
        if line:
            return json.loads(line)
        late = process.poll() is None
        self.close()
        return None if late else {"status": -1, "out": "", "error": "the process died"}

    def executed(self) -> list[str]:
        """What lies in the canary's folder."""
        return [path.name for path in self.folder.iterdir()]

    def close(self) -> None:
        """Ends the process and what it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


def serve() -> None:
    """Runs each command line that stdin names; answers with its end, a JSON line each."""
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    from polaris_jax.__main__ import main

    main(["generate", "--help"])
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = taken + MORE_ADDRESSES_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print("{}", file=answers, flush=True)
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    for line in sys.stdin:
        files = [(folder / f"worker-{os.getpid()}.{name}").open("w+b") for name in ("out", "error")]
        for number, file in enumerate(files, start=1):
            os.dup2(file.fileno(), number)
        began_s = time.monotonic()
        status = main(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        texts = []
        for file in files:
            file.seek(0)
            texts.append(file.read().decode(errors="surrogateescape"))
            file.close()
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        ended = {"status": status, "out": texts[0], "error": texts[1], "rss_bytes": rss}
        print(json.dumps(ended | {"seconds": time.monotonic() - began_s}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
