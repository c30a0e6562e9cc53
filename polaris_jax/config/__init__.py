"""Turns an `ml_collections.ConfigDict` into frozen, validated sections.

`configs/*.py` start from `default_config()`, which is built from the dataclasses of `sections`, so
a default is written once. `build_config` turns a ConfigDict into a `RunConfig` and checks
everything that can be checked before a device or a weight file is touched (the ranges in
`sections`, the rules over several fields in `rules`). Every error is a `ConfigError` that names the
field, the value, the rule and the remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from polaris_jax.config.data import PROMPT_SUFFIX, ArithmeticSection, DataSection, WarmstartSection
from polaris_jax.config.remarks import few_problems, remarks
from polaris_jax.config.rules import check_mesh, check_pages, check_slots, row_unit_tokens, validate
from polaris_jax.config.sections import (
    SETTINGS,
    BatchSection,
    CalibrateSection,
    CheckpointSection,
    DistributedSection,
    EvaluateSection,
    GuardsSection,
    MeshSection,
    MetricsSection,
    ModelSection,
    ObjectiveSection,
    OptimizerSection,
    ProbeSection,
    RewardSection,
    RolloutSection,
    RopeSection,
    RunConfig,
    StageSection,
    YarnSection,
)
from polaris_jax.config.settings import (
    ALWAYS,
    GROWS,
    NO,
    ConfigError,
    config_fields,
    declared_name,
)

if TYPE_CHECKING:  # imported inside functions: `polaris grade` needs no ml_collections
    from ml_collections import ConfigDict

__all__ = [
    "ADDED_FIELDS",
    "PROMPT_SUFFIX",
    "SETTINGS",
    "ArithmeticSection",
    "BatchSection",
    "CalibrateSection",
    "CheckpointSection",
    "ConfigError",
    "DataSection",
    "DistributedSection",
    "EvaluateSection",
    "GuardsSection",
    "MeshSection",
    "MetricsSection",
    "ModelSection",
    "ObjectiveSection",
    "OptimizerSection",
    "ProbeSection",
    "RewardSection",
    "RolloutSection",
    "RopeSection",
    "RunConfig",
    "StageSection",
    "WarmstartSection",
    "YarnSection",
    "binding_fields",
    "build_config",
    "check_mesh",
    "check_pages",
    "check_slots",
    "config_fields",
    "config_hash",
    "declared_name",
    "default_config",
    "lock",
    "longest_response_tokens",
    "few_problems",
    "remarks",
    "row_len_tokens",
    "row_unit_tokens",
    "stage",
    "unknown_field",
    "usual_fields",
    "validate",
]

# Fields that earlier versions lacked, with the values that match what those versions did.
ADDED_FIELDS: Mapping[str, Any] = types.MappingProxyType(
    {name: field.before for name, field in SETTINGS.items() if field.before is not ALWAYS}
)

# What the held-out score of a run depends on.
SCORE_FIELDS = frozenset(
    f"evaluate.{name}"
    for name in (
        *("problems", "every_steps", "n", "temperature", "top_k", "top_p"),
        *("max_response_tokens", "seed"),
    )
)


def default_config() -> ConfigDict:
    """A locked ConfigDict of all defaults. All files in configs/ start from it."""
    return lock(_to_config_dict(RunConfig()))


def stage(**fields: Any) -> ConfigDict:
    """One locked entry of `config.stages`."""
    return _to_config_dict(StageSection(**fields)).lock()


def lock(config: ConfigDict) -> ConfigDict:
    """Locks a config, its sections, and the dicts inside lists, which `lock()` would not lock."""
    from ml_collections import ConfigDict

    for value in config.values():
        if isinstance(value, ConfigDict):
            lock(value)
        elif isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, ConfigDict):
                    lock(item)
    return config.lock()


def _to_config_dict(section: Any) -> ConfigDict:
    from ml_collections import ConfigDict

    def convert(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return _to_config_dict(value)
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            return [convert(item) for item in value]
        return value

    return ConfigDict({f.name: convert(getattr(section, f.name)) for f in _fields(section)})


def _fields(section: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(section)


def build_config(config: Mapping[str, Any] | ConfigDict) -> RunConfig:
    """A checked `RunConfig` from a ConfigDict or a nested mapping.

    Raises:
        ConfigError: a field is unknown (the nearest name is suggested), a value has the wrong type,
            or a value breaks a rule.
    """
    run: RunConfig = _build(RunConfig, config, "")
    validate(run)
    return run


def _build(cls: type, mapping: Any, path: str) -> Any:
    from ml_collections import ConfigDict

    if not isinstance(mapping, Mapping | ConfigDict):
        name = path.removesuffix(".") or "config"
        raise ConfigError(f"{name}={mapping!r}: expected a section with fields")
    hints = typing.get_type_hints(cls)
    for name in mapping:
        if name not in hints:
            raise ConfigError(unknown_field(f"{path}{name}", [f"{path}{n}" for n in hints]))
    return cls(**{name: _convert(hints[name], mapping[name], f"{path}{name}") for name in mapping})


NEAR = 0.6  # how like a name must be that an error suggests; difflib's ratio


def usual_fields(name: str) -> list[str]:
    """Our fields that other trainers call `name`; only those in the section of `name`, if any."""
    section = name.rpartition(".")[0]
    found = [
        (usual, field.replace("[i]", "[0]"))
        for field, facts in SETTINGS.items()
        for usual in facts.usual.split()
        if f".{name}".endswith(f".{usual}")
    ]
    longest = max((usual.count(".") for usual, _ in found), default=0)
    fields = [field for usual, field in found if usual.count(".") == longest]
    return [field for field in fields if section and field.startswith(f"{section}.")] or fields


def unknown_field(name: str, known: list[str]) -> str:
    """The error text for a misspelt field.

    The text suggests a very near name in the same section. If there is none, it suggests the field
    that other trainers call by this name, else an equal or very near name in another section, else
    a near one. A name that is near none is sent to the list of all fields.
    """
    leaf = name.rsplit(".", 1)[-1]
    leaves = {field: field.rsplit(".", 1)[-1] for field in config_fields(RunConfig())}
    meant = difflib.get_close_matches(leaf, set(leaves.values()), n=1, cutoff=0.8)
    elsewhere = [field for field in leaves if leaves[field] in meant]
    parent = name.removesuffix(leaf)
    siblings = [field.removeprefix(parent) for field in known if field.startswith(parent)]
    very_near = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.8)
    near = [parent + field for field in very_near] or usual_fields(name) or elsewhere[:3]
    if near := near or difflib.get_close_matches(name, known, n=1, cutoff=NEAR):
        return f"{name}: there is no such field; did you mean {' or '.join(near)}?"
    return (
        f"{name}: there is no such field, and none is called like it; `polaris train --help=all` "
        "lists all, docs/howto/coming_from.md what verl and TRL call theirs"
    )


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{path}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}={value!r}: expected a list")
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            choices = ", ".join(map(str, args))
            raise ConfigError(f"{path}={value!r}: expected one of {choices}")
        return value
    if isinstance(hint, types.UnionType):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{path}={value!r}: expected {hint.__name__}, got {type(value).__name__}")
    if hint is float and not math.isfinite(value):
        rule = "not a number" if math.isnan(value) else "must be finite"
        raise ConfigError(f"{path}={value!r}: {rule}")
    return value


def longest_response_tokens(config: RunConfig) -> int:
    """The largest response budget of the run's stages, in tokens."""
    return max(stage.max_response_tokens for stage in config.stages)


def row_len_tokens(config: RunConfig) -> int:
    """Tokens in a packed row: batch.row_len, or the longest sequence that any stage allows.

    The longest sequence is rounded up so that mesh.context and mesh.tensor can split a row evenly.
    """
    longest = longest_response_tokens(config)
    unit = row_unit_tokens(config.mesh.context, config.mesh.tensor)
    return config.batch.row_len or -(-(config.data.max_prompt_tokens + longest) // unit) * unit


def binding_fields(config: RunConfig) -> dict[str, Any]:
    """The leaves that a resume may not change.

    A resume may change logging, checkpoint cadence, workers, evaluation, device mesh, memory sizes,
    and the length of the last stage (which may only grow: `refuse_other_config` checks this). If a
    held-out score may end a stage, evaluation binds, but for what the score does not depend on.
    """
    scored = any(stage.end_score_gain for stage in config.stages)
    last_stage = f"stages[{len(config.stages) - 1}]."

    def binds(name: str) -> bool:
        if scored and name in SCORE_FIELDS:
            return True
        resume = SETTINGS[declared_name(name)].resume
        return resume == NO or (resume == GROWS and not name.startswith(last_stage))

    return {name: value for name, value in config_fields(config).items() if binds(name)}


def config_hash(config: RunConfig) -> str:
    """16 hex digits that hash `binding_fields`; equal for runs that may share a workdir."""
    text = json.dumps(binding_fields(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
