"""A small sharp model, and what the rollout tests measure against: no pages, no batch, no cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polaris_jax.models import Decoder, ModelConfig
from polaris_jax.rollout.programs.draw import RowParams, row_keys, row_uniforms
from tests.support.random_models import random_model
from tests.tolerances import NEAR_TIE

CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_position_embeddings=256,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=True,
)


@functools.cache
def small_model(seed: int = 0) -> Decoder:
    """Weights three times the usual: the next token depends visibly on what came before."""
    return random_model(CONFIG, seed, scale=3.0)


def random_prompts(count: int, *, seed: int = 0, longest: int = 30) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, CONFIG.vocab_size, rng.integers(1, longest + 1)).tolist()
        for _ in range(count)
    ]


@functools.partial(jax.jit, static_argnums=2)
def _padded_logits(model: Decoder, token_T: jax.Array, length: int) -> jax.Array:
    position_BT = jnp.arange(length)[None]
    return model.unembed(model(token_T[None], position_BT, attention="reference"))[0]


def dense_logits_along(model: Decoder, tokens: list[int]) -> np.ndarray:
    """[T, V] logits after each of `tokens`, recomputed from nothing."""
    length = 64 * -(-len(tokens) // 64)
    token_T = np.zeros(length, np.int32)
    token_T[: len(tokens)] = tokens
    return np.asarray(_padded_logits(model, token_T, length))[: len(tokens)]


def dense_logits(model: Decoder, tokens: list[int]) -> np.ndarray:
    """Logits after the last of `tokens`, recomputed from nothing."""
    return dense_logits_along(model, tokens)[-1]


def uniform_at(seed: int, sample: int, response_position: int) -> float:
    """The number that the product draws with, by the definition of its key."""
    key = jax.random.fold_in(jax.random.key(np.uint32(seed)), sample)
    return float(jax.random.uniform(jax.random.fold_in(key, response_position)))


@functools.partial(jax.jit, static_argnums=2)
def _uniforms(seed: jax.Array, sample: jax.Array, count: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), sample)
    draw = jax.vmap(lambda at: jax.random.uniform(jax.random.fold_in(key, at)))
    return draw(jnp.arange(count))


def uniforms_of(seed: int, sample: int, count: int) -> np.ndarray:
    """`uniform_at` of a response's positions from 0 on."""
    length = 64 * -(-count // 64)
    return np.asarray(_uniforms(np.uint32(seed), np.int32(sample), length))[:count]


def product_uniform(seed: int, sample: int, response_position: int) -> float:
    """The same number from the product's own functions."""
    params = RowParams(
        temperature_B=np.ones(1, np.float32),
        top_p_B=np.ones(1, np.float32),
        top_k_B=np.zeros(1, np.int32),
        min_p_B=np.zeros(1, np.float32),
        seed_B=np.array([seed], np.uint32),
        sample_B=np.array([sample], np.int32),
    )
    return float(row_uniforms(row_keys(params), np.array([response_position], np.int32))[0])


def is_near_tie(logits: np.ndarray, temperature: float, uniform: float, pair: set[int]) -> bool:
    """True when rounding can decide between the two tokens of `pair`."""
    if temperature == 0:
        a, b = (float(logits[t]) for t in pair)
        return abs(a - b) <= NEAR_TIE
    scaled = logits.astype(np.float64) / temperature
    mass = np.exp(scaled - scaled.max())
    running = np.cumsum(mass) / mass.sum()
    return abs(running[min(pair)] - uniform) <= NEAR_TIE


def differing_tokens(ours, theirs, *, model, prompts, temperatures, seeds) -> tuple[int, float]:
    """(sequences that part at a near tie, largest log-prob difference up to there).

    Raises:
        AssertionError: two sequences part where no near tie explains it.
    """
    parted, largest = 0, 0.0
    for p, (ours_of_p, theirs_of_p) in enumerate(zip(ours, theirs, strict=True)):
        for s, (a, b) in enumerate(zip(ours_of_p, theirs_of_p, strict=True)):
            same = 0
            for x, y in zip(a.token_ids, b.token_ids, strict=False):
                if x != y:
                    break
                same += 1
            gaps = np.subtract(a.logprobs[:same], b.logprobs[:same])
            largest = max(largest, float(np.abs(gaps).max(initial=0)))
            if a.token_ids == b.token_ids:
                continue
            logits = dense_logits(model, [*prompts[p], *a.token_ids[:same]])
            uniform = uniform_at(seeds[p], s, same)
            pair = {a.token_ids[same], b.token_ids[same]}
            assert is_near_tie(logits, temperatures[p], uniform, pair), (p, s, same, pair)
            parted += 1
    return parted, largest
