"""Converts weights between Hugging Face safetensors, GGUF and Orbax checkpoints.

Every source is read and every target written one tensor at a time, so the complete model is never
in memory. A target is complete if it has its last file: config.json in a Hugging Face directory,
MANIFEST.json in a checkpoint. Readers refuse a target without this file. After a failure no target
exists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any

from etils import epath

from polaris_jax.checkpoint import Checkpointer, manifest
from polaris_jax.checkpoint.checkpointer import ARRAYS, HOST, TOKENIZER
from polaris_jax.checkpoint.step_folders import UNFINISHED
from polaris_jax.checkpoint.weights import CheckpointWeights, save_weights
from polaris_jax.config import ConfigError
from polaris_jax.models import ModelConfig, Qwen, load_pretrained
from polaris_jax.models.tokenizer import (
    copy_tokenizer,
    has_tokenizer,
    load_tokenizer,
    read_end_ids,
    token_ids,
)
from polaris_jax.models.weights.hf import (
    bring_tokenizer,
    dtype_named,
    export,
    export_into,
    open_checkpoint,
)
from polaris_jax.models.weights.safetensors import MAX_SHARD_BYTES
from polaris_jax.models.weights.sources import resolve
from polaris_jax.models.weights.tensors import Weights, place_params
from polaris_jax.system.files import AnyPath, as_place, is_remote


def is_orbax(path: AnyPath) -> bool:
    """True for our checkpoints, complete or torn: a step directory, or a directory of steps."""
    place = as_place(path)
    if not place.is_dir() or (place / "config.json").exists():
        return False
    inside = [place, *place.iterdir()]
    return any(_is_step(p) for p in inside) or (place / "checkpoints").is_dir()


def _is_step(place: epath.Path) -> bool:
    """True for a step's directory, or for the mark of a step whose save was cut off."""
    if place.suffix == UNFINISHED or (place.parent / f"{place.name}{UNFINISHED}").exists():
        return True
    return any((place / part).exists() for part in (manifest.MANIFEST, ARRAYS, HOST))


def load_any(path: epath.Path, *, dtype: str = "float32") -> tuple[Qwen, Any]:
    """Model and tokenizer of a checkpoint, HF directory or GGUF file.

    The tokenizer of a checkpoint is in the folder `tokenizer/` beside the step; None if there is
    none.

    Raises:
        ConfigError: there is no complete checkpoint.
    """
    if not is_orbax(path):
        return load_pretrained(str(path), dtype=dtype)
    weights, beside = _open_orbax(path)
    params = place_params(weights.config, weights, dtype_named(dtype))
    tokenizer = load_tokenizer(beside) if beside.is_dir() else None
    end_ids = read_end_ids(beside, vocab_size=weights.config.vocab_size)
    config = dataclasses.replace(weights.config, end_ids=end_ids)
    return Qwen.from_params(config, params), tokenizer


def _open_orbax(path: os.PathLike[str]) -> tuple[CheckpointWeights, epath.Path]:
    """The newest complete step's weights, and the path where its tokenizer would be."""
    checkpointer = Checkpointer.of(os.fspath(path))
    weights = CheckpointWeights(checkpointer, checkpointer.latest_or_error())
    return weights, epath.Path(checkpointer.directory / TOKENIZER)


def convert(
    source: str,
    target: str,
    *,
    form: str,
    dtype: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """Writes `target`, and returns a line that describes what was written.

    Args:
        source: HF directory, Hub id, GGUF file or checkpoint.
        target: a new or empty directory.
        form: format to write: "hf", "orbax", or "auto" for the one that the source does not have.
        dtype: element type of the written weights; "auto" keeps the source's.
        max_shard_bytes: largest size of a safetensors file, in bytes.

    Raises:
        ConfigError: the target is not empty, or the source does not exist.
        FileNotFoundError, ValueError: the source has a defect, which the text names. Nothing is
            written.
        CheckpointError, OSError: the disk is full or not writable. No target is left.
    """
    out = as_place(target)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--to={target}: it is there and not empty; name a new directory")
    from_orbax = is_orbax(source)
    place = as_place(source) if from_orbax else resolve(source)
    if form == "auto":
        form = "orbax" if place.is_dir() and not from_orbax else "hf"
    if _lies_inside(out, place / "checkpoints" if from_orbax else place):
        raise ConfigError(
            f"--to={target}: it lies inside --from={source}; name a directory outside of it"
        )
    config, weights, tokenizer_from = _open(place, from_orbax)
    kind = None if dtype == "auto" else dtype_named(dtype)
    with contextlib.ExitStack() as opened:
        try:
            opened.enter_context(export_into(out))
        except OSError as error:
            raise ConfigError(
                f"--to={target}: it cannot be made ({error.strerror or error}); name a directory "
                "that can be written"
            ) from None
        if form == "hf":
            ids = _bring(weights, tokenizer_from, out)
            export(config, weights, out, dtype=kind, ids=ids, max_shard_bytes=max_shard_bytes)
            return f"{source} -> {target} (Hugging Face)"
        beside = out / TOKENIZER
        beside.mkdir()
        ids = _bring(weights, tokenizer_from, beside)
        if not any(beside.iterdir()):
            beside.rmdir()
        checkpointer = Checkpointer(out, architecture=config.architecture())
        save_weights(checkpointer, config, weights, dtype=kind, token_ids=ids)
        return f"{source} -> {target} (Orbax checkpoint, step 0)"


def _lies_inside(out: epath.Path, folder: epath.Path) -> bool:
    inner, outer = (os.path.realpath(os.fspath(path)) for path in (out, folder))
    return not is_remote(out) and inner.startswith(outer + os.sep) and folder.is_dir()


def _open(place: epath.Path, from_orbax: bool) -> tuple[ModelConfig, Weights, epath.Path]:
    """The architecture, the tensors, and the path of the tokenizer."""
    if from_orbax:
        weights, beside = _open_orbax(place)
        return weights.config, weights, beside
    return *open_checkpoint(place), place


def _bring(weights: Weights, source: epath.Path, out: epath.Path) -> dict[str, int | None]:
    """Saves the source's tokenizer in `out`, and returns the special ids that belong to it."""
    if not isinstance(weights, CheckpointWeights):
        return bring_tokenizer(source, weights, out)
    if source.is_dir():
        copy_tokenizer(source, out)
    if weights.token_ids or not (source.is_dir() and has_tokenizer(source)):
        return weights.token_ids
    return dict(token_ids(load_tokenizer(source)))
