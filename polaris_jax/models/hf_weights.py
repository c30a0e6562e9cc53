"""Hugging Face directories: safetensors (one file or sharded with an index), config, tokenizer.

Tensors are read and written one by one; a transpose and a reshape apart, their bits are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from polaris_jax.config_sections import ConfigError
from polaris_jax.models.config import ModelConfig
from polaris_jax.models.hf_config import config_from_hf, config_to_hf, rope_scaling_from_hf
from polaris_jax.models.qwen import Qwen, param_shapes
from polaris_jax.models.tokenizer import load_tokenizer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 4 << 30
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}

# Parameter name -> Hugging Face's name inside a layer.
_LAYER_NAMES = {
    "attn_norm_D": "input_layernorm.weight",
    "q_DNH": "self_attn.q_proj.weight",
    "k_DKH": "self_attn.k_proj.weight",
    "v_DKH": "self_attn.v_proj.weight",
    "o_NHD": "self_attn.o_proj.weight",
    "q_bias_NH": "self_attn.q_proj.bias",
    "k_bias_KH": "self_attn.k_proj.bias",
    "v_bias_KH": "self_attn.v_proj.bias",
    "q_norm_H": "self_attn.q_norm.weight",
    "k_norm_H": "self_attn.k_norm.weight",
    "mlp_norm_D": "post_attention_layernorm.weight",
    "gate_DF": "mlp.gate_proj.weight",
    "up_DF": "mlp.up_proj.weight",
    "down_FD": "mlp.down_proj.weight",
}
_TOP_NAMES = {
    "embed_VD": "model.embed_tokens.weight",
    "norm_D": "model.norm.weight",
    "head_VD": "lm_head.weight",
}
# Tensors that some checkpoints carry and no model needs.
_IGNORED = ("rotary_emb.inv_freq",)


def load_pretrained(
    path: str | Path,
    dtype: str = "float32",
    rope_scaling: dict[str, Any] | None = None,
) -> tuple[Qwen, Any]:
    """Model and tokenizer of a Hugging Face directory or Hub id.

    Args:
        path: a directory with config.json, safetensors and tokenizer files, or a Hub id.
        dtype: of the parameters.
        rope_scaling: replaces the config's, in Hugging Face's spelling; None keeps it.

    Raises:
        ConfigError: what is missing, unexpected, misshapen or not supported, by name.
    """
    directory = resolve(path)
    config = load_config(directory)
    if rope_scaling is not None:
        scaling = rope_scaling_from_hf(
            rope_scaling, max_positions=config.max_position_embeddings, source="rope_scaling"
        )
        config = _replace_scaling(config, scaling)
    tokenizer = load_tokenizer(directory)
    tensors = TensorFiles(directory)
    params = read_params(config, tensors.names(), tensors.read, dtype=dtype, source=str(directory))
    return Qwen.from_params(config, params), tokenizer


def _replace_scaling(config: ModelConfig, scaling: Any) -> ModelConfig:
    import dataclasses

    return dataclasses.replace(config, rope_scaling=scaling)


def load_config(path: str | Path) -> ModelConfig:
    """The architecture of a Hugging Face directory or Hub id, without its weights."""
    file = resolve(path) / "config.json"
    if not file.exists():
        raise ConfigError(f"model.path={str(path)!r}: no config.json in it")
    try:
        fields = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON ({error})") from None
    return config_from_hf(fields, source=str(file))


def resolve(path: str | Path) -> Path:
    """A local directory for a path or a Hub id (downloaded on first use).

    Raises:
        ConfigError: it is neither, or the Hub cannot be reached.
    """
    local = Path(os.path.expanduser(str(path)))
    if local.is_dir():
        return local
    text = str(path)
    if text.count("/") > 1 or text.startswith((".", "/", "~")) or local.exists():
        raise ConfigError(f"model.path={text!r}: there is no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
    try:
        return Path(snapshot_download(text, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"model.path={text!r}: no such directory, and the Hub did not give it ({reason}); "
            "download it elsewhere and name the directory"
        ) from None


class TensorFiles:
    """The tensors of a directory's safetensors files, read one at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        index = directory / INDEX
        if index.exists():
            self._files = dict(json.loads(index.read_text())["weight_map"])
        else:
            self._files = {}
            for file in sorted(directory.glob("*.safetensors")):
                with safe_open(str(file), framework="numpy") as handle:
                    self._files |= dict.fromkeys(handle.keys(), file.name)
        if not self._files:
            raise ConfigError(f"model.path={str(directory)!r}: no safetensors file in it")

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own dtype."""
        file = self._directory / self._files[name]
        if not file.exists():
            raise ConfigError(f"{file}: named by {INDEX} but not there")
        with safe_open(str(file), framework="numpy") as handle:
            return handle.get_tensor(name)


def hf_name(path: str, layer: int | None) -> str:
    """Hugging Face's name of a parameter (of one layer)."""
    name = path.removeprefix("layers/")
    if layer is None:
        return _TOP_NAMES[name]
    return f"model.layers.{layer}.{_LAYER_NAMES[name]}"


def expected_names(config: ModelConfig) -> dict[str, list[str]]:
    """Parameter path -> Hugging Face's names of its tensors, one a layer for stacked ones."""
    return {
        path: [hf_name(path, i) for i in range(config.num_layers)]
        if path.startswith("layers/")
        else [hf_name(path, None)]
        for path in param_shapes(config)
    }


def read_params(
    config: ModelConfig,
    available: set[str],
    read: Callable[[str], np.ndarray],
    *,
    dtype: str,
    source: str,
) -> dict[str, jnp.ndarray]:
    """All parameters as stacked arrays, one tensor in host memory beside the stack at a time.

    Raises:
        ConfigError: missing, unexpected or misshapen tensors, by name.
    """
    names = expected_names(config)
    wanted = {name for group in names.values() for name in group}
    ignored = {n for n in available if n.endswith(_IGNORED)}
    if config.tie_embeddings:
        ignored.add(_TOP_NAMES["head_VD"])
    if missing := sorted(wanted - available):
        raise ConfigError(f"{source}: {_some(missing)} missing for {config.model_type}")
    if extra := sorted(available - wanted - ignored):
        raise ConfigError(f"{source}: {_some(extra)} unexpected for {config.model_type}")
    target = jnp.dtype(dtype)
    params = {}
    for path, shape in param_shapes(config).items():
        stacked = path.startswith("layers/")
        whole = np.empty(shape, target)
        for i, name in enumerate(names[path]):
            tensor = from_hf(path, read(name), shape[1:] if stacked else shape, name=name)
            if stacked:
                whole[i] = tensor.astype(target)
            else:
                whole[...] = tensor.astype(target)
        params[path] = jnp.asarray(whole)
    return params


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more tensors are" if len(names) > 4 else f"{shown}:"


def from_hf(path: str, tensor: np.ndarray, shape: tuple[int, ...], *, name: str) -> np.ndarray:
    """A tensor in our layout: projections are [in, out] here and [out, in] in Hugging Face."""
    swapped = tensor.T if _is_projection(path) else tensor
    if swapped.size != int(np.prod(shape)) or (swapped.ndim == len(shape) != 1) * (
        swapped.shape != shape
    ):
        raise ConfigError(f"{name}: shape {tensor.shape} does not fit {shape}")
    return swapped.reshape(shape)


def to_hf(path: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `from_hf`, for one layer's array."""
    if not _is_projection(path):
        return array.reshape(-1) if "bias" in path else array
    flat = {
        "o_NHD": lambda a: a.reshape(-1, a.shape[-1]),
        "gate_DF": lambda a: a,
        "up_DF": lambda a: a,
        "down_FD": lambda a: a,
    }.get(path.split("/")[-1], lambda a: a.reshape(a.shape[0], -1))(array)
    return np.ascontiguousarray(flat.T)


def _is_projection(path: str) -> bool:
    return path.split("/")[-1] in (
        "q_DNH",
        "k_DKH",
        "v_DKH",
        "o_NHD",
        "gate_DF",
        "up_DF",
        "down_FD",
    )


def save_pretrained(
    model: Qwen,
    path: str | Path,
    tokenizer: Any = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a directory that transformers, vLLM and `load_pretrained` load to the same logits.

    Args:
        model: parameters keep their dtype.
        path: made when missing.
        tokenizer: saved beside the weights when given.
        max_shard_bytes: size above which weights go into several files with an index.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = str(model.embed_VD[...].dtype)
    config = json.dumps(config_to_hf(model.config, dtype=dtype), indent=2)
    (directory / "config.json").write_text(config + "\n")
    write_tensors(directory, tensors_of(model), max_shard_bytes=max_shard_bytes)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(directory))


def tensors_of(model: Qwen) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face name, array) of every tensor, layer by layer."""
    params = model.params()
    for path in (p for p in params if not p.startswith("layers/")):
        yield hf_name(path, None), np.asarray(params[path])
    for i in range(model.config.num_layers):
        for path in (p for p in params if p.startswith("layers/")):
            yield hf_name(path, i), to_hf(path, np.asarray(params[path][i]))


def write_tensors(
    directory: Path,
    tensors: Iterator[tuple[str, np.ndarray]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Safetensors files of at most `max_shard_bytes` (or one tensor), and an index if several."""
    for old in (*directory.glob("model*.safetensors"), directory / INDEX):
        old.unlink(missing_ok=True)
    shards: list[list[str]] = []
    waiting: dict[str, np.ndarray] = {}
    size = total = 0

    def flush() -> None:
        nonlocal size
        if waiting:
            file = directory / f"part-{len(shards)}.safetensors.partial"
            save_file(waiting, str(file), metadata={"format": "pt"})
            shards.append(list(waiting))
            waiting.clear()
            size = 0

    for name, array in tensors:
        if waiting and size + array.nbytes > max_shard_bytes:
            flush()
        waiting[name] = np.ascontiguousarray(array)
        size += array.nbytes
        total += array.nbytes
    flush()
    files = [
        SINGLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    for i, file in enumerate(files):
        os.replace(directory / f"part-{i}.safetensors.partial", directory / file)
    if len(files) > 1:
        weight_map = {
            name: file for file, shard in zip(files, shards, strict=True) for name in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def stream_convert(source: str, target: str, *, dtype: str | None = None) -> None:
    """A Hugging Face directory rewritten with other dtype or sharding, tensor by tensor."""
    directory, out = resolve(source), Path(target)
    config = load_config(directory)
    tensors = TensorFiles(directory)
    first = tensors.read(_TOP_NAMES["embed_VD"]).dtype
    names = [name for group in expected_names(config).values() for name in group]
    kept = np.dtype(jnp.dtype(dtype)) if dtype else first
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out, ((name, tensors.read(name).astype(kept)) for name in names))
    (out / "config.json").write_text(
        json.dumps(config_to_hf(config, dtype=str(kept)), indent=2) + "\n"
    )
    load_tokenizer(directory).save_pretrained(str(out))
