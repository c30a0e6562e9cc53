"""Log-probs, and the loss with its gradient, at the tokens that count and at no others.

Prompts and padding do not enter the loss. An index brings the counted tokens to the front, and a
loop over chunks ends after the last counted token. The number of rounds is known only at run time,
so one program serves any share of counted tokens.

`counted_loss` computes logits once. A token's loss is a function of its own log-prob and entropy,
so a chunk's gradient is known as soon as its logits are. The gradient is summed in the forward
pass, and the backward pass only scales the sum. (`target_logprobs` has to compute the logits again,
because its results may enter any function.)

M is the number of tokens of a device, B x T. C is the number of tokens of a chunk. U is the number
of tokens of a chunk on all devices that share the vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polaris_jax.models.heads.logprobs import CHUNK_TOKENS, VocabShards, head_logits

Terms = dict[str, Array]
# (log-prob, entropy, terms) -> loss; all of the same tokens, elementwise.
TokenLoss = Callable[[Array, Array, Terms], Array]


@dataclasses.dataclass(frozen=True)
class HeadLoop:
    """How the loop over chunks runs; static under jit.

    Attributes:
        chunk_tokens: tokens of this device whose logits are held at once.
        vocab_axes: names of the mesh axes that split the vocabulary; inside shard_map.
        lockstep_axes: mesh axes, including the vocabulary's, whose devices all run the same number
            of rounds: that of the device with the most counted tokens. A round has collectives.
    """

    chunk_tokens: int = CHUNK_TOKENS
    vocab_axes: tuple[str, ...] = ()
    lockstep_axes: tuple[str, ...] = ()


def counted_logprobs(
    head_VD: Array,
    hidden_BTD: Array,
    target_BT: Array,
    temperature_BT: Array,
    counted_BT: Array,
    *,
    loop: HeadLoop,
) -> tuple[Array, Array]:
    """The results of `target_logprobs` at the counted tokens, 0 elsewhere; not differentiable.

    Args:
        head_VD, hidden_BTD, target_BT, temperature_BT: see `target_logprobs`.
        counted_BT: bool, True at tokens that count.
        loop: how the loop over chunks runs.

    Returns:
        (logp_BT, entropy_BT), float32, nats.
    """
    front = _Front(counted_BT, loop)
    shards = VocabShards(loop.vocab_axes, head_VD.shape[0])
    weight_VD = head_VD.astype(hidden_BTD.dtype)

    def one(x: Array, packed: tuple[Array, Array]) -> tuple[Array, Array]:
        chunk = _score(front, shards, weight_VD, x, (hidden_BTD, target_BT, temperature_BT))
        return front.put(packed[0], chunk.logp_C, x), front.put(packed[1], chunk.entropy_C, x)

    with jax.named_scope("logprobs"):
        logp_M, entropy_M = front.run(one, (front.empty(), front.empty()))
        return front.back(logp_M), front.back(entropy_M)


def counted_loss(
    head_VD: Array,
    hidden_BTD: Array,
    target_BT: Array,
    temperature_BT: Array,
    counted_BT: Array,
    terms: Terms,
    *,
    token_loss: TokenLoss,
    loop: HeadLoop,
) -> tuple[Array, Array, Array]:
    """The sum of `token_loss` over this device's counted tokens, with log-probs and entropies.

    Only the loss has a gradient, in head and hidden states. The head's gradient is summed in the
    head's own dtype, so a float32 head keeps a float32 sum under bfloat16 hidden states.

    Args:
        head_VD, hidden_BTD, target_BT, temperature_BT: see `target_logprobs`.
        counted_BT: bool, True at tokens that count.
        terms: other inputs of a token's loss, [B, T] each; not differentiated.
        token_loss: elementwise function, called on chunks with the same names in `terms`.
        loop: how the loop over chunks runs.

    Returns:
        (loss, logp_BT, entropy_BT), float32. The last two are in nats, 0 at tokens that do not
        count, and have no gradient.
    """
    static = (token_loss, loop)
    with jax.named_scope("logprobs"):
        result: Any = _loss(
            static, head_VD, hidden_BTD, target_BT, temperature_BT, counted_BT, terms
        )
    loss, logp_BT, entropy_BT = result
    return loss, jax.lax.stop_gradient(logp_BT), jax.lax.stop_gradient(entropy_BT)


Static = tuple[TokenLoss, HeadLoop]
Results = tuple[Array, Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(static: Static, head_VD: Array, hidden_BTD: Array, *others: Any) -> Results:
    return _loss_forward(static, head_VD, hidden_BTD, *others)[0]


def _loss_forward(
    static: Static,
    head_VD: Array,
    hidden_BTD: Array,
    target_BT: Array,
    temperature_BT: Array,
    counted_BT: Array,
    terms: Terms,
) -> tuple[Results, tuple[Array, Array]]:
    token_loss, loop = static
    front = _Front(counted_BT, loop)
    shards = VocabShards(loop.vocab_axes, head_VD.shape[0])
    weight_VD = head_VD.astype(hidden_BTD.dtype)

    def one(x: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        loss, grad_VD, grad_MD, logp_M, entropy_M = carry
        chunk = _score(front, shards, weight_VD, x, (hidden_BTD, target_BT, temperature_BT))
        live_C = front.live(x)
        terms_C = {name: front.take(term_BT, x) for name, term_BT in terms.items()}

        def of_chunk(logp_C: Array, entropy_C: Array) -> Array:
            return jnp.sum(jnp.where(live_C, token_loss(logp_C, entropy_C, terms_C), 0.0))

        share, slopes = jax.value_and_grad(of_chunk, argnums=(0, 1))(chunk.logp_C, chunk.entropy_C)
        to_logp_U, to_entropy_U = (shards.gather(slope_C) for slope_C in slopes)
        # d logp / d logit = 1[target] - p;  d entropy / d logit = -p (log p + entropy).
        log_mass_U, entropy_U = shards.gather(jnp.log(chunk.mass_C)), shards.gather(chunk.entropy_C)
        log_UV = chunk.shifted_UV - log_mass_U[:, None]
        slope_UV = to_logp_U[:, None] + to_entropy_U[:, None] * (log_UV + entropy_U[:, None])
        grad_UV = chunk.mass_UV * (-1.0 / shards.gather(chunk.mass_C))[:, None] * slope_UV
        grad_UV = grad_UV + jnp.where(shards.is_target(chunk.target_U), to_logp_U[:, None], 0.0)
        grad_UV = (grad_UV / chunk.temperature_U[:, None]).astype(hidden_BTD.dtype)
        grad_VD = grad_VD + jnp.einsum(
            "uv,ud->vd", grad_UV, chunk.hidden_UD, preferred_element_type=grad_VD.dtype
        )
        back_UD = jnp.einsum(
            "uv,vd->ud", grad_UV, weight_VD, preferred_element_type=hidden_BTD.dtype
        )
        grad_MD = front.put(grad_MD, shards.sum(back_UD), x)
        logp_M, entropy_M = (
            front.put(packed_M, values_C, x)
            for packed_M, values_C in ((logp_M, chunk.logp_C), (entropy_M, chunk.entropy_C))
        )
        return loss + share, grad_VD, grad_MD, logp_M, entropy_M

    no_rows_MD = front.empty(hidden_BTD.shape[-1], dtype=hidden_BTD.dtype)
    zero = jnp.zeros((), jnp.float32)
    start = (zero, jnp.zeros_like(head_VD), no_rows_MD, front.empty(), front.empty())
    loss, grad_VD, grad_MD, logp_M, entropy_M = front.run(one, start)
    results = (loss, front.back(logp_M), front.back(entropy_M))
    return results, (grad_VD, front.back(grad_MD))


def _loss_backward(
    static: Static, saved: tuple[Array, Array], cotangents: Results
) -> tuple[Array, Array, Any, None, Any, None]:
    grad_VD, grad_BTD = saved
    scale = cotangents[0]
    no_gradient = np.zeros(grad_BTD.shape[:2], jax.dtypes.float0)
    scaled_BTD = grad_BTD * scale.astype(grad_BTD.dtype)
    return grad_VD * scale.astype(grad_VD.dtype), scaled_BTD, no_gradient, None, no_gradient, None


_loss.defvjp(_loss_forward, _loss_backward)


@dataclasses.dataclass(frozen=True)
class _Scored:
    """One chunk: gathered inputs, softmax before the division by its mass, own tokens' results."""

    hidden_UD: Array
    target_U: Array
    temperature_U: Array
    shifted_UV: Array
    mass_UV: Array
    mass_C: Array
    logp_C: Array
    entropy_C: Array


def _score(
    front: _Front,
    shards: VocabShards,
    weight_VD: Array,
    x: Array,
    inputs: tuple[Array, Array, Array],
) -> _Scored:
    hidden_UD, target_U, temperature_U = (shards.gather(front.take(i, x)) for i in inputs)
    logit_UV = head_logits(hidden_UD, weight_VD)
    top_U = shards.max(jnp.max(logit_UV, axis=-1))
    shifted_UV = (logit_UV - top_U[:, None]) / temperature_U[:, None]
    mass_UV = jnp.exp(shifted_UV)
    mass_C = shards.sum(jnp.sum(mass_UV, axis=-1))
    moment_C = shards.sum(jnp.sum(mass_UV * shifted_UV, axis=-1))
    chosen_C = shards.sum(shards.at_target(shifted_UV, target_U))
    return _Scored(
        hidden_UD=hidden_UD,
        target_U=target_U,
        temperature_U=temperature_U,
        shifted_UV=shifted_UV,
        mass_UV=mass_UV,
        mass_C=mass_C,
        logp_C=chosen_C - jnp.log(mass_C),
        entropy_C=jnp.log(mass_C) - moment_C / mass_C,
    )


class _Front:
    """The counted tokens at the front, in row order, and the loop over their chunks."""

    def __init__(self, counted_BT: Array, loop: HeadLoop):
        tokens = counted_BT.size
        self._shape = counted_BT.shape
        self._chunk = min(loop.chunk_tokens, tokens)
        self._most = -(-tokens // self._chunk)
        self._lockstep_axes = loop.lockstep_axes
        counted_M = counted_BT.reshape(tokens)
        self._counted_BT = counted_BT
        self._count = jnp.sum(counted_M, dtype=jnp.int32)
        self._place_BT = jnp.maximum(jnp.cumsum(counted_M, dtype=jnp.int32) - 1, 0).reshape(
            self._shape
        )
        order_M = jnp.argsort(~counted_M, stable=True).astype(jnp.int32)
        self._order_XC = jnp.pad(order_M, (0, self._most * self._chunk - tokens)).reshape(
            self._most, self._chunk
        )

    def take(self, x_BT: Array, x: Array) -> Array:
        """[C, ...] of chunk `x`, from [B, T, ...]."""
        return x_BT.reshape(-1, *x_BT.shape[2:])[self._order_XC[x]]

    def live(self, x: Array) -> Array:
        """bool [C]: False at the padding of the last chunk."""
        return x * self._chunk + jnp.arange(self._chunk) < self._count

    def empty(self, *rest: int, dtype: Any = jnp.float32) -> Array:
        """Zeros for the results of all chunks."""
        return jnp.zeros((self._most * self._chunk, *rest), dtype)

    def put(self, packed_M: Array, values_C: Array, x: Array) -> Array:
        """`packed_M` with the results of chunk `x` written into it."""
        return jax.lax.dynamic_update_slice_in_dim(packed_M, values_C, x * self._chunk, 0)

    def back(self, packed_M: Array) -> Array:
        """[B, T, ...]: each token's result at its place, 0 at tokens that do not count."""
        counted = self._counted_BT.reshape(*self._shape, *(1,) * (packed_M.ndim - 1))
        return jnp.where(counted, packed_M[self._place_BT], 0)

    def run(self, one: Callable[[Array, Any], Any], start: Any) -> Any:
        """`one(chunk's index, carry)` for every chunk that holds a counted token."""
        rounds = -(-self._count // self._chunk)
        if self._lockstep_axes:
            rounds = jax.lax.pmax(rounds, self._lockstep_axes)

        def going(state: tuple[Array, Any]) -> Array:
            # The second condition never decides: it gives plan.hlo the largest number of rounds.
            return (state[0] < rounds) & (state[0] < self._most)

        def step(state: tuple[Array, Any]) -> tuple[Array, Any]:
            return state[0] + 1, one(*state)

        return jax.lax.while_loop(going, step, (jnp.int32(0), start))[1]
