"""Architectures of published base models, for plans and shape tests without their weights."""

from __future__ import annotations

from polaris_jax.models.config import ModelConfig


def _qwen3(
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    *,
    tie_embeddings: bool,
) -> ModelConfig:
    return ModelConfig(
        vocab_size=151_936,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=40_960,
        tie_embeddings=tie_embeddings,
        model_type="qwen3",
    )


def _r1_distill_qwen(
    vocab_size: int, hidden_size: int, intermediate_size: int, num_heads: int, num_kv_heads: int
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=28,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=128,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        max_position_embeddings=131_072,
        tie_embeddings=False,
        model_type="qwen2",
    )


def _olmo2(
    hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int
) -> ModelConfig:
    return ModelConfig(
        vocab_size=100_352,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=128,
        rope_theta=5e5,
        rms_norm_eps=1e-6,
        max_position_embeddings=4096,
        tie_embeddings=False,
        model_type="olmo2",
    )


PRESETS: dict[str, ModelConfig] = {
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tie_embeddings=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, tie_embeddings=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, tie_embeddings=True),
    "qwen3-8b": _qwen3(4096, 12_288, 36, 32, tie_embeddings=False),
    "qwen3-14b": _qwen3(5120, 17_408, 40, 40, tie_embeddings=False),
    "r1-distill-qwen-1.5b": _r1_distill_qwen(151_936, 1536, 8960, 12, 2),
    "r1-distill-qwen-7b": _r1_distill_qwen(152_064, 3584, 18_944, 28, 4),
    "olmo-2-0425-1b": _olmo2(2048, 8192, 16, 16),
    "olmo-2-1124-7b": _olmo2(4096, 11_008, 32, 32),
}


def preset(name: str) -> ModelConfig:
    """The architecture called `name`; the names are Hugging Face's, with or without the owner.

    Raises:
        ValueError: there is no such preset; the message lists the known ones.
    """
    key = name.rsplit("/", 1)[-1].lower().removeprefix("deepseek-")
    if key not in PRESETS:
        raise ValueError(f"preset {name!r}: unknown; expected one of {', '.join(PRESETS)}")
    return PRESETS[key]
