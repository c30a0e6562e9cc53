"""Which Hugging Face tensor is which parameter of ours, and how their axes correspond.

Hugging Face keeps a matrix as [out, in], heads and head width merged, one tensor a layer; ours are
[in, out] with heads apart, stacked over layers. The letters are those of the dimension key.
"""

from __future__ import annotations

import math

import numpy as np

from polaris_jax.models.config import ModelConfig
from polaris_jax.models.decoder import param_shapes

# Parameter -> (name in the file, axes in the file). "NH-D" is [N*H, D].
_TOP = {
    "embed_VD": ("model.embed_tokens.weight", "V-D"),
    "norm_D": ("model.norm.weight", "D"),
    "head_VD": ("lm_head.weight", "V-D"),
}
_LAYER = {
    "attn_norm_D": ("input_layernorm.weight", "D"),
    "q_DNH": ("self_attn.q_proj.weight", "NH-D"),
    "k_DKH": ("self_attn.k_proj.weight", "KH-D"),
    "v_DKH": ("self_attn.v_proj.weight", "KH-D"),
    "o_NHD": ("self_attn.o_proj.weight", "D-NH"),
    "q_bias_NH": ("self_attn.q_proj.bias", "NH"),
    "k_bias_KH": ("self_attn.k_proj.bias", "KH"),
    "v_bias_KH": ("self_attn.v_proj.bias", "KH"),
    "q_norm_H": ("self_attn.q_norm.weight", "H"),
    "k_norm_H": ("self_attn.k_norm.weight", "H"),
    "mlp_norm_D": ("post_attention_layernorm.weight", "D"),
    "gate_DF": ("mlp.gate_proj.weight", "F-D"),
    "up_DF": ("mlp.up_proj.weight", "F-D"),
    "down_FD": ("mlp.down_proj.weight", "D-F"),
}
HEAD = _TOP["head_VD"][0]
EMBEDDING = _TOP["embed_VD"][0]


def hf_name(path: str, layer: int | None = None) -> str:
    """The tensor's name of a parameter path (`layers/q_DNH`), of one layer where it has layers."""
    name = path.removeprefix("layers/")
    return _TOP[name][0] if layer is None else f"model.layers.{layer}.{_LAYER[name][0]}"


def hf_tensors(config: ModelConfig) -> dict[str, tuple[str, int | None]]:
    """Every tensor of a checkpoint in file order: name -> (our parameter path, layer or None)."""
    paths = param_shapes(config)
    tensors: dict[str, tuple[str, int | None]] = {EMBEDDING: ("embed_VD", None)}
    for layer in range(config.num_layers):
        for path in paths:
            if path.startswith("layers/"):
                tensors[hf_name(path, layer)] = (path, layer)
    for path in ("norm_D", "head_VD"):
        if path in paths:
            tensors[hf_name(path)] = (path, None)
    return tensors


def hf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint, in file order."""
    return {
        name: tuple(
            math.prod(_sizes(config)[letter] for letter in merged)
            for merged in _axes(path).split("-")
        )
        for name, (path, _) in hf_tensors(config).items()
    }


def from_hf(path: str, tensor: np.ndarray, config: ModelConfig) -> np.ndarray:
    """One layer's tensor, or full units of its axes, in our axes: [N*H, D] -> q [D, N, H]; a view.

    If the file merges two axes (N*H), a part of the tensor holds complete inner axes (H).
    """
    sizes, ours = _sizes(config), path.rsplit("_", 1)[-1]
    apart: list[int] = []
    for merged, size in zip(_axes(path).split("-"), tensor.shape, strict=True):
        inner = [sizes[letter] for letter in merged[1:]]
        apart += [size // math.prod(inner), *inner]
    theirs = _axes(path).replace("-", "")
    return tensor.reshape(apart).transpose([theirs.index(letter) for letter in ours])


def hf_part(
    path: str, index: tuple[slice, ...], config: ModelConfig
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Which part of the file's tensor a part of one layer's parameter needs.

    Args:
        path: the parameter.
        index: a slice for each of its axes (without the layers axis).
        config: the architecture.

    Returns:
        (index into the file's tensor, index into `from_hf` of that part). The second index selects
        everything unless inner axes (H of N*H) are split: complete inner axes are read then.
    """
    sizes, ours = _sizes(config), path.rsplit("_", 1)[-1]
    wanted = {
        letter: slice(*part.indices(sizes[letter])[:2])
        for letter, part in zip(ours, index, strict=True)
    }
    theirs: list[slice] = []
    rest = dict(wanted)
    for merged in _axes(path).split("-"):
        inner = math.prod(sizes[letter] for letter in merged[1:])
        outer = wanted[merged[0]]
        theirs.append(slice(outer.start * inner, outer.stop * inner))
        rest[merged[0]] = slice(None)
    return tuple(theirs), tuple(rest[letter] for letter in ours)


def to_hf(path: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `from_hf`: one layer's parameter as Hugging Face's tensor."""
    axes, ours = _axes(path), path.rsplit("_", 1)[-1]
    moved = value.transpose([ours.index(letter) for letter in axes.replace("-", "")])
    sizes = dict(zip(ours, value.shape, strict=True))
    return moved.reshape([math.prod(sizes[x] for x in merged) for merged in axes.split("-")])


def _axes(path: str) -> str:
    name = path.removeprefix("layers/")
    return (_TOP[name] if name in _TOP else _LAYER[name])[1]


def _sizes(config: ModelConfig) -> dict[str, int]:
    return {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
    }
