"""A run's directory: which run owns it, and its small files (for run.json see `record`).

`claim` decides whether a command starts or resumes a run in a workdir, and keeps a second command
out. Nothing here imports jax, so a bad workdir is reported before a device is touched.

On a disk the kernel holds a lock for the run and releases it when the process ends, so a second run
is refused. An object store has no locks: a run writes its token to `.lock`, and the newest run
wins. The reason: the older run may have been preempted, or be about to be, without a chance to
release the workdir. A run whose token is gone ends before it writes again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from etils import epath

from polaris_jax.config import ConfigError, RunConfig
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

LOCK = ".lock"


class TakenOver(RuntimeError):
    """Another run owns the workdir now. The text is one line for the user."""


class Ownership:
    """The ownership of a workdir until `release`.

    This class is that of a process that writes nothing: all methods do nothing.
    """

    def announce(self) -> None:
        """Takes the workdir over from other runs, in a store. Call after checking the config."""

    def check(self) -> None:
        """Raises TakenOver if the workdir is no longer ours. Call before every write of a step.

        Raises:
            TakenOver: another run has claimed the workdir since.
        """

    def release(self) -> None:
        """Lets other runs claim the workdir. Any end of the process has this effect, too."""


class _DiskLock(Ownership):
    def __init__(self, workdir: epath.Path) -> None:
        self._file = open(workdir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
        try:  # the kernel releases the lock when the process ends, so a kill leaves no lock
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise ConfigError(
                f"workdir={workdir}: `polaris train` already runs in it ({owner}); "
                "wait for it, end it, or choose another --workdir"
                if isinstance(error, BlockingIOError)
                else f"workdir={workdir}: its disk knows no file locks ({error.strerror}); "
                "choose a --workdir on another disk"
            ) from None
        with contextlib.suppress(OSError):  # on a full disk the lock holds without the owner's name
            self._file.truncate(0)
            self._file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()

    def release(self) -> None:
        self._file.close()


class _StoreToken(Ownership):
    def __init__(self, workdir: epath.Path) -> None:
        self._path, self._token = workdir / LOCK, secrets.token_hex(8)

    def announce(self) -> None:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token}
        write_json(self._path, owner)

    def check(self) -> None:
        try:
            owner = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            owner = {}
        if owner.get("token") != self._token:
            by = f"pid {owner['pid']} on {owner['host']}" if owner else "a run that has ended since"
            raise TakenOver(
                f"workdir={self._path.parent}: another run has taken it over ({by}); this one ends "
                "and leaves it alone"
            )

    def release(self) -> None:
        with contextlib.suppress(TakenOver, OSError):
            self.check()
            self._path.unlink(missing_ok=True)


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
            TakenOver: another run has claimed the workdir since (in an object store).
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
    workdir: AnyPath, config: RunConfig, *, overwrite: bool = False, primary: bool = True
) -> Claim:
    """Claims a workdir for a training run, which starts there or resumes with an equal config.

    Writes run.json: config, versions, commit and every start.

    Args:
        workdir: directory of the run; created if missing.
        config: config of the run. On resume, logging, checkpoint cadence, workers, evaluation, mesh
            and memory sizes may differ from the first start, and the last stage may grow.
        overwrite: delete what training wrote here before, and start anew.
        primary: True in the first process of a run. The call writes nothing if False.

    Raises:
        ConfigError: the directory cannot be written, another training is running in it, or it holds
            a run of another config (the text names the fields that differ).
    """
    workdir = as_place(workdir)
    if not primary:
        return Claim("resume" if (workdir / RECORD).exists() else "new", Ownership())
    ensure_workdir(workdir)
    try:
        ownership = _StoreToken(workdir) if is_remote(workdir) else _DiskLock(workdir)
    except OSError as error:
        raise _unwritable(workdir, error) from None
    try:
        record = None if overwrite else _fitting_record(workdir, config)
        ownership.announce()
        if overwrite:
            _delete_made_by_training(workdir)
        write_record(workdir, "train", config, record)
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
    """Records in run.json that the result depends on more than config, data and seed."""
    if json.loads((as_place(workdir) / RECORD).read_text())["deterministic"]:
        note(workdir, deterministic=False)


def keep_identity(workdir: AnyPath, identity: Mapping[str, str], *, path: str) -> None:
    """Records which model a run began with, and refuses another one under the same path.

    A run of an earlier version has recorded nothing: the present model counts as its own.

    Args:
        workdir: directory of the run.
        identity: digests of the model's parts, by name.
        path: where the model lies, for the error.

    Raises:
        ConfigError: a part differs from the one with which the run began.
    """
    former = json.loads((as_place(workdir) / RECORD).read_text()).get("identity")
    if not isinstance(former, dict):
        note(workdir, identity=dict(identity))
        return
    names = [name for name in identity if former.get(name) != identity[name]]
    if names:
        digests = ", ".join(f"{former.get(name)} there, {identity[name]} here" for name in names)
        raise ConfigError(
            f"model.path={path}: another {' and '.join(names)} than the run in workdir={workdir} "
            f"began with ({digests}); put the former files back, or begin anew with another "
            "--workdir or --overwrite"
        )


def note_numerics(workdir: AnyPath, numerics: Mapping[str, Any], *, step: int) -> list[str]:
    """Records what the last bits of a run depend on, at a start; says what has changed since.

    A change makes the run not deterministic from `step` on: what follows is not what a run would
    have computed that was not interrupted.

    Args:
        workdir: directory of the run.
        numerics: what the last bits depend on, by name.
        step: the step that is done next.

    Returns:
        Names of what differs from the last start; none at step 0, and in a run of an earlier
        version, which recorded nothing.
    """
    record = json.loads((as_place(workdir) / RECORD).read_text())
    now, before = json.loads(json.dumps(dict(numerics))), record.get("numerics") or {}
    names = [name for name in before if before[name] != now.get(name)] if step else []
    facts: dict[str, Any] = {"numerics": now}
    if names:
        change = {"step": step} | {name: [before[name], now.get(name)] for name in names}
        facts["numerics_changes"] = [*record.get("numerics_changes", []), change]
        facts["deterministic"] = False
    note(workdir, **facts)
    return names


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


def delete_rollouts_from(workdir: AnyPath, step: int) -> None:
    """Deletes the rollouts of `step` and later steps, which a resumed run writes again."""
    folder = as_place(workdir) / ROLLOUTS
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(rf"step_(\d+)\.jsonl({re.escape(PARTIAL)})?", path.name)
        if match and (int(match[1]) >= step or match[2]):
            path.unlink()


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
    steps = (
        [p for p in folder.iterdir() if re.fullmatch("[0-9]+", p.name)] if folder.is_dir() else []
    )
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
