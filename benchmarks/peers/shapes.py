"""Model shapes of `benchmarks/update.py`: Qwen3, tied embeddings."""

from __future__ import annotations

import case as step_case

from polaris_jax.models import ModelConfig


def _qwen3(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    vocab: int = step_case.WORKLOADS["U1"].vocab,
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=64,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=2048,
        tie_embeddings=True,
        qkv_bias=False,
        qk_norm=True,
    )


SHAPES = {
    "peers": _qwen3(384, 1152, 7, 6, 2),
    "vocabulary": _qwen3(384, 1152, 7, 6, 2, vocab=step_case.WORKLOADS["U2"].vocab),
    "100m": _qwen3(768, 2304, 12, 12, 4),
}
# The model of each workload.
SHAPE_OF = {"U1": "peers", "U2": "vocabulary", "U3": "peers"}
