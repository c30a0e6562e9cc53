"""Families of dense decoders (Qwen2, Llama, ...): a record for each, and one table of parameters.

`FAMILIES` has what differs between families, `PARAMS` has every parameter. The readers and writers
of checkpoints, the decoder, presets, sharding and the sampler's fused weights use these tables; no
other code compares a family's name. All families share the rest: RMSNorm, rotary positions over
pairs (i, i + H/2), grouped-query attention over every earlier token, a gated MLP. A checkpoint with
sliding windows, experts or partial rotary positions is refused, whatever its family.
docs/howto/model_family.md says how to add a family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from polaris_jax.models.config import ModelConfig

Part = Literal["", "norm before", "norm after", "qkv bias", "head norm", "projection norm", "head"]


class Param(NamedTuple):
    """One parameter of `PARAMS`.

    The letters at the end of a parameter's name are its dimensions: q_DNH has shape [D, N, H].

    Attributes:
        axes: logical axes, one for each dimension; `sharding` maps them to mesh axes.
        hf: Hugging Face's tensor name. For a layer's parameter the prefix "model.layers.0." is left
            out.
        hf_axes: dimensions of Hugging Face's tensor; "NH-D" means [N*H, D].
        gguf: GGUF's tensor name. For a layer's parameter the prefix "blk.0." is left out.
        part: the optional part of a model that the parameter belongs to (see `model_params`); empty
            if every model has the parameter.
    """

    axes: tuple[str, ...]
    hf: str
    hf_axes: str
    gguf: str
    part: Part = ""


_NORM = ("norm",)
_HEADS, _KV_HEADS = ("heads", "head_dim"), ("kv_heads", "head_dim")

# The parameters of all families, by path. In a model, the parameters of all layers are stacked on a
# leading L axis, so a path has no layer number. The table leaves the L axis out.
PARAMS: Mapping[str, Param] = MappingProxyType(
    {
        "embed_VD": Param(
            ("vocab", "table"), "model.embed_tokens.weight", "V-D", "token_embd.weight"
        ),
        "norm_D": Param(_NORM, "model.norm.weight", "D", "output_norm.weight"),
        "head_VD": Param(("vocab", "table"), "lm_head.weight", "V-D", "output.weight", "head"),
        "layers/attn_norm_D": Param(
            _NORM, "input_layernorm.weight", "D", "attn_norm.weight", "norm before"
        ),
        "layers/q_DNH": Param(
            ("embed", *_HEADS), "self_attn.q_proj.weight", "NH-D", "attn_q.weight"
        ),
        "layers/k_DKH": Param(
            ("embed", *_KV_HEADS), "self_attn.k_proj.weight", "KH-D", "attn_k.weight"
        ),
        "layers/v_DKH": Param(
            ("embed", *_KV_HEADS), "self_attn.v_proj.weight", "KH-D", "attn_v.weight"
        ),
        "layers/o_NHD": Param(
            (*_HEADS, "embed"), "self_attn.o_proj.weight", "D-NH", "attn_output.weight"
        ),
        "layers/q_bias_NH": Param(_HEADS, "self_attn.q_proj.bias", "NH", "attn_q.bias", "qkv bias"),
        "layers/k_bias_KH": Param(
            _KV_HEADS, "self_attn.k_proj.bias", "KH", "attn_k.bias", "qkv bias"
        ),
        "layers/v_bias_KH": Param(
            _KV_HEADS, "self_attn.v_proj.bias", "KH", "attn_v.bias", "qkv bias"
        ),
        "layers/q_norm_H": Param(
            _NORM, "self_attn.q_norm.weight", "H", "attn_q_norm.weight", "head norm"
        ),
        "layers/k_norm_H": Param(
            _NORM, "self_attn.k_norm.weight", "H", "attn_k_norm.weight", "head norm"
        ),
        "layers/q_norm_NH": Param(
            _HEADS, "self_attn.q_norm.weight", "NH", "attn_q_norm.weight", "projection norm"
        ),
        "layers/k_norm_KH": Param(
            _KV_HEADS, "self_attn.k_norm.weight", "KH", "attn_k_norm.weight", "projection norm"
        ),
        "layers/attn_out_norm_D": Param(
            _NORM,
            "post_attention_layernorm.weight",
            "D",
            "post_attention_norm.weight",
            "norm after",
        ),
        "layers/mlp_norm_D": Param(
            _NORM, "post_attention_layernorm.weight", "D", "ffn_norm.weight", "norm before"
        ),
        "layers/gate_DF": Param(("embed", "mlp"), "mlp.gate_proj.weight", "F-D", "ffn_gate.weight"),
        "layers/up_DF": Param(("embed", "mlp"), "mlp.up_proj.weight", "F-D", "ffn_up.weight"),
        "layers/down_FD": Param(("mlp", "embed"), "mlp.down_proj.weight", "D-F", "ffn_down.weight"),
        "layers/mlp_out_norm_D": Param(
            _NORM, "post_feedforward_layernorm.weight", "D", "post_ffw_norm.weight", "norm after"
        ),
    }
)


@dataclasses.dataclass(frozen=True)
class Family:
    """What differs between one family of models and another.

    Attributes:
        architecture: name of the class in transformers, as in config.json's `architectures`.
        norms: where a block's RMSNorm stands: "before" attention and MLP, on their input; "after"
            them, on their output before it is added to the residual stream; or "both".
        qkv_bias: True: the Q, K and V projections have biases.
        qk_norm: RMSNorm of queries and keys, before rotary positions: over each "head", over the
            complete "projection" (all heads of a token together), or "none".
        activation: activation of the MLP's gate, by config.json's name; see `layers.GATES`.
        scale_embeddings: True: embeddings are multiplied by sqrt(D).
        renamed: Hugging Face's tensor names, by path, of parameters that this family names
            differently from `PARAMS`.
        gguf_rotary: the pairs of rows that llama.cpp rotates in a head: "halves" (i, i + H/2), or
            "neighbours" (2i, 2i + 1). For "neighbours", llama.cpp's converter permutes the rows of
            the Q and K projections.
        config_fields: further fields for the config.json of an export. They state that features
            which transformers' class supports (biases, sliding windows) are off.
        rms_norm_eps: value if config.json has none; transformers' default.
        head_dim: value if config.json has none; transformers' default. None: D / N.
        all_kv_heads: True: if config.json has no num_key_value_heads, K is N.
    """

    architecture: str
    norms: Literal["before", "after", "both"] = "before"
    qkv_bias: bool = False
    qk_norm: Literal["none", "head", "projection"] = "none"
    activation: str = "silu"
    scale_embeddings: bool = False
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gguf_rotary: Literal["halves", "neighbours"] = "halves"
    config_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rms_norm_eps: float = 1e-6
    head_dim: int | None = None
    all_kv_heads: bool = False

    def stands(self, where: str) -> bool:
        """True if the family has norms `where` ("before" or "after") attention and MLP."""
        return self.norms in (where, "both")

    def hf_name(self, path: str, layer: int | str | None = None) -> str:
        """Hugging Face's tensor name of a parameter.

        Args:
            path: path of the parameter in `PARAMS`.
            layer: number of the layer; None for a parameter outside of the layers.
        """
        name = self.renamed.get(path, PARAMS[path].hf)
        return name if layer is None else f"model.layers.{layer}.{name}"


_NO_WINDOW = {"use_sliding_window": False, "sliding_window": None}

# By config.json's `model_type`. GGUF's `general.architecture` has the same names.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, config_fields=_NO_WINDOW),
        "qwen3": Family(
            "Qwen3ForCausalLM",
            qk_norm="head",
            head_dim=128,
            config_fields=_NO_WINDOW | {"attention_bias": False},
        ),
        "llama": Family(
            "LlamaForCausalLM",
            all_kv_heads=True,
            gguf_rotary="neighbours",
            config_fields={"attention_bias": False, "mlp_bias": False},
        ),
        "olmo2": Family(
            "Olmo2ForCausalLM",
            norms="after",
            qk_norm="projection",
            rms_norm_eps=1e-5,
            all_kv_heads=True,
            config_fields={"attention_bias": False},
        ),
    }
)


def family_named(name: Any, *, field: str = "model_type") -> Family:
    """The family with a given name.

    Args:
        name: config.json's `model_type`, or GGUF's `general.architecture`.
        field: name of the field that `name` was read from, for the error.

    Raises:
        ValueError: no family has this name.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"{field}={name!r}: this architecture is not known; expected one of "
            f"{', '.join(FAMILIES)} (dense, text only)"
        )
    return FAMILIES[name]


def model_params(config: ModelConfig) -> dict[str, Param]:
    """The entries of `PARAMS` that a model of this architecture has, by path."""
    family = config.family
    over_projection = family.qk_norm == "projection"
    has: dict[Part, bool] = {
        "": True,
        "norm before": family.stands("before"),
        "norm after": family.stands("after"),
        "qkv bias": bool(config.qkv_bias),
        "head norm": bool(config.qk_norm) and not over_projection,
        "projection norm": bool(config.qk_norm) and over_projection,
        "head": not config.tie_embeddings,
    }
    return {path: param for path, param in PARAMS.items() if has[param.part]}


def dimensions(config: ModelConfig) -> dict[str, int]:
    """Size of each dimension, by its letter in parameter names."""
    return {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
    }


def param_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its path, e.g. `layers/q_DNH` -> (L, D, N, H)."""
    size = dimensions(config)
    shapes = {}
    for path in model_params(config):
        shape = tuple(size[letter] for letter in path.rsplit("_", 1)[-1])
        shapes[path] = (config.num_layers, *shape) if path.startswith("layers/") else shape
    return shapes


def param_axes(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Logical axes of every parameter by its path; `sharding` maps them to mesh axes."""
    return {
        path: ("layers", *param.axes) if path.startswith("layers/") else param.axes
        for path, param in model_params(config).items()
    }
