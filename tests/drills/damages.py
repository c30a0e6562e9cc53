"""One damaged file: a rerun leaves what it would have left, or says in one line which file is bad.

A run is stopped in its middle and copied for each case. One file is damaged, then the command runs
again. It passes if it

- ends with the files of the undisturbed run ("mended"); files that nobody reads, like the lines of
  metrics.jsonl before the checkpoint, may keep the damage, and lost lines must be said ("kept");
- ends well on an older checkpoint, and a warning names the damaged one ("warned");
- is refused by one line with the file's name and a remedy, and leaves all other files alone
  ("refused").

Folders of checkpoints are damaged by the hundred without a command: `Checkpointer` must find the
newest step that is whole, warn of the other, and save again.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.drills import runs
from tests.drills.drill import (
    Case,
    Drill,
    Place,
    differing,
    digest,
    digests,
    last_words,
    refusal_fault,
    watch,
)  # fmt: skip

ROW = "damages"
TIMEOUT_S = 150
# Run -> (the file whose changes are counted before it is stopped, how many, cases of a seed).
STOPPED = {
    "train": ("metrics.jsonl", 6, 16),
    "carry": ("metrics.jsonl", 4, 5),
    "warm": ("metrics.jsonl", 2, 5),
    "calibrate": ("calibrate_progress.jsonl", 5, 7),
    "probe": ("probe_progress.jsonl", 4, 6),
    "evaluate": ("responses.jsonl", 2, 7),
    "grade": ("graded.jsonl", 3, 7),
    "recipe": ("", 0, 7),
    "report": ("", 0, 4),
    "convert": ("", 0, 4),
}
SHORT = {"train": 2, "calibrate": 1, "grade": 2}
CHECKPOINTS, CHECKPOINTS_SHORT = 50, 20
# What no later step reads: the damage may stay, in this file alone.
UNREAD = re.compile(
    r"metrics\.jsonl|timing\.jsonl|rollouts/.*|tensorboard/.*|.*\.png|calibrate\.json|difficulty.*"
)
# What a command changes before it looks at other files.
TOUCHED = re.compile(
    r".*\.partial|run\.json|\..*lock|tensorboard/.*|timing\.jsonl|.*\.identity\.json|logs/.*"
)


def _cut(path: Path, pick: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: pick.randrange(len(data))])


def _flip(path: Path, pick: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[pick.randrange(len(data))] ^= 1 << pick.randrange(8)
    path.write_bytes(data)


def _zeros(path: Path, pick: random.Random) -> None:
    data = bytearray(path.read_bytes())
    at = pick.randrange(len(data))
    data[at : at + 64] = bytes(len(data[at : at + 64]))
    path.write_bytes(data)


def _folder(path: Path, pick: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path, pick: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path, pick: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _repeat(path: Path, pick: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data + (data.splitlines(keepends=True) or [b""])[-1])


def _append(path: Path, pick: random.Random) -> None:
    path.write_bytes(path.read_bytes() + pick.randbytes(pick.randrange(1, 200)))


def _locked(path: Path, pick: random.Random) -> None:
    path.chmod(0)


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "cut off": _cut,
    "a bit flipped": _flip,
    "emptied": lambda path, _: path.write_bytes(b"") and None,
    "deleted": lambda path, _: path.unlink(),
    "64 zeros": _zeros,
    "last line twice": _repeat,
    "garbage behind": _append,
    "a folder": _folder,
    "a FIFO": _fifo,
    "a link to itself": _loop,
    **({"not readable": _locked} if os.getuid() else {}),
}


def damage(path: Path, pick: random.Random) -> str:
    """Damages a file in a random way, and returns the way's name."""
    way = pick.choice(list(WAYS))
    if path.stat().st_size == 0 and way in ("cut off", "a bit flipped", "64 zeros", "emptied"):
        way = "garbage behind"
    WAYS[way](path, pick)
    return way


def drills(seed: int, short: bool) -> list[Drill]:
    """A drill for each run, and those of folders of checkpoints."""
    sizes = SHORT if short else {name: cases for name, (*_, cases) in STOPPED.items()}
    folders = CHECKPOINTS_SHORT if short else CHECKPOINTS
    found = [Drill("damages", "checkpoints", seed, folders)]
    return found + [Drill("damages", name, seed, size) for name, size in sizes.items()]


def run(drill: Drill, place: Place) -> Iterator[Case]:
    """Damages one file a case."""
    pick = random.Random(f"{drill.name} {drill.seed}")
    if drill.name == "checkpoints":
        yield from _checkpoints(drill, place, pick)
        return
    source = _stopped(drill.name, place)
    groups = _groups(source)
    order = sorted(groups)
    pick.shuffle(order)
    for number in range(drill.size):
        name = pick.choice(groups[order[number % len(order)]])
        with place.fresh(f"{number}") as folder:
            shutil.copytree(source, folder / "run", symlinks=True)
            way = damage(folder / "run" / name, pick)
            fault, note = _rerun(drill.name, place, folder, name)
            if fault:
                place.keep(folder)
        yield Case(ROW, f"{drill.name}: {name}: {way}", fault, note=note)


def _groups(folder: Path) -> dict[str, list[str]]:
    """The files below a folder by kind: names that differ by numbers alone are of one kind."""
    groups: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "partial" not in path.name:
            name = str(path.relative_to(folder))
            kind = re.sub(r"[0-9a-f]{8,}|\d+", "N", re.sub(r"events\.out.*", "events", name))
            groups.setdefault(kind, []).append(name)
    return groups


def _stopped(name: str, place: Place) -> Path:
    """A run's workdir, killed in its middle; of what has none, the files that it reads."""
    pattern, nth, _ = STOPPED[name]

    def make(folder: Path) -> None:
        workdir, run = folder / "run", runs.RUNS[name]
        runs.prepare_workdir(name, place, workdir)
        if name == "convert":
            shutil.copytree(runs.whole("train", place) / "checkpoints", workdir / "checkpoints")
        elif name == "recipe":
            for command in ("prepare", "calibrate"):
                line = runs.words(command, run, place, workdir)
                runs.finish(runs.start(line, folder / "logs"))
        elif pattern:
            line = runs.words(run.commands[-1], run, place, workdir)
            (command,) = runs.start(line, folder / "logs")
            look = runs.looks(run, workdir, None, pattern)
            assert watch(look, nth, lambda: command.alive), last_words(command.said)
            command.kill(helpers=True)

    return place.made(f"stopped_{name}", make) / "run"


def _rerun(name: str, place: Place, folder: Path, damaged: str) -> tuple[str, str]:
    """(why it fell short, or ""; how it passed) of the command on the damaged workdir."""
    workdir, run = folder / "run", runs.RUNS[name]
    wanted = runs.expected(name, place)
    before = _contents(workdir)
    line = runs.words(run.commands[-1], run, place, workdir)
    if name == "convert":
        line[1] = f"--from={workdir / 'checkpoints'}"
    (command,) = runs.start(line, folder / "logs")
    status = command.end(TIMEOUT_S)
    said = command.said
    if status is None:
        return f"it did not end in {TIMEOUT_S} s: {last_words(said)}", ""
    path = Path(damaged)
    names = [path.name, path.name.replace(".identity.json", ".jsonl")]
    names += [p.name for p in path.parents if p.name]
    if damaged.startswith("checkpoints"):
        names += [f"checkpoint {part}" for part in path.parts if part.isdigit()]
    if status != 0:
        fault = refusal_fault(status, said, names)
        error = re.findall(r"^error: .*$", said, re.MULTILINE)
        if not fault and ";" not in error[0]:
            fault = f"no remedy: {error[0]}"
        after = _contents(workdir)
        lost = [n for n in differing(before, after) if n in before and not TOUCHED.fullmatch(n)]
        if not fault and (lost := [n for n in lost if n != damaged]):
            fault = f"refused, but changed: {', '.join(lost[:5])}"
        return fault, "refused"
    if "Traceback" in said:
        return f"a traceback: {last_words(said)}", ""
    patterns = run.equal
    if name == "recipe":  # its last command alone runs again
        patterns = runs.TRAINED
        earlier = ("calibrate", "difficulty", "curated", "problems", "probe")
        wanted = {n: d for n, d in wanted.items() if not n.startswith(earlier)}
    different = differing(digests(workdir, patterns), wanted)
    warned = any(
        n in text for text in re.findall("^warning: .*$", said, re.MULTILINE) for n in names
    )
    if not different:
        return "", "mended"
    if different == [damaged] and UNREAD.fullmatch(damaged):
        sizes = [
            path.read_bytes().count(b"\n") if path.is_file() else 0
            for path in (workdir / damaged, runs.whole(name, place) / damaged)
        ]
        fewer = damaged == "metrics.jsonl" and sizes[0] != sizes[1]
        return ("lines are lost and nothing is said" if fewer and not warned else ""), "kept"
    if warned:
        return "", "warned"
    if name == "report" and damaged in (workdir / "report.html").read_text():
        return "", "said in the report"
    return f"silently different: {', '.join(different[:5])}", ""


def _contents(folder: Path) -> dict[str, str]:
    """Digests of all regular files below a folder."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return {str(path.relative_to(folder)): digest(path) for path in files}


# ---- folders of checkpoints, in this process


class _Hangs(Exception):
    pass


@contextlib.contextmanager
def _deadline(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise _Hangs(f"not done after {seconds} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def _checkpoints(drill: Drill, place: Place, pick: random.Random) -> Iterator[Case]:
    import jax.numpy as jnp
    import numpy as np

    from polaris_jax.checkpoint import Checkpointer

    def tree(step: int) -> dict[str, Any]:
        rng = np.random.default_rng(step)
        return {name: jnp.asarray(rng.normal(size=(4, 6)), jnp.float32) for name in ("a", "b")}

    def host(step: int) -> dict[str, Any]:
        return {"step": step, "logp": np.arange(step * 50, dtype=np.float32)}

    source = place.own / "source"
    saver = Checkpointer(source, keep_last=2)
    for step in (2, 4):
        saver.save(step, tree(step), host(step))
    files = _groups(source)
    for number in range(drill.size):
        with place.fresh(f"{number}") as folder:
            shutil.copytree(source, folder / "checkpoints")
            steps = pick.choice([[4], [4], [4], [2], [2, 4]])
            done = []
            for step in steps:
                kind = pick.choice(sorted(files))
                near = [n for n in files[kind] if n.startswith(f"{step}/")]
                name = pick.choice(near or [n for n in _all(files) if n.startswith(f"{step}/")])
                done.append(f"{name}: {damage(folder / 'checkpoints' / name, pick)}")
            try:
                with _deadline(30):
                    fault = _opened(folder / "checkpoints", steps, tree, host)
            except _Hangs as error:
                fault = f"hangs: {error}"
            except Exception as error:  # noqa: BLE001 - a command would show its traceback
                fault = f"{type(error).__name__}: {error}"[:300]
            if fault:
                place.keep(folder)
        yield Case(ROW, "; ".join(done), fault, note="fallen back")


def _all(groups: dict[str, list[str]]) -> list[str]:
    return [name for names in groups.values() for name in names]


def _opened(
    folder: Path, damaged: list[int], tree: Callable[[int], Any], host: Callable[[int], Any]
) -> str:
    """What is wrong with how a damaged folder is opened, restored and saved to; "" if nothing."""
    import jax
    import numpy as np

    from polaris_jax.checkpoint import Checkpointer

    warnings: list[str] = []
    saver = Checkpointer(folder, keep_last=2, warn=warnings.append)
    step = saver.latest()
    skipped = [s for s in (2, 4) if s > (step or 0)]
    if not set(skipped) <= set(damaged) or (step is None and damaged != [2, 4]):
        return f"opens {step}, damaged are {damaged}"
    if len(warnings) != len(skipped):
        return f"opens {step} with the warnings {warnings}"
    for number, text in zip(reversed(skipped), warnings, strict=True):
        if f"checkpoint {number} " not in text or "\n" in text:
            return f"a warning names no step: {text!r}"
    if step is not None:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree(step))
        arrays, found = saver.restore(step, abstract)
        same = all(np.array_equal(arrays[n], leaf) for n, leaf in tree(step).items())
        if not same or not np.array_equal(found["logp"], host(step)["logp"]):
            return f"step {step} is silently different"
    saver.save(6, tree(6), host(6))
    remain = saver.steps()
    if remain[-1] != 6 or len(remain) > 2:  # damaged ones are left to whoever looks into them
        return f"after a save: {remain}"
    return ""
