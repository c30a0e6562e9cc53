"""What every drill works with: cases, marked processes, commands, and the undisturbed runs.

A process that a drill starts carries `POLARIS_DRILL` in its environment, and so do all processes
that it starts in turn, whatever session or group they move to. So nothing is left behind unseen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "POLARIS_DRILL"
COMMAND_TIMEOUT_S = 900  # of one command, on a machine that does other things too
WATCH_S = 0.001  # between two looks at a workdir
GONE_WITHIN_S = 20  # helpers of a killed command, and those of one that has ended


@dataclasses.dataclass(frozen=True)
class Drill:
    """One drill, which runs in a process of its own.

    Attributes:
        kind: the module of `tests.drills` that runs it.
        name: unique within its kind.
        seed: seed of all its random choices.
        size: how many cases it is to make.
    """

    kind: str
    name: str
    seed: int
    size: int


@dataclasses.dataclass(frozen=True)
class Case:
    """What one case came to.

    Attributes:
        row: the row of the table that counts it.
        name: what was done.
        fell_short: why it did not pass; "" if it passed.
        count: how many it counts, for example the kills of one run.
        note: what a passed case came to.
    """

    row: str
    name: str
    fell_short: str = ""
    count: int = 1
    note: str = ""


def marked(mark: str, *, prefix: bool = False) -> dict[int, str]:
    """Command line by number of every living process that carries a mark, this one excepted."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            variables = (path / "environ").read_bytes().split(b"\0")
            own = [v.partition(b"=")[2].decode() for v in variables if v.startswith(MARK.encode())]
            if own and (own[0] == mark or (prefix and own[0].startswith(mark))):
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                found[int(path.name)] = words[:200]
    found.pop(os.getpid(), None)
    return found


def sweep(mark: str, *, prefix: bool = False) -> None:
    """Kills every process that carries a mark, this one excepted."""
    while found := marked(mark, prefix=prefix):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


class Command:
    """A `polaris` command in a session of its own, its output in a file.

    Args:
        words: the command and its flags.
        log: gets the output.
        program: what to start instead of `python -m polaris_jax`.
        environment: further variables.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *,
        program: Sequence[str] = ("-m", "polaris_jax"),
        **environment: str,
    ) -> None:
        self._log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *program, *words],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """Its output so far."""
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def kill(self, *, helpers: bool) -> None:
        """SIGKILL to the process alone, which leaves its helpers to themselves, or to all."""
        with contextlib.suppress(ProcessLookupError):
            if helpers:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()

    def end(self, timeout_s: float = COMMAND_TIMEOUT_S) -> int | None:
        """Its exit code; None if it had not ended in time and was killed."""
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill(helpers=True)
            return None


def last_words(said: str) -> str:
    """The end of an output, as one line of a table."""
    lines = [line for line in said.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-300:].replace("|", "\\|")


def refusal_fault(status: int | None, said: str, names: Iterable[str]) -> str:
    """Why an end is not a proper refusal; "" if it is one.

    A refusal has status 1 or 2, no traceback, and one line that begins with "error:" and has one
    of `names` and a remedy or a reason behind it.
    """
    if status not in (1, 2):
        return f"status {status}: {last_words(said)}"
    errors = re.findall(r"^error: .*$", said, re.MULTILINE)
    if "Traceback" in said:
        return f"a traceback: {last_words(said)}"
    if len(errors) != 1:
        return f"{len(errors)} error lines: {last_words(said)}"
    if any(not character.isprintable() for character in errors[0]):
        return f"control characters in {errors[0]!r}"
    names = list(names)
    if not any(name in errors[0] for name in names):
        return f"none of {names} is named: {errors[0]}"
    return ""


def changes(workdir: Path, pattern: str) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of change of what a pattern finds below a folder."""
    found = {}
    for name in glob.glob(pattern, root_dir=workdir):
        with contextlib.suppress(OSError):
            entry = os.stat(workdir / name)
            found[name] = entry.st_ino, entry.st_size, entry.st_mtime_ns
    return found


def watch(look: Callable[[], object], nth: int, alive: Callable[[], bool]) -> bool:
    """Waits for the `nth` change of what `look` sees; False if the command ends before it."""
    seen, deadline = look(), time.monotonic() + COMMAND_TIMEOUT_S
    while alive() and time.monotonic() < deadline:
        if (now := look()) != seen:
            seen, nth = now, nth - 1
            if nth <= 0:
                return alive()
        time.sleep(WATCH_S)
    return False


def digest(path: Path) -> str:
    """A digest of a file's bytes; of the rows of a parquet file, which names the workdir."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with contextlib.suppress(OSError, ValueError):  # a damaged one is known by its bytes
            rows = repr(pq.read_table(path).to_pylist())
            return hashlib.sha256(rows.encode()).hexdigest()[:16]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def digests(workdir: Path, patterns: Iterable[str]) -> dict[str, str]:
    """Digests by name of what patterns find; of `checkpoints` the newest step's arrays."""
    found = {}
    for pattern in patterns:
        if pattern == "checkpoints":
            from tests.support.micro_run import final_leaves

            found |= {
                f"checkpoint {name}": hashlib.sha256(leaf.tobytes()).hexdigest()[:16]
                for name, leaf in final_leaves(workdir).items()
            }
            continue
        names = [n for n in glob.glob(pattern, root_dir=workdir) if (workdir / n).is_file()]
        found |= {name: digest(workdir / name) for name in names} or {pattern: "missing"}
    return found


def differing(here: dict[str, str], there: dict[str, str]) -> list[str]:
    """Names whose digests differ."""
    return sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))


def _special(folder: str, names: list[str]) -> list[str]:
    """What cannot be copied: pipes."""
    return [name for name in names if stat.S_ISFIFO(os.lstat(f"{folder}/{name}").st_mode)]


class Place:
    """The folders of a drill.

    Attributes:
        stock: what drills of a seed share: the base model, undisturbed runs.
        own: this drill's, deleted at its end.
    """

    def __init__(self, stock: Path, own: Path) -> None:
        self.stock, self.own = stock, own
        for folder in (stock, own):
            folder.mkdir(parents=True, exist_ok=True)

    def keep(self, folder: Path) -> None:
        """Keeps a folder of a case that fell short, for whoever looks into it."""
        kept = self.stock.parent / "kept" / f"{self.own.name}.{folder.name}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept, symlinks=True, ignore=_special)

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder of the stock, made by the first drill that needs it; a killed one is remade."""
        folder, done = self.stock / name, self.stock / f"{name}.done"
        with (self.stock / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                make(folder)
                done.touch()
        return folder

    @contextlib.contextmanager
    def fresh(self, name: str) -> Iterator[Path]:
        """A folder of this drill's own, deleted when it is left."""
        folder = self.own / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
