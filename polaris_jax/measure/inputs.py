"""What a measurement is made on: problems and model, with the digests that its rows depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from polaris_jax.assemble import PROMPTS, training_problems
from polaris_jax.config import RewardSection, RunConfig
from polaris_jax.config.sections import SETTINGS
from polaris_jax.config.settings import ALWAYS, config_fields, declared_name
from polaris_jax.data.problem_sets import ProblemSet, fitting_prompts
from polaris_jax.data.prompts import read_shots, read_template
from polaris_jax.measure.weights import BASE, Weights
from polaris_jax.models.positions import check_budget, check_positions
from polaris_jax.records import Problem
from polaris_jax.reward.configured import warn_of_reward
from polaris_jax.reward.protocol import function_texts
from polaris_jax.run.progress_file import ProgressFile
from polaris_jax.system import processes
from polaris_jax.system.progress import Progress


@dataclasses.dataclass(frozen=True)
class Measured:
    """What `calibrate` and `probe` measure, and on which problems.

    Attributes:
        found: the problem set.
        problems: its problems whose prompts are short enough.
        tokenizer: the model's. It keeps the prompts that it has rendered, so the sampler has to use
            this one.
        model: digests of the model's parts; {} in processes other than the first.
        inputs: `model`, the texts of reward functions, and the digest of the problems unless the
            workdir's own file has them,
            which is made anew on purpose.
        places: config field and value of each input, for errors.
        weights: the base model's, or those of a checkpoint.
    """

    found: ProblemSet
    problems: list[Problem]
    tokenizer: Any
    model: dict[str, Any]
    inputs: dict[str, Any]
    places: dict[str, str]
    weights: Weights = BASE

    @property
    def origin(self) -> str:
        """Where the problems are from, and why these, for people."""
        return f"{self.found.origin} ({self.found.why})"

    def scaling_identity(self, config: RunConfig) -> dict[str, Any]:
        """For the identity of a progress file: YaRN's factor, if the weights get one here."""
        scaling = self.weights.first_stage_scaling(config)
        return {} if scaling is None else {"rope_factor": scaling.factor}


def measured_on(
    config: RunConfig,
    workdir: epath.Path,
    progress: Progress,
    *,
    files: Sequence[str] | None = None,
    checkpoint: str = "",
    command: Literal["calibrate", "probe"],
) -> Measured:
    """The problems and the model of a measurement; no weights are loaded.

    Args:
        config: the config.
        workdir: see `training_problems`.
        progress: gets lines for a person.
        files: see `training_problems`.
        checkpoint: "" is the base model, "latest" the workdir's newest checkpoint, else a path.
        command: the command, whose section of the config has a budget of its own.

    Raises:
        ConfigError: problems or model do not suit the config, or the run in the workdir.
    """
    weights = Weights.of(workdir, checkpoint)
    found = training_problems(config, workdir, progress, files=files)
    model_config, tokenizer = weights.describe(config)
    problems, prompts = fitting_prompts(
        found.problems,
        config.data,
        tokenizer=tokenizer,
        vocab_size=model_config.vocab_size,
        say=progress.line,
    )
    processes.agree({PROMPTS: prompts})
    warn_of_reward(config.reward, config.data, tokenizer, problems, progress.line)
    check_positions(config, model_config, progress.line)
    if tokens := getattr(config, command).max_response_tokens:  # 0: stage 0's, checked above
        field = f"{command}.max_response_tokens"
        check_budget(config, model_config, progress.line, field=field, tokens=tokens, stage=0)
    model, places = weights.inputs(
        config, workdir, progress, model_config=model_config, tokenizer=tokenizer
    )
    texts, named = reward_inputs(config.reward)
    inputs, places = model | texts, places | named
    if not found.place:
        inputs["problems"], places["problems"] = found.digest, found.origin
    return Measured(found, problems, tokenizer, model, inputs, places, weights)


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
    if config.rollout.kv_dtype != "auto":
        fields["rollout.kv_dtype"] = config.rollout.kv_dtype
    if config.data.shots:
        fields["data.shots"] = [list(shot) for shot in read_shots(config.data.shots)]
    if config.data.chat_template:
        fields["data.chat_template"] = read_template(config.data.chat_template)
    return fields


def reward_inputs(section: RewardSection) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of reward functions, as inputs of a progress file, and the places of these."""
    texts = function_texts(section.function)
    return texts, dict.fromkeys(texts, f"reward.function={section.function}")


def reward_identity(section: RewardSection, problems: Sequence[Problem]) -> dict[str, Any]:
    """Settings that change rewards, for the identity of a progress file.

    A command that was interrupted reuses the rows of its progress file only if their identity is
    the same, so rows that another reward function graded are computed again.

    Args:
        section: the config's section.
        problems: the problems; a reward function sees their extra columns.

    Returns:
        The reward function's import path, a digest of the extra columns, and `reward.correct_at`.
        Defaults are left out, so the result is {} for the math grader with `correct_at` 1. The
        function's text is an input (`function_texts`), which a rerun may not change.
    """
    fields: dict[str, Any] = {}
    if section.function:
        fields["reward.function"] = section.function
        extras = json.dumps([[p.id, p.extra] for p in problems], sort_keys=True)
        fields["extra"] = hashlib.blake2b(extras.encode(), digest_size=16).hexdigest()
    if section.correct_at != 1.0:
        fields["reward.correct_at"] = section.correct_at
    return fields
