"""The job that is planned: an architecture, a stage's lengths, and the settings of a search."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from polaris_jax.assemble import base_model_architecture
from polaris_jax.config import (
    ConfigError,
    MeshSection,
    RolloutSection,
    RunConfig,
    longest_response_tokens,
    row_len_tokens,
)
from polaris_jax.models import ModelConfig, RopeScaling, load_config
from polaris_jax.models.presets import PRESETS, preset
from polaris_jax.models.weights.hf_config import load_config_json, parse_config
from polaris_jax.models.weights.sources import GGUF_SUFFIX
from polaris_jax.rollout.kv.backends import BACKENDS
from polaris_jax.sharding import mesh_shape
from polaris_jax.system.files import as_place


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a job is laid out on a topology; `--search` varies these fields.

    Attributes:
        mesh: the trainer's mesh, every size explicit.
        rows: packed rows of a microbatch, over all devices.
        sampler_tensor: number of devices that share one copy of the sampler's weights and pool.
    """

    mesh: MeshSection
    rows: int
    sampler_tensor: int = 1

    @property
    def row_shards(self) -> int:
        """The number of parts into which the rows of a microbatch are split."""
        return self.mesh.data * self.mesh.fsdp

    def __str__(self) -> str:
        m = self.mesh
        return (
            f"mesh data {m.data} x fsdp {m.fsdp} x context {m.context} x tensor {m.tensor}, "
            f"{self.rows} rows, sampler tensor {self.sampler_tensor}"
        )

    def flags(self) -> str:
        """The command-line overrides that select this setting."""
        m = self.mesh
        return (
            f"--config.mesh.data={m.data} --config.mesh.fsdp={m.fsdp} "
            f"--config.mesh.context={m.context} --config.mesh.tensor={m.tensor} "
            f"--config.batch.rows={self.rows} --config.rollout.tensor={self.sampler_tensor}"
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """The parts of a plan that do not depend on the topology.

    Attributes:
        config: the run's config.
        model: the architecture, with the stage's rotary scaling.
        stage: the stage's index, from 0.
        row_len: tokens of a packed row.
        max_len: prompt + response tokens of a sequence in this stage.
        mean_response_tokens: expected tokens of a response, for the estimates.
        mean_prompt_tokens: expected tokens of a prompt, for the estimates.
    """

    config: RunConfig
    model: ModelConfig
    stage: int
    row_len: int
    max_len: int
    mean_response_tokens: float
    mean_prompt_tokens: float

    @property
    def max_response_tokens(self) -> int:
        return self.config.stages[self.stage].max_response_tokens

    @property
    def sampler_len(self) -> int:
        """Tokens of the run's longest sequence, for which the sampler of every stage is made."""
        return self.config.data.max_prompt_tokens + longest_response_tokens(self.config)

    @property
    def responses(self) -> int:
        """Responses of one step."""
        rollout = self.config.rollout
        return rollout.prompts_per_step * rollout.responses_per_prompt

    def prompt_sharing(self, row_tokens: float) -> float:
        """Mean number of responses that share a prompt, if as many do as fit into a row.

        Args:
            row_tokens: tokens of a row, without padding.
        """
        fitting = (row_tokens - self.mean_prompt_tokens) / self.mean_response_tokens
        return max(1.0, min(fitting, float(self.config.rollout.responses_per_prompt)))


MAX_DOUBLINGS = 7  # tried doublings of a refused sampler's page size, and halvings of its slots
MEAN_PROMPT_TOKENS = 300  # a problem of the recipe, template and suffix included
MEAN_RESPONSE_TOKENS = 20_000  # the blog's curves end near this length


def make_job(config: RunConfig, *, stage: int | None, mean_response_tokens: float) -> Job:
    """The job of one stage.

    Args:
        config: the run's config.
        stage: number of the stage, from 0; None: the stage with the longest responses.
        mean_response_tokens: expected tokens of a response; 0: 20,000, or half of the stage's
            budget if that is less.

    Raises:
        ConfigError: there is no such stage, the mean is over the budget, or the architecture is
            not found.
    """
    count = len(config.stages)
    if stage is None:
        stage = max(range(count), key=lambda i: config.stages[i].max_response_tokens)
    if not 0 <= stage < count:
        raise ConfigError(
            f"--stage={stage}: stages count from 0 and the config has {count}; name 0 to "
            f"{count - 1}"
        )
    section = config.stages[stage]
    budget = section.max_response_tokens
    mean = mean_response_tokens or min(MEAN_RESPONSE_TOKENS, budget / 2)
    if not 0 < mean <= budget:
        raise ConfigError(
            f"--mean_response_tokens={mean:g}: must lie above 0 and at most at the stage's "
            f"max_response_tokens={budget}"
        )
    model = architecture(config)
    if section.rope_factor > 1:
        yarn = config.rope.yarn
        scaling = RopeScaling(
            rope_type="yarn",
            factor=section.rope_factor,
            original_max_position_embeddings=yarn.original_max_position_embeddings,
            attention_factor=yarn.attention_factor,
        )
        model = dataclasses.replace(model, rope_scaling=scaling)
    return Job(
        config=config,
        model=model,
        stage=stage,
        row_len=row_len_tokens(config),
        max_len=config.data.max_prompt_tokens + budget,
        mean_response_tokens=mean,
        mean_prompt_tokens=min(MEAN_PROMPT_TOKENS, config.data.max_prompt_tokens),
    )


def architecture(config: RunConfig) -> ModelConfig:
    """The architecture that `model.path` names: a preset, a GGUF file or a directory.

    No weights are read. Without a path, the architecture of the warm start's small model.

    Raises:
        ConfigError: the path is none of these, or the directory has no config.json.
    """
    path = config.model.path
    if not path and config.warmstart.steps:
        return base_model_architecture(config)
    directory = as_place(path)
    if directory.suffix == GGUF_SUFFIX and directory.is_file():
        return load_config(path)
    file = directory / "config.json"
    if path and file.is_file():
        return parse_config(load_config_json(directory), where=str(file))
    try:
        return preset(path)
    except ValueError:
        raise ConfigError(
            f"model.path={path!r}: a plan needs the architecture only, and this is neither a "
            f"directory with config.json, a GGUF file, nor one of {', '.join(PRESETS)}"
        ) from None


def config_setting(config: RunConfig, *, devices: int, local_devices: int) -> Setting:
    """The setting that a config asks for on the given number of devices.

    Args:
        config: the run's config.
        devices: number of devices in the topology.
        local_devices: number of devices of a sampler: those of one process, or of the processes
            that share a sampler.

    Raises:
        ConfigError: the mesh's sizes do not multiply to `devices`, the rows do not divide over the
            mesh, or the sampler does not use all of its `local_devices`.
    """
    check_sampler(config, local_devices=local_devices)
    mesh = dataclasses.replace(config.mesh, fsdp=mesh_shape(config.mesh, devices)[1])
    tensor = config.rollout.tensor
    setting = Setting(mesh, config.batch.rows or mesh.data * mesh.fsdp, tensor)
    if setting.rows % setting.row_shards:
        raise ConfigError(
            f"batch.rows={setting.rows}: the rows of a microbatch are split over mesh.data x "
            f"mesh.fsdp = {setting.row_shards} parts; set it to a multiple of {setting.row_shards}"
        )
    if tensor < 1 or local_devices % tensor:
        raise ConfigError(
            f"rollout.tensor={tensor}: must be at least 1 and divide the {local_devices} devices "
            "of a sampler"
        )
    return setting


def check_sampler(config: RunConfig, *, local_devices: int) -> None:
    """Checks that a plan supports the config's sampler; a search needs this check, too.

    Args:
        config: the run's config.
        local_devices: number of devices of a sampler, see `config_setting`.

    Raises:
        ConfigError: the sampler has devices of its own, or does not use all of its
            `local_devices`.
    """
    tensor, data = config.rollout.tensor, config.rollout.data
    if config.rollout.devices:
        raise ConfigError(
            f"rollout.devices={config.rollout.devices}: a plan knows devices that train and sample "
            "in turn; set it to 0, or plan trainer and sampler as pods of their own"
        )
    if data and data * tensor != local_devices:
        raise ConfigError(
            f"rollout.data={data}: a plan lays a sampler over all its {local_devices} devices; "
            f"set it to 0 or to {local_devices // max(1, tensor)}"
        )


def search_settings(model: ModelConfig, *, devices: int, local_devices: int) -> list[Setting]:
    """The settings that a search tries: powers of two, with 1, 2 or 4 rows a shard.

    `data` stays 1, because `data` and `fsdp` split the same arrays.
    """
    found = []
    for tensor in _powers(model.num_kv_heads):
        for context in _powers(16):
            fsdp, rest = divmod(devices, context * tensor)
            if rest or not fsdp:
                continue
            mesh = MeshSection(data=1, fsdp=fsdp, context=context, tensor=tensor)
            for rows in (fsdp, 2 * fsdp, 4 * fsdp):
                for sampler in _powers(min(model.num_kv_heads, local_devices)):
                    if local_devices % sampler == 0:
                        found.append(Setting(mesh, rows, sampler))
    return found


def sampler_changes(rollout: RolloutSection) -> Iterator[dict[str, Any]]:
    """Fields of `rollout` that may make a refused sampler legal, the smallest change first.

    Larger pages come before fewer slots, because larger pages cost nothing. The reference back end,
    which refuses no size, comes last.
    """
    for doublings in range(1, MAX_DOUBLINGS + 1):
        yield {"page_size": rollout.page_size << doublings}
        if rollout.slots >> doublings:
            yield {"slots": rollout.slots >> doublings}
    yield {"attention": BACKENDS[-1].name}


def distance(a: Setting, b: Setting) -> float:
    """The distance of two settings: a weighted sum of the doublings along each axis.

    Doublings of `mesh.tensor` count twice, doublings of the sampler's tensor axis half.
    """

    def doublings(x: float, y: float) -> float:
        return abs(math.log2(x / y))

    return (
        doublings(a.mesh.context, b.mesh.context)
        + 2 * doublings(a.mesh.tensor, b.mesh.tensor)
        + doublings(a.rows / a.row_shards, b.rows / b.row_shards)
        + 0.5 * doublings(a.sampler_tensor, b.sampler_tensor)
    )


def _powers(limit: int) -> list[int]:
    return [1 << i for i in range(limit.bit_length()) if 1 << i <= limit]


def sampler_device_count(devices: Sequence[Any], config: RunConfig) -> int:
    """The number of devices of a sampler: those of `rollout.processes` processes.

    Raises:
        ConfigError: `rollout.processes` does not divide the number of the topology's processes.
    """
    processes, members = len({d.process_index for d in devices}), config.rollout.processes
    if processes % members:
        raise ConfigError(
            f"rollout.processes={members}: the topology has {processes} processes; choose a divisor"
        )
    return len(devices) // processes * members
