"""Builds what a run is made of, once, from its config.

`assemble` gives `polaris train` its `Parts`; what changes while a run runs is `state.RunState`.
`open_solver` gives the other commands the part that samples and grades. Whatever can be refused is
refused here before a file is deleted or anything is computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from polaris_jax.checkpoint import Checkpointer
from polaris_jax.checkpoint.snapshots import SnapshotSaver
from polaris_jax.config import (
    ConfigError,
    RunConfig,
    config_hash,
    longest_response_tokens,
    remarks,
    row_len_tokens,
)
from polaris_jax.data.problem_sets import (
    CURATED,
    PREPARED,
    ProblemSet,
    find_training_problems,
    fitting,
    fitting_prompts,
)
from polaris_jax.data.problems import problem_set_hash
from polaris_jax.data.prompts import PromptFormat, prompt_format
from polaris_jax.demo.arithmetic import arithmetic_problems
from polaris_jax.demo.chains import Mix
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.demo.warmstart import base_model_architecture, make_base_model
from polaris_jax.evaluate.benchmarks import find_held_out_problems
from polaris_jax.metrics.writer import require_wandb
from polaris_jax.models import Decoder, ModelConfig, RopeScaling, load_config, load_with_tokenizer
from polaris_jax.models.positions import check_positions, yarn_scaling
from polaris_jax.models.tokenizer import load_tokenizer, sampled_stop_ids
from polaris_jax.models.weights.identity import model_inputs
from polaris_jax.models.weights.sources import agree_on_weights
from polaris_jax.records import Problem
from polaris_jax.reward import Grader
from polaris_jax.reward.configured import check_reward, open_grader, warn_of_reward
from polaris_jax.reward.golds import foreign_golds
from polaris_jax.reward.protocol import function_texts
from polaris_jax.rollout.samplers import Samplers, with_dtype
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.identity import say_if_probed_for_another
from polaris_jax.run.outputs import Outputs, numerics_of
from polaris_jax.run.owner import alone
from polaris_jax.run.record import began_with, read_record, with_recorded_defaults
from polaris_jax.run.step_clock import StepClock
from polaris_jax.sharding import make_mesh, split_devices
from polaris_jax.system import processes
from polaris_jax.system.progress import Progress
from polaris_jax.system.seeds import fold_seed
from polaris_jax.train.state import load_sharded
from polaris_jax.train.update import Updater

WARMSTART_DIR = "base_model"
TRAINED_ON, HELD_OUT = "problem set", "held-out problem set"  # as errors call them
PROMPTS = "prompts (data.shots, data.chat_template, tokenizer)"


@dataclasses.dataclass(frozen=True)
class Solver:
    """What `measure.solve.solve` needs to sample and grade.

    Attributes:
        tokenizer: encodes prompts, decodes responses.
        prompt_format: how a problem becomes a prompt.
        stop_token_ids: ids that end a response.
        grader: the grading workers of this process.
        samplers: makes samplers.
        correct_at: `reward.correct_at`.
    """

    tokenizer: Any
    prompt_format: PromptFormat
    stop_token_ids: tuple[int, ...]
    grader: Grader
    samplers: Samplers
    correct_at: float = 1.0


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a training run is made of.

    Its fields never change. Clock, outputs, checkpoints and samplers keep state of their own.

    Attributes:
        config: the run's config.
        workdir: the run's directory.
        progress: where a person sees the run.
        problems: all training problems, including those that stages drop.
        held_out: the problems of the held-out score; () if `evaluate.every_steps` is 0.
        base_path: directory, Hub id or GGUF file of the base model.
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
    reference: Decoder | None
    solver: Solver
    outputs: Outputs
    checkpoints: SnapshotSaver
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
    if not overwrite:
        config = with_recorded_defaults(workdir, config, progress.line)
    check_reward(config.reward)
    prompt_format(config.data)  # its files are there: said before a warm start of minutes
    found = training_problems(config, workdir, progress, overwrite=overwrite)
    held_out = evaluation_problems(config, progress)[0] if config.evaluate.every_steps else []
    model_config = base_model_config(config)
    check_positions(config, model_config, progress.line, trains=True)
    trainer_devices, sampler_devices = split_devices(
        config.rollout.devices, config.rollout.processes
    )
    config = with_dtype(config, model_config, sampler_devices, progress.line)
    samplers = Samplers(config, sampler_devices, progress)
    longest = longest_response_tokens(config)
    samplers.check(model_config, max_response_tokens=longest)
    updater = Updater(
        config.objective,
        config.optimizer,
        config.model,
        make_mesh(config.mesh, trainer_devices),
        rows=config.batch.rows,
        row_len=row_len_tokens(config),
        share_prompts=config.batch.share_prompts,
        parks=config.rollout.trainer_state == "host",
    )
    updater.check_model(model_config, progress.line)
    require_wandb(config.metrics.wandb)
    progress.line(f"problems: {len(found.problems)} from {found.origin} ({found.why})")
    tokenizer = load_base_tokenizer(config)
    encoded = {"tokenizer": tokenizer, "vocab_size": model_config.vocab_size}
    problems, prompts = fitting_prompts(found.problems, config.data, **encoded, say=progress.line)
    processes.agree({PROMPTS: prompts})
    for line in remarks(config, problems=len(problems)):
        progress.line(line)
    if held_out:
        held_out = fitting(held_out, config.data, **encoded, say=progress.line)
    with contextlib.ExitStack() as opened:
        claim = opened.enter_context(
            workdir_lib.claim(
                workdir,
                config,
                overwrite=overwrite,
                primary=processes.is_first(),
                problem_set=found.place,
            )
        )
        path = base_path(config, workdir, progress)  # the warm start, if one is configured
        model_config = load_config(path)
        tokenizer = tokenizer if config.model.path else load_tokenizer(path)
        warn_of_reward(config.reward, config.data, tokenizer, problems, progress.line)
        if config.reward.control == "foreign_golds":
            problems = foreign_golds(problems, seed=fold_seed(config.seed, "foreign golds"))
        if processes.is_first():
            inputs = model_inputs(path, tokenizer, model_config) | {"prompt token ids": prompts}
            places = dict.fromkeys(inputs, f"model.path={path}") | {"problems": found.origin}
            workdir_lib.keep_identity(workdir, inputs | {"problems": found.digest}, places=places)
            found.say_if_for_another(inputs, progress.line)
            say_if_probed_for_another(config.stages, workdir, inputs, progress.line)
        reference = load_sharded(path, updater.mesh) if config.objective.kl_coef else None
        solver = opened.enter_context(open_solver(config, tokenizer, samplers, model=model_config))
        outputs = opened.enter_context(
            Outputs(
                workdir,
                config,
                claim,
                tokenizer=tokenizer,
                end_ids=tuple(dict.fromkeys([*model_config.end_ids, *solver.stop_token_ids])),
                numerics=numerics_of(samplers.kernels(model_config, max_response_tokens=longest))
                | updater.numerics(model_config)
                | function_texts(config.reward.function),
            )
        )
        checkpointer = Checkpointer(
            workdir / "checkpoints",
            keep_last=config.checkpoint.keep_last,
            config_hash=config_hash(config),
            architecture=model_config.architecture(),
            may_write=claim.check,
        )
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
            solver=solver,
            outputs=outputs,
            checkpoints=SnapshotSaver(
                checkpointer, before_save=lambda: outputs.note_grading(solver.grader)
            ),
            clock=StepClock(),
        )


@contextlib.contextmanager
def open_solver(
    config: RunConfig, tokenizer: Any, samplers: Samplers, *, model: ModelConfig | None
) -> Iterator[Solver]:
    """A `Solver`; its grading workers live until the context ends.

    Args:
        config: the run's config.
        tokenizer: the sampled model's tokenizer.
        samplers: makes the samplers.
        model: the sampled model's architecture; None: nothing is sampled.
    """
    with open_grader(config.reward) as grader:
        yield Solver(
            tokenizer=tokenizer,
            prompt_format=prompt_format(config.data),
            stop_token_ids=() if model is None else sampled_stop_ids(tokenizer, model),
            grader=grader,
            samplers=samplers,
            correct_at=config.reward.correct_at,
        )


# ---- problems


def training_problems(
    config: RunConfig,
    workdir: epath.Path,
    progress: Progress,
    *,
    files: Sequence[str] | None = None,
    overwrite: bool = False,
) -> ProblemSet:
    """The problems to train on, the same in all processes.

    A run that has begun in the workdir keeps the set that it began with.

    Args:
        config: the config.
        workdir: where `prepare`, `calibrate` and an earlier start left their files.
        progress: gets lines for a person.
        files: names of the workdir's files that are read; None: those of `data.use`.
        overwrite: a run in the workdir does not count.

    Raises:
        ConfigError: there are none, they were made of others, or processes read different ones.
    """
    record = None if overwrite or files is not None else read_record(workdir)
    if files is None:
        files = () if config.data.use == "problems" else (CURATED, PREPARED)
    found = find_training_problems(
        config.data,
        workdir,
        progress.line,
        make=lambda: _arithmetic(config)[0],
        files=files,
        began_with=None if record is None else began_with(record, workdir),
    )
    _agree_on_problems(TRAINED_ON, found.problems)
    return found


def evaluation_problems(
    config: RunConfig, progress: Progress
) -> tuple[list[Problem], dict[str, int]]:
    """The held-out problems, the same in all processes, and how many rows were left out, by reason.

    Raises:
        ConfigError: there are none, or processes read different ones.
    """
    problems, left_out = find_held_out_problems(
        config.evaluate, config.data, progress.line, make=lambda: _arithmetic(config)[1]
    )
    _agree_on_problems(HELD_OUT, problems)
    return problems, left_out


def _agree_on_problems(name: str, problems: Sequence[Problem]) -> None:
    """Raises ConfigError if the processes of a run have not read the same problems."""
    processes.agree({name: f"{problem_set_hash(problems)} ({len(problems)} problems)"})


def procedural_problems(config: RunConfig) -> list[Problem]:
    """The training problems of `data.arithmetic`, the same in all processes."""
    problems = _arithmetic(config)[0]
    _agree_on_problems(TRAINED_ON, problems)
    return problems


def _arithmetic(config: RunConfig) -> tuple[list[Problem], list[Problem]]:
    section = config.data.arithmetic
    mix = Mix.of(section)
    return arithmetic_problems(section.train, section.held_out, seed=section.seed, mix=mix)


# ---- the base model


def base_path(config: RunConfig, workdir: epath.Path, progress: Progress) -> str:
    """Where the base weights lie; the warm start makes them if the config asks for one.

    Raises:
        ConfigError: neither `model.path` nor a warm start is configured, or processes find
            different weights.
    """
    path = config.model.path
    if not path:
        require_base_model(config)
        made = workdir / WARMSTART_DIR

        def make() -> None:
            with alone(workdir, WARMSTART_DIR, progress):
                make_base_model(config, made, progress)

        processes.first_does(make, "warm start")
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
    require_base_model(config)
    return base_model_architecture(config)


def require_base_model(config: RunConfig) -> None:
    """Raises ConfigError if neither `model.path` nor a warm start is configured."""
    if not config.model.path and config.warmstart.steps == 0:
        raise ConfigError(
            "model.path='': no weights; name a Hugging Face directory, a Hub id or a GGUF file, "
            "or set warmstart.steps to make a small model on the spot"
        )


def load_base(config: RunConfig, workdir: epath.Path, progress: Progress) -> tuple[Decoder, Any]:
    """The float32 base model, on each process's default device, and its tokenizer."""
    return load_with_tokenizer(base_path(config, workdir, progress), dtype="float32")
