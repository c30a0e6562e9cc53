"""What a measurement is made on: problems and model, with the digests that its rows depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.assemble import (
    base_model_config,
    base_path,
    load_base_tokenizer,
    training_problems,
)
from polaris_jax.config import RewardSection, RunConfig
from polaris_jax.config.sections import SETTINGS
from polaris_jax.config.settings import ALWAYS, config_fields, declared_name
from polaris_jax.data.problem_sets import ProblemSet, fitting
from polaris_jax.data.prompts import read_shots, read_template
from polaris_jax.models import load_config
from polaris_jax.models.positions import check_positions
from polaris_jax.models.weights.identity import model_inputs
from polaris_jax.records import Problem
from polaris_jax.run.identity import refuse_other_inputs
from polaris_jax.run.progress_file import ProgressFile
from polaris_jax.run.record import read_record
from polaris_jax.system import processes
from polaris_jax.system.progress import Progress


@dataclasses.dataclass(frozen=True)
class Measured:
    """What `calibrate` and `probe` measure the base model on.

    Attributes:
        found: the problem set.
        problems: its problems whose prompts are short enough.
        tokenizer: the base model's. It keeps the prompts that it has rendered, so the sampler has
            to use this one.
        model: digests of the base model's parts; {} in processes other than the first.
        inputs: `model`, and the digest of the problems unless the workdir's own file has them,
            which is made anew on purpose.
        places: config field and value of each input, for errors.
    """

    found: ProblemSet
    problems: list[Problem]
    tokenizer: Any
    model: dict[str, Any]
    inputs: dict[str, Any]
    places: dict[str, str]

    @property
    def origin(self) -> str:
        """Where the problems are from, and why these, for people."""
        return f"{self.found.origin} ({self.found.why})"


def measured_on(
    config: RunConfig,
    workdir: epath.Path,
    progress: Progress,
    *,
    files: Sequence[str] | None = None,
) -> Measured:
    """The problems and the base model of a measurement; no weights are loaded.

    Args:
        config: the config.
        workdir: see `training_problems`.
        progress: gets lines for a person.
        files: see `training_problems`.

    Raises:
        ConfigError: problems or model do not suit the config, or the run in the workdir.
    """
    found = training_problems(config, workdir, progress, files=files)
    tokenizer = load_base_tokenizer(config)
    problems = fitting(found.problems, config.data, tokenizer=tokenizer, say=progress.line)
    check_positions(config, base_model_config(config), progress.line)
    model, places = base_inputs(config, workdir, progress, tokenizer=tokenizer)
    inputs = dict(model)
    if not found.place:
        inputs["problems"], places["problems"] = found.digest, found.origin
    return Measured(found, problems, tokenizer, model, inputs, places)


def base_inputs(
    config: RunConfig, workdir: epath.Path, progress: Progress, *, tokenizer: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """`model_inputs` of the base model, and the places of these inputs, as errors name them.

    Only the first process computes them; the others get nothing.

    Args:
        config: the config.
        workdir: where the warm start makes the model, if there is one.
        progress: gets lines for a person.
        tokenizer: the base model's.

    Raises:
        ConfigError: a run in the workdir began with another model.
    """
    path = base_path(config, workdir, progress)
    if not processes.is_first():
        return {}, {}
    inputs = model_inputs(path, tokenizer, load_config(path))
    places = dict.fromkeys(inputs, f"model.path={path}")
    refuse_other_inputs(
        (read_record(workdir) or {}).get("identity") or {},
        inputs,
        places=places,
        of=f"the run in workdir={workdir} began with",
        remedy="choose another --workdir",
    )
    return inputs, places


def open_progress(path: epath.Path, settings: Mapping[str, Any], **options: Any) -> ProgressFile:
    """A command's `ProgressFile`: the first process writes it, then the others read it.

    Args:
        path: path of the file.
        settings: see `ProgressFile`.
        options: its other arguments. Inputs are compared in the first process alone.

    Raises:
        ConfigError: see `ProgressFile`.
    """
    opened: list[ProgressFile] = []
    processes.first_does(
        lambda: opened.append(ProgressFile(path, settings, **options)), f"open {path.name}"
    )
    if not opened:
        options |= {"inputs": {}, "writes": False}
        opened.append(ProgressFile(path, settings, **options))
    return opened[0]


# Fields of the section data that change no response to a given problem.
ONLY_TRAINING = ("data.use", "data.weighting")


def response_settings(
    config: RunConfig, sections: Sequence[str], *, without: Collection[str] = ()
) -> dict[str, Any]:
    """Settings that change responses, for the identity of a progress file.

    A field that has the value of versions without it is left out, so their files still count.

    Args:
        config: the config.
        sections: the sections that count.
        without: fields that do not.
    """
    fields = {}
    for name, value in config_fields(config).items():
        before = SETTINGS[declared_name(name)].before
        former = before is not ALWAYS and value == before
        if name == "data.turns":  # "all": the problems' digest has their turns
            fields |= {} if value == "all" or "data" not in sections else {name: value}
            continue
        if name.split(".")[0] in sections and name not in (*without, *ONLY_TRAINING):
            fields |= {} if former else {name: value}
    if config.data.shots:
        fields["data.shots"] = [list(shot) for shot in read_shots(config.data.shots)]
    if config.data.chat_template:
        fields["data.chat_template"] = read_template(config.data.chat_template)
    return fields


def reward_identity(section: RewardSection, problems: Sequence[Problem]) -> dict[str, Any]:
    """Settings that change rewards, for the identity of a progress file.

    A command that was interrupted reuses the rows of its progress file only if their identity is
    the same, so rows that another reward function graded are computed again.

    Args:
        section: the config's section.
        problems: the problems; a reward function sees their extra columns.

    Returns:
        The reward function's import path, a digest of the extra columns, and `reward.correct_at`.
        Defaults are left out, so the result is {} for the math grader with `correct_at` 1. A change
        of the function's source text does not change the identity.
    """
    fields: dict[str, Any] = {}
    if section.function:
        fields["reward.function"] = section.function
        extras = json.dumps([[p.id, p.extra] for p in problems], sort_keys=True)
        fields["extra"] = hashlib.blake2b(extras.encode(), digest_size=16).hexdigest()
    if section.correct_at != 1.0:
        fields["reward.correct_at"] = section.correct_at
    return fields
