"""The demo's base model: a small model made on the spot by a supervised warm start."""

from __future__ import annotations

import dataclasses
import json

import jax
from etils import epath

from polaris_jax.config import RunConfig
from polaris_jax.data.prompts import render_example
from polaris_jax.demo.arithmetic import supervised_examples
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.demo.warmstart import warm_start, warmstart_model_config
from polaris_jax.models import ModelConfig, Qwen, save_pretrained
from polaris_jax.system.files import write_bytes
from polaris_jax.system.progress import Progress


def base_model_architecture(config: RunConfig) -> ModelConfig:
    """The architecture of the model that `make_base_model` makes."""
    return warmstart_model_config(config.warmstart, vocab_size=len(build_tokenizer()))


def make_base_model(config: RunConfig, path: epath.Path, progress: Progress) -> None:
    """Trains the small base model by supervision, unless it is already there and complete."""
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
