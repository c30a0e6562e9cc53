"""A run's directory: who owns it, what it was configured as, and its small files.

`claim` decides whether a command begins or resumes in a workdir and keeps a second one out. Nothing
here imports jax: a bad workdir is reported before a device is touched.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TextIO

from polaris_jax.config import (
    ConfigError,
    RunConfig,
    binding_fields,
    config_fields,
    config_hash,
)
from polaris_jax.files import PARTIAL, write_bytes, write_json

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
RECORD = "run.json"
LOCK = ".lock"
ABSENT = "absent"
# What training leaves, as patterns of names; for a folder, the pattern of what is ours inside it.
# --overwrite deletes these and nothing else: what other commands and people left stays.
_MADE_BY_TRAINING: dict[str, str | None] = {
    r"run\.json": None,
    r"metrics\.jsonl": None,
    r"timing\.jsonl": None,
    r"stages\.json": None,
    r"checkpoints": r"\d+(\.partial|\.replaced|\.deleted)?",
    r"rollouts": r"step_\d+\.jsonl(\.partial)?",
    r"tensorboard": r"events\.out\.tfevents\..*",
    r"wandb": r"run_id|run-.*|offline-run-.*|latest-run|debug.*\.log",
}
_VERSIONS_OF = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "transformers",
    "sympy",
)


class Claim:
    """A workdir that is ours until `release`; a context manager.

    Attributes:
        status: "new" when the command begins here, "resume" when it has begun before.
    """

    def __init__(self, status: Literal["new", "resume"], lock: TextIO | None) -> None:
        self.status = status
        self._lock = lock

    def release(self) -> None:
        """Lets others in. The end of the process, by whatever means, does it too."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def ensure_workdir(workdir: Path | str) -> Path:
    """The workdir, made when missing; a file can be written into it.

    Raises:
        ConfigError: it cannot.
    """
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise _unwritable(workdir, error) from None
    return Path(workdir)


def claim(
    workdir: Path | str,
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
        config: the run. Logging, checkpoint cadence, workers, evaluation and mesh are free to
            differ from those it was begun with, and the last stage may grow.
        command: named in run.json and in messages.
        overwrite: delete what training made here before, and begin anew.
        primary: False in every process of a run but the first; it then touches nothing.

    Raises:
        ConfigError: the directory cannot be written, a training runs in it, or it holds one of
            another config, with the fields that differ.
    """
    workdir = Path(workdir)
    if not primary:
        return Claim("resume" if (workdir / RECORD).exists() else "new", None)
    ensure_workdir(workdir)
    try:
        lock = open(workdir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise _unwritable(workdir, error) from None
    try:
        _lock(lock, workdir, command)
        if overwrite:
            _delete_made_by_training(workdir)
        record = _read_record(workdir)
        if record is None:
            _refuse_orphans(workdir)
        else:
            _refuse_other_config(workdir, record, config)
        _write_record(workdir, command, config, record)
    except OSError as error:
        lock.close()
        raise _unwritable(workdir, error) from None
    except ConfigError:
        lock.close()
        raise
    return Claim("new" if record is None else "resume", lock)


def note(workdir: Path | str, **facts: Any) -> None:
    """Adds facts (devices, say) to run.json."""
    path = Path(workdir) / RECORD
    write_json(path, {**json.loads(path.read_text()), **facts})


def mark_nondeterministic(workdir: Path | str) -> None:
    """Records in run.json that the clock has had a say: an answer's grading has timed out."""
    if json.loads((Path(workdir) / RECORD).read_text())["deterministic"]:
        note(workdir, deterministic=False)


# ---- rollouts/


def rollouts_path(workdir: Path | str, step: int) -> Path:
    """Where the responses of a step lie."""
    return Path(workdir) / ROLLOUTS / f"step_{step:06d}.jsonl"


def write_rollouts(
    workdir: Path | str, step: int, rows: Iterable[dict[str, Any]], *, append: bool = False
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


def delete_rollouts_from(workdir: Path | str, step: int) -> int:
    """Deletes the rollouts of `step` and later, which a resumed run makes again; their number."""
    folder, deleted = Path(workdir) / ROLLOUTS, 0
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(rf"step_(\d+)\.jsonl({re.escape(PARTIAL)})?", path.name)
        if match and (int(match[1]) >= step or match[2]):
            path.unlink()
            deleted += not match[2]
    return deleted


# ---- claiming


def _lock(lock: TextIO, workdir: Path, command: str) -> None:
    # The kernel drops the lock with the process: none is left over after a kill.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "another process"
        raise ConfigError(
            f"workdir={workdir}: `polaris {command}` already runs in it ({owner}); "
            "wait for it, end it, or choose another --workdir"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"workdir={workdir}: its disk knows no file locks ({error.strerror}); "
            "choose a --workdir on another disk"
        ) from None
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its owner's name
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()


def _unwritable(workdir: Path | str, error: OSError) -> ConfigError:
    return ConfigError(
        f"workdir={workdir}: cannot be written ({error.strerror}); choose another --workdir"
    )


def _read_record(workdir: Path) -> dict[str, Any] | None:
    path = workdir / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        missing = {"config", "binding", "starts"} - record.keys()
        if missing:
            raise ValueError(f"{', '.join(sorted(missing))} missing")
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not the record of a run ({error}); restore the file, or use --overwrite to "
            "begin anew"
        ) from None
    return record


def _refuse_orphans(workdir: Path) -> None:
    # Results without a record: to resume them could mix two configs without a word.
    folder, metrics = workdir / "checkpoints", workdir / "metrics.jsonl"
    steps = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    for path, present in ((folder, bool(steps)), (metrics, metrics.exists())):
        if present:
            raise ConfigError(
                f"workdir={workdir}: has {path.name} but no {RECORD}; choose another --workdir, or "
                "use --overwrite to begin anew"
            )


def _refuse_other_config(workdir: Path, record: dict[str, Any], config: RunConfig) -> None:
    remedy = "choose another --workdir, or use --overwrite to begin anew"
    recorded, present = record["config"], _plain(config_fields(config))
    differing = []
    for name in sorted(binding_fields(config).keys() | set(record["binding"])):
        there, here = recorded.get(name, ABSENT), present.get(name, ABSENT)
        if there != here:
            differing.append(f"{name}={there!r} there, {here!r} here")
    if differing:
        raise ConfigError(
            f"workdir={workdir}: holds a run of another config: {'; '.join(differing)}; {remedy}"
        )
    name = f"stages[{len(config.stages) - 1}].steps"
    if present[name] < recorded[name]:
        raise ConfigError(
            f"{name}={present[name]}: the run in workdir={workdir} has {recorded[name]}; the last "
            f"stage may only grow; {remedy}"
        )


def _write_record(
    workdir: Path, command: str, config: RunConfig, record: dict[str, Any] | None
) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    start = {"time": now, "argv": sys.argv[1:], "commit": _commit(), "host": socket.gethostname()}
    write_json(
        workdir / RECORD,
        {
            "deterministic": True,
            **(record or {}),
            "command": command,
            "config": _plain(config_fields(config)),
            "binding": sorted(binding_fields(config)),
            "config_hash": config_hash(config),
            "versions": _versions(),
            "commit": start["commit"],
            "starts": [*(record or {}).get("starts", []), start],
        },
    )


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON: a tuple inside a value is a list."""
    return json.loads(json.dumps(fields))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("polaris_jax", *_VERSIONS_OF):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _commit() -> str | None:
    """The commit of the source tree, "-dirty" when it has been edited; None outside of one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *describe], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _delete_made_by_training(workdir: Path) -> None:
    for pattern, inside in _MADE_BY_TRAINING.items():
        for path in [p for p in workdir.iterdir() if re.fullmatch(pattern, p.name)]:
            if inside is None:
                _delete(path)
                continue
            for item in [p for p in path.iterdir() if re.fullmatch(inside, p.name)]:
                _delete(item)
            with contextlib.suppress(OSError):  # something of someone else's is in it: it stays
                path.rmdir()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
