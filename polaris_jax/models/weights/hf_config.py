"""Hugging Face's config.json, both ways, in the spellings of transformers 4 and 5.

Version 4 writes `rope_theta`, `rope_scaling` and `torch_dtype`; version 5 writes `rope_parameters`
and `dtype`. Both are read; `config_json` writes both, so that either version loads it.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any, TypeGuard, get_args

from etils import epath

from polaris_jax.models.config import MOST, ModelConfig, RopeScaling, RopeType, shortened
from polaris_jax.models.family import Family, family_named
from polaris_jax.system.files import matching
from polaris_jax.system.foreign import naming, read_json

CONFIG_FILE = "config.json"
# transformers' own default.
_DEFAULT_ROPE_THETA = 10_000.0
# Our names of the sizes that config.json calls otherwise.
_OUR_NAMES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
}
# config.json's other names of an activation.
_ACTIVATIONS = {"swish": "silu"}
# Entries of a rope dictionary that are read, or ignored here and in transformers (attn_factor).
_ROPE_FIELDS = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "attn_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "partial_rotary_factor",
    "finetuned",
}


def load_config_json(directory: epath.PathLike) -> dict[str, Any]:
    """The config.json of a checkpoint directory, as it stands.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object, or an adapter lies there.
    """
    path = epath.Path(directory) / CONFIG_FILE
    if (path.parent / "adapter_config.json").exists():
        raise ValueError(
            f"{path.parent}: has adapter_config.json, a LoRA adapter; merge it into its base "
            "(peft's merge_and_unload), or delete that file to take the other weights as they are"
        )
    if not path.exists():
        half = matching(path.parent, "*.safetensors")
        why = "; its export was cut short: make it again" if half else ""
        raise FileNotFoundError(
            2, f"no {CONFIG_FILE} here; a checkpoint directory needs one{why}", str(directory)
        )
    return read_json(path)


def parse_config(fields: Mapping[str, Any], *, where: str = CONFIG_FILE) -> ModelConfig:
    """The architecture that a config.json describes.

    Args:
        fields: its content.
        where: its name in errors.

    Raises:
        ValueError: an architecture or a feature that this model does not have, or a field that is
            missing, of another type or out of its range.
    """
    with naming(where):  # for the types that no check below names
        return _parse_config(fields, where)


def _parse_config(fields: Mapping[str, Any], where: str) -> ModelConfig:
    for name in ("rope_scaling", "rope_parameters"):
        if fields.get(name) is not None and not isinstance(fields[name], Mapping):
            raise ValueError(f"{where}: {name}={fields[name]!r}: expected an object or null")
        nested = (fields.get(name) or {}).get("full_attention", {})
        if not isinstance(nested, Mapping):
            raise ValueError(
                f"{where}: {name}.full_attention={nested!r}: expected an object; layers without "
                "rotary positions are not supported"
            )
    model_type = fields.get("model_type")
    family = family_named(model_type, field=f"{where}: model_type")
    named = fields.get("architectures") or [family.architecture]
    if not isinstance(named, list) or family.architecture not in named:
        raise ValueError(
            f"{where}: architectures={shortened(named)}: expected {family.architecture} for "
            f"model_type={model_type}"
        )
    _refuse_unsupported(fields, family, where)

    def need(name: str) -> int:
        value, most = fields.get(name), MOST[_OUR_NAMES.get(name, name)]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(
                f"{where}: {name}={shortened(value)}: needed, a whole number above 0 and at most "
                f"{most}; download the file again"
            )
        return value

    tied = fields.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise ValueError(
            f"{where}: tie_word_embeddings={shortened(tied)}: expected true or false; download the "
            "file again"
        )

    num_heads = need("num_attention_heads")
    # transformers takes null for as many as query heads, and absent so for some families alone.
    absent = None if family.all_kv_heads else 0
    as_many = fields.get("num_key_value_heads", absent) is None
    num_kv_heads = num_heads if as_many else need("num_key_value_heads")
    if fields.get("head_dim") is not None:
        head_dim = need("head_dim")
    elif family.head_dim is not None and "head_dim" not in fields:
        head_dim = family.head_dim
    else:
        head_dim = need("hidden_size") // num_heads
    max_positions = need("max_position_embeddings")
    return ModelConfig(
        vocab_size=need("vocab_size"),
        hidden_size=need("hidden_size"),
        intermediate_size=need("intermediate_size"),
        num_layers=need("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope_theta=positive(_rope_theta(fields), "rope_theta", where),
        rms_norm_eps=positive(
            fields.get("rms_norm_eps", family.rms_norm_eps), "rms_norm_eps", where
        ),
        max_position_embeddings=max_positions,
        tie_embeddings=tied,
        rope_scaling=parse_rope_scaling(
            _rope_fields(fields), max_position_embeddings=max_positions, where=where
        ),
        model_type=str(model_type),
    )


def _refuse_unsupported(fields: Mapping[str, Any], family: Family, where: str) -> None:
    activation = fields.get("hidden_act", family.activation)
    if _ACTIVATIONS.get(str(activation), activation) != family.activation:
        raise ValueError(
            f"{where}: hidden_act={activation!r}: only {family.activation} is supported"
        )
    if quantization := fields.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else "?"
        raise ValueError(
            f"{where}: quantization_config.quant_method={method!r}: quantised safetensors are not "
            "supported; take the unquantised checkpoint, or a GGUF file"
        )
    for name in ("attention_bias", "mlp_bias"):
        if not family.qkv_bias and fields.get(name):
            raise ValueError(
                f"{where}: {name}=true: not supported for model_type={fields['model_type']}"
            )
    layer_types = fields.get("layer_types")
    if layer_types is not None:
        if not isinstance(layer_types, list) or not all(isinstance(t, str) for t in layer_types):
            raise ValueError(
                f"{where}: layer_types={shortened(layer_types)}: expected a list of texts; "
                "download the file again"
            )
        sliding = sorted(set(layer_types) - {"full_attention"})
        if sliding:
            raise ValueError(
                f"{where}: layer_types has {', '.join(map(repr, sliding))}: only full_attention is "
                "supported"
            )
    elif fields.get("use_sliding_window") and fields.get("sliding_window", True) is not None:
        first, layers = fields.get("max_window_layers"), fields.get("num_hidden_layers")
        if not (isinstance(first, int) and isinstance(layers, int) and first >= layers):
            raise ValueError(
                f"{where}: use_sliding_window=true with max_window_layers={first!r} of {layers!r} "
                "layers: sliding-window attention is not supported; set it to false where the "
                "checkpoint works without it"
            )


def _rope_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dictionary that counts: like transformers 5, `rope_scaling` goes before."""
    rope = dict(fields.get("rope_scaling") or fields.get("rope_parameters") or {})
    by_layer_type = "full_attention" in rope
    if by_layer_type:  # transformers 5, where layer types have their own
        rope = dict(rope["full_attention"])
    if fields.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", fields["partial_rotary_factor"])
    # Some have the original length beside the dictionary: there it goes before the one within,
    # save where layer types have dictionaries of their own.
    original = fields.get("original_max_position_embeddings")
    if rope and original is not None:
        within = rope.get("original_max_position_embeddings") if by_layer_type else None
        rope["original_max_position_embeddings"] = original if within is None else within
    return rope


def _rope_theta(fields: Mapping[str, Any]) -> float:
    in_parameters = (fields.get("rope_parameters") or {}).get("rope_theta")
    own = _rope_fields(fields).get("rope_theta", in_parameters)
    return own if own is not None else fields.get("rope_theta", _DEFAULT_ROPE_THETA)


def parse_rope_scaling(
    rope: Mapping[str, Any] | None, *, max_position_embeddings: int, where: str = "rope_scaling"
) -> RopeScaling | None:
    """The rotary scaling that a `rope_scaling` or `rope_parameters` dictionary describes, or None.

    Args:
        rope: dictionary from config.json; `type` is the old spelling of `rope_type`.
        max_position_embeddings: used if the original length is missing, as in transformers.
        where: name in errors.

    Raises:
        ValueError: the scheme is not supported, or a field is missing or impossible.
    """
    if not rope:
        return None
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if "mrope" in (kind, rope.get("type")) or rope.get("mrope_section"):
        raise ValueError(
            f"{where}: rope type 'mrope' (multimodal positions): only text models are supported; "
            "take the text checkpoint"
        )
    if not isinstance(kind, str) or kind not in get_args(RopeType):
        reason = " (its frequencies depend on the batch's longest row)" if kind == "dynamic" else ""
        raise ValueError(
            f"{where}: rope_type={shortened(kind)}: not supported{reason}; expected one of "
            f"{', '.join(get_args(RopeType))}"
        )
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ValueError(
            f"{where}: partial_rotary_factor={shortened(rope['partial_rotary_factor'])}: only 1 is "
            "supported"
        )
    if unknown := sorted(rope.keys() - _ROPE_FIELDS):
        warnings.warn(f"{where}: {', '.join(unknown)}: unknown, left out of account", stacklevel=2)
    if kind == "default":
        return None
    original = rope.get("original_max_position_embeddings") or max_position_embeddings
    positive(original, "original_max_position_embeddings", where)
    factor = rope.get("factor")
    if factor is None and kind == "yarn":
        factor = max_position_embeddings / original
    if not _is_number(factor) or not factor >= 1:
        raise ValueError(
            f"{where}: factor={shortened(factor)}: {kind} needs a number of at least 1"
        )
    if kind == "linear":
        return RopeScaling("linear", float(factor))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(factor),
            int(original),
            low_freq_factor=_number(rope, "low_freq_factor", where),
            high_freq_factor=_number(rope, "high_freq_factor", where),
        )
    attention_factor = rope.get("attention_factor")
    if attention_factor is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        over, under = (positive(rope[name], name, where) for name in ("mscale", "mscale_all_dim"))
        attention_factor = _log_factor(factor, over) / _log_factor(factor, under)
    if attention_factor is not None:
        attention_factor = positive(attention_factor, "attention_factor", where)
    return RopeScaling(
        "yarn",
        float(factor),
        int(original),
        attention_factor=attention_factor,
        beta_fast=positive(rope.get("beta_fast") or 32, "beta_fast", where),
        beta_slow=positive(rope.get("beta_slow") or 1, "beta_slow", where),
        truncate=bool(rope.get("truncate", True)),
    )


def positive(value: Any, name: str, where: str) -> float:
    """A number above 0 of a config.json as a float.

    Raises:
        ValueError: it is none; the text names file and field.
    """
    if not _is_number(value) or not value > 0:
        raise ValueError(
            f"{where}: {name}={shortened(value)}: needed, a number above 0; take the value of the "
            "checkpoint's own config.json"
        )
    return float(value)


def _is_number(value: Any) -> TypeGuard[int | float]:
    """True for a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < sys.float_info.max if isinstance(value, int) else math.isfinite(value)


def _number(rope: Mapping[str, Any], name: str, where: str) -> float:
    if not _is_number(rope.get(name)):
        raise ValueError(f"{where}: {name}={shortened(rope.get(name))}: llama3 needs a number")
    return float(rope[name])


def _log_factor(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The `rope_scaling` entry that transformers 4 and 5 and vLLM all read alike; None for none.

    `attention_factor` is explicit. vLLM multiplies its `attn_factor` by 0.1 ln(factor) + 1, so that
    entry carries the quotient: 0.9610 for an attention factor of 1 at 1.5.
    """
    if scaling is None or scaling.rope_type == "default":
        return None
    rope: dict[str, Any] = {
        "rope_type": scaling.rope_type,
        "type": scaling.rope_type,
        "factor": float(scaling.factor),
    }
    if scaling.rope_type != "linear":
        rope["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    if scaling.rope_type == "llama3":
        rope["low_freq_factor"] = float(scaling.low_freq_factor)
        rope["high_freq_factor"] = float(scaling.high_freq_factor)
    if scaling.rope_type == "yarn":
        usual = _log_factor(scaling.factor)
        explicit = scaling.attention_factor
        rope["attention_factor"] = float(usual if explicit is None else explicit)
        rope["attn_factor"] = rope["attention_factor"] / usual
        rope["beta_fast"], rope["beta_slow"] = float(scaling.beta_fast), float(scaling.beta_slow)
        if not scaling.truncate:
            rope["truncate"] = False
    return rope


def config_json(
    config: ModelConfig, *, dtype: str, token_ids: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of a config.json that transformers 4 and 5 load as this architecture.

    Args:
        config: the architecture.
        dtype: dtype of the weights, e.g. "bfloat16".
        token_ids: `bos_token_id`, `eos_token_id` and `pad_token_id`, if known.

    Differs: under YaRN `max_position_embeddings` is written as factor x original length. Some
        releases of transformers 4 (4.51) ignore the written factor and use the quotient of the two
        lengths.
    """
    scaling = config.rope_scaling
    rope = rope_json(scaling)
    max_positions = config.max_position_embeddings
    if scaling is not None and scaling.rope_type == "yarn":
        max_positions = round(scaling.factor * (scaling.original_max_position_embeddings or 0))
    fields: dict[str, Any] = {
        "architectures": [config.family.architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.family.activation,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope,
        "rope_parameters": {
            **(rope or {"rope_type": "default"}),
            "rope_theta": config.rope_theta,
        },
        "attention_dropout": 0.0,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    fields |= config.family.config_fields
    return fields | {name: i for name, i in (token_ids or {}).items() if i is not None}
