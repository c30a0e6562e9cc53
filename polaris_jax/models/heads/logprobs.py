"""Log-probs and entropies of the next token without a [B, T, V] array.

`target_logprobs` runs over chunks of tokens, forward and backward. The backward pass is written by
hand: a chunk's logits are computed again, and the head's gradient is summed over chunks in the
head's own dtype, so a float32 head keeps a float32 sum under bfloat16 hidden states.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from polaris_jax.models.attention import Attention
from polaris_jax.models.decoder import Decoder, Remat

CHUNK_TOKENS = 512
# Residuals of the backward pass: inputs, then each token's largest logit, log of the mass relative
# to it, and entropy.
Residuals = tuple[Array, Array, Array, Array, Array, Array, Array]


def token_logprobs(
    model: Decoder,
    token_BT: Array | np.ndarray,
    position_BT: Array | np.ndarray,
    segment_BT: Array | np.ndarray | None = None,
    temperature: float | Array | np.ndarray = 1.0,
    *,
    attention: Attention = "auto",
    remat: Remat = "none",
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Array, Array]:
    """Log-prob of each next token, and the entropy of the next token's distribution.

    Entry [b, t] is for the prediction of token t+1 from tokens up to t, under
    softmax(logits / temperature). Both results are 0 if t is the last token or padding, or if t+1
    lies in another segment.

    Args:
        model: the model; computation is in its weights' dtype, logits and results in float32.
        token_BT: token ids in [0, V).
        position_BT: rotary positions, from 0 in each segment.
        segment_BT: 0 is padding, segments count from 1; None: one segment a row.
        temperature: > 0; a scalar, or broadcastable to [B, T]. Not differentiated.
        attention: back end, see models.attention.
        remat: "layer" keeps only each layer's input for the backward pass.
        chunk_tokens: number of tokens whose logits are held at once, forward and backward.

    Returns:
        (logp_BT, entropy_BT), float32, nats.

    Raises:
        ValueError: a temperature is not above 0, the shapes do not fit each other, or
            `chunk_tokens` is below 1.
    """
    if not isinstance(temperature, Tracer) and not np.all(np.asarray(temperature) > 0):
        raise ValueError(
            f"temperature={temperature}: log-probs need a temperature above 0; greedy sampling "
            "reports its log-probs at temperature 1"
        )
    token_BT, position_BT = jnp.asarray(token_BT), jnp.asarray(position_BT)
    _check_arguments(token_BT, position_BT, segment_BT, temperature, chunk_tokens=chunk_tokens)
    segment_BT = None if segment_BT is None else jnp.asarray(segment_BT)
    hidden_BTD = model(token_BT, position_BT, segment_BT, attention=attention, remat=remat)
    return next_token_logprobs(
        model, hidden_BTD, token_BT, segment_BT, temperature, chunk_tokens=chunk_tokens
    )


def _check_arguments(
    token_BT: Array,
    position_BT: Array,
    segment_BT: Array | np.ndarray | None,
    temperature: Any,
    *,
    chunk_tokens: int,
) -> None:
    if token_BT.ndim != 2:
        raise ValueError(
            f"token_BT of shape {token_BT.shape}: must be [B, T]; give one row as [tokens]"
        )
    others = {"position_BT": position_BT, "segment_BT": segment_BT}
    for name, other in others.items():
        if other is not None and np.shape(other) != token_BT.shape:
            raise ValueError(
                f"{name} of shape {np.shape(other)}: must be token_BT's, {token_BT.shape}"
            )
    shape = np.shape(temperature)
    fits = len(shape) <= 2 and all(
        own in (1, whole) for own, whole in zip(shape[::-1], token_BT.shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"temperature of shape {shape}: must broadcast to token_BT's, {token_BT.shape}; one a "
            "row is [B, 1]"
        )
    if chunk_tokens < 1:
        raise ValueError(
            f"chunk_tokens={chunk_tokens}: must be at least 1, tokens whose logits are held at once"
        )


def next_token_logprobs(
    model: Decoder,
    hidden_BTD: Array,
    token_BT: Array,
    segment_BT: Array | None,
    temperature: float | Array | np.ndarray,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Array, Array]:
    """`token_logprobs` from hidden states that are already computed."""
    batch, length = token_BT.shape
    target_BT = jnp.pad(token_BT[:, 1:], ((0, 0), (0, 1)))
    valid_BT = jnp.broadcast_to(jnp.arange(length)[None] < length - 1, (batch, length))
    if segment_BT is not None:
        next_BT = jnp.pad(segment_BT[:, 1:], ((0, 0), (0, 1)))
        valid_BT = valid_BT & (segment_BT > 0) & (segment_BT == next_BT)
    logp_BT, entropy_BT = target_logprobs(
        model.head_weight(),
        hidden_BTD,
        target_BT,
        jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), (batch, length)),
        chunk_tokens=chunk_tokens,
    )
    return jnp.where(valid_BT, logp_BT, 0.0), jnp.where(valid_BT, entropy_BT, 0.0)


def target_logprobs(
    head_VD: Array,
    hidden_BTD: Array,
    target_BT: Array,
    temperature_BT: Array,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    vocab_axes: tuple[str, ...] = (),
) -> tuple[Array, Array]:
    """Log-prob of `target_BT` and the entropy, under softmax(hidden head^T / temperature).

    With `vocab_axes` (inside shard_map) every device holds its own tokens and its own slice of the
    vocabulary. A chunk's hidden states are gathered over these axes, each device computes the
    logits of its slice, and the sums are scattered back to the tokens' devices.

    Args:
        head_VD: the head, or this device's slice of its rows. The head is cast to the hidden
            states' dtype for the matrix products; its gradient is summed in the head's own dtype.
        hidden_BTD: final hidden states.
        target_BT: token ids in [0, V), where V is the complete vocabulary.
        temperature_BT: > 0, float32; not differentiated.
        chunk_tokens: number of this device's tokens whose logits are held at once.
        vocab_axes: names of the mesh axes that split the vocabulary.

    Returns:
        (logp_BT, entropy_BT), float32, nats.
    """
    batch, length, width = hidden_BTD.shape
    tokens = batch * length
    chunk = min(chunk_tokens, tokens)
    chunks = -(-tokens // chunk)

    def in_chunks(x: Array, *rest: int) -> Array:
        x = x.reshape(tokens, *rest)
        x = jnp.pad(x, ((0, chunks * chunk - tokens),) + ((0, 0),) * len(rest), mode="edge")
        return x.reshape(chunks, chunk, *rest)

    with jax.named_scope("logprobs"):
        results: Any = _chunked(
            vocab_axes,
            head_VD,
            in_chunks(hidden_BTD, width),
            in_chunks(target_BT),
            in_chunks(temperature_BT),
        )

    def whole(x_XC: Array) -> Array:
        return x_XC.reshape(-1)[:tokens].reshape(batch, length)

    return whole(results[0]), whole(results[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    vocab_axes: tuple[str, ...],
    head_VD: Array,
    hidden_XCD: Array,
    target_XC: Array,
    temperature_XC: Array,
) -> tuple[Array, Array]:
    return _forward(vocab_axes, head_VD, hidden_XCD, target_XC, temperature_XC)[0]


def _forward(
    vocab_axes: tuple[str, ...],
    head_VD: Array,
    hidden_XCD: Array,
    target_XC: Array,
    temperature_XC: Array,
) -> tuple[tuple[Array, Array], Residuals]:
    """Chunks X of C tokens each, one after the other."""
    shards = VocabShards(vocab_axes, head_VD.shape[0])
    weight_VD = head_VD.astype(hidden_XCD.dtype)

    def one(args: tuple[Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        hidden_CD, target_C, temperature_C = (shards.gather(x) for x in args)
        logit_CV = head_logits(hidden_CD, weight_VD)
        top_C = shards.max(jnp.max(logit_CV, axis=-1))
        # Divided last: the likeliest token's log-prob is exact at any temperature.
        shifted_CV = (logit_CV - top_C[:, None]) / temperature_C[:, None]
        mass_CV = jnp.exp(shifted_CV)
        mass_C = shards.sum(jnp.sum(mass_CV, axis=-1))
        moment_C = shards.sum(jnp.sum(mass_CV * shifted_CV, axis=-1))
        chosen_C = shards.sum(shards.at_target(shifted_CV, target_C))
        log_mass_C = jnp.log(mass_C)
        entropy_C = log_mass_C - moment_C / mass_C
        return chosen_C - log_mass_C, entropy_C, shards.own(top_C), log_mass_C

    logp_XC, entropy_XC, *norm = jax.lax.map(one, (hidden_XCD, target_XC, temperature_XC))
    saved = (head_VD, hidden_XCD, target_XC, temperature_XC, *norm, entropy_XC)
    return (logp_XC, entropy_XC), saved


def _backward(
    vocab_axes: tuple[str, ...], saved: Residuals, cotangents: tuple[Array, Array]
) -> tuple[Array, Array, Any, None]:
    head_VD, hidden_XCD, *_ = saved
    shards = VocabShards(vocab_axes, head_VD.shape[0])
    weight_VD = head_VD.astype(hidden_XCD.dtype)

    def one(grad_VD: Array, args: tuple[Array, ...]) -> tuple[Array, Array]:
        hidden_CD, target_C, temperature_C, top_C, log_mass_C, entropy_C, *slopes = (
            shards.gather(x) for x in args
        )
        to_logp_C, to_entropy_C = slopes
        distance_CV = head_logits(hidden_CD, weight_VD) - top_C[:, None]
        log_CV = distance_CV / temperature_C[:, None] - log_mass_C[:, None]
        # d logp / d logit = 1[target] - p;  d entropy / d logit = -p (log p + entropy).
        slope_CV = to_logp_C[:, None] + to_entropy_C[:, None] * (log_CV + entropy_C[:, None])
        grad_CV = -jnp.exp(log_CV) * slope_CV
        grad_CV = grad_CV + jnp.where(shards.is_target(target_C), to_logp_C[:, None], 0.0)
        grad_CV = (grad_CV / temperature_C[:, None]).astype(hidden_CD.dtype)
        grad_VD = grad_VD + jnp.einsum(
            "cv,cd->vd", grad_CV, hidden_CD, preferred_element_type=grad_VD.dtype
        )
        back_CD = jnp.einsum(
            "cv,vd->cd", grad_CV, weight_VD, preferred_element_type=hidden_CD.dtype
        )
        return grad_VD, shards.sum(back_CD)

    grad_VD, grad_XCD = jax.lax.scan(one, jnp.zeros_like(head_VD), (*saved[1:], *cotangents))
    return grad_VD, grad_XCD, np.zeros(saved[2].shape, jax.dtypes.float0), None


_chunked.defvjp(_forward, _backward)


def head_logits(hidden_CD: Array, weight_VD: Array) -> Array:
    """float32 logits [C, V]."""
    return jnp.einsum("cd,vd->cv", hidden_CD, weight_VD, preferred_element_type=jnp.float32)


class VocabShards:
    """The exchanges between devices that hold slices of the vocabulary.

    Every device of a group holds its own tokens and its own slice of the vocabulary. Without axes
    the methods exchange nothing.

    Args:
        axes: names of the mesh axes that split the vocabulary, inside shard_map; empty: one slice.
        rows: number of rows in this device's slice.
    """

    def __init__(self, axes: tuple[str, ...], rows: int):
        self._axes, self._rows = axes, rows

    def gather(self, x: Array) -> Array:
        """The chunks of all devices, concatenated along the first dimension."""
        return jax.lax.all_gather(x, self._axes, axis=0, tiled=True) if self._axes else x

    def sum(self, x: Array) -> Array:
        """The sum over the vocabulary's slices, for this device's tokens only."""
        return jax.lax.psum_scatter(x, self._axes, tiled=True) if self._axes else x

    def max(self, x: Array) -> Array:
        """The maximum over the vocabulary's slices, for all tokens."""
        return jax.lax.pmax(x, self._axes) if self._axes else x

    def own(self, x: Array) -> Array:
        """The entries of a gathered array that belong to this device's tokens."""
        if not self._axes:
            return x
        size = x.shape[0] // jax.lax.axis_size(self._axes)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(self._axes) * size, size)

    def is_target(self, target_C: Array) -> Array:
        """[C, V], True at each token's target if the target lies in this slice."""
        first = jax.lax.axis_index(self._axes) * self._rows if self._axes else 0
        return (target_C - first)[:, None] == jnp.arange(self._rows)[None]

    def at_target(self, logit_CV: Array, target_C: Array) -> Array:
        """The target's logit; 0 if another slice holds the target."""
        if not self._axes:
            return jnp.take_along_axis(logit_CV, target_C[:, None], axis=-1)[:, 0]
        return jnp.sum(jnp.where(self.is_target(target_C), logit_CV, 0.0), axis=-1)
