"""Samplers for a config: one for each stage, and one that is kept for held-out scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from polaris_jax.config import ConfigError, RunConfig, check_pages, longest_response_tokens
from polaris_jax.models import Decoder, ModelConfig
from polaris_jax.rollout.programs.spec import program_spec
from polaris_jax.rollout.sampler import Sampler
from polaris_jax.rollout.settings import SamplerConfig
from polaris_jax.sharding import make_sampler_mesh, slot_shards, unless_default
from polaris_jax.system.progress import Progress

CPU = "cpu"


def with_dtype(
    config: RunConfig,
    model_config: ModelConfig,
    devices: Sequence[Any],
    say: Callable[[str], None] = lambda line: None,
) -> RunConfig:
    """The config with a type in place of `model.dtype=auto`.

    It is bfloat16, but float32 on CPUs unless the native kernels serve it: to XLA's, bfloat16 is
    several times slower to sample. Several processes take float32 on CPUs, since each may have
    another CPU. The trainer has no part in the choice: on a CPU both types take it as long.

    Args:
        config: the run's config.
        model_config: architecture of the model.
        devices: devices that may sample.
        say: prints the choice, or a warning that the config's own is slow here.
    """
    if config.model.dtype == "bfloat16" and (refusal := _refusal(config, model_config, devices)):
        say(
            f"warning: model.dtype=bfloat16 is several times slower to sample than float32 on this "
            f"CPU ({refusal}); set model.dtype=auto or float32"
        )
    if config.model.dtype != "auto":
        return config

    def with_model(dtype: Literal["bfloat16", "float32"]) -> RunConfig:
        return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))

    refusal = _refusal(with_model("bfloat16"), model_config, devices)
    say(f"model.dtype=auto: float32 ({refusal})" if refusal else "model.dtype=auto: bfloat16")
    return with_model("float32" if refusal else "bfloat16")


def _refusal(config: RunConfig, model_config: ModelConfig, devices: Sequence[Any]) -> str:
    """Why these CPU devices would sample the config by XLA's kernels; "" if they would not."""
    if devices[0].platform != CPU:
        return ""
    if jax.process_count() > 1:
        return "each process may have another CPU"
    max_len = config.data.max_prompt_tokens + longest_response_tokens(config)
    sizes = SamplerConfig.of_run(config, max_len=max_len)
    try:
        spec = program_spec(model_config, sizes, _mesh_of(config, devices))
    except ConfigError as error:  # rollout.attention=native is not for bfloat16 here
        return str(error)
    return "" if spec.native else f"in bfloat16: {spec.kernels}"


def _mesh_of(config: RunConfig, devices: Sequence[Any]) -> Mesh | None:
    section = config.rollout
    mesh = make_sampler_mesh(devices, data=section.data, tensor=section.tensor)
    members = {device.process_index for device in devices}
    if missing := members - {device.process_index for device in mesh.devices.flat}:
        raise ConfigError(
            f"rollout.data={section.data}: with rollout.tensor={section.tensor} the sampler of "
            f"{len(members)} processes has {mesh.size} devices, none of them of process "
            f"{min(missing)}; set rollout.data so that it has some of each, or "
            "rollout.processes=1"
        )
    return unless_default(mesh)


class Samplers:
    """Makes samplers for a config; prints which decode kernels are used.

    Args:
        config: the run's config.
        devices: devices that may sample.
        progress: gets a line if the kernels differ from the last sampler's.
    """

    def __init__(self, config: RunConfig, devices: Sequence[Any], progress: Progress) -> None:
        self._config, self._devices, self._progress = config, devices, progress
        self._kernels = ""
        self._reused: tuple[tuple[ModelConfig, int], Sampler] | None = None

    def kernels(self, model_config: ModelConfig, *, max_response_tokens: int) -> str:
        """The decode kernels of a sampler for this budget, and why (`Sampler.kernels`)."""
        return program_spec(model_config, self._sizes(max_response_tokens), self._mesh()).kernels

    def make(
        self, model: Decoder, *, max_response_tokens: int, say_kernels: bool = True
    ) -> Sampler:
        """A sampler with room for prompts of `data.max_prompt_tokens` and this budget.

        Args:
            model: the weights, with any sharding. All processes call this together.
            max_response_tokens: the longest budget that will be asked for.
            say_kernels: print a line if the kernels differ from the last sampler's.
        """
        sampler = Sampler(model, self._sizes(max_response_tokens), mesh=self._mesh())
        if sampler.kernels != self._kernels and say_kernels:
            self._kernels = sampler.kernels
            self._progress.line(f"decode kernels: {sampler.kernels}")
        return sampler

    def reused(
        self, model: Decoder, *, max_response_tokens: int, say_kernels: bool = False
    ) -> Sampler:
        """The sampler of the last call with new weights, or a new one if it does not fit them.

        Held-out scores and evaluations use it, so that its programs are compiled once. It does not
        fit another architecture, rotary scaling or budget.
        """
        key = model.config, max_response_tokens
        if self._reused is not None and self._reused[0] == key:
            self._reused[1].update_weights(model)
        else:
            self._reused = None  # first, or two samplers would have weights
            sampler = self.make(
                model, max_response_tokens=max_response_tokens, say_kernels=say_kernels
            )
            self._reused = key, sampler
        return self._reused[1]

    def check(self, model_config: ModelConfig, *, max_response_tokens: int) -> None:
        """Raises ConfigError if a sampler for this budget does not suit model or devices."""
        check_pages(self._config, slot_shards(self._mesh()))
        self.kernels(model_config, max_response_tokens=max_response_tokens)

    def _sizes(self, max_response_tokens: int) -> SamplerConfig:
        max_len = self._config.data.max_prompt_tokens + max_response_tokens
        return SamplerConfig.of_run(self._config, max_len=max_len)

    def _mesh(self) -> Mesh | None:
        return _mesh_of(self._config, self._devices)
