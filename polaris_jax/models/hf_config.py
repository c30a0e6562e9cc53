"""Hugging Face's config.json to `ModelConfig` and back, in the spelling of transformers 4 and 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from polaris_jax.config_sections import ConfigError
from polaris_jax.models.config import ModelConfig, RopeScaling
from polaris_jax.models.layers import yarn_attention_factor

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
_ROPE_FIELDS = (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
)
_ROPE_THETA = 10_000.0  # what an absent rope_theta means


def config_from_hf(fields: Mapping[str, Any], *, source: str = "config.json") -> ModelConfig:
    """The `ModelConfig` that a config.json describes.

    Args:
        fields: the parsed file; `rope_theta` + `rope_scaling` (transformers 4) and
            `rope_parameters` (5) are both read.
        source: named in errors.

    Raises:
        ConfigError: an architecture, an option or a rotary scaling that is not supported.
    """
    model_type = fields.get("model_type")
    if model_type not in ARCHITECTURES:
        raise ConfigError(
            f"{source}: model_type={model_type!r}: expected one of {', '.join(ARCHITECTURES)}"
        )
    for name, wanted in (("hidden_act", "silu"), ("mlp_bias", False)):
        if fields.get(name, wanted) != wanted:
            raise ConfigError(f"{source}: {name}={fields[name]!r}: only {wanted!r} is supported")
    if fields.get("use_sliding_window") or "sliding_attention" in fields.get("layer_types", ()):
        raise ConfigError(f"{source}: use_sliding_window=true: only full attention is supported")
    bias = bool(fields.get("attention_bias", model_type == "qwen2"))
    if model_type != "qwen2" and bias:
        raise ConfigError(
            f"{source}: attention_bias=true with model_type={model_type}: only Qwen2's bias on "
            "q, k, v is supported"
        )
    missing = [n for n in ("hidden_size", "num_attention_heads", "vocab_size") if n not in fields]
    if missing:
        raise ConfigError(f"{source}: {missing[0]} is missing")
    heads = int(fields["num_attention_heads"])
    rope_theta, scaling = rope_from_hf(fields, source=source)
    return ModelConfig(
        vocab_size=int(fields["vocab_size"]),
        hidden_size=int(fields["hidden_size"]),
        intermediate_size=int(fields["intermediate_size"]),
        num_layers=int(fields["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(fields.get("num_key_value_heads") or heads),
        head_dim=int(fields.get("head_dim") or int(fields["hidden_size"]) // heads),
        rope_theta=rope_theta,
        rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=int(fields.get("max_position_embeddings", 32_768)),
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        qkv_bias=bias,
        qk_norm=model_type == "qwen3",
        rope_scaling=scaling,
        model_type=str(model_type),
    )


def rope_from_hf(
    fields: Mapping[str, Any], *, source: str = "config.json"
) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling or None) in either spelling."""
    parameters = fields.get("rope_parameters") or {}
    theta = fields.get("rope_theta", parameters.get("rope_theta", _ROPE_THETA))
    given = fields.get("rope_scaling") or parameters
    length = fields.get("max_position_embeddings")
    return float(theta), rope_scaling_from_hf(given, max_positions=length, source=source)


def rope_scaling_from_hf(
    given: Mapping[str, Any] | None, *, max_positions: int | None = None, source: str = ""
) -> RopeScaling | None:
    """The scaling that Hugging Face's dict describes; None where it changes nothing.

    An absent `attention_factor` stays absent: it means 0.1 ln(factor) + 1. An absent
    `original_max_position_embeddings` means `max_positions`, as in transformers.

    Raises:
        ConfigError: a scheme that is not supported.
    """
    if not given:
        return None
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return None
    known = {name: given[name] for name in _ROPE_FIELDS if given.get(name) is not None}
    if "mscale" in given or "mscale_all_dim" in given:
        raise ConfigError(f"{source}: rope_scaling.mscale: DeepSeek's variant is not supported")
    if kind in ("yarn", "llama3"):
        known.setdefault("original_max_position_embeddings", max_positions)
    try:
        return RopeScaling(rope_type=kind, **known)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}".lstrip(": ")) from None


def config_to_hf(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """A config.json that transformers 4 and 5, and vLLM, load to the same model."""
    fields: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_to_hf(config.rope_scaling),
        "rope_parameters": {
            "rope_type": "default",
            **(_rope_to_hf(config.rope_scaling) or {}),
            "rope_theta": config.rope_theta,
        },
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "dtype": dtype,
        "use_cache": True,
    }
    if config.model_type == "llama":
        fields |= {"attention_bias": False, "mlp_bias": False}
    else:
        fields |= {"use_sliding_window": False}
    if config.model_type == "qwen3":
        fields |= {"attention_bias": False}
    return fields


def _rope_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None or scaling.rope_type == "default":
        return None
    fields: dict[str, Any] = {"rope_type": scaling.rope_type, "factor": scaling.factor}
    if scaling.original_max_position_embeddings is not None:
        fields["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    if scaling.rope_type == "yarn":
        factor = yarn_attention_factor(scaling)
        implied = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
        fields |= {
            "attention_factor": factor,
            "attn_factor": factor / implied,  # vLLM multiplies it by the implied factor
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
    if scaling.rope_type == "llama3":
        fields |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    return fields
