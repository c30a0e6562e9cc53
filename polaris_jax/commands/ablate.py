"""Whole runs of several arms, from several bases and seeds, and what their differences are worth.

TABLE.py says which runs there are (see polaris_jax/ablate/table.py). Each run is an ordinary
workdir below --out. Worker processes share the machine's cores and take the next run that nobody
has; rerun the command to continue after any stop. Leaves ablations.json, ablations.md and
ablations.png. docs/howto/ablation.md shows how to write a table.

--list prints the commands of each run instead, for a cluster's queue. A run that was trained by its
own command counts as one of the table's.

Example:
  polaris ablate configs/ablations/rescue.py --out runs/rescue
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import flags as absl_flags
from etils import epath

from polaris_jax.ablate.outcome import (
    FINISHED,
    Outcome,
    chosen_value,
    outcome_of,
    read_outcome,
    read_outcome_at,
    tokens_before,
    write_outcome,
)
from polaris_jax.ablate.page import as_markdown, summarise
from polaris_jax.ablate.table import Run, Table, flags, load_table
from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import keep_programs
from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.run.owner import InUse, alone, owned
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.system.files import as_place, is_remote, write_bytes
from polaris_jax.system.progress import Progress
from polaris_jax.system.signals import StopRequest

FAILED = "ablation_failed.txt"
POLL_S = 0.2
WORKER = "POLARIS_ABLATE_WORKER"  # "I/N" in the processes that the command starts


def _define(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "out", "", "directory of the runs and of the result", flag_values=values
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
        return _work(table, out)
    return _lead(table, path, out, workers=command.flags["workers"] or _cores())


def distinct_runs(table: Table) -> list[Run]:
    """A run of each base, and of each arm: their configs cover those of all runs."""
    arms = {(run.arm, run.counted): run for run in all_runs(table)}
    return [*(table.base_run(base) for base in table.all_bases), *arms.values()]


def check(run: Run, *, trained: bool) -> None:
    """Checks that a run has a config.

    Raises:
        ConfigError: it has none, or it is trained without held-out scores.
    """
    name = f"arm {run.arm!r}" if run.arm else f"base {run.base!r}"
    try:
        config = _config(run, epath.Path("."))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    if trained and not config.evaluate.every_steps:
        raise ConfigError(
            f"{name}: evaluate.every_steps=0: a run is judged by its held-out scores; set it"
        )


def _config(run: Run, workdir: epath.Path, *more: str) -> RunConfig:
    words = [*run.flags(), *more, f"--workdir={workdir}"]
    return parse("train", words, doc="").config


# ---- the command


def _lead(table: Table, path: str, out: epath.Path, *, workers: int) -> int:
    """Starts the workers, waits for them, and writes what the finished runs show."""
    busy = f"--out={out}: `polaris ablate` already runs in it"
    with owned(out, "ablate", busy=busy, remedy="name another --out"):
        progress, runs = Progress(enabled=True), all_runs(table)
        waiting = [run for run in runs if not _known(out, run)]
        progress.line(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished")
        status = 0
        if waiting:
            for run in waiting:  # what failed before is tried again
                (out / run.name / FAILED).unlink(missing_ok=True)
            status = _run_workers(table, path, out, min(workers, len(waiting)))
        outcomes = [found for run in runs if (found := read_outcome(out, run)) is not None]
        failures = {
            run.name: (out / run.name / FAILED).read_text()
            for run in runs
            if (out / run.name / FAILED).exists()
        }
        if len([o for o in outcomes if o.value is not None]) == len(table.tuning_runs()):
            _write_results(table, path, out, outcomes, failures)
        if status:
            return status
        if missing := len(runs) - len(outcomes):
            progress.line(
                f"{missing} of {len(runs)} runs are not finished; worker_*.log in {out} says why, "
                "and the same command trains them"
            )
        return 1 if missing else 0


def _known(out: epath.Path, run: Run) -> bool:
    """True if the run has ended, by a worker or by its own command, whose outcome is then noted."""
    if (outcome := read_outcome(out, run)) is None:
        return False
    if not (out / run.name / FINISHED).exists():
        write_outcome(out / run.name, outcome)
    return True


def _list(table: Table, out: epath.Path) -> int:
    """Prints the commands of the runs that are not finished, a line each.

    Raises:
        ConfigError: a run's config depends on the results of others.
    """
    if bound := [run.name for run in all_runs(table) if run.needs]:
        raise ConfigError(
            f"--list: the config of {bound[0]} depends on other runs (tuning, tokens_of); run the "
            "table without --list"
        )
    for run in all_runs(table):
        if read_outcome(out, run) is not None:
            continue
        for command in (*run.before, "train" if table.train else "evaluate"):
            print(shlex.join(["polaris", command, *run.flags(), f"--workdir={out / run.name}"]))
    return 0


def all_runs(table: Table) -> list[Run]:
    """The runs that choose values, and then the counted ones."""
    return [*table.tuning_runs(), *table.runs()]


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
        waiting = [run for run in all_runs(table) if not _ended(out, run.name)]
        while any(process.poll() is None for process in processes):
            time.sleep(POLL_S)
            waiting = _say_ended(table, out, waiting)
            if stop.requested and not told:
                told = True
                for process in processes:
                    process.terminate()  # each run that is under way leaves a checkpoint
        _say_ended(table, out, waiting)
    for process in processes:
        process.communicate()
    return 130 if stop.interrupted else 0


def _say_ended(table: Table, out: epath.Path, waiting: list[Run]) -> list[Run]:
    """Prints a line for each run that has ended, and returns the others."""
    progress = Progress(enabled=True)
    left = []
    for run in waiting:
        if not _ended(out, run.name):
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


# ---- a worker


def _work(table: Table, out: epath.Path) -> int:
    """Makes bases and runs that no other worker has, until none is left."""
    index, count = map(int, os.environ[WORKER].split("/"))
    _take_cores(index, count)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_programs()  # the runs of all workers compile the same
    runs = all_runs(table)
    while waiting := [run for run in runs if not _ended(out, run.name)]:
        took = False
        for run in waiting:
            if not all(_ended(out, name) for name in run.needs):
                continue
            with _mine(out / run.name) as mine:
                if mine and not _do(table, run, out):
                    return 130  # stopped; the run has a checkpoint
                took = took or mine
        if not took:
            time.sleep(POLL_S)  # others have what is ready, or what this worker waits for
    return 0


def _ended(out: epath.Path, name: str) -> bool:
    return (out / name / FINISHED).exists() or (out / name / FAILED).exists()


def _do(table: Table, run: Run, out: epath.Path) -> bool:
    """Trains a run, or notes why that failed; False if it was stopped."""
    progress = Progress(enabled=True)
    try:
        for name in run.needs:
            if (out / name / FAILED).exists():
                raise RuntimeError(f"it depends on {name}, which failed")
        before = _score_base(table, run.base, out)
        outcome = (_train if table.train else _evaluate)(table, run, out, before)
    except ConfigError as error:  # such as another table's run in the folder
        raise ConfigError(f"{run.name}: {error}") from None
    except Exception as error:  # noqa: BLE001  # the other runs need not fail with it
        write_bytes(out / run.name / FAILED, f"{type(error).__name__}: {error}".encode())
        progress.line(f"{run.name}: failed: {error}")
        return True
    if outcome is None:
        return False
    progress.line(f"{run.name}: {table.figure} {outcome.figure(table.figure):.1%}")
    return True


def _end_with_parent() -> None:
    while os.read(0, 1024):  # until the command that started this process has ended
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _take_cores(index: int, count: int) -> None:
    """Keeps this process on its share of the cores, so that XLA starts no more threads."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(cores[index::count]) or {cores[index % len(cores)]})


@contextlib.contextmanager
def _mine(folder: epath.Path) -> Iterator[bool]:
    """True if no other worker has this run."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with owned(folder, "ablate", busy="", remedy=""):
            yield not (folder / FINISHED).exists()
    except InUse:
        yield False


def _score_base(table: Table, base: str, out: epath.Path) -> float:
    """The base's held-out score; the base is made if its config says how."""
    workdir = ensure_workdir(out / "bases" / base)
    with alone(workdir, "score", Progress(enabled=True)):
        if not (workdir / "eval.json").exists():
            _command("evaluate", [*table.base_run(base).flags(), f"--workdir={workdir}"])
    return float(json.loads((workdir / "eval.json").read_text())["avg@k"])


def _train(table: Table, run: Run, out: epath.Path, before: float) -> Outcome | None:
    """Trains a run to its end; None if it was stopped."""
    from polaris_jax.loop import run as train

    workdir, words = out / run.name, _base_words(out, run) + flags(_settled(table, run, out))
    for command in run.before:
        _command(command, [*run.flags(), *words, f"--workdir={workdir}"])
    if run.tokens_of:
        limit = read_outcome_at(out, run.budget_run).total_tokens - tokens_before(workdir, run)
        words += flags({"rollout.total_tokens": max(1, limit)})
    state = train(_config(run, workdir, *words), workdir)
    if not state.done:
        return None
    after = None
    if table.evaluate and run.counted:
        checkpoint = ["--checkpoint=latest", f"--workdir={workdir}"]
        _command("evaluate", [*run.flags(), *words, *checkpoint])
        after = float(json.loads((workdir / "eval.json").read_text())["avg@k"])
    outcome = outcome_of(workdir, run, before=before, after=after)
    write_outcome(workdir, outcome)
    return outcome


def _evaluate(table: Table, run: Run, out: epath.Path, before: float) -> Outcome:
    """Scores the base with an arm's fields."""
    workdir = ensure_workdir(out / run.name)
    _command("evaluate", [*run.flags(), *_base_words(out, run), f"--workdir={workdir}"])
    score = float(json.loads((workdir / "eval.json").read_text())["avg@k"])
    outcome = Outcome(run.arm, run.base, run.seed, before, ((0, score),), 0, updates=0, after=score)
    write_outcome(workdir, outcome)
    return outcome


def _base_words(out: epath.Path, run: Run) -> list[str]:
    """Flags that name the base's weights, if they were made on the spot."""
    made = out / "bases" / run.base / "base_model"
    return [f"--config.model.path={made}", "--config.warmstart.steps=0"] if made.exists() else []


def _settled(table: Table, run: Run, out: epath.Path) -> dict[str, Any]:
    """The value that the tuning has chosen for a counted run."""
    if table.tuning is None or not run.counted:
        return {}
    outcomes = [read_outcome_at(out, name) for name in run.needs if name.startswith("tuning/")]
    return {table.tuning.field: chosen_value(table, run.arm, outcomes)}


def _command(name: str, words: list[str]) -> None:
    """Runs a command in this process.

    Raises:
        RuntimeError: it ended with a status other than 0.
    """
    module: Any = importlib.import_module(f"polaris_jax.commands.{name}")
    if status := module.main(words):
        raise RuntimeError(f"`polaris {name}` ended with status {status}")
