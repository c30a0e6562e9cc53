"""A run's directory: who owns it, and its small files (for run.json see `record`).

`claim` decides whether a command starts or resumes a run in a workdir, and keeps a second command
out. Nothing here imports jax, so a bad workdir is reported before a device is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterable
from typing import Any, Literal

from etils import epath

from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.run.ownership import NoOwnership, Ownership, take
from polaris_jax.run.record import RECORD, read_record, refuse_other_config, write_record
from polaris_jax.system.files import (
    PARTIAL,
    AnyPath,
    as_place,
    delete,
    is_remote,
    write_bytes,
    write_json,
)

__all__ = [
    "Claim",
    "claim",
    "delete_rollouts_from",
    "ensure_workdir",
    "mark_nondeterministic",
    "note",
    "rollouts_path",
    "write_json",
    "write_rollouts",
]

ROLLOUTS = "rollouts"
# What training writes: pattern of the name -> for a folder, the pattern of our files inside.
# --overwrite deletes these and nothing else. Files of other commands and of people stay.
_MADE_BY_TRAINING: dict[str, str | None] = {
    r"run\.json": None,
    r"metrics\.jsonl": None,
    r"timing\.jsonl": None,
    r"stages\.json": None,
    r"checkpoints": r"\d+(\.[a-z]+)*|tokenizer",  # the tokenizer of the trained model
    r"rollouts": r"step_\d+\.jsonl(\.partial)?",
    r"tensorboard": r"events\.out\.tfevents\..*",
    r"wandb": r"run_id|run-.*|offline-run-.*|latest-run|debug.*\.log",
}


class Claim:
    """The ownership of a workdir until `release`; a context manager.

    Attributes:
        status: "new" if the run starts now, "resume" if it has started before.
    """

    def __init__(self, status: Literal["new", "resume"], ownership: Ownership) -> None:
        self.status = status
        self._ownership = ownership

    def check(self) -> None:
        """Raises TakenOver if the workdir is no longer ours. Call before every write of a step.

        Raises:
            TakenOver: another run has claimed the workdir since (in an object store; see
                `ownership`).
        """
        self._ownership.check()

    def release(self) -> None:
        """Gives the workdir up, so that other runs may claim it."""
        self._ownership.release()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def ensure_workdir(workdir: AnyPath) -> epath.Path:
    """The workdir, created if missing and checked to be writable.

    Raises:
        ConfigError: a file cannot be written into the workdir.
    """
    place = as_place(workdir)
    probe = place / f".writable-{secrets.token_hex(4)}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_bytes(probe, b"")
        probe.unlink()
    except OSError as error:
        raise _unwritable(workdir, error) from None
    return place


def claim(
    workdir: AnyPath,
    config: RunConfig,
    *,
    command: str = "train",
    overwrite: bool = False,
    primary: bool = True,
) -> Claim:
    """Claims a workdir for a training run, which starts there or resumes with an equal config.

    Writes run.json: config, versions, commit and every start.

    Args:
        workdir: directory of the run; created if missing.
        config: config of the run. On resume, logging, checkpoint cadence, workers, evaluation, mesh
            and memory sizes may differ from the first start, and the last stage may grow.
        command: name of the command, for run.json and messages.
        overwrite: delete what training wrote here before, and start anew.
        primary: True in the first process of a run. The call writes nothing if False.

    Raises:
        ConfigError: the directory cannot be written, another training is running in it, or it holds
            a run of another config (the text names the fields that differ).
    """
    workdir = as_place(workdir)
    if not primary:
        return Claim("resume" if (workdir / RECORD).exists() else "new", NoOwnership())
    ensure_workdir(workdir)
    try:
        ownership = take(workdir, command)
    except OSError as error:
        raise _unwritable(workdir, error) from None
    try:
        record = None if overwrite else _fitting_record(workdir, config)
        ownership.announce()
        if overwrite:
            _delete_made_by_training(workdir)
        write_record(workdir, command, config, record)
    except OSError as error:
        ownership.release()
        raise _unwritable(workdir, error) from None
    except ConfigError:
        ownership.release()
        raise
    return Claim("new" if record is None else "resume", ownership)


def note(workdir: AnyPath, **facts: Any) -> None:
    """Adds facts (for example devices) to run.json."""
    path = as_place(workdir) / RECORD
    write_json(path, {**json.loads(path.read_text()), **facts})


def mark_nondeterministic(workdir: AnyPath) -> None:
    """Records in run.json that a grading timed out, so the result depends on the clock."""
    if json.loads((as_place(workdir) / RECORD).read_text())["deterministic"]:
        note(workdir, deterministic=False)


# ---- rollouts/


def rollouts_path(workdir: AnyPath, step: int) -> epath.Path:
    """The path of a step's responses."""
    return as_place(workdir) / ROLLOUTS / f"step_{step:06d}.jsonl"


def write_rollouts(
    workdir: AnyPath, step: int, rows: Iterable[dict[str, Any]], *, append: bool = False
) -> None:
    """Writes a step's responses to rollouts/, one JSON object a line, without timestamps.

    Args:
        workdir: directory of the run.
        step: number of the step, from 0.
        rows: one JSON-able dict for each response.
        append: keep the rows that an earlier attempt of the same step has written.
    """
    path = rollouts_path(workdir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows]
    old = path.read_bytes() if append and path.exists() else b""
    write_bytes(path, old + "".join(lines).encode())


def delete_rollouts_from(workdir: AnyPath, step: int) -> int:
    """Deletes the rollouts of `step` and later steps, which a resumed run writes again.

    Returns:
        The number of deleted files, without unfinished ones.
    """
    folder, deleted = as_place(workdir) / ROLLOUTS, 0
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(rf"step_(\d+)\.jsonl({re.escape(PARTIAL)})?", path.name)
        if match and (int(match[1]) >= step or match[2]):
            path.unlink()
            deleted += not match[2]
    return deleted


# ---- claiming


def _unwritable(workdir: AnyPath, error: OSError) -> ConfigError:
    return ConfigError(
        f"workdir={workdir}: cannot be written ({error.strerror}); choose another --workdir"
    )


def _fitting_record(workdir: epath.Path, config: RunConfig) -> dict[str, Any] | None:
    """The content of run.json from the run's earlier starts; None if this is the first start."""
    record = read_record(workdir)
    if record is None:
        _refuse_orphans(workdir)
    else:
        refuse_other_config(workdir, record, config)
    return record


def _refuse_orphans(workdir: epath.Path) -> None:
    # Results without a record are refused: resuming them could silently mix two configs.
    folder, metrics = workdir / "checkpoints", workdir / "metrics.jsonl"
    steps = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    for path, present in ((folder, bool(steps)), (metrics, metrics.exists())):
        if present:
            raise ConfigError(
                f"workdir={workdir}: has {path.name} but no {RECORD}; choose another --workdir, or "
                "use --overwrite to begin anew"
            )


def _delete_made_by_training(workdir: epath.Path) -> None:
    for pattern, inside in _MADE_BY_TRAINING.items():
        for path in [p for p in workdir.iterdir() if re.fullmatch(pattern, p.name)]:
            if inside is None:
                delete(path)
                continue
            for item in [p for p in path.iterdir() if re.fullmatch(inside, p.name)]:
                delete(item)
            if not is_remote(path):  # a store has no empty folders
                with contextlib.suppress(OSError):  # not empty: it holds files that are not ours
                    os.rmdir(path)
