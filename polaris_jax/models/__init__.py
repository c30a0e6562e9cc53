"""Dense decoders of the families in `FAMILIES`, their log-probs, and their weights on disk."""

from polaris_jax.models.attention import (
    Attention,
    ContextShard,
    attend,
    in_row_order,
    packs_rows,
    resolve_attention,
    row_order,
    shard_work,
    shares_prompts,
)
from polaris_jax.models.config import ModelConfig, RopeScaling
from polaris_jax.models.decoder import Decoder, Layers, model_tree_path
from polaris_jax.models.family import FAMILIES, Family, param_axes, param_shapes
from polaris_jax.models.heads.counted_tokens import HeadLoop, counted_logprobs, counted_loss
from polaris_jax.models.heads.logprobs import (
    CHUNK_TOKENS,
    next_token_logprobs,
    target_logprobs,
    token_logprobs,
)
from polaris_jax.models.layers import Around
from polaris_jax.models.weights.hf import (
    load_config,
    load_pretrained,
    load_with_tokenizer,
    save_pretrained,
)
from polaris_jax.models.weights.tensors import model_shardings

Qwen = Decoder

__all__ = [
    "CHUNK_TOKENS",
    "Around",
    "Attention",
    "ContextShard",
    "Decoder",
    "FAMILIES",
    "Family",
    "HeadLoop",
    "Layers",
    "attend",
    "counted_logprobs",
    "counted_loss",
    "in_row_order",
    "packs_rows",
    "resolve_attention",
    "row_order",
    "shard_work",
    "shares_prompts",
    "target_logprobs",
    "ModelConfig",
    "Qwen",
    "RopeScaling",
    "load_config",
    "load_pretrained",
    "load_with_tokenizer",
    "model_shardings",
    "model_tree_path",
    "next_token_logprobs",
    "param_axes",
    "param_shapes",
    "save_pretrained",
    "token_logprobs",
]
