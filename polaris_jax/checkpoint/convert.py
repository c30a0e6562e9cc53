"""Converts weights between Hugging Face safetensors, GGUF and Orbax checkpoints.

Every source is read and every target written one tensor at a time, so the complete model is never
in memory. Only the parameters (`params/...`) of a training checkpoint are read, not optimizer and
counters. A target is complete if it has its last file: config.json in a Hugging Face directory,
MANIFEST.json in a checkpoint. Readers refuse a target without this file. After a failure no target
exists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from polaris_jax.checkpoint import Checkpointer, CheckpointError, step_folders
from polaris_jax.checkpoint.arrays import StreamedArray
from polaris_jax.checkpoint.checkpointer import ARRAYS, HOST, TOKENIZER
from polaris_jax.checkpoint.step_folders import MANIFEST, ROPE_SCALING, UNFINISHED, fault, seal
from polaris_jax.config import ConfigError
from polaris_jax.models import (
    Decoder,
    ModelConfig,
    RopeScaling,
    load_config,
    load_pretrained,
    model_shardings,
    param_shapes,
)
from polaris_jax.models.config import shortened
from polaris_jax.models.tokenizer import (
    TokenId,
    copy_tokenizer,
    has_tokenizer,
    load_tokenizer,
    make_portable,
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
from polaris_jax.models.weights.safetensors import MAX_SHARD_BYTES, Index
from polaris_jax.models.weights.sources import resolve
from polaris_jax.models.weights.tensors import (
    EMBEDDING,
    Weights,
    hf_shapes,
    hf_tensors,
    host_params,
    param_dtype,
    param_reader,
    place_params,
    to_hf,
)
from polaris_jax.sharding import SAMPLER_RULES
from polaris_jax.system.files import AnyPath, as_place, files_below, first_line, is_remote
from polaris_jax.system.foreign import naming

_PREFIX = "params/"
_TOKEN_IDS = "token_ids"


class CheckpointWeights:
    """The tensors of one step by their Hugging Face names; see `models.weights.Weights`."""

    def __init__(self, checkpointer: Checkpointer, step: int) -> None:
        """Opens the parameters of a complete step.

        Raises:
            ConfigError: the step does not record its architecture.
            CheckpointError: the step is not complete, lacks a parameter, or has a parameter of
                another shape.
        """
        facts = checkpointer.facts(step)
        self._where = f"checkpoint {step} in {checkpointer.directory}"
        self.config = _architecture(facts, self._where)
        self._tensors, self._shapes = hf_tensors(self.config), hf_shapes(self.config)
        self._dtypes: dict[str, np.dtype] = {}
        for path, shape in param_shapes(self.config).items():
            dtype, saved_shape = facts["arrays"].get(_PREFIX + path, (None, None))
            if dtype is None:
                raise CheckpointError(f"{self._where}: {_PREFIX}{path} is missing")
            if tuple(saved_shape) != shape:
                raise CheckpointError(
                    f"{self._where}: {_PREFIX}{path} has shape {tuple(saved_shape)}, but its "
                    f"architecture says {shape}"
                )
            self._dtypes[path] = np.dtype(dtype)
        names = [_PREFIX + path for path in self._dtypes]
        self._stores = checkpointer.open_arrays(step, names)
        for path, shape in param_shapes(self.config).items():
            store = self._stores[_PREFIX + path]
            if tuple(store.shape) != shape or store.dtype.numpy_dtype != self._dtypes[path]:
                raise CheckpointError(
                    f"{self._where}: {_PREFIX}{path} is stored with shape {tuple(store.shape)}, "
                    f"but its {step_folders.MANIFEST} says {shape}; restore the checkpoint"
                )
        #: Special ids of the config.json that the weights came from; empty for a training run's.
        self.token_ids: dict[str, TokenId] = _token_ids(checkpointer, step, facts)

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        """The saved parameter's dtype."""
        return self._dtypes[self._tensors[name][0]]

    def read(self, name: str, index: Index = None) -> np.ndarray:
        """A tensor's values. Only its layer is read, or the rows of a matrix [V, D].

        Raises:
            CheckpointError: the files cannot be read.
        """
        path, layer = self._tensors[name]
        store = self._stores[_PREFIX + path]
        try:
            if layer is None and index is not None:  # no axis of these tensors is merged or moved
                return store[tuple(index)].read().result()
            value = (store if layer is None else store[layer]).read().result()
        except (OSError, ValueError, RuntimeError) as error:
            text = f"{self._where}: {path} cannot be read: {first_line(error)}"
            raise CheckpointError(text) from error
        tensor = to_hf(path, value)
        return tensor if index is None else tensor[index]


def save_weights(
    checkpointer: Checkpointer,
    config: ModelConfig,
    weights: Weights,
    *,
    dtype: np.dtype | None,
    token_ids: dict[str, TokenId],
) -> None:
    """Saves weights as step 0 in a single process, with one layer's tensor in memory at a time.

    Args:
        checkpointer: checkpointer of a new directory, made for this architecture.
        config: the architecture.
        weights: the checked weights.
        dtype: element type of the saved parameters; None keeps the source's.
        token_ids: special ids for the config.json of a later export.

    Raises:
        ConfigError: the run has several processes, the weights are float64, or a special id is
            none.
        CheckpointError: the write failed. No checkpoint is left.
    """
    if jax.process_count() > 1:
        raise ConfigError("convert: runs in one process; start it without launch/local.sh")
    for name, value in token_ids.items():
        if not _is_token_id(value):
            raise ConfigError(
                f"config.json: {name}={shortened(value)}: must be a token id, a list of token ids "
                "or null; mend it"
            )
    arrays = {}
    for path, shape in param_shapes(config).items():
        kind = dtype or param_dtype(path, config, weights)
        if kind.itemsize > 4:
            raise ConfigError(f"--dtype=auto: {path} is {kind}; name float32 or bfloat16")
        arrays[_PREFIX + path] = StreamedArray(
            shape, kind, param_reader(path, config, weights, kind)
        )
    checkpointer.save(0, arrays, {_TOKEN_IDS: token_ids})


def _architecture(facts: dict[str, Any], where: str) -> ModelConfig:
    """The architecture of a step's manifest, under the rotary scaling of the stage it was saved in.

    The manifest's `architecture` has the base model's scaling, as do the checkpoints of earlier
    versions, which record no other.
    """
    if facts["architecture"] is None:
        raise ConfigError(f"{where}: it does not say which architecture it is of")
    with naming(where, remedy="restore the checkpoint"):
        fields = dict(facts["architecture"])
        scaling = facts.get(ROPE_SCALING, fields["rope_scaling"])
        fields["rope_scaling"] = None if scaling is None else RopeScaling(**scaling)
        return ModelConfig(**fields)


def _token_ids(checkpointer: Checkpointer, step: int, facts: dict[str, Any]) -> dict[str, TokenId]:
    """The special ids that `save_weights` has saved; none in a training run's checkpoint."""
    if not all(name.startswith(_PREFIX) for name in facts["arrays"]):
        return {}  # a run's, whose host state may have gigabytes
    ids = checkpointer.host(step).get(_TOKEN_IDS, {})
    if not isinstance(ids, dict) or not all(map(_is_token_id, ids.values())):
        raise CheckpointError(
            f"checkpoint {step} in {checkpointer.directory}: {_TOKEN_IDS} of its host state is no "
            "table of ids; restore the checkpoint"
        )
    return ids


def _is_token_id(value: Any) -> bool:
    """True for what config.json may have as a special id."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return all(type(i) is int for i in ids)


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
    return any((place / part).exists() for part in (step_folders.MANIFEST, ARRAYS, HOST))


def load_any(
    path: AnyPath, *, dtype: str = "float32", mesh: Mesh | None = None
) -> tuple[Decoder, Any]:
    """Model and tokenizer of a checkpoint, HF directory, Hub id or GGUF file.

    The tokenizer of a checkpoint is in the folder `tokenizer/` beside the step; None if there is
    none.

    Args:
        path: path of the weights.
        dtype: see `load_pretrained`.
        mesh: the sampler's mesh, over which the weights are split as a sampler splits them; None:
            all of them go to the default device.

    Raises:
        ConfigError: there is no complete checkpoint.
    """
    shardings = None
    if not is_orbax(path):
        if mesh is not None:
            shardings = model_shardings(load_config(path), mesh, SAMPLER_RULES)
        return load_pretrained(path, dtype=dtype, shardings=shardings)
    weights, beside = _open_orbax(path)
    if mesh is not None:
        shardings = model_shardings(weights.config, mesh, SAMPLER_RULES)
    kind = weights.dtype(EMBEDDING) if dtype == "auto" else dtype_named(dtype)
    params = place_params(weights.config, weights, kind, shardings)
    tokenizer = load_tokenizer(beside) if beside.is_dir() else None
    config = _ending(weights.config, beside, weights.token_ids)
    return Decoder.from_params(config, params), tokenizer


def load_on_host(path: AnyPath, *, dtype: str) -> Decoder:
    """The model of `load_any` in numpy arrays, which take no device memory; raises what it does."""
    from_orbax = is_orbax(path)
    config, weights, beside = _open(as_place(path) if from_orbax else resolve(path), from_orbax)
    if isinstance(weights, CheckpointWeights):
        config = _ending(config, beside, weights.token_ids)
    return Decoder.from_params(config, host_params(config, weights, dtype_named(dtype)))


def _ending(config: ModelConfig, beside: epath.Path, ids: dict[str, TokenId]) -> ModelConfig:
    """A checkpoint's architecture with the ids that end a response."""
    end_ids = read_end_ids(beside, ids, vocab_size=config.vocab_size)
    return dataclasses.replace(config, end_ids=end_ids)


def describe_step(step: epath.Path) -> tuple[ModelConfig, epath.Path]:
    """The architecture of a step's weights, with their scaling, and their tokenizer's folder.

    No weights are read.

    Args:
        step: directory of a complete step.

    Raises:
        ConfigError: the step does not record its architecture.
    """
    checkpointer = Checkpointer.of(step)
    where = f"checkpoint {step.name} in {checkpointer.directory}"
    facts = checkpointer.facts(int(step.name))
    config, ids = _architecture(facts, where), _token_ids(checkpointer, int(step.name), facts)
    beside = _tokenizer_folder(checkpointer)
    return _ending(config, beside, ids), beside


def _open_orbax(path: AnyPath) -> tuple[CheckpointWeights, epath.Path]:
    """The newest complete step's weights, and the path where its tokenizer would be."""
    checkpointer = Checkpointer.of(os.fspath(path))
    weights = CheckpointWeights(checkpointer, checkpointer.latest_or_error())
    return weights, _tokenizer_folder(checkpointer)


def _tokenizer_folder(checkpointer: Checkpointer) -> epath.Path:
    """Where the tokenizer of a run's checkpoints would be.

    Raises:
        ConfigError: its files are not those that were written.
    """
    beside = epath.Path(checkpointer.directory / TOKENIZER)
    if (beside / MANIFEST).exists() and (why := fault(beside, others=".*")):
        raise ConfigError(
            f"{beside}: damaged: {why}; start `polaris train` on the run again, which writes it, "
            "or put the model's own tokenizer files there and delete MANIFEST.json"
        )
    return beside


def convert(
    source: str, target: str, *, form: str, dtype: str, max_shard_bytes: int = MAX_SHARD_BYTES
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
    if _lies_inside(out, Checkpointer.of(place).directory if from_orbax else place):
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
        if any(files_below(beside)):
            seal(beside)
        elif not is_remote(beside):  # a store has no empty folders
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


def _bring(weights: Weights, source: epath.Path, out: epath.Path) -> dict[str, TokenId]:
    """Saves the source's tokenizer in `out`, and returns the special ids that belong to it."""
    if not isinstance(weights, CheckpointWeights):
        return bring_tokenizer(source, weights, out)
    if source.is_dir():
        copy_tokenizer(source, out)
    if weights.token_ids or not (source.is_dir() and has_tokenizer(source)):
        return weights.token_ids
    make_portable(out)  # of a run of an earlier version, or of a base as transformers 5 saves it
    return dict(token_ids(load_tokenizer(source)))
