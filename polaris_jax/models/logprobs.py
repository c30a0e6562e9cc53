"""Log-probs and entropies of the next token without ever holding [B, T, V]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from polaris_jax.models.attention import Attention
from polaris_jax.models.qwen import Qwen, Remat

CHUNK_TOKENS = 128


def token_logprobs(
    model: Qwen,
    token_BT: Array | np.ndarray,
    position_BT: Array | np.ndarray,
    segment_BT: Array | np.ndarray | None = None,
    temperature: float | Array | np.ndarray = 1.0,
    *,
    attention: Attention = "auto",
    remat: Remat = "none",
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Array, Array]:
    """Log-prob of each next token, and the entropy of the distribution it was drawn from.

    Entry [b, t] speaks of the prediction of token t+1 from tokens up to t, under
    softmax(logits / temperature). Both are 0 where t is last, padding, or where t+1 lies in
    another segment.

    Args:
        model: weights; computation is in their dtype, logits and results in fp32.
        token_BT: token ids in [0, V).
        position_BT: rotary positions, from 0 in each segment.
        segment_BT: 0 is padding, segments count from 1; None: one segment a row.
        temperature: > 0; a scalar, or broadcastable to [B, T].
        attention: back end, see models.attention.
        remat: "layer" keeps only each layer's input for the backward pass.
        chunk_tokens: positions whose logits are held at once, forward and backward.

    Returns:
        (logp_BT, entropy_BT), float32, nats.

    Raises:
        ValueError: a temperature <= 0.
    """
    if not isinstance(temperature, Tracer) and np.any(np.asarray(temperature) <= 0):
        raise ValueError(
            f"temperature={temperature}: log-probs need a temperature above 0; greedy sampling "
            "reports its log-probs at temperature 1"
        )
    token_BT, position_BT = jnp.asarray(token_BT), jnp.asarray(position_BT)
    segment_BT = None if segment_BT is None else jnp.asarray(segment_BT)
    hidden_BTD = model(token_BT, position_BT, segment_BT, attention=attention, remat=remat)
    return next_token_logprobs(
        model, hidden_BTD, token_BT, segment_BT, temperature, chunk_tokens=chunk_tokens
    )


def next_token_logprobs(
    model: Qwen,
    hidden_BTD: Array,
    token_BT: Array,
    segment_BT: Array | None,
    temperature: float | Array | np.ndarray,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Array, Array]:
    """`token_logprobs` from hidden states that are already there."""
    batch, length = token_BT.shape
    temperature_BT = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), (batch, length))
    target_BT = jnp.pad(token_BT[:, 1:], ((0, 0), (0, 1)))
    valid_BT = jnp.broadcast_to(jnp.arange(length)[None] < length - 1, (batch, length))
    if segment_BT is not None:
        next_BT = jnp.pad(segment_BT[:, 1:], ((0, 0), (0, 1)))
        valid_BT = valid_BT & (segment_BT > 0) & (segment_BT == next_BT)

    chunk = min(chunk_tokens, length)
    chunks = -(-length // chunk)

    def in_chunks(x: Array) -> Array:
        width = chunks * chunk - length
        x = jnp.pad(x, ((0, 0), (0, width)) + ((0, 0),) * (x.ndim - 2), mode="edge")
        return x.reshape(batch, chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one_chunk(args: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        hidden, target, temperature = args
        logit_BTV = model.unembed(hidden) / temperature[..., None]
        norm_BT = jax.nn.logsumexp(logit_BTV, axis=-1)
        chosen_BT = jnp.take_along_axis(logit_BTV, target[..., None], axis=-1)[..., 0]
        prob_BTV = jnp.exp(logit_BTV - norm_BT[..., None])
        return chosen_BT - norm_BT, norm_BT - jnp.sum(prob_BTV * logit_BTV, axis=-1)

    with jax.named_scope("logprobs"):
        logp, entropy = jax.lax.map(
            one_chunk, (in_chunks(hidden_BTD), in_chunks(target_BT), in_chunks(temperature_BT))
        )

    def whole(x: Array) -> Array:
        x_BT = x.swapaxes(0, 1).reshape(batch, chunks * chunk)[:, :length]
        return jnp.where(valid_BT, x_BT, 0.0)

    return whole(logp), whole(entropy)
