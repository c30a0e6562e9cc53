"""run.json: how a run was configured, by which versions, and what may differ when it goes on."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from polaris_jax.config import (
    ADDED_FIELDS,
    ConfigError,
    RunConfig,
    binding_fields,
    config_fields,
    config_hash,
)
from polaris_jax.system.files import AnyPath, as_place, write_json

RECORD = "run.json"
ABSENT = "absent"
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


def read_record(workdir: epath.Path) -> dict[str, Any] | None:
    """What run.json says; None where there is none.

    Raises:
        ConfigError: it is not the record of a run.
    """
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


def refuse_other_run(workdir: AnyPath, config: RunConfig, *, sections: Sequence[str]) -> None:
    """Returns unless the workdir holds the run of a config that differs in one of `sections`.

    For the commands that put files beside a run which it reads. Without a run it does nothing.

    Raises:
        ConfigError: another run's, naming the fields.
    """
    place = as_place(workdir)
    record = read_record(place)
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


def refuse_other_config(workdir: epath.Path, record: dict[str, Any], config: RunConfig) -> None:
    """Returns where the recorded run may go on under `config`.

    Raises:
        ConfigError: a field that binds differs, or the last stage has shrunk.
    """
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


def write_record(
    workdir: epath.Path, command: str, config: RunConfig, record: dict[str, Any] | None
) -> None:
    """Leaves run.json: config, versions, commit, and one start more than `record` has."""
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
    root = Path(__file__).resolve().parents[2]
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
