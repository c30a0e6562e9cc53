"""Does this checkout compute what another commit computes? Runs both and compares their files.

    python benchmarks/same_bytes.py --base=8e2411f [--work=workdirs/same_bytes] [--out=FILE.md]

Two comparisons, each of the other commit's checkout with this one, on this machine:

1. The demo (seed 0): metrics.jsonl, stages.json, calibrate.json and probe.json, byte for byte.
2. A workdir of the other commit that was killed twice, in the middle of `calibrate` and in the
   middle of the second stage of `train`: both commits resume copies of it, and the same files and
   all rollouts are compared at the end.

Runs of the other commit are kept in `--work` and used again; those of this checkout are made anew.
Bytes are equal only on one kind of CPU and with one decode kernel: stored files are no yardstick.
Ends with status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("metrics.jsonl", "stages.json", "calibrate.json", "probe.json")
TIMEOUT_S = 1800
# A run of a minute whose stages, rescue, substitution, drops and temperature rule all act.
SMALL = (
    "--config=configs/tiny_cpu.py",
    "--config.warmstart.steps=120",
    "--config.data.arithmetic.train=64",
    "--config.data.arithmetic.held_out=16",
    "--config.rollout.prompts_per_step=8",
    "--config.calibrate.n=4",
    "--config.calibrate.batch_prompts=8",
    "--config.probe.problems=16",
    "--config.probe.n=4",
    "--config.stages[0].steps=6",
    "--config.stages[0].drop_above=0.3",
    "--config.stages[1].steps=8",
    "--config.stages[1].rope_factor=1.5",
    "--config.evaluate.every_steps=4",
    "--config.evaluate.n=2",
    "--config.checkpoint.every_steps=3",
)


def polaris(checkout: Path, command: str, workdir: Path, *flags: str) -> subprocess.Popen[bytes]:
    """A command of `checkout`'s code; its output goes to `workdir`.log."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with workdir.with_name(f"{workdir.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "polaris_jax", command, f"--workdir={workdir}", *flags],
            cwd=checkout,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def environment() -> dict[str, str]:
    """This process's, with the CPU as the platform and no other checkout on the path."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}


def finish(process: subprocess.Popen[bytes], what: str) -> None:
    """Waits for a good end.

    Raises:
        RuntimeError: the command failed or took too long.
    """
    if status := process.wait(timeout=TIMEOUT_S):
        raise RuntimeError(f"{what} ended with status {status}; see the log beside its workdir")


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool], what: str) -> None:
    """Sends SIGKILL as soon as `ready` returns True.

    Raises:
        RuntimeError: the process ended first, or took too long.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"{what} was not alive at the moment at which it is to be killed")
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def lines(path: Path) -> int:
    """Complete lines of a file; 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_demo(checkout: Path, workdir: Path) -> None:
    """The demo of `checkout`, as `make demo` runs it."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with workdir.with_name(f"{workdir.name}.log").open("wb") as log:
        done = subprocess.run(
            [checkout / "launch" / "demo.sh", workdir],
            cwd=checkout,
            env={**environment(), "POLARIS_PYTHON": sys.executable},
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the demo of {checkout} failed; see the log beside {workdir}")


def make_killed(checkout: Path, workdir: Path) -> None:
    """A workdir with a torn `calibrate`, a complete `probe` and a `train` torn in its 2nd stage."""
    torn = workdir.with_name(f"{workdir.name}_calibrate")
    finish(polaris(checkout, "prepare", torn, *SMALL), "prepare")
    progress = torn / "calibrate_progress.jsonl"
    process = polaris(checkout, "calibrate", torn, *SMALL)
    kill_when(process, lambda: lines(progress) >= 17, "calibrate")  # 2 of 8 batches and a head
    shutil.copytree(torn, workdir)
    for command in ("calibrate", "probe"):
        finish(polaris(checkout, command, workdir, *SMALL), command)
    process = polaris(checkout, "train", workdir, *SMALL)
    kill_when(process, lambda: lines(workdir / "metrics.jsonl") >= 11, "train")
    shutil.copytree(torn, workdir / "torn_calibrate")


def resume(checkout: Path, killed: Path, workdir: Path) -> None:
    """Continues a copy of `killed`, and of the torn `calibrate` in it, to the end."""
    shutil.copytree(killed, workdir)
    finish(polaris(checkout, "train", workdir, *SMALL), "train")
    finish(polaris(checkout, "calibrate", workdir / "torn_calibrate", *SMALL), "calibrate")


def compare(base: Path, new: Path, names: Sequence[str]) -> list[tuple[str, int, bool]]:
    """(name, size in bytes, equal) of each file; a missing file is not equal."""
    found = []
    for name in names:
        here, there = base / name, new / name
        equal = here.exists() and there.exists() and same_content(here, there)
        found.append((name, here.stat().st_size if here.exists() else 0, equal))
    return found


def same_content(base: Path, new: Path) -> bool:
    """Whether two files are equal byte for byte; of rows, in the fields that the base's rows have.

    Rows of later versions have more fields, and no first line with the settings.
    """
    if base.name == "metrics.jsonl" or base.suffix != ".jsonl":
        return filecmp.cmp(base, new, shallow=False)
    theirs, ours = (
        [row for line in path.open() if set(row := json.loads(line)) != {"identity"}]
        for path in (base, new)
    )
    return len(theirs) == len(ours) and all(
        row == {name: other.get(name) for name in row}
        for row, other in zip(theirs, ours, strict=True)
    )


def compared_names(workdir: Path) -> list[str]:
    """What a resumed workdir is compared by: the four files, both calibrations, all rollouts."""
    rollouts = sorted(path.name for path in (workdir / "rollouts").iterdir())
    torn = [f"torn_calibrate/{name}" for name in ("calibrate.json", "calibrate_progress.jsonl")]
    return [*FILES, *torn, *(f"rollouts/{name}" for name in rollouts)]


def checkout_of(commit: str, place: Path) -> Path:
    """A checkout of `commit` in `place`, made by `git archive` if it is missing."""
    if not place.is_dir():
        place.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", str(place)], input=archive.stdout, check=True)
    return place


def described() -> str:
    """This checkout's commit, with -dirty if it has been edited."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    """Runs the comparisons; 1 if a file differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, help="the commit to compare with")
    parser.add_argument("--work", type=Path, default=ROOT / "workdirs" / "same_bytes")
    parser.add_argument("--only", choices=["demo", "resume"], help="one comparison alone")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    work = options.work.resolve() / options.base
    base = checkout_of(options.base, work / "checkout")
    new = work / "new"
    shutil.rmtree(new, ignore_errors=True)
    rows: list[tuple[str, int, bool]] = []
    if options.only != "resume":
        if not (work / "base" / "demo" / "report.html").exists():
            shutil.rmtree(work / "base" / "demo", ignore_errors=True)
            run_demo(base, work / "base" / "demo")
        run_demo(ROOT, new / "demo")
        found = compare(work / "base" / "demo", new / "demo", FILES)
        rows += [(f"demo/{name}", size, equal) for name, size, equal in found]
    if options.only != "demo":
        killed = work / "base" / "killed"
        ready = work / "base" / "killed.json"
        if not ready.exists():
            for place in (killed, killed.with_name("killed_calibrate"), work / "base" / "resumed"):
                shutil.rmtree(place, ignore_errors=True)
            make_killed(base, killed)
            resume(base, killed, work / "base" / "resumed")
            at = lines(killed / "metrics.jsonl")
            ready.write_text(json.dumps({"killed after lines": at}) + "\n")
        resume(ROOT, killed, new / "resumed")
        names = compared_names(work / "base" / "resumed")
        found = compare(work / "base" / "resumed", new / "resumed", names)
        rows += [(f"resumed/{name}", size, equal) for name, size, equal in found]
    differing = [name for name, _, equal in rows if not equal]
    table = [f"| {n} | {size:,} | {'equal' if equal else 'DIFFERS'} |" for n, size, equal in rows]
    text = "\n".join(
        [
            f"`{described()}` compared with `{options.base}`, {os.cpu_count()} CPU cores, "
            f"Python {sys.version.split()[0]}:",
            "",
            "| file | bytes | |",
            "|---|---|---|",
            *table,
            "",
            f"{len(rows) - len(differing)} of {len(rows)} files are equal, byte for byte.",
        ]
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
