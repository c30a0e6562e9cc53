"""A run's directory: who owns it, what it was configured as, and its small files.

`claim` decides whether a command begins or resumes in a workdir and keeps a second one out. Nothing
here imports jax: a bad workdir is reported before a device is touched.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from etils import epath

from polaris_jax.config import (
    ADDED_FIELDS,
    ConfigError,
    RunConfig,
    binding_fields,
    config_fields,
    config_hash,
)
from polaris_jax.files import (
    PARTIAL,
    AnyPath,
    as_place,
    delete,
    is_remote,
    write_bytes,
    write_json,
)
from polaris_jax.ownership import NoOwnership, Ownership, take

__all__ = [
    "Claim",
    "claim",
    "delete_rollouts_from",
    "ensure_workdir",
    "mark_nondeterministic",
    "note",
    "refuse_other_run",
    "rollouts_path",
    "write_json",
    "write_rollouts",
]

ROLLOUTS = "rollouts"
RECORD = "run.json"
ABSENT = "absent"
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
        _write_record(workdir, command, config, record)
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
    record = _read_record(workdir)
    if record is None:
        _refuse_orphans(workdir)
    else:
        _refuse_other_config(workdir, record, config)
    return record


def _read_record(workdir: epath.Path) -> dict[str, Any] | None:
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


def refuse_other_run(workdir: AnyPath, config: RunConfig, *, sections: Sequence[str]) -> None:
    """Returns unless the workdir holds the run of a config that differs in one of `sections`.

    For the commands that put files beside a run which it reads. Without a run it does nothing.

    Raises:
        ConfigError: another run's, naming the fields.
    """
    place = as_place(workdir)
    record = _read_record(place)
    if record is None:
        return
    names = {n for n in _binding_names(record, config) if n.split(".")[0] in sections}
    if not record["config"].get("data.problems"):
        # That run took what `prepare` left, whose source stood in no config of its own.
        names.discard("data.problems")
        source = _prepared_from(place)
        if source and config.data.problems and source != config.data.problems:
            raise _other_config(
                workdir,
                [f"problems of {source!r} there, data.problems={config.data.problems!r} here"],
                "choose another --workdir",
            )
    if differing := _differing(record, config, names):
        raise _other_config(workdir, differing, "choose another --workdir")


def _prepared_from(workdir: epath.Path) -> str:
    """The source of the workdir's problems.parquet; empty where none is recorded."""
    path = workdir / "prepare.json"
    if not path.exists():
        return ""
    try:
        return str(json.loads(path.read_text()).get("source", ""))
    except (ValueError, AttributeError):
        return ""


def _binding_names(record: dict[str, Any], config: RunConfig) -> set[str]:
    """What binds now, and what has bound and is no field any more: a field may become free."""
    gone = set(record["binding"]) - config_fields(config).keys()
    return binding_fields(config).keys() | gone


def _differing(record: dict[str, Any], config: RunConfig, names: Iterable[str]) -> list[str]:
    """`name=value there, value here` of every field that is not as it was."""
    recorded, present = record["config"], _plain(config_fields(config))
    differing = []
    for name in sorted(names):
        there = recorded.get(name, ADDED_FIELDS.get(name, ABSENT))
        here = present.get(name, ABSENT)
        if there != here:
            differing.append(f"{name}={there!r} there, {here!r} here")
    return differing


def _other_config(workdir: AnyPath, differing: Sequence[str], remedy: str) -> ConfigError:
    return ConfigError(
        f"workdir={workdir}: holds a run of another config: {'; '.join(differing)}; {remedy}"
    )


def _refuse_other_config(workdir: epath.Path, record: dict[str, Any], config: RunConfig) -> None:
    remedy = "choose another --workdir, or use --overwrite to begin anew"
    if differing := _differing(record, config, _binding_names(record, config)):
        raise _other_config(workdir, differing, remedy)
    recorded, present = record["config"], _plain(config_fields(config))
    name = f"stages[{len(config.stages) - 1}].steps"
    if present[name] < recorded[name]:
        raise ConfigError(
            f"{name}={present[name]}: the run in workdir={workdir} has {recorded[name]}; the last "
            f"stage may only grow; {remedy}"
        )


def _write_record(
    workdir: epath.Path, command: str, config: RunConfig, record: dict[str, Any] | None
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
