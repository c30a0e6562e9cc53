"""A run's directory: whether a run starts or resumes in it, and its small files.

`claim` decides whether a command starts or resumes a run in a workdir, and keeps a second command
out (`owner`). Nothing here imports jax, so a bad workdir is reported before a device is touched.
For run.json see `record`.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from etils import epath

from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.run.identity import refuse_other_inputs
from polaris_jax.run.owner import Ownership, own
from polaris_jax.run.record import (
    LOCAL,
    RECORD,
    local_settings,
    read_facts,
    read_record,
    refuse_other_config,
    write_record,
)
from polaris_jax.system.files import (
    AnyPath,
    as_place,
    delete,
    delete_partials,
    entries,
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

LOCK = ".lock"
ROLLOUTS = "rollouts"
# Errors of a wrong path or right, which do not pass by themselves.
_LASTING = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
}
_FILES = (RECORD, "metrics.jsonl", "timing.jsonl", "stages.json", "warnings.json")
# What training writes: pattern of the name -> for a folder, the pattern of our files inside.
# --overwrite deletes these and nothing else. Files of other commands and of people stay.
_MADE_BY_TRAINING: dict[str, str | None] = {
    **{re.escape(name): None for name in _FILES},
    r"checkpoints": r"\d+(\.[a-z]+)*|tokenizer",  # the tokenizer of the trained model
    r"rollouts": r"step_\d+\.jsonl(\.[0-9a-f]{8})?(\.partial)?",
    r"tensorboard": r"events\.out\.tfevents\..*",
    r"alive": r"\d+\.json(\.[0-9a-f]{8})?(\.partial)?",
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
    probe = place / ".writable"
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_bytes(probe, b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(workdir, error) from None
    return place


def claim(
    workdir: AnyPath,
    config: RunConfig,
    *,
    overwrite: bool = False,
    primary: bool = True,
    problem_set: str | None = None,
) -> Claim:
    """Claims a workdir for a training run, which starts there or resumes with an equal config.

    Writes run.json: config, versions, commit and every start.

    Args:
        workdir: directory of the run; created if missing.
        config: config of the run. On resume, logging, checkpoint cadence, workers, evaluation, mesh
            and memory sizes may differ from the first start, and the last stage may grow.
        overwrite: delete what training wrote here before, and start anew.
        primary: True in the first process of a run. The call writes nothing if False.
        problem_set: what the run's first start records as the name of its problem set.

    Raises:
        ConfigError: the directory cannot be written, another training is running in it, or it holds
            a run of another config (the text names the fields that differ).
    """
    workdir = as_place(workdir)
    if not primary:
        return Claim("resume" if (workdir / RECORD).exists() else "new", Ownership())
    ensure_workdir(workdir)
    ownership = own(
        workdir / LOCK,
        busy=f"workdir={workdir}: `polaris train` already runs in it",
        remedy="choose another --workdir",
        writes=_FILES,
    )
    try:
        record = None if overwrite else _fitting_record(workdir, config)
        ownership.announce()
        if overwrite:
            _delete_made_by_training(workdir)
        begun: dict[str, Any] = {} if problem_set is None else {"problem_set": problem_set}
        if record is None:  # a later start may be on a machine that lacks them
            begun[LOCAL] = local_settings(config)
        write_record(workdir, "train", config, record, begun=begun)
    except OSError as error:
        ownership.release()
        raise _unwritable(workdir, error) from None
    except ConfigError:
        ownership.release()
        raise
    return Claim("new" if record is None else "resume", ownership)


def note(workdir: AnyPath, **facts: Any) -> None:
    """Adds facts (for example devices) to run.json."""
    write_json(as_place(workdir) / RECORD, {**read_facts(workdir), **facts})


def note_end(workdir: AnyPath, how: str, counts: Mapping[str, int] | None = None) -> None:
    """Adds to run.json how and when the newest start ended; a start that was killed has neither.

    Args:
        workdir: directory of the run.
        how: how it ended.
        counts: the run's totals at that moment, if they are known.
    """
    record = json.loads((as_place(workdir) / RECORD).read_text())
    *former, start = record["starts"]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    totals = {} if counts is None else {"counts": dict(sorted(counts.items()))}
    note(workdir, starts=[*former, {**start, "ended": how, "ended_at": now}], **totals)


def mark_nondeterministic(workdir: AnyPath) -> None:
    """Records in run.json that the result depends on more than config, data and seed."""
    if read_facts(workdir).get("deterministic") is not False:
        note(workdir, deterministic=False)


def keep_identity(
    workdir: AnyPath, inputs: Mapping[str, Any], *, places: Mapping[str, str]
) -> None:
    """Records the model and problems that a run began with, and refuses other ones.

    What a run of an earlier version has not recorded is taken from the present start.

    Args:
        workdir: directory of the run.
        inputs: digests by name.
        places: config field and value of each name, for errors.

    Raises:
        ConfigError: an input differs from the one with which the run began.
    """
    former = read_facts(workdir).get("identity")
    former = former if isinstance(former, dict) else {}
    refuse_other_inputs(
        former,
        inputs,
        places=places,
        of=f"the run in workdir={workdir} began with",
        remedy="begin anew with another --workdir or --overwrite",
    )
    if former.keys() < inputs.keys():
        note(workdir, identity=dict(inputs) | former)


# What was recorded of one CPU device before, whatever kernels served.
_UNTRUE_KERNELS = "is for one device without a mesh, the sampler has a mesh of 1)"


def note_numerics(workdir: AnyPath, numerics: Mapping[str, Any], *, step: int) -> list[str]:
    """Records what results depend on beside config and data; says what has changed since.

    A change makes the run not deterministic from `step` on: what follows is not what a run would
    have computed that was not interrupted.

    Args:
        workdir: directory of the run.
        numerics: what results depend on, by name.
        step: the step that is done next.

    Returns:
        Names of what differs from the last start; none at step 0, and in a run of an earlier
        version, which recorded nothing.
    """
    record = read_facts(workdir)
    now, before = json.loads(json.dumps(dict(numerics))), record.get("numerics")
    before = before if isinstance(before, dict) else {}
    names = [
        name
        for name, there in before.items()
        if step and there != now.get(name) and not str(there).endswith(_UNTRUE_KERNELS)
    ]
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


def write_rollouts(workdir: AnyPath, step: int, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a step's responses to rollouts/, one JSON object a line, without timestamps.

    Args:
        workdir: directory of the run.
        step: number of the step, from 0.
        rows: one JSON-able dict for each response.
    """
    path = rollouts_path(workdir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows]
    write_bytes(path, "".join(lines).encode())


def delete_rollouts_from(workdir: AnyPath, step: int) -> None:
    """Deletes the rollouts of `step` and later steps, which a resumed run writes again."""
    folder = as_place(workdir) / ROLLOUTS
    for path in entries(folder):
        match = re.fullmatch(r"step_(\d+)\.jsonl", path.name)
        if match and int(match[1]) >= step:
            path.unlink()
    delete_partials(folder)


# ---- claiming


def _unwritable(workdir: AnyPath, error: OSError) -> ConfigError:
    refusal = ConfigError(
        f"workdir={workdir}: cannot be written ({error.strerror}); choose another --workdir"
    )
    if error.errno not in _LASTING:  # a server that is away, a full disk: a scheduler may try again
        refusal.may_pass = True
    return refusal


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
    steps = [path for path in entries(folder) if re.fullmatch("[0-9]+", path.name)]
    for path, present in ((folder, bool(steps)), (metrics, metrics.exists())):
        if present:
            raise ConfigError(
                f"workdir={workdir}: has {path.name} but no {RECORD}; choose another --workdir, or "
                "use --overwrite to begin anew"
            )


def _delete_made_by_training(workdir: epath.Path) -> None:
    for pattern, inside in _MADE_BY_TRAINING.items():
        for path in [p for p in entries(workdir) if re.fullmatch(pattern, p.name)]:
            if inside is None:
                delete(path)
                continue
            for item in [p for p in entries(path) if re.fullmatch(inside, p.name)]:
                delete(item)
            if not is_remote(path):  # a store has no empty folders
                with contextlib.suppress(OSError):  # not empty: it holds files that are not ours
                    os.rmdir(path)
