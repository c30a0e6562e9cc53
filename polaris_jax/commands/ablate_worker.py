"""The worker processes of `polaris ablate`: what they train, and with which settings."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from etils import epath

from polaris_jax.ablate.outcome import (
    ASKED,
    FINISHED,
    TAKEN,
    Outcome,
    chosen_value,
    outcome_of,
    read_outcome_at,
    refuse_others,
    tokens_before,
    write_outcome,
)
from polaris_jax.ablate.table import Run, Table, flags
from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import keep_programs
from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.models.tokenizer import kept_tokenizers
from polaris_jax.run.owner import InUse, alone, is_free, owned
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.system.files import write_bytes
from polaris_jax.system.progress import Progress

BASE = "ablation_base.json"
FAILED = "ablation_failed.txt"
SCORE = "score"  # the lock of the worker that makes or scores a base
POLL_S = 0.2
WORKER = "POLARIS_ABLATE_WORKER"  # "I/N" in the processes that the command starts


def all_runs(table: Table) -> list[Run]:
    """The runs that choose values, and then the counted ones."""
    return [*table.tuning_runs(), *table.runs()]


def config_of(run: Run, workdir: epath.Path, *more: str) -> RunConfig:
    words = [*run.flags(), *more, f"--workdir={workdir}"]
    return parse("train", words, doc="").config


def work(table: Table, out: epath.Path) -> int:
    """Makes bases and runs that no other worker has, until none is left."""
    index, count = map(int, os.environ[WORKER].split("/"))
    _take_cores(index, count)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_programs()  # the runs of all workers compile the same
    with kept_tokenizers():
        return _take_runs(table, out)


def _take_runs(table: Table, out: epath.Path) -> int:
    runs = all_runs(table)
    while waiting := [run for run in runs if not ended(out, run.name)]:
        took = False
        for run in waiting:
            if not all(ended(out, name) for name in run.needs):
                continue
            if not is_free(out / "bases" / run.base, SCORE):
                continue  # another worker makes the base; a run on another one may be ready
            with _mine(out / run.name) as mine:
                if mine and not _do(table, run, out):
                    return 130  # stopped; the run has a checkpoint
                took = took or mine
        if not took:
            time.sleep(POLL_S)  # others have what is ready, or what this worker waits for
    return 0


def ended(out: epath.Path, name: str) -> bool:
    return (out / name / FINISHED).exists() or (out / name / FAILED).exists()


def _do(table: Table, run: Run, out: epath.Path) -> bool:
    """Trains a run, or notes why that failed; False if it was stopped."""
    progress = Progress(enabled=True)
    try:
        for name in run.needs:
            if (out / name / FAILED).exists():
                raise RuntimeError(f"it depends on {name}, which failed")
        before = score_base(table, run.base, out)
        outcome = (_train if table.train else _evaluate)(table, run, out, before)
    except Exception as error:  # noqa: BLE001  # the other runs need not fail with it
        if os.environ.get("POLARIS_TRACEBACK"):
            traceback.print_exc()
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        write_bytes(out / run.name / FAILED, f"{kind}{error}".encode())
        progress.line(f"{run.name}: failed: {kind}{error}")
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
    """True if no other worker has this run, or has ended it since."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with owned(folder, TAKEN, busy="", remedy=""):
            yield not any((folder / name).exists() for name in (FINISHED, FAILED))
    except InUse:
        yield False


def score_base(table: Table, base: str, out: epath.Path) -> float:
    """The base's held-out score; the base is made if its config says how.

    Raises:
        ConfigError: another table has made a base of that name with other settings.
    """
    workdir, words = ensure_workdir(out / "bases" / base), table.base_run(base).flags()
    with alone(workdir, SCORE, Progress(enabled=True)):
        if (workdir / BASE).exists():
            refuse_others(workdir, words, BASE)
        elif not (workdir / "eval.json").exists():
            write_json(workdir / BASE, {ASKED: words})
        if not (workdir / "eval.json").exists():
            _command("evaluate", [*words, f"--workdir={workdir}"])
    return float(json.loads((workdir / "eval.json").read_text())["avg@k"])


def _train(table: Table, run: Run, out: epath.Path, before: float) -> Outcome | None:
    """Trains a run to its end; None if it was stopped."""
    from polaris_jax.loop import run as train

    workdir, words = out / run.name, _base_words(out, run) + _settled(table, run, out)
    for command in run.before:
        _command(command, [*run.flags(), *words, f"--workdir={workdir}"])
    words += _limit(run, out)
    state = train(config_of(run, workdir, *words), workdir)
    if not state.done:
        return None
    after = None
    if table.evaluate and run.counted:
        checkpoint = ["--checkpoint=latest", f"--workdir={workdir}"]
        _command("evaluate", [*run.flags(), *words, *checkpoint])
        after = float(json.loads((workdir / "eval.json").read_text())["avg@k"])
    outcome = outcome_of(workdir, run, before=before, after=after)
    write_outcome(workdir, outcome, asked_of(table, run, out))
    return outcome


def _evaluate(table: Table, run: Run, out: epath.Path, before: float) -> Outcome:
    """Scores the base with an arm's fields."""
    workdir = ensure_workdir(out / run.name)
    _command("evaluate", [*run.flags(), *_base_words(out, run), f"--workdir={workdir}"])
    score = float(json.loads((workdir / "eval.json").read_text())["avg@k"])
    outcome = Outcome(run.arm, run.base, run.seed, before, ((0, score),), 0, updates=0, after=score)
    write_outcome(workdir, outcome, asked_of(table, run, out))
    return outcome


def _base_words(out: epath.Path, run: Run) -> list[str]:
    """Flags that name the base's weights, if they were made on the spot."""
    made = out / "bases" / run.base / "base_model"
    return [f"--config.model.path={made}", "--config.warmstart.steps=0"] if made.exists() else []


def asked_of(table: Table, run: Run, out: epath.Path) -> list[str]:
    """What the table gives to a run: its flags, the tuned value and the limit of its tokens."""
    return [*run.flags(), *run.before, *_settled(table, run, out), *_limit(run, out)]


def _settled(table: Table, run: Run, out: epath.Path) -> list[str]:
    """The flag with the value that the tuning has chosen for a counted run."""
    if table.tuning is None or not run.counted:
        return []
    outcomes = [read_outcome_at(out, name) for name in run.needs if name.startswith("tuning/")]
    return flags({table.tuning.field: chosen_value(table, run.arm, outcomes)})


def _limit(run: Run, out: epath.Path) -> list[str]:
    """The flag with the response tokens that training may sample, if another arm gives them."""
    if not run.tokens_of:
        return []
    limit = read_outcome_at(out, run.budget_run).total_tokens
    limit -= tokens_before(out / run.name, run)
    return flags({"rollout.total_tokens": max(1, limit)})


def _command(name: str, words: list[str]) -> None:
    """Runs a command in this process.

    Raises:
        RuntimeError: it ended with a status other than 0.
    """
    module: Any = importlib.import_module(f"polaris_jax.commands.{name}")
    if status := module.main(words):
        raise RuntimeError(f"`polaris {name}` ended with status {status}")
