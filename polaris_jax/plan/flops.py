"""FLOPs of each program, counted from shapes.

XLA's cost analysis counts a loop's body once and a Pallas kernel as nothing.
"""

from __future__ import annotations

from polaris_jax.metrics.throughput import forward_flops_per_token, train_flops_per_token
from polaris_jax.models import ModelConfig


def update_flops(model: ModelConfig, *, rows: int, row_len: int, remat: bool) -> float:
    """FLOPs of one microbatch whose rows are full and hold one segment each.

    Counts the forward and backward pass, and with `remat` a second forward pass.
    """
    per_token = train_flops_per_token(model, (row_len + 1) / 2, remat=remat)
    return rows * row_len * per_token


def apply_flops(model: ModelConfig) -> float:
    """FLOPs of the gradient clip and AdamW: about 16 a weight."""
    return 16.0 * model.num_parameters


def prefill_flops(model: ModelConfig, *, tokens: int, context_tokens: float) -> float:
    """FLOPs of a prefill call: all layers, no head."""
    head = 2.0 * model.vocab_size * model.hidden_size
    return tokens * (forward_flops_per_token(model, context_tokens) - head)


def decode_flops(model: ModelConfig, *, slots: int, steps: int, context_tokens: float) -> float:
    """FLOPs of a decode call in which every slot draws `steps` tokens."""
    return slots * steps * forward_flops_per_token(model, context_tokens)
