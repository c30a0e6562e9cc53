"""A run's directory: who owns it, and its small files (run.json: `run_record`).

`claim` decides whether a command begins or resumes in a workdir and keeps a second one out. Nothing
here imports jax: a bad workdir is reported before a device is touched.
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
# What training leaves, as patterns of names; for a folder, the pattern of what is ours inside it.
# --overwrite deletes these and nothing else: what other commands and people left stays.
_MADE_BY_TRAINING: dict[str, str | None] = {
    r"run\.json": None,
    r"metrics\.jsonl": None,
    r"timing\.jsonl": None,
    r"stages\.json": None,
    r"checkpoints": r"\d+(\.[a-z]+)*|tokenizer",  # of the model that was trained
    r"rollouts": r"step_\d+\.jsonl(\.partial)?",
    r"tensorboard": r"events\.out\.tfevents\..*",
    r"wandb": r"run_id|run-.*|offline-run-.*|latest-run|debug.*\.log",
}


class Claim:
    """A workdir that is ours until `release`; a context manager.

    Attributes:
        status: "new" when the command begins here, "resume" when it has begun before.
    """

    def __init__(self, status: Literal["new", "resume"], ownership: Ownership) -> None:
        self.status = status
        self._ownership = ownership

    def check(self) -> None:
        """Returns while the workdir is ours; asked before every write of a step.

        Raises:
            TakenOver: another run has claimed it since (in an object store; see `ownership`).
        """
        self._ownership.check()

    def release(self) -> None:
        """Lets others in."""
        self._ownership.release()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def ensure_workdir(workdir: AnyPath) -> epath.Path:
    """The workdir, made when missing; a file can be written into it.

    Raises:
        ConfigError: it cannot.
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
    """Makes a workdir this training's own: begun anew, or resumed under an equal config.

    Leaves run.json: config, versions, commit and every start.

    Args:
        workdir: made when missing.
        config: the run. Logging, checkpoint cadence, workers, evaluation, mesh and memory sizes
            are free to differ from those it was begun with, and the last stage may grow.
        command: named in run.json and in messages.
        overwrite: delete what training made here before, and begin anew.
        primary: False in every process of a run but the first; it then touches nothing.

    Raises:
        ConfigError: the directory cannot be written, a training runs in it, or it holds one of
            another config, with the fields that differ.
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
    """Adds facts (devices, say) to run.json."""
    path = as_place(workdir) / RECORD
    write_json(path, {**json.loads(path.read_text()), **facts})


def mark_nondeterministic(workdir: AnyPath) -> None:
    """Records in run.json that the clock has had a say: an answer's grading has timed out."""
    if json.loads((as_place(workdir) / RECORD).read_text())["deterministic"]:
        note(workdir, deterministic=False)


# ---- rollouts/


def rollouts_path(workdir: AnyPath, step: int) -> epath.Path:
    """Where the responses of a step lie."""
    return as_place(workdir) / ROLLOUTS / f"step_{step:06d}.jsonl"


def write_rollouts(
    workdir: AnyPath, step: int, rows: Iterable[dict[str, Any]], *, append: bool = False
) -> None:
    """Puts a step's responses into rollouts/, one JSON object a line, without timestamps.

    Args:
        workdir: the run's.
        step: from 0.
        rows: JSON-able dicts.
        append: keep what the step has already written (another attempt of the same step).
    """
    path = rollouts_path(workdir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows]
    old = path.read_bytes() if append and path.exists() else b""
    write_bytes(path, old + "".join(lines).encode())


def delete_rollouts_from(workdir: AnyPath, step: int) -> int:
    """Deletes the rollouts of `step` and later, which a resumed run makes again; their number."""
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
    """What run.json says of the same run's earlier starts; None when this is the first."""
    record = read_record(workdir)
    if record is None:
        _refuse_orphans(workdir)
    else:
        refuse_other_config(workdir, record, config)
    return record


def _refuse_orphans(workdir: epath.Path) -> None:
    # Results without a record: to resume them could mix two configs without a word.
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
                with contextlib.suppress(OSError):  # something of someone else's is in it: it stays
                    os.rmdir(path)
