"""Whole runs of several arms, from several bases and seeds, and what their differences are worth.

TABLE.py says which runs there are (see polaris_jax/ablate/table.py). Each run is an ordinary
workdir below --out. Worker processes share the machine's cores and take the next run that nobody
has; rerun the command to continue after any stop. Leaves ablations.json, ablations.md and
ablations.png. docs/howto/ablation.md shows how to write a table.

--bases names a folder for the bases that runs begin from, which several tables can share if their
settings of a base are the same; without it, they lie below --out.

--list prints the commands of each run instead, for a cluster's queue. A run that was trained by its
own command counts as one of the table's.

Example:
  polaris ablate configs/ablations/parts.py --out runs/parts
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time

from absl import flags as absl_flags
from etils import epath

from polaris_jax.ablate.outcome import (
    FINISHED,
    Outcome,
    read_outcome,
    read_outcome_at,
    refuse_others,
    write_outcome,
)
from polaris_jax.ablate.page import as_markdown, summarise
from polaris_jax.ablate.table import Run, Table, load_table
from polaris_jax.commands.ablate_worker import (
    BASE,
    FAILED,
    POLL_S,
    WORKER,
    all_runs,
    asked_of,
    config_of,
    ended,
    work,
)
from polaris_jax.commands.flags import parse
from polaris_jax.config import ConfigError
from polaris_jax.run.owner import owned
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.system.files import as_place, is_remote, write_bytes
from polaris_jax.system.progress import Progress
from polaris_jax.system.signals import StopRequest


def _define(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "out", "", "directory of the runs and of the result", flag_values=values
    )
    absl_flags.DEFINE_string(
        "bases", "", "directory of the bases; empty: bases in --out", flag_values=values
    )
    absl_flags.DEFINE_integer(
        "workers", 0, "processes that train; 0: one a core", lower_bound=0, flag_values=values
    )

    absl_flags.DEFINE_bool("list", False, "print each run's commands, run none", flag_values=values)


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    words = [word for word in argv if not word.startswith("-")]
    path = words[0] if words and argv[0] == words[0] else ""
    rest = argv[1:] if path else argv
    command = parse("ablate", rest, doc=__doc__ or "", define=_define, takes_config=False)
    if not path:
        raise ConfigError("TABLE.py: needed; name a file with a TABLE, before the flags")
    if not command.flags["out"]:
        raise ConfigError("--out: needed; name a directory for the runs")
    if is_remote(command.flags["out"]):
        raise ConfigError(
            f"--out={command.flags['out']}: name a directory on a disk; workers lock their runs"
        )
    out = as_place(command.flags["out"])
    table = load_table(path)
    for run in distinct_runs(table):
        check(run, trained=table.train)
    if command.flags["list"]:
        return _list(table, out)
    ensure_workdir(out)
    if WORKER in os.environ:
        return work(table, out)
    if command.flags["bases"]:
        share_bases(out, command.flags["bases"])
    return _lead(table, path, out, workers=command.flags["workers"] or _cores())


def distinct_runs(table: Table) -> list[Run]:
    """A run of each base, arm and tuned value: their configs cover those of all runs."""
    runs = {run.arm: run for run in table.runs()}
    tried = {run.value: run for run in table.tuning_runs()}
    return [*map(table.base_run, table.all_bases), *runs.values(), *tried.values()]


def check(run: Run, *, trained: bool) -> None:
    """Checks that a run has a config.

    Raises:
        ConfigError: it has none, or it is trained without a held-out score.
    """
    name = f"arm {run.arm!r}" if run.arm else f"base {run.base!r}"
    try:
        config = config_of(run, epath.Path("."))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    if not trained:
        return
    every_steps, steps = config.evaluate.every_steps, sum(stage.steps for stage in config.stages)
    if not every_steps:
        raise ConfigError(
            f"{name}: evaluate.every_steps=0: a run is judged by its held-out scores; set it"
        )
    if run.arm and every_steps > steps:
        raise ConfigError(
            f"{name}: evaluate.every_steps={every_steps}: its {steps} steps end before the first "
            f"held-out score; set it to at most {steps}"
        )


def share_bases(out: epath.Path, bases: str) -> None:
    """Makes OUT/bases a link to `bases`, which is made.

    Raises:
        ConfigError: it is no directory of a disk, or `out` has bases of its own.
    """
    if is_remote(bases):
        raise ConfigError(
            f"--bases={bases}: name a directory on a disk; workers lock what they make"
        )
    shared, link = ensure_workdir(as_place(bases)), out / "bases"
    if os.path.realpath(link) == os.path.realpath(shared):
        return
    if os.path.lexists(link):
        raise ConfigError(
            f"--bases={bases}: the runs in {out} began from {os.path.realpath(link)}; name that "
            "directory, or another --out"
        )
    os.symlink(os.path.realpath(shared), link)


# ---- the command


def _lead(table: Table, path: str, out: epath.Path, *, workers: int) -> int:
    """Starts the workers, waits for them, and writes what the finished runs show."""
    busy = f"--out={out}: `polaris ablate` already runs in it"
    with owned(out, "ablate", busy=busy, remedy="name another --out"):
        progress, runs = Progress(enabled=True), all_runs(table)
        _refuse_others(table, out)
        waiting = [run for run in runs if not _known(out, run)]
        progress.line(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished")
        status = 0
        if waiting:
            for run in waiting:  # what failed before is tried again
                (out / run.name / FAILED).unlink(missing_ok=True)
            status = _run_workers(table, path, out, min(workers, len(waiting)))
            _refuse_others(table, out)  # a tuning that has just ended may choose another value
        found = {run.name: read_outcome(out, run) for run in runs}
        outcomes = [outcome for outcome in found.values() if outcome is not None]
        failures = {
            name: (out / name / FAILED).read_text()
            for name, outcome in found.items()
            if outcome is None and (out / name / FAILED).exists()
        }
        if any(o.value is None for o in outcomes):  # a counted run, so the tuning has ended
            _write_results(table, path, out, outcomes, failures)
        if status:
            return status
        if missing := len(runs) - len(outcomes):
            progress.line(
                f"{missing} of {len(runs)} runs are not finished; worker_*.log in {out} says why, "
                "and the same command trains them"
            )
        return 1 if missing else 0


def _refuse_others(table: Table, out: epath.Path) -> None:
    """Raises ConfigError if a base or finished run had other settings than the table now gives."""
    for base in table.all_bases:
        if (out / "bases" / base / BASE).exists():
            refuse_others(out / "bases" / base, table.base_run(base).flags(), BASE)
    for run in all_runs(table):
        if all((out / name / FINISHED).exists() for name in (run.name, *run.needs)):
            refuse_others(out / run.name, asked_of(table, run, out))


def _known(out: epath.Path, run: Run) -> bool:
    """True if the run has ended, by a worker or by its own command, whose outcome is then noted."""
    if (outcome := read_outcome(out, run)) is None:
        return False
    if not (out / run.name / FINISHED).exists():
        write_outcome(out / run.name, outcome)
    return True


def _list(table: Table, out: epath.Path) -> int:
    """Prints the commands of the runs that are not finished, a line each.

    If nothing is trained, those that score the bases come first.

    Raises:
        ConfigError: a run's config depends on the results of others.
    """
    if bound := [run.name for run in all_runs(table) if run.needs]:
        raise ConfigError(
            f"--list: the config of {bound[0]} depends on other runs (tuning, tokens_of); run the "
            "table without --list"
        )

    def say(command: str, run: Run, workdir: epath.Path, *more: str) -> None:
        print(shlex.join(["polaris", command, *run.flags(), f"--workdir={workdir}", *more]))

    for base in () if table.train else table.bases:
        if not (out / "bases" / base / "eval.json").exists():
            say("evaluate", table.base_run(base), out / "bases" / base)
    for run in all_runs(table):
        if read_outcome(out, run) is not None:
            continue
        for command in (*run.before, "train" if table.train else "evaluate"):
            say(command, run, out / run.name)
        if table.train and table.evaluate:
            say("evaluate", run, out / run.name, "--checkpoint=latest")
    return 0


def _write_results(
    table: Table, path: str, out: epath.Path, outcomes: list[Outcome], failures: dict[str, str]
) -> None:
    """Leaves ablations.json, .md and .png, and prints the page."""
    from polaris_jax.ablate.figure import ablation_figure

    summary, title = summarise(table, outcomes), os.path.basename(path)
    page = as_markdown(summary, title=title, failures=failures)
    if table.notes is not None:
        page += f"\n{table.notes(out)}\n"
    write_json(out / "ablations.json", summary)
    write_bytes(out / "ablations.md", page.encode())
    if summary["arms"]:
        ablation_figure(summary, out / "ablations.png", title=title)
    print(page)


def _run_workers(table: Table, path: str, out: epath.Path, count: int) -> int:
    """Runs the worker processes to their end; 130 if they were interrupted.

    Each writes what its runs print to worker_I.log. This process prints each run that ends.
    """
    words = [sys.executable, "-m", "polaris_jax", "ablate", path, f"--out={out}"]
    processes, told = [], False
    with StopRequest() as stop, contextlib.ExitStack() as opened:
        for index in range(count):
            environment = os.environ | {WORKER: f"{index}/{count}"}
            log = opened.enter_context(open(os.fspath(out / f"worker_{index}.log"), "ab"))
            # The pipe stays empty. It closes with this process, also if this process is killed.
            processes.append(
                subprocess.Popen(
                    words,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        waiting = [run for run in all_runs(table) if not ended(out, run.name)]
        while any(process.poll() is None for process in processes):
            time.sleep(POLL_S)
            waiting = _say_ended(table, out, waiting)
            if stop.requested and not told:
                told = True
                for process in processes:
                    process.terminate()  # each run that is under way leaves a checkpoint
        _say_ended(table, out, waiting)
    for index, process in enumerate(processes):
        process.communicate()
        if process.returncode < 0 and not told:
            reason = signal.strsignal(-process.returncode)
            Progress(enabled=True).line(
                f"worker {index} was killed ({reason}); if memory ran out, take fewer --workers"
            )
    return 130 if stop.interrupted else 0


def _say_ended(table: Table, out: epath.Path, waiting: list[Run]) -> list[Run]:
    """Prints a line for each run that has ended, and returns the others."""
    progress = Progress(enabled=True)
    left = []
    for run in waiting:
        if not ended(out, run.name):
            left.append(run)
        elif (out / run.name / FINISHED).exists():
            value = read_outcome_at(out, run.name).figure(table.figure)
            progress.line(f"{run.name}: {table.figure} {value:.1%}")
        else:
            progress.line(f"{run.name}: failed: {(out / run.name / FAILED).read_text()}")
    return left


def _cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1
