"""The base model of a run: read from disk, or made on the spot by a supervised warm start."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, Sharding

from polaris_jax.config import ConfigError, RunConfig, YarnSection
from polaris_jax.data.prompts import render_example
from polaris_jax.demo.arithmetic import supervised_examples
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.demo.warmstart import warm_start, warmstart_model_config
from polaris_jax.models import (
    ModelConfig,
    Qwen,
    RopeScaling,
    load_config,
    load_pretrained,
    param_axes,
    param_shapes,
    save_pretrained,
)
from polaris_jax.models.tokenizer import load_tokenizer
from polaris_jax.sharding import TRAINER_RULES, param_shardings
from polaris_jax.system import processes
from polaris_jax.system.agreement import agree_on_weights
from polaris_jax.system.files import write_bytes
from polaris_jax.system.progress import Progress

WARMSTART_DIR = "base_model"


def base_path(config: RunConfig, workdir: epath.Path, progress: Progress) -> str:
    """Where the base weights lie; the warm start makes them when the config asks for one.

    Raises:
        ConfigError: neither `model.path` nor a warm start is configured.
    """
    if config.model.path:
        return config.model.path
    if config.warmstart.steps == 0:
        raise ConfigError(
            "model.path='': no weights; name a Hugging Face directory, a Hub id or a GGUF file, "
            "or set warmstart.steps to make a small model on the spot"
        )
    path = workdir / WARMSTART_DIR
    processes.first_does(lambda: _make_warmstart(config, path, progress), "warm start")
    return str(path)


def _make_warmstart(config: RunConfig, path: epath.Path, progress: Progress) -> None:
    """Trains the small base model by supervision, unless it is already there and whole."""
    section, done = config.warmstart, path / "warmstart.json"
    identity = dataclasses.asdict(section) | {"prompt_suffix": config.data.prompt_suffix}
    if done.exists() and json.loads(done.read_text()) == identity:
        return
    tokenizer = build_tokenizer()
    model_config = warmstart_model_config(section, vocab_size=len(tokenizer))
    suffix = config.data.prompt_suffix
    examples = [
        render_example(tokenizer, problem.problem, completion, suffix=suffix)
        for problem, completion in supervised_examples(
            section.examples, seed=section.seed, slip_rate=section.slip_rate
        )
    ]
    model = Qwen.init(model_config, jax.random.key(section.seed))
    progress.line(
        f"warm start: {section.steps} supervised steps on {len(examples)} worked solutions, "
        f"{model_config.num_parameters:,} parameters"
    )
    with progress.phase("warm start", section.steps) as phase:
        model = warm_start(
            model,
            examples,
            section,
            on_step=lambda step, loss: phase.advance_to(step + 1, f"loss {loss:.3f}"),
        )
    done.unlink(missing_ok=True)  # or a kill here would leave these weights under the old name
    save_pretrained(model, path, tokenizer=tokenizer)
    write_bytes(done, json.dumps(identity, sort_keys=True).encode())


def load_base_tokenizer(config: RunConfig) -> Any:
    """The tokenizer of the base model, without its weights."""
    return load_tokenizer(config.model.path) if config.model.path else build_tokenizer()


def load_base(
    config: RunConfig, workdir: epath.Path, progress: Progress, *, mesh: Mesh | None = None
) -> tuple[Qwen, Any]:
    """The fp32 base model and its tokenizer.

    Args:
        config: the run.
        workdir: where the warm start lies.
        progress: for the warm start's lines.
        mesh: split the weights over it as the trainer does, each process reading its own parts;
            None: whole on each process's default device.

    Raises:
        ConfigError: as `base_path`, or processes find different weights.
    """
    path = base_path(config, workdir, progress)
    agree_on_weights(path)
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


def load_with_tokenizer(
    path: str, *, dtype: str, shardings: Mapping[str, Sharding] | None = None
) -> tuple[Qwen, Any]:
    """`load_pretrained` where the tokenizer is needed: without one it raises."""
    model, tokenizer = load_pretrained(path, dtype=dtype, shardings=shardings)
    return model, load_tokenizer(path) if tokenizer is None else tokenizer


def base_model_config(config: RunConfig, workdir: epath.Path, progress: Progress) -> ModelConfig:
    """The base model's architecture, without its weights: none is read or made for it."""
    if not config.model.path and config.warmstart.steps:
        return warmstart_model_config(config.warmstart, vocab_size=len(build_tokenizer()))
    return load_config(base_path(config, workdir, progress))


def yarn_scaling(yarn: YarnSection, factor: float) -> RopeScaling | None:
    """The run's rotary scaling at `factor`; None at 1 (no change)."""
    if factor == 1.0:
        return None
    return RopeScaling(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=yarn.original_max_position_embeddings,
        attention_factor=yarn.attention_factor,
        beta_fast=yarn.beta_fast,
        beta_slow=yarn.beta_slow,
    )


def check_positions(config: RunConfig, model: ModelConfig, progress: Progress) -> None:
    """Checks every stage's prompt + budget against the position limit, before weights are read.

    Raises:
        ConfigError: a stage exceeds the limit: `model.max_position_tokens`, or, when that is 0,
            the checkpoint's own positions times the stage's rope_factor.
    """
    for i, stage in enumerate(config.stages):
        needed = config.data.max_prompt_tokens + stage.max_response_tokens
        own = int(model.max_position_embeddings * stage.rope_factor)
        if needed <= own:
            continue
        if needed > (config.model.max_position_tokens or own):
            raise ConfigError(
                f"stages[{i}].max_response_tokens={stage.max_response_tokens}: with "
                f"data.max_prompt_tokens={config.data.max_prompt_tokens} a sequence may reach "
                f"{needed} positions, over the checkpoint's {own}; lower the budget, raise "
                f"stages[{i}].rope_factor, or set model.max_position_tokens={needed} to go beyond"
            )
        progress.line(
            f"warning: stages[{i}] may reach {needed} positions, past the checkpoint's {own} "
            "without YaRN; model.max_position_tokens allows it"
        )
        return


def check_evaluated_positions(
    config: RunConfig, model: ModelConfig, progress: Progress, *, budget: int, yarn: bool
) -> None:
    """Checks prompt + `budget` of an evaluation; warns in a line where it goes on past the limit.

    Under YaRN the limit is factor x original length, and going past it is the recipe's own way
    (Source: POLARIS, section 4: 49,152 to 90,000). Without, it is the model's own, and only
    `model.max_position_tokens` or evaluate.yarn=both, which asks for the comparison, go past it.

    Args:
        config: the run.
        model: what is evaluated.
        progress: gets the warning.
        budget: response tokens.
        yarn: this pass is under rope.yarn.

    Raises:
        ConfigError: without YaRN the budget exceeds what the model has positions for.
    """
    section = config.rope.yarn
    needed = config.data.max_prompt_tokens + budget
    if yarn and section.factor > 1:
        original = section.original_max_position_embeddings
        limit = int(section.factor * original)
        whose = f"rope.yarn's {section.factor:g} x {original:,} = {limit:,}"
    else:
        limit, scaling = model.max_position_embeddings, model.rope_scaling
        if scaling is not None:
            trained = scaling.original_max_position_embeddings or limit
            limit = max(limit, int(scaling.factor * trained))
        whose = f"the model's own {limit:,} without YaRN"
        if config.evaluate.yarn != "both" and needed > (config.model.max_position_tokens or limit):
            raise ConfigError(
                f"evaluate.max_response_tokens={budget}: with "
                f"data.max_prompt_tokens={config.data.max_prompt_tokens} a sequence may reach "
                f"{needed} positions, over the model's {limit}; lower the budget, set "
                f"evaluate.yarn=on, or set model.max_position_tokens={needed} to go beyond"
            )
    if needed > limit:
        progress.line(f"warning: responses may reach {needed:,} positions, past {whose}")
