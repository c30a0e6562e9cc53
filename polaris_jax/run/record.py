"""run.json: config and versions of a run, and what may differ when the run resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from polaris_jax.config import (
    ADDED_FIELDS,
    SETTINGS,
    ConfigError,
    RunConfig,
    binding_fields,
    config_fields,
    config_hash,
    declared_name,
)
from polaris_jax.config.settings import ALWAYS
from polaris_jax.data.problem_sets import CURATED, PREPARED
from polaris_jax.system.files import AnyPath, as_place, names_a_place, write_json
from polaris_jax.system.foreign import RECORD_BYTES, read_json
from polaris_jax.system.signals import LAUNCH

RECORD = "run.json"
LOCAL = "local"  # entry of run.json: settings that name a path of the machine, and no Hub id
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
    """The content of run.json; None if there is no such file.

    Raises:
        ConfigError: the file is not the record of a run.
    """
    path = workdir / RECORD
    if not path.exists():
        return None
    remedy = "restore the file, or use --overwrite to begin anew"
    record = read_json(path, most_bytes=RECORD_BYTES, remedy=remedy)
    for name, kind in {"config": dict, "binding": list, "starts": list}.items():
        if not isinstance(record.get(name), kind):
            raise ConfigError(f"{path}: not the record of a run ({name} missing); {remedy}")
    return record


def began_with(record: Mapping[str, Any], workdir: epath.Path) -> str:
    """The workdir's file whose problems a run began with; "" for the config's source."""
    if isinstance(place := record.get("problem_set"), str):
        return place
    # A run of version 0.2 or earlier: `data.problems` came before the workdir's files.
    if record["config"].get("data.problems"):
        return ""
    return next((name for name in (CURATED, PREPARED) if (workdir / name).exists()), "")


def has_finished(workdir: AnyPath) -> bool:
    """True if a start of the workdir's run has reached the run's end."""
    record = read_record(as_place(workdir))
    starts = [] if record is None else record["starts"]
    return any(isinstance(s, dict) and s.get("ended") == "finished" for s in starts)


def begun_by_this_launch(workdir: AnyPath) -> bool:
    """True if the workdir's run was begun by an earlier start of this launch (POLARIS_LAUNCH).

    A scheduler that repeats a line with --overwrite repeats the flag. The first start has deleted
    what was there before; what a later start finds is the run itself.

    Raises:
        ConfigError: the variable is empty, or run.json is damaged, so that nobody can tell.
    """
    launch = os.environ.get(LAUNCH)
    if launch is None:
        return False
    if not launch:
        raise ConfigError(
            f"{LAUNCH}='': with --overwrite a restart would delete the run that this launch began; "
            "set it to a name that restarts keep, or leave --overwrite out"
        )
    place = as_place(workdir)
    try:
        record = read_record(place)
    except ConfigError:
        raise ConfigError(
            f"{place / RECORD}: damaged, and {LAUNCH}={launch} may have begun this run, so "
            "--overwrite deletes nothing; restore the file, or delete it to begin anew"
        ) from None
    starts = [] if record is None else record["starts"]
    return any(isinstance(start, dict) and start.get("launch") == launch for start in starts)


def read_facts(workdir: AnyPath) -> dict[str, Any]:
    """The content of run.json in a workdir that a run owns.

    Raises:
        ConfigError: the file is gone, or is not the record of a run.
    """
    record = read_record(as_place(workdir))
    if record is None:
        raise ConfigError(f"{as_place(workdir) / RECORD}: gone while the run runs; restore it")
    return record


def refuse_other_run(workdir: AnyPath, config: RunConfig, *, sections: Sequence[str]) -> None:
    """Raises ConfigError if the workdir holds a run whose config differs in one of `sections`.

    Commands that write files for a run to read call this. Does nothing if the workdir has no run.

    Args:
        workdir: directory of the run.
        config: config of the command.
        sections: names of the sections to compare.

    Raises:
        ConfigError: the workdir holds another run. The text names the fields that differ.
    """
    place = as_place(workdir)
    record = read_record(place)
    if record is None:
        return
    names = {n for n in _binding_names(record, config) if n.split(".")[0] in sections}
    if not record["config"].get("data.problems"):
        # That run read the problems that `prepare` wrote, so its config does not name their source.
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


def with_recorded_defaults(
    workdir: AnyPath,
    config: RunConfig,
    say: Callable[[str], None],
    *,
    sections: Collection[str] = (),
) -> RunConfig:
    """The config in which a default that has changed since is what the workdir's run recorded.

    Only fields that have the present default are replaced, and only by what an earlier version did
    by default (`Setting.earlier`): a value of the user's own is compared like any other.

    Args:
        workdir: directory of the run; without a record nothing is replaced.
        config: the present config.
        say: prints a line about each value that is kept.
        sections: names of the sections whose fields are replaced; empty: of every section.
    """
    record = read_record(as_place(workdir))
    recorded = {} if record is None else record["config"]
    for name, value in config_fields(config).items():
        if sections and name.split(".")[0] not in sections:
            continue
        setting = SETTINGS[declared_name(name)]
        # Versions without the field did as `before`; a run of theirs records it at its next start.
        there = recorded.get(name, None if setting.before is ALWAYS else setting.before)
        if record is not None and value == setting.default and there in setting.earlier:
            config = _with_field(config, name, there)
            say(f"{name}={there}, as this workdir's run began; the default is {value} now")
    return config


def _with_field(section: Any, name: str, value: Any) -> Any:
    """The section with another value of a field; dots lead into sections inside."""
    head, _, rest = name.partition(".")
    if rest:
        value = _with_field(getattr(section, head), rest, value)
    return dataclasses.replace(section, **{head: value})


def _prepared_from(workdir: epath.Path) -> str:
    """The source of the workdir's problems.parquet; empty if none is recorded."""
    path = workdir / "prepare.json"
    if not path.exists():
        return ""
    try:
        return str(read_json(path, most_bytes=RECORD_BYTES).get("source", ""))
    except ConfigError:
        return ""


def _binding_names(record: dict[str, Any], config: RunConfig) -> set[str]:
    """Names of the fields that bind now, and of fields that bound once and no longer exist.

    A field that bound once and is free now is left out.
    """
    gone = set(record["binding"]) - config_fields(config).keys()
    return binding_fields(config).keys() | gone


def _differing(record: dict[str, Any], config: RunConfig, names: Iterable[str]) -> list[str]:
    """`name=value there, value here` for every field that differs from the record."""
    recorded, present = record["config"], _plain(config_fields(config))
    differing = []
    for name in sorted(names):
        there = recorded.get(name, ADDED_FIELDS.get(declared_name(name), ABSENT))
        here = present.get(name, ABSENT)
        added = name not in recorded and declared_name(name) in ADDED_FIELDS
        if added and here == _plain({name: SETTINGS[declared_name(name)].default})[name]:
            continue  # `with_recorded_defaults` gives it the value of versions without the field
        setting = SETTINGS.get(declared_name(name))
        if setting is not None and here == setting.default and there in setting.earlier:
            continue  # and what was done by default when the run began
        if there != here:
            differing.append(f"{name}={there!r} there, {here!r} here")
    return differing


def _other_config(workdir: AnyPath, differing: Sequence[str], remedy: str) -> ConfigError:
    return ConfigError(
        f"workdir={workdir}: holds a run of another config: {'; '.join(differing)}; {remedy}"
    )


def refuse_other_config(workdir: epath.Path, record: dict[str, Any], config: RunConfig) -> None:
    """Raises ConfigError if the recorded run may not resume with `config`.

    Raises:
        ConfigError: a binding field differs, or the last stage has shrunk.
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
    workdir: epath.Path,
    command: str,
    config: RunConfig,
    record: dict[str, Any] | None,
    *,
    begun: Mapping[str, Any],
) -> None:
    """Writes run.json: config, versions, commit, and the starts in `record` plus this one.

    Args:
        workdir: directory of the run.
        command: name of the command.
        config: config of the run.
        record: content of run.json from earlier starts; None at the first.
        begun: facts about the run's beginning, which `record` keeps if it has them.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    start = {"time": now, "argv": sys.argv[1:], "commit": _commit(), "host": socket.gethostname()}
    if launch := os.environ.get(LAUNCH):
        start["launch"] = launch
    write_json(
        workdir / RECORD,
        {
            "deterministic": True,
            **begun,
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


def local_settings(config: RunConfig) -> list[str]:
    """Names of the settings that may name a Hub id, and name a path here."""
    given = {"model.path": config.model.path, "data.problems": config.data.problems}
    places = {name: value.partition(",")[0] for name, value in given.items()}
    return [name for name, place in places.items() if place and names_a_place(place)]


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as JSON returns them: a tuple inside a value becomes a list."""
    return json.loads(json.dumps(fields))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("polaris_jax", *_VERSIONS_OF):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _commit() -> str | None:
    """The commit of the source tree, with "-dirty" if it has edits; None outside a git tree."""
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
