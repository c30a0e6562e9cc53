"""Builds what a run is made of, once, from its config.

`assemble` gives `polaris train` its `Parts`, which never change; what changes is `state.RunState`.
`open_solver` gives the other commands the part that samples and grades. Whatever can be refused is
refused here before a file is deleted or anything is computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from polaris_jax.checkpoint import Checkpointer
from polaris_jax.checkpoint.snapshots import Checkpoints
from polaris_jax.config import ConfigError, RunConfig, check_pages, config_hash, row_len_tokens
from polaris_jax.data.problem_sets import (
    PREPARED,
    find_training_problems,
    fitting,
    read_named,
)
from polaris_jax.data.problems import problem_set_hash
from polaris_jax.demo.arithmetic import arithmetic_problems
from polaris_jax.demo.base_model import base_model_architecture, make_base_model
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.evaluate.benchmarks import find_held_out_problems
from polaris_jax.models import (
    ModelConfig,
    Qwen,
    RopeScaling,
    load_config,
    load_with_tokenizer,
    param_axes,
    param_shapes,
)
from polaris_jax.models.positions import check_positions, yarn_scaling
from polaris_jax.models.tokenizer import load_tokenizer, stop_token_ids
from polaris_jax.models.weights.sources import agree_on_weights
from polaris_jax.records import Problem
from polaris_jax.reward import Grader
from polaris_jax.rollout import Sampler, SamplerConfig
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.outputs import Outputs
from polaris_jax.run.step_clock import StepClock
from polaris_jax.sharding import (
    TRAINER_RULES,
    make_mesh,
    make_sampler_mesh,
    param_shardings,
    slot_shards,
    split_devices,
)
from polaris_jax.system import processes
from polaris_jax.system.progress import Progress
from polaris_jax.train.update import Updater

WARMSTART_DIR = "base_model"
TRAINED_ON, HELD_OUT = "problem set", "held-out problem set"  # as errors call them


class Samplers:
    """Makes samplers for a config; says on the screen which decode kernels serve.

    Args:
        config: the run's config.
        devices: devices that may sample.
        progress: gets a line if the kernels differ from the last sampler's.
    """

    def __init__(self, config: RunConfig, devices: Sequence[Any], progress: Progress) -> None:
        self._config, self._devices, self._progress = config, devices, progress
        self._kernels = ""
        self._reused: tuple[ModelConfig, Sampler] | None = None

    def make(self, model: Qwen, *, max_response_tokens: int, say_kernels: bool = True) -> Sampler:
        """A sampler with room for prompts of `data.max_prompt_tokens` and this budget.

        Args:
            model: sharded in any way. Several processes make theirs together.
            max_response_tokens: the longest budget that will be asked for.
            say_kernels: print a line if the kernels differ from the last sampler's.
        """
        section = self._config.rollout
        sampler = Sampler(
            model,
            SamplerConfig(
                slots=section.slots,
                page_size=section.page_size,
                num_pages=section.num_pages,
                max_len=self._config.data.max_prompt_tokens + max_response_tokens,
                decode_steps=section.decode_steps,
                prefill_chunk=section.prefill_chunk,
                prefill_budget=section.prefill_budget,
                prefix_cache=section.prefix_cache,
                attention=section.attention,
                dtype=self._config.model.dtype,
                reserve=section.reserve,
            ),
            mesh=self._mesh(),
        )
        if sampler.kernels != self._kernels and say_kernels:
            self._kernels = sampler.kernels
            self._progress.line(f"decode kernels: {sampler.kernels}")
        return sampler

    def reused(self, model: Qwen, *, max_response_tokens: int) -> Sampler:
        """The sampler of the last call with new weights, or a new one for another architecture.

        For a score that is taken again and again: its programs are compiled once. The budget is the
        same in every call.
        """
        if self._reused is not None and self._reused[0] == model.config:
            self._reused[1].update_weights(model)
        else:  # the first time, and after a stage has changed the rotary scaling
            sampler = self.make(model, max_response_tokens=max_response_tokens, say_kernels=False)
            self._reused = model.config, sampler
        return self._reused[1]

    def check(self) -> None:
        """Raises ConfigError if the page pool does not suffice for these devices."""
        check_pages(self._config, slot_shards(self._mesh()))

    def _mesh(self) -> Mesh:
        section = self._config.rollout
        return make_sampler_mesh(self._devices, data=section.data, tensor=section.tensor)


@dataclasses.dataclass(frozen=True)
class Solver:
    """What sampling and grading need.

    Attributes:
        config: the run's config.
        tokenizer: encodes prompts, decodes responses.
        stop_token_ids: ids that end a response.
        grader: the grading workers of this process.
        samplers: makes samplers.
        progress: where a person sees the run.
    """

    config: RunConfig
    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    grader: Grader
    samplers: Samplers
    progress: Progress


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a training run is made of; nothing of it changes while the run runs.

    Attributes:
        config: the run's config.
        workdir: the run's directory.
        progress: where a person sees the run.
        problems: the training set, problems that stages drop included.
        held_out: the problems of the held-out score; () if `evaluate.every_steps` is 0.
        base_path: where the base model lies.
        model_config: its architecture, with its own rotary scaling.
        updater: the compiled update.
        reference: frozen base model of the KL term; None if `objective.kl_coef` is 0.
        solver: tokenizer, grader and samplers.
        outputs: the run's files.
        checkpoints: the run's checkpoints.
        clock: seconds a phase, for timing.jsonl.
    """

    config: RunConfig
    workdir: epath.Path
    progress: Progress
    problems: tuple[Problem, ...]
    held_out: tuple[Problem, ...]
    base_path: str
    model_config: ModelConfig
    updater: Updater
    reference: Qwen | None
    solver: Solver
    outputs: Outputs
    checkpoints: Checkpoints
    clock: StepClock

    def rope_scaling(self, stage: int) -> RopeScaling | None:
        """The rotary scaling of a stage: YaRN by its factor; at factor 1 the base model's own."""
        factor = self.config.stages[stage].rope_factor
        return yarn_scaling(self.config.rope.yarn, factor) or self.model_config.rope_scaling


@contextlib.contextmanager
def assemble(
    config: RunConfig, workdir: epath.Path, *, progress: Progress, overwrite: bool = False
) -> Iterator[Parts]:
    """The parts of a training run, which owns `workdir` until the context ends.

    Args:
        config: the run's config.
        workdir: gets all files of the run.
        progress: where a person sees the run.
        overwrite: delete what an earlier training left in the workdir.

    Raises:
        ConfigError: problems, model, devices or workdir do not suit the config.
    """
    problems, origin = training_problems(config, workdir, progress)
    held_out = evaluation_problems(config, progress)[0] if config.evaluate.every_steps else []
    model_config = base_model_config(config)
    check_positions(config, model_config, progress.line)
    trainer_devices, sampler_devices = split_devices(
        config.rollout.devices, config.rollout.processes
    )
    samplers = Samplers(config, sampler_devices, progress)
    samplers.check()
    updater = Updater(
        config.objective,
        config.optimizer,
        config.model,
        make_mesh(config.mesh, trainer_devices),
        rows=config.batch.rows,
        row_len=row_len_tokens(config),
        parks=config.rollout.trainer_state == "host",
    )
    updater.check_model(model_config)
    with contextlib.ExitStack() as opened:
        claim = opened.enter_context(
            workdir_lib.claim(workdir, config, overwrite=overwrite, primary=processes.is_first())
        )
        progress.line(f"problems: {len(problems)} from {origin}")
        if config.optimizer.moment_dtype != "float32":
            progress.line(
                f"optimizer.moment_dtype={config.optimizer.moment_dtype}: the recipe's is float32"
            )
        path = base_path(config, workdir, progress)  # the warm start, if one is configured
        model_config, tokenizer = load_config(path), load_tokenizer(path)
        reference = load_base(path, mesh=updater.mesh)[0] if config.objective.kl_coef else None
        problems = fitting(problems, config.data, tokenizer=tokenizer, say=progress.line)
        if held_out:
            held_out = fitting(held_out, config.data, tokenizer=tokenizer, say=progress.line)
        grader = opened.enter_context(make_grader(config))
        outputs = opened.enter_context(
            contextlib.closing(
                Outputs(workdir, config, claim, tokenizer=tokenizer, end_ids=model_config.end_ids)
            )
        )
        checkpointer = Checkpointer(
            workdir / "checkpoints",
            keep_last=config.checkpoint.keep_last,
            config_hash=config_hash(config),
            architecture=model_config.architecture(),
            may_write=claim.check,
        )

        def note_timeouts() -> None:
            # Before the state is kept in which they count: the step's timing may never come.
            outputs.note_timeouts(sum(processes.gather_objects(grader.stats()["timeouts"])))

        yield Parts(
            config=config,
            workdir=workdir,
            progress=progress,
            problems=tuple(problems),
            held_out=tuple(held_out),
            base_path=path,
            model_config=model_config,
            updater=updater,
            reference=reference,
            solver=Solver(
                config=config,
                tokenizer=tokenizer,
                stop_token_ids=stop_token_ids(tokenizer, model_config.end_ids),
                grader=grader,
                samplers=samplers,
                progress=progress,
            ),
            outputs=outputs,
            checkpoints=Checkpoints(checkpointer, before_save=note_timeouts),
            clock=StepClock(),
        )


@contextlib.contextmanager
def open_solver(
    config: RunConfig, tokenizer: Any, progress: Progress, *, end_ids: Sequence[int]
) -> Iterator[Solver]:
    """Samplers and graders of a command that trains nothing; the workers live in the context.

    Args:
        config: the run's config.
        tokenizer: of the model that will be sampled.
        progress: where a person sees the command.
        end_ids: the model's `ModelConfig.end_ids`.
    """
    devices = split_devices(0, config.rollout.processes)[1]
    with make_grader(config) as grader:
        yield Solver(
            config=config,
            tokenizer=tokenizer,
            stop_token_ids=stop_token_ids(tokenizer, end_ids),
            grader=grader,
            samplers=Samplers(config, devices, progress),
            progress=progress,
        )


def make_grader(config: RunConfig) -> Grader:
    """The process-pool grader of `config.reward`."""
    section = config.reward
    return Grader(
        workers=section.workers,
        timeout_s=section.timeout_s,
        memory_limit_bytes=section.memory_limit_bytes,
    )


# ---- problems


def training_problems(
    config: RunConfig, workdir: epath.Path, progress: Progress, *, prepared: bool = True
) -> tuple[list[Problem], str]:
    """The problems to train on, the same in all processes, and where they come from.

    Raises:
        ConfigError: there are none, or processes read different ones.
    """
    problems, origin = find_training_problems(
        config.data, workdir, progress.line, make=lambda: _arithmetic(config)[0], prepared=prepared
    )
    agree_on_problems(TRAINED_ON, problems)
    return problems, origin


def problems_to_calibrate(
    config: RunConfig, workdir: epath.Path, progress: Progress
) -> tuple[list[Problem], str]:
    """The problems that `calibrate` rates: what `prepare` left, else the config's source.

    Raises:
        ConfigError: there are none, or processes read different ones.
    """
    prepared = workdir / PREPARED
    if not prepared.exists():
        return training_problems(config, workdir, progress, prepared=False)
    problems, _ = read_named(str(prepared), progress.line)
    agree_on_problems(TRAINED_ON, problems)
    return problems, str(prepared)


def evaluation_problems(
    config: RunConfig, progress: Progress
) -> tuple[list[Problem], dict[str, int]]:
    """The held-out problems, the same in all processes; rows left out, counted by reason.

    Raises:
        ConfigError: there are none, or processes read different ones.
    """
    problems, left_out = find_held_out_problems(
        config.evaluate, config.data, progress.line, make=lambda: _arithmetic(config)[1]
    )
    agree_on_problems(HELD_OUT, problems)
    return problems, left_out


def agree_on_problems(name: str, problems: Sequence[Problem]) -> None:
    """Checks that all processes of a run have read the same problems.

    Args:
        name: what errors call the set.
        problems: as read, before any is left out for its length.

    Raises:
        ConfigError: names the digests and the processes that hold each.
    """
    processes.agree({name: f"{problem_set_hash(problems)} ({len(problems)} problems)"})


def _arithmetic(config: RunConfig) -> tuple[list[Problem], list[Problem]]:
    section = config.data.arithmetic
    return arithmetic_problems(section.train, section.held_out, seed=section.seed)


# ---- the base model


def base_path(config: RunConfig, workdir: epath.Path, progress: Progress) -> str:
    """Where the base weights lie; the warm start makes them if the config asks for one.

    Raises:
        ConfigError: neither `model.path` nor a warm start is configured, or processes find
            different weights.
    """
    path = config.model.path
    if not path:
        base_model_config(config)
        made = workdir / WARMSTART_DIR
        processes.first_does(lambda: make_base_model(config, made, progress), "warm start")
        path = str(made)
    agree_on_weights(path)
    return path


def load_base_tokenizer(config: RunConfig) -> Any:
    """The tokenizer of the base model, without its weights."""
    return load_tokenizer(config.model.path) if config.model.path else build_tokenizer()


def base_model_config(config: RunConfig) -> ModelConfig:
    """The base model's architecture, without its weights: none is read or made for it.

    Raises:
        ConfigError: neither `model.path` nor a warm start is configured.
    """
    if config.model.path:
        return load_config(config.model.path)
    if config.warmstart.steps == 0:
        raise ConfigError(
            "model.path='': no weights; name a Hugging Face directory, a Hub id or a GGUF file, "
            "or set warmstart.steps to make a small model on the spot"
        )
    return base_model_architecture(config)


def load_base(path: str, *, mesh: Mesh | None = None) -> tuple[Qwen, Any]:
    """The float32 base model at `path` and its tokenizer.

    Args:
        path: from `base_path`.
        mesh: split the weights over it as the trainer does, each process reading its own parts.
            None: the complete model on each process's default device.
    """
    shardings = None
    if mesh is not None:
        model_config = load_config(path)
        abstract = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32)
            for name, shape in param_shapes(model_config).items()
        }
        axes = param_axes(model_config)
        shardings = param_shardings(abstract, mesh, TRAINER_RULES, axes=axes)
    return load_with_tokenizer(path, dtype="float32", shardings=shardings)
