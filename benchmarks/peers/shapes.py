"""Model shapes of `benchmarks/update.py`: Qwen3, tied embeddings."""

from __future__ import annotations

import case as step_case

from polaris_jax.models import ModelConfig


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=step_case.VOCAB,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=64,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=1024,
        tie_embeddings=True,
        qkv_bias=False,
        qk_norm=True,
    )


SHAPES = {"peers": _qwen3(384, 1152, 7, 6, 2), "100m": _qwen3(768, 2304, 12, 12, 4)}
