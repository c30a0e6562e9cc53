"""Checkpoints of Hugging Face's layout, in and out, tensor by tensor.

Reading fills one stacked parameter at a time, or, given shardings, only the slices that this
process's devices hold. Writing takes one tensor at a time off the devices.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from polaris_jax.models.config import ModelConfig, RopeScaling
from polaris_jax.models.gguf import GgufFile, gguf_tokenizer
from polaris_jax.models.hf_config import (
    CONFIG_FILE,
    config_json,
    load_config_json,
    parse_config,
    parse_rope_scaling,
)
from polaris_jax.models.hf_names import (
    EMBEDDING,
    HEAD,
    from_hf,
    hf_name,
    hf_shapes,
    hf_tensors,
    to_hf,
)
from polaris_jax.models.qwen import Qwen, param_shapes
from polaris_jax.models.safetensors_files import (
    DTYPES,
    MAX_SHARD_BYTES,
    SafetensorsReader,
    write_safetensors,
)
from polaris_jax.models.sources import GGUF_SUFFIX, resolve
from polaris_jax.models.tokenizer import copy_tokenizer, has_tokenizer, load_tokenizer, token_ids

# Left in checkpoints by old versions; the model computes them.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
_GENERATION_FILE = "generation_config.json"
RopeSpec = RopeScaling | Mapping[str, Any]


class Weights(Protocol):
    """Tensors of a checkpoint by their Hugging Face names."""

    def names(self) -> set[str]:
        """Names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """A tensor's dtype as `read` gives it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """A tensor's values."""
        ...


def load_config(path: str | Path) -> ModelConfig:
    """The architecture of an HF directory, Hub id or GGUF file, without its weights.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: an architecture that is not supported.
    """
    place = resolve(path)
    if place.suffix == GGUF_SUFFIX:
        return GgufFile(place).config()
    return parse_config(load_config_json(place), where=str(place / CONFIG_FILE))


def load_pretrained(
    path: str | Path,
    dtype: str = "float32",
    rope_scaling: RopeSpec | None = None,
    *,
    shardings: Mapping[str, Sharding] | None = None,
) -> tuple[Qwen, Any]:
    """A model and its tokenizer from an HF directory, a Hub id or a GGUF file.

    Args:
        path: a directory with config.json and safetensors, a .gguf file, or a Hub id.
        dtype: of the parameters, "float32", "bfloat16" or "float16"; "auto" keeps the file's.
        rope_scaling: as in HF's config.json, in place of the checkpoint's own; None keeps that,
            {"rope_type": "default"} takes it away.
        shardings: where each parameter goes, keyed like `param_shapes`; None: the default device.

    Returns:
        (model, tokenizer); the tokenizer is None where the directory has none (`load_tokenizer`
        raises there).

    Raises:
        FileNotFoundError: nothing there, or a file of it is missing.
        ValueError: an unsupported architecture, a missing, unexpected or misshapen tensor, or a
            bad argument; the text names it.
    """
    place = resolve(path)
    config, weights = open_checkpoint(place)
    if rope_scaling is not None:
        if not isinstance(rope_scaling, RopeScaling):
            rope_scaling = parse_rope_scaling(
                rope_scaling, max_position_embeddings=config.max_position_embeddings
            )
        config = dataclasses.replace(config, rope_scaling=rope_scaling)
    target = weights.dtype(EMBEDDING) if dtype == "auto" else _dtype(dtype)
    params = {
        name: _load_param(name, shape, config, weights, target, (shardings or {}).get(name))
        for name, shape in param_shapes(config).items()
    }
    if isinstance(weights, GgufFile):
        tokenizer = gguf_tokenizer(weights)
    else:
        tokenizer = load_tokenizer(place) if has_tokenizer(place) else None
    return Qwen.from_params(config, params), tokenizer


def open_checkpoint(place: Path) -> tuple[ModelConfig, Weights]:
    """Architecture and tensors of a directory or GGUF file, names and shapes checked.

    Raises:
        FileNotFoundError, ValueError: as `load_pretrained`.
    """
    if place.suffix == GGUF_SUFFIX:
        weights: Weights = GgufFile(place)
        config = weights.config()
    else:
        config = parse_config(load_config_json(place), where=str(place / CONFIG_FILE))
        weights = SafetensorsReader(place)
    _check_tensors(config, weights, str(place))
    return config, weights


def _check_tensors(config: ModelConfig, weights: Weights, where: str) -> None:
    shapes, names = hf_shapes(config), weights.names()
    if missing := [name for name in shapes if name not in names]:
        hint = "the checkpoint is not whole, or its config.json belongs to another"
        if missing == [HEAD]:
            hint = "if it is the embedding, set tie_word_embeddings to true in config.json"
        raise ValueError(f"{where}: tensor {_listed(missing)} is missing; {hint}")
    extra = sorted(n for n in names - shapes.keys() if not n.endswith(_IGNORED_SUFFIXES))
    if config.tie_embeddings and HEAD in extra:
        # Many tied checkpoints store the head once more.
        extra.remove(HEAD)
        if not np.array_equal(weights.read(HEAD), weights.read(EMBEDDING)):
            raise ValueError(
                f"{where}: {HEAD} differs from {EMBEDDING} though config.json ties them; set "
                "tie_word_embeddings to false"
            )
    if extra:
        raise ValueError(
            f"{where}: tensor {_listed(extra)} is unexpected for model_type={config.model_type}; "
            "its config.json does not describe these weights"
        )
    for name, shape in shapes.items():
        if weights.shape(name) != shape:
            raise ValueError(
                f"{where}: {name} has shape {weights.shape(name)}, but config.json says {shape}"
            )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" (and {len(names) - 5} more)" if len(names) > 5 else "")


def _dtype(name: str) -> np.dtype:
    known = {str(dtype): dtype for dtype in DTYPES.values() if dtype.itemsize < 8}
    if str(name) not in known:
        raise ValueError(f"dtype={name!r}: expected one of {', '.join(known)} or auto")
    return known[str(name)]


def _load_param(
    path: str,
    shape: tuple[int, ...],
    config: ModelConfig,
    weights: Weights,
    dtype: np.dtype,
    sharding: Sharding | None,
) -> Array:
    def read(index: Any) -> np.ndarray:
        """The part of the stacked parameter that one device holds; `index` is a tuple of slices."""
        if not path.startswith("layers/"):
            return from_hf(path, weights.read(hf_name(path)), config)[index].astype(dtype)
        layers = range(shape[0])[index[0]]
        part = None
        for i, layer in enumerate(layers):
            value = from_hf(path, weights.read(hf_name(path, layer)), config)[index[1:]]
            if part is None:
                part = np.empty((len(layers), *value.shape), dtype)
            part[i] = value
        return np.empty((0,), dtype) if part is None else part

    if sharding is None:
        return jnp.asarray(read(tuple(slice(None) for _ in shape)))
    return jax.make_array_from_callback(shape, sharding, read)


def save_pretrained(
    model: Qwen,
    path: str | Path,
    tokenizer: Any = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a directory that `load_pretrained` and transformers 4 and 5 load.

    Weights keep their dtype, so that loading them in it gives the same bits. With several
    processes all must call; process 0 writes.

    Args:
        model: its parameters' dtype is written.
        path: made when it is not there; files of the same names are replaced.
        tokenizer: saved beside the weights, and its special ids go into config.json.
        max_shard_bytes: largest safetensors file.
    """
    params, target = model.params(), Path(path)
    dtype = np.dtype(params["embed_VD"].dtype)
    write = jax.process_index() == 0

    def tensors() -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        for name, (path, layer) in hf_tensors(model.config).items():
            yield name, lambda p=path, i=layer: to_hf(p, _on_host(params[p], i))

    if write:
        target.mkdir(parents=True, exist_ok=True)
        _remove_weights(target)
    write_safetensors(
        target,
        hf_shapes(model.config),
        dtype,
        tensors(),
        max_shard_bytes=max_shard_bytes,
        write=write,
    )
    if write:
        if tokenizer is not None:
            tokenizer.save_pretrained(str(target))
        fields = config_json(model.config, dtype=str(dtype), token_ids=token_ids(tokenizer))
        _write_json(target / CONFIG_FILE, fields)


def stream_convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ModelConfig:
    """Copies a checkpoint into a new HF directory, one tensor in memory at a time.

    Args:
        source: HF directory, Hub id or GGUF file.
        target: made when it is not there.
        dtype: of the written weights; None keeps the source's (float32 for a GGUF file).
        max_shard_bytes: largest safetensors file.

    Returns:
        The architecture.

    Raises:
        FileNotFoundError, ValueError: as `load_pretrained`.
    """
    place, out = resolve(source), Path(target)
    config, weights = open_checkpoint(place)
    written = weights.dtype(EMBEDDING) if dtype in (None, "auto") else _dtype(str(dtype))
    if out.resolve() == place.resolve():
        raise ValueError(f"{target}: is the source itself; name another directory")
    out.mkdir(parents=True, exist_ok=True)
    _remove_weights(out)
    shapes = hf_shapes(config)
    tensors = (
        (name, lambda n=name: weights.read(n).astype(written, copy=False)) for name in shapes
    )
    write_safetensors(out, shapes, written, tensors, max_shard_bytes=max_shard_bytes)
    ids: Mapping[str, int | None]
    if isinstance(weights, GgufFile):
        tokenizer = gguf_tokenizer(weights)
        tokenizer.save_pretrained(str(out))
        ids = token_ids(tokenizer)
    else:
        copy_tokenizer(place, out)
        original = load_config_json(place)
        ids = {n: original.get(n) for n in ("bos_token_id", "eos_token_id", "pad_token_id")}
        if (place / _GENERATION_FILE).is_file():
            shutil.copyfile(place / _GENERATION_FILE, out / _GENERATION_FILE)
    _write_json(out / CONFIG_FILE, config_json(config, dtype=str(written), token_ids=ids))
    return config


def _remove_weights(directory: Path) -> None:
    """Removes what an earlier export left, whose shards could pass for this one's."""
    for pattern in ("model*.safetensors", "model.safetensors.index.json", "*.safetensors.partial"):
        for path in directory.glob(pattern):
            path.unlink()


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def _on_host(param: Array, layer: int | None) -> np.ndarray:
    """A parameter, or one layer of it, as a numpy array; whole on every process."""
    replicated = None
    if isinstance(param.sharding, NamedSharding):
        replicated = NamedSharding(param.sharding.mesh, PartitionSpec())
    if layer is not None:
        param = jax.jit(_one_layer, out_shardings=replicated)(param, layer)
    elif replicated is not None:
        param = jax.jit(lambda x: x, out_shardings=replicated)(param)
    return np.asarray(param)


def _one_layer(stacked: Array, layer: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)
