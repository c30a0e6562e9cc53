"""Checkpoints of Hugging Face's layout, in and out, tensor by tensor.

Reading fills one stacked parameter at a time, a layer at a time, and, given shardings, only with
what this process's devices hold. Writing takes one tensor at a time, from the devices or from
another checkpoint.

A directory is complete if it has a config.json. This file is removed before anything else is
touched and written after everything else. A kill in between leaves tensors that no reader takes for
a checkpoint; a failure leaves nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from polaris_jax.models.config import ModelConfig, RopeScaling
from polaris_jax.models.decoder import Decoder
from polaris_jax.models.tokenizer import (
    TokenId,
    copy_tokenizer,
    has_tokenizer,
    load_tokenizer,
    read_end_ids,
    save_end_ids,
    save_tokenizer,
    token_ids,
)
from polaris_jax.models.weights.gguf import GgufFile, gguf_tokenizer
from polaris_jax.models.weights.hf_config import (
    CONFIG_FILE,
    config_json,
    load_config_json,
    parse_config,
    parse_rope_scaling,
    positive,
)
from polaris_jax.models.weights.safetensors import (
    DTYPES,
    INDEX_FILE,
    MAX_SHARD_BYTES,
    Index,
    SafetensorsReader,
    write_safetensors,
    write_small_json,
)
from polaris_jax.models.weights.sources import GGUF_SUFFIX, resolve
from polaris_jax.models.weights.tensors import (
    EMBEDDING,
    Weights,
    check_weights,
    hf_shapes,
    hf_tensors,
    place_params,
    tensor_blocks,
    to_hf,
)
from polaris_jax.system.files import entries, matching

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
RopeSpec = RopeScaling | Mapping[str, Any]
AnyPath = str | os.PathLike[str]


def load_config(path: AnyPath) -> ModelConfig:
    """The architecture of an HF directory, Hub id or GGUF file, without its weights.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the architecture is not supported.
    """
    place = resolve(path)
    if place.suffix == GGUF_SUFFIX:
        return GgufFile(place).config()
    return _read_config(place)


def _read_config(place: epath.Path) -> ModelConfig:
    """A directory's architecture with the ids that end a response, which two files may name."""
    fields = load_config_json(place)
    config = parse_config(fields, where=str(place / CONFIG_FILE))
    end_ids = read_end_ids(place, fields, vocab_size=config.vocab_size)
    return dataclasses.replace(config, end_ids=end_ids)


def load_pretrained(
    path: AnyPath,
    dtype: str = "float32",
    rope_scaling: RopeSpec | None = None,
    *,
    shardings: Mapping[str, Sharding] | None = None,
) -> tuple[Decoder, Any]:
    """A model and its tokenizer from an HF directory, a Hub id or a GGUF file.

    Args:
        path: a directory with config.json and safetensors, a .gguf file, or a Hub id.
        dtype: dtype of the parameters: "float32", "bfloat16" or "float16"; "auto" keeps the file's.
        rope_scaling: rotary scaling in the form of HF's config.json, which replaces the
            checkpoint's own. None keeps the checkpoint's; {"rope_type": "default"} removes it.
        shardings: where each parameter goes, keyed like `param_shapes`; None: the default device.
            With shardings over several processes every process has to call, and each reads its own
            parts.

    Returns:
        (model, tokenizer). The tokenizer is None if the directory has none (`load_tokenizer` raises
        then).

    Raises:
        FileNotFoundError: `path` does not exist, or a file is missing.
        ValueError: the architecture is not supported, a tensor is missing, unexpected or misshapen,
            or an argument is wrong; the message names the cause.
    """
    place = resolve(path)
    config, weights = open_checkpoint(place)
    if rope_scaling is not None:
        if not isinstance(rope_scaling, RopeScaling):
            if not isinstance(rope_scaling, Mapping):
                raise ValueError(
                    f"rope_scaling={rope_scaling!r}: expected a RopeScaling or a dictionary as in "
                    'config.json, e.g. {"rope_type": "yarn", "factor": 1.5}'
                )
            # Version 5 keeps the base of the frequencies in the same dictionary.
            if (theta := rope_scaling.get("rope_theta")) is not None:
                theta = positive(theta, "rope_theta", "rope_scaling")
                config = dataclasses.replace(config, rope_theta=theta)
            rope_scaling = parse_rope_scaling(
                rope_scaling, max_position_embeddings=config.max_position_embeddings
            )
        config = dataclasses.replace(config, rope_scaling=rope_scaling)
    target = weights.dtype(EMBEDDING) if dtype == "auto" else dtype_named(dtype)
    params = place_params(config, weights, target, shardings)
    if isinstance(weights, GgufFile):
        tokenizer = gguf_tokenizer(weights)
    else:
        tokenizer = load_tokenizer(place) if has_tokenizer(place) else None
    return Decoder.from_params(config, params), tokenizer


def open_checkpoint(place: epath.Path) -> tuple[ModelConfig, Weights]:
    """Architecture and tensors of a directory or GGUF file, names, shapes and dtypes checked.

    Raises:
        FileNotFoundError, ValueError: see `load_pretrained`.
    """
    if place.suffix == GGUF_SUFFIX:
        weights: Weights = GgufFile(place)
        config = weights.config()
    else:
        config = _read_config(place)
        weights = SafetensorsReader(place)
    check_weights(config, weights, str(place))
    return config, weights


def dtype_named(name: str) -> np.dtype:
    """The dtype of parameters that `name` means.

    Raises:
        ValueError: another name than float32, bfloat16 or float16.
    """
    known = {str(dtype): dtype for dtype in DTYPES.values() if dtype.itemsize < 8}
    if str(name) not in known:
        raise ValueError(f"dtype={name!r}: expected one of {', '.join(known)} or auto")
    return known[str(name)]


def load_with_tokenizer(
    path: str, *, dtype: str, shardings: Mapping[str, Sharding] | None = None
) -> tuple[Decoder, Any]:
    """`load_pretrained` for callers that need the tokenizer: raises if there is none."""
    model, tokenizer = load_pretrained(path, dtype=dtype, shardings=shardings)
    return model, load_tokenizer(path) if tokenizer is None else tokenizer


def save_pretrained(
    model: Decoder,
    path: AnyPath,
    tokenizer: Any = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a directory that `load_pretrained` and transformers 4 and 5 load.

    Weights keep their dtype, so that loading them in it gives the same bits. With several
    processes all must call; process 0 writes.

    Args:
        model: its parameters' dtype is written.
        path: directory to write; created if it does not exist. Files of the same name are replaced.
        tokenizer: tokenizer to save beside the weights; config.json gets its special ids.
        max_shard_bytes: largest size of a safetensors file.

    Raises:
        OSError: the disk is full or not writable; what was written is removed again.
    """
    weights, write = ModelWeights(model), jax.process_index() == 0
    target = epath.Path(path)
    with contextlib.ExitStack() as stack:
        if write:
            stack.enter_context(export_into(target))
            if tokenizer is not None:
                save_tokenizer(tokenizer, target)
            save_end_ids(model.config.end_ids, target)
        export(
            model.config,
            weights,
            target,
            ids=token_ids(tokenizer),
            max_shard_bytes=max_shard_bytes,
            write=write,
        )


def stream_convert(
    source: AnyPath,
    target: AnyPath,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ModelConfig:
    """Copies a checkpoint into a new HF directory, one tensor in memory at a time.

    Args:
        source: HF directory, Hub id or GGUF file.
        target: directory to write; created if it does not exist.
        dtype: dtype of the written weights; None keeps each tensor's own (float32 for a GGUF file).
        max_shard_bytes: largest size of a safetensors file.

    Returns:
        The architecture.

    Raises:
        FileNotFoundError, ValueError: see `load_pretrained`.
        OSError: the disk is full or not writable; what was written is removed again.
    """
    place, out = resolve(source), epath.Path(target)
    config, weights = open_checkpoint(place)
    written = None if dtype in (None, "auto") else dtype_named(str(dtype))
    if os.path.realpath(out) == os.path.realpath(place):
        raise ValueError(f"{target}: is the source itself; name another directory")
    with export_into(out):
        ids = bring_tokenizer(place, weights, out)
        export(config, weights, out, dtype=written, ids=ids, max_shard_bytes=max_shard_bytes)
    return config


def bring_tokenizer(place: epath.Path, weights: Weights, out: epath.Path) -> dict[str, TokenId]:
    """Copies a source's tokenizer into a directory and returns the source's special token ids.

    Args:
        place: an HF directory or GGUF file.
        weights: the source's weights, from `open_checkpoint`.
        out: directory that exists.
    """
    if isinstance(weights, GgufFile):
        tokenizer = gguf_tokenizer(weights)
        save_tokenizer(tokenizer, out)
        save_end_ids(weights.config().end_ids, out)
        return dict(token_ids(tokenizer))
    copy_tokenizer(place, out)
    original = load_config_json(place)
    return {name: original.get(name) for name in _TOKEN_IDS}


def export(
    config: ModelConfig,
    weights: Weights,
    target: epath.Path,
    *,
    ids: Mapping[str, TokenId],
    dtype: np.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    write: bool = True,
) -> None:
    """Writes weights, index and config.json into a directory, in this order.

    Args:
        config: the architecture.
        weights: checked weights; one block is in memory at a time.
        target: directory from `export_into`.
        ids: special token ids for config.json.
        dtype: dtype of the written weights; None keeps each tensor's own.
        max_shard_bytes: largest size of a safetensors file.
        write: False to make the tensors without writing, as all processes but the first do.

    Raises:
        OSError: the disk is full or not writable.
    """
    specs = {
        name: (shape, dtype or weights.dtype(name)) for name, shape in hf_shapes(config).items()
    }
    index = write_safetensors(
        target,
        specs,
        lambda name: tensor_blocks(weights, name, specs[name][1]),
        max_shard_bytes=max_shard_bytes,
        write=write,
    )
    if write:
        if index is not None:
            write_small_json(target / INDEX_FILE, index)
        fields = config_json(config, dtype=str(specs[EMBEDDING][1]), token_ids=ids)
        write_small_json(target / CONFIG_FILE, fields)


@contextlib.contextmanager
def export_into(directory: epath.Path) -> Iterator[None]:
    """A directory for an export: made if need be, an earlier export's config.json and weights gone.

    What the body wrote into it goes too if the body fails; what else was there stays.
    """
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in entries(directory)}
    _remove_weights(directory)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in entries(directory):
                if path.name not in before:
                    path.rmtree() if path.is_dir() else path.unlink()
            _remove_weights(directory)
            if made:
                directory.rmtree()
        raise


def _remove_weights(directory: epath.Path) -> None:
    """Removes an earlier export: first config.json, without which the rest is no checkpoint."""
    for pattern in (CONFIG_FILE, INDEX_FILE, "model*.safetensors"):
        for path in matching(directory, pattern):
            path.unlink()


class ModelWeights:
    """The tensors of a model on its devices; every process gets each full tensor, one at a time."""

    def __init__(self, model: Decoder) -> None:
        self._params, self._tensors = model.params(), hf_tensors(model.config)
        self._shapes = hf_shapes(model.config)

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        """The parameter's dtype."""
        return np.dtype(self._params[self._tensors[name][0]].dtype)

    def read(self, name: str, index: Index = None) -> np.ndarray:
        """A tensor's values; with several processes all must ask for the same."""
        path, layer = self._tensors[name]
        param = self._params[path]
        if layer is None and index is not None and path.endswith("_VD"):
            return _on_host(param, index[0].start, index[0].stop - index[0].start)[:, *index[1:]]
        value = _on_host(param) if layer is None else _on_host(param, layer, 1)[0]
        tensor = to_hf(path, value)
        return tensor if index is None else tensor[index]


def _on_host(param: Array, start: int = 0, count: int | None = None) -> np.ndarray:
    """A parameter, or `count` entries of its first axis, as a numpy array."""
    replicated = None
    if isinstance(param.sharding, NamedSharding):
        replicated = NamedSharding(param.sharding.mesh, PartitionSpec())
    on_cpu = all(device.platform == "cpu" for device in param.sharding.device_set)
    if replicated is None and (count is None or on_cpu):
        whole = np.asarray(param)  # on the CPU a view
        return whole if count is None else whole[start : start + count]
    size = param.shape[0] if count is None else count
    return np.asarray(_entries(replicated)(param, start, size))


@functools.lru_cache(maxsize=64)
def _entries(sharding: Sharding | None) -> Callable[[Array, int, int], Array]:
    """`count` entries of an array's first axis from `start`, compiled once for a shape."""

    def entries(param: Array, start: Array, count: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(param, start, count)

    return jax.jit(entries, static_argnums=2, out_shardings=sharding)
