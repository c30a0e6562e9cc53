"""Weights from one format to another: Hugging Face safetensors, GGUF, Orbax checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from polaris_jax import manifest
from polaris_jax.checkpoint import Checkpointer
from polaris_jax.config import ConfigError
from polaris_jax.models import ModelConfig, Qwen, RopeScaling, load_pretrained, save_pretrained
from polaris_jax.models.hf_weights import stream_convert
from polaris_jax.models.tokenizer import load_tokenizer
from polaris_jax.session import TOKENIZER


@dataclasses.dataclass(frozen=True)
class _Params:
    """The part of a checkpoint that is weights; paths match `TrainState.params`."""

    params: Qwen


jax.tree_util.register_dataclass(_Params)


def is_orbax(path: Path) -> bool:
    """True for a checkpoint of ours: a step directory, or a directory that holds some."""
    if not path.is_dir() or (path / "config.json").exists():
        return False
    inside = [path, path / "checkpoints", *path.iterdir()]
    return any((p / manifest.MANIFEST).exists() for p in inside) or (path / "checkpoints").is_dir()


def load_any(path: Path, *, dtype: str = "float32") -> tuple[Qwen, Any]:
    """Model and tokenizer of a checkpoint, HF directory or GGUF file.

    The tokenizer of a checkpoint is the one beside it (`tokenizer/`), or None.

    Raises:
        ConfigError: there is no whole checkpoint.
    """
    if not is_orbax(path):
        return load_pretrained(str(path), dtype=dtype)
    checkpointer = Checkpointer.of(path)
    step = checkpointer.latest_or_error()
    config = _architecture(checkpointer.directory / str(step))
    abstract = jax.eval_shape(lambda key: Qwen.init(config, key), jax.random.key(0))
    restored, _ = checkpointer.restore(step, _Params(abstract), partial=True)
    model = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), restored.params)
    beside = checkpointer.directory / TOKENIZER
    return model, load_tokenizer(str(beside)) if beside.is_dir() else None


def _architecture(step_dir: Path) -> ModelConfig:
    fields = manifest.read_manifest(step_dir)["architecture"]
    if fields is None:
        raise ConfigError(f"checkpoint {step_dir}: it does not say which architecture it is of")
    fields = dict(fields)
    if fields["rope_scaling"] is not None:
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    return ModelConfig(**fields)


def convert(source: str, target: str, *, form: str, dtype: str) -> str:
    """Writes `target`; returns a line that says what was done.

    Args:
        source: HF directory, Hub id, GGUF file or checkpoint.
        target: a directory that is new or empty.
        form: "hf", "orbax" or "auto": the other one than the source's.
        dtype: of the written weights; "auto" keeps the source's.

    Raises:
        ConfigError: the target is in use, or the source is not there.
    """
    path, out = Path(source), Path(target)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--to={target}: it is there and not empty; name a new directory")
    from_orbax = is_orbax(path)
    if form == "auto":
        form = "orbax" if path.is_dir() and not from_orbax else "hf"
    if form == "hf" and not from_orbax:
        stream_convert(source, target, dtype=None if dtype == "auto" else dtype)
        return f"{source} -> {target} (Hugging Face)"
    model, tokenizer = load_any(path if path.exists() else Path(source), dtype="float32")
    if dtype != "auto":
        model = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), model)
    if form == "hf":
        save_pretrained(model, target, tokenizer=tokenizer)
        return f"{source} -> {target} (Hugging Face, {jax.tree.leaves(model)[0].dtype})"
    architecture = json.loads(json.dumps(dataclasses.asdict(model.config)))
    Checkpointer(out, architecture=architecture).save(0, _Params(model), {})
    if tokenizer is not None:
        tokenizer.save_pretrained(out / TOKENIZER)
    return f"{source} -> {target} (Orbax checkpoint, step 0)"
