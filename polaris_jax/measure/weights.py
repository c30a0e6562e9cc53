"""The weights that a measurement samples from: the base model's, or those of a checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath

from polaris_jax.assemble import base_model_config, base_path, load_base, load_base_tokenizer
from polaris_jax.checkpoint import Checkpointer
from polaris_jax.checkpoint.convert import describe_step, is_orbax, load_any
from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.models import Decoder, ModelConfig, RopeScaling, load_config
from polaris_jax.models.positions import yarn_scaling
from polaris_jax.models.tokenizer import load_tokenizer, stop_token_ids
from polaris_jax.models.weights.identity import model_inputs, tokenizer_digests
from polaris_jax.models.weights.sources import agree_on_weights, weights_digest
from polaris_jax.run.identity import refuse_other_inputs
from polaris_jax.run.record import read_record
from polaris_jax.system import processes
from polaris_jax.system.files import as_place
from polaris_jax.system.progress import Progress


def find_checkpoint(workdir: epath.Path, checkpoint: str) -> tuple[epath.Path, int | None]:
    """The path that `--checkpoint` means, and the newest step there, the same in all processes.

    Args:
        workdir: the workdir, for "latest".
        checkpoint: "latest", or a path.

    Returns:
        (path, step); the step is None for weights that are no checkpoint of a run.

    Raises:
        ConfigError: nothing is there, or processes find other weights.
    """
    path = workdir / "checkpoints" if checkpoint == "latest" else as_place(checkpoint)
    if not path.exists():
        raise ConfigError(f"--checkpoint={checkpoint}: {path} does not exist")
    if not is_orbax(path):
        agree_on_weights(path, name="checkpoint")
        return path, None
    steps = Checkpointer.of(path)
    newest = processes.gather_objects(max(steps.steps(), default=-1))[0]
    if newest >= 0:  # else loading reports the error better
        agree_on_weights(steps.directory / str(newest), name="checkpoint")
    return path, newest


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


@dataclasses.dataclass(frozen=True)
class Weights:
    """Which weights are sampled from; nothing is read before `load`.

    Attributes:
        checkpoint: `--checkpoint` as given; "": the base model.
        place: step's directory, Hugging Face directory or GGUF file; None: the base model.
        step: the checkpoint's step; None if it is no checkpoint of a run.
    """

    checkpoint: str = ""
    place: epath.Path | None = None
    step: int | None = None

    @classmethod
    def of(cls, workdir: epath.Path, checkpoint: str) -> Weights:
        """The weights that `--checkpoint` means; see `find_checkpoint`.

        Raises:
            ConfigError: nothing is there, or no step of it is complete.
        """
        if not checkpoint:
            return cls()
        path, step = find_checkpoint(workdir, checkpoint)
        if step is None:
            return cls(checkpoint, path)
        steps = Checkpointer.of(path)
        if step < 0:
            steps.latest_or_error()
        return cls(checkpoint, steps.directory / str(step), step)

    @property
    def name(self) -> str:
        """What people call them: `base`, or the checkpoint with its step."""
        if self.place is None:
            return "base"
        return self.checkpoint if self.step is None else f"{self.checkpoint} (step {self.step})"

    def architecture(self, config: RunConfig) -> ModelConfig:
        """Architecture; nothing else is read."""
        if self.place is None:
            return base_model_config(config)
        return load_config(self.place) if self.step is None else describe_step(self.place)[0]

    def describe(self, config: RunConfig) -> tuple[ModelConfig, Any]:
        """Architecture and tokenizer; no weights are read or made."""
        if self.place is None:
            return base_model_config(config), load_base_tokenizer(config)
        if self.step is None:
            return load_config(str(self.place)), load_tokenizer(str(self.place))
        model_config, beside = describe_step(self.place)
        tokenizer = load_tokenizer(beside) if beside.is_dir() else load_base_tokenizer(config)
        return model_config, tokenizer

    def inputs(
        self,
        config: RunConfig,
        workdir: epath.Path,
        progress: Progress,
        *,
        model_config: ModelConfig,
        tokenizer: Any,
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Digests of the weights and what belongs to them, and the places of it; see `base_inputs`.

        Args:
            config: the config.
            workdir: where the warm start makes the base model, if there is one.
            progress: gets lines for a person.
            model_config: architecture, as `describe` returns it.
            tokenizer: tokenizer, as `describe` returns it.

        Raises:
            ConfigError: see `base_inputs`.
        """
        if self.place is None:
            return base_inputs(config, workdir, progress, tokenizer=tokenizer)
        if not processes.is_first():
            return {}, {}
        if self.step is None:
            inputs = model_inputs(str(self.place), tokenizer, model_config)
        else:
            stops = sorted(stop_token_ids(tokenizer, model_config.end_ids))
            inputs = {
                "weights": f"{weights_digest(self.place)} of step {self.step}",
                "architecture": model_config.architecture(),
                "stop ids": ", ".join(map(str, stops)),
            }
            digests = tokenizer_digests(tokenizer)
            inputs |= {f"{name} of the checkpoint": value for name, value in digests.items()}
        return inputs, dict.fromkeys(inputs, f"--checkpoint={self.checkpoint}")

    def load(self, config: RunConfig, workdir: epath.Path, progress: Progress) -> Decoder:
        """The float32 model. A checkpoint of a run has its stage's rotary scaling.

        Raises:
            ConfigError: the checkpoint's files are damaged.
        """
        if self.place is None:
            return load_base(config, workdir, progress)[0]
        return load_any(self.place)[0]

    def first_stage_scaling(self, config: RunConfig) -> RopeScaling | None:
        """The rotary scaling under which training begins; None: these weights' own.

        For `calibrate` and `probe`, which measure the policy that training begins with.
        """
        if self.place is not None:
            return None
        return yarn_scaling(config.rope.yarn, config.stages[0].rope_factor)


BASE = Weights()
